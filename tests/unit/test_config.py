from pathlib import Path

import pytest

from cima_runc.config import Settings, load_settings, parse_settings
from cima_runc.runtime.shim_settings import SettingsError


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_settings(str(tmp_path / "none")) == Settings()


def test_a_file_with_every_section(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'on_agent_unavailable = "allow"\nruntimes = ["/usr/bin/crun", "runc"]\n'
        '[tpm]\ntcti = "swtpm:host=localhost,port=2321"\npcr = 15\n'
        "[ima]\nrequired = false\n[sensor]\nring_mib = 4\n"
        '[binding]\nmode = "sync"\ngroup_ms = 5\n'
    )
    settings = load_settings(str(path))
    assert settings.shim.on_agent_unavailable == "allow"
    assert settings.shim.runtimes == ("/usr/bin/crun", "runc")
    assert (settings.tpm.pcr, settings.ima.required, settings.sensor.ring_mib) == (15, False, 4)
    assert settings.binding.mode == "sync"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": 1}, ["colour", "runtimes", "tpm"]),
        ({"on_agent_unavailable": "maybe"}, ["on_agent_unavailable", "maybe", "refuse", "allow"]),
        ({"runtimes": []}, ["runtimes", "list"]),
        ({"runtimes": ["a/b"]}, ["runtimes", "a/b"]),
        ({"runtimes": "runc"}, ["runtimes", "runc"]),
        ({"hook_stage": "poststart"}, ["hook_stage", "poststart", "createRuntime"]),
        ({"hook_timeout_seconds": 0}, ["hook_timeout_seconds", "0", "3600"]),
        ({"hook_timeout_seconds": True}, ["hook_timeout_seconds", "True"]),
        ({"socket": "agent.sock"}, ["socket", "absolute"]),
        ({"tpm": {"pcr": 24}}, ["tpm.pcr", "24", "23"]),
        ({"tpm": {"pcr": "12"}}, ["tpm.pcr", "'12'"]),
        ({"tpm": {"register": 12}}, ["tpm.register", "pcr", "tcti"]),
        ({"tpm": 5}, ["tpm", "5"]),
        ({"binding": {"mode": "never"}}, ["binding.mode", "never", "quote"]),
        ({"sensor": {"ring_mib": 3}}, ["sensor", "power of two"]),
        ({"sensor": {"measure_reads": ["*.p*"]}}, ["sensor.measure_reads", "*.p*"]),
        ({"sensor": {"measure_reads": ["a/b"]}}, ["sensor.measure_reads", "a/b"]),
        ({"sensor": {"measure_reads": [""]}}, ["sensor.measure_reads"]),
        ({"sensor": {"measure_reads": ["**"]}}, ["sensor.measure_reads"]),
        ({"sensor": {"measure_reads": ["*" + "x" * 30]}}, ["sensor.measure_reads"]),
        ({"sensor": {"measure_reads": ["*.py"] * 17}}, ["sensor.measure_reads", "16"]),
        ({"enforcement": {"enforce": True}, "sensor": {"required": False}}, ["sensor.required"]),
        ({"enforcement": {"enforce": True}, "rootfs": {"mode": "off"}}, ["rootfs.mode"]),
        ({"enforcement": {"allow": ["A" * 64]}}, ["enforcement.allow"]),
        ({"limits": {"records": 1}}, ["limits.records", "100"]),
    ],
)
def test_what_is_not_allowed_is_named(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(values)
    assert all(word in refused.value.what for word in words), refused.value.what


@pytest.mark.parametrize("text", ["a = ", "\xff", "a = 1\na = 2\n"])
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match="not TOML"):
        load_settings(str(path))


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(str(tmp_path))
