import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cima_runc.cli import context, doctor, shapes
from cima_runc.cli.main import app
from cima_runc.runtime import installation, oci_hooks
from cima_runc.runtime.shim_settings import SETTINGS_FILE


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file of a host that has nothing but a low-level runtime."""
    runtime = tmp_path / "some-runtime"
    runtime.write_text("#!/bin/sh\necho some-runtime version 1\necho more\n")
    runtime.chmod(0o755)
    path = tmp_path / "config.toml"
    path.write_text(
        f'runtimes = ["{runtime}"]\nsocket = "{tmp_path}/no.sock"\nstate_dir = "{tmp_path}/state"\n'
        f'[ima]\ndirectory = "{tmp_path}/ima"\n[tpm]\ntcti = "device:{tmp_path}/tpm"\n'
    )
    return path


def diagnosed(settings: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    try:
        ran = CliRunner().invoke(app, ["--config", str(settings), "doctor", "--json"])
    finally:
        context.choose(SETTINGS_FILE)
    shapes.check(("doctor", "--json"), ran.stdout)
    return ran.exit_code, {one["check"]: one for one in json.loads(ran.stdout)}


def test_every_check_is_made_and_says_what_to_do(settings: Path) -> None:
    code, found = diagnosed(settings)
    assert code == 2
    assert found["runtime"]["state"] == "ok"
    assert "some-runtime version 1 " in found["runtime"]["what"]
    for check in ("ima", "tpm", "agent"):
        assert found[check]["state"] == "fail"
        assert found[check]["next"]
    assert "CONFIG_IMA" in found["ima"]["next"]
    assert "systemctl start cima-agent" in found["agent"]["next"]


def test_what_is_not_required_only_warns(settings: Path) -> None:
    text = settings.read_text().replace("[ima]\n", "[ima]\nrequired = false\n")
    settings.write_text(text.replace("[tpm]\n", "[tpm]\nrequired = false\n"))
    _, found = diagnosed(settings)
    assert (found["ima"]["state"], found["tpm"]["state"]) == ("warn", "warn")


def test_a_missing_runtime_fails(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "some-runtime").unlink()
    _, found = diagnosed(settings)
    assert found["runtime"]["state"] == "fail"
    assert "some-runtime" in found["runtime"]["what"]


def test_for_a_person_it_prints_a_table_and_the_next_steps(settings: Path) -> None:
    try:
        ran = CliRunner().invoke(app, ["--config", str(settings), "doctor"])
    finally:
        context.choose(SETTINGS_FILE)
    lines = ran.stdout.splitlines()
    assert lines[0].split() == ["CHECK", "WHAT"]
    assert any(line.startswith("agent: start it with") for line in lines)


def test_an_installation_that_others_can_change_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [tmp_path / "hooks" / name for name in oci_hooks.NAMES]
    for path in (tmp_path / "cima-runc", *names):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        path.chmod(0o755)
    monkeypatch.setattr(installation, "launcher", lambda: tmp_path / "cima-runc")
    monkeypatch.setattr(installation, "hooks_dir", lambda: tmp_path / "hooks")
    assert doctor._installation()
    os.chmod(tmp_path / "hooks", 0o777)
    with pytest.raises(doctor.UnfitError, match="hooks can be changed by others"):
        doctor._installation()
