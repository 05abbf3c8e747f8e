"""The configuration that is measured is the one that runs: bundles of others, files that change,
hooks of others, and a configuration under another name."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import native_host
import pytest
from native_host import Host, make_bundle

ALICE = 2001


@pytest.fixture
def place() -> Iterator[Path]:
    """Where everybody may come: pytest's own directories are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="cima-bundles-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def run(
    host: Host, bundle: Path, *options: str, name: str = "bundles"
) -> subprocess.CompletedProcess[str]:
    command = [host.cima_runc, "run", "--bundle", str(bundle), *options, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    subprocess.run(["runc", "delete", "--force", name], capture_output=True, check=False)
    return done


def contents(host: Host, name: str, kind: str) -> list[dict[str, Any]]:
    lines = native_host.ask(host.prefix, "log", name).splitlines()
    found = [json.loads(line)["content"] for line in lines]
    return [each for each in found if each.get("type") == kind]


def edit(bundle: Path, change: dict[str, Any], name: str = "config.json") -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / name).write_text(json.dumps(config | change))


@pytest.mark.parametrize("part", ["a", "a/bundle", "a/bundle/config.json"])
def test_a_bundle_that_somebody_else_may_write(host: Host, place: Path, part: str) -> None:
    """Refused by name, by the agent's way and by the launcher's own."""
    bundle = make_bundle(place / "a/bundle", "/bin/echo", "hello")
    os.chown(place / part, ALICE, ALICE)
    before = (bundle / "config.json").read_bytes()
    done = run(host, bundle)
    assert done.returncode != 0 and "hello" not in done.stdout
    assert f"{place / part} may be written by user {ALICE}" in done.stderr
    assert "foreign_bundles" in done.stderr
    assert (bundle / "config.json").read_bytes() == before
    # Where our hooks came in before it was given away, the agent looks too.
    os.chown(place / part, 0, 0)
    assert run(host, bundle).stdout == "hello\n"
    os.chown(place / part, ALICE, ALICE)
    plain = ["runc", "run", "--bundle", str(bundle), "bundles"]
    done = subprocess.run(plain, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "hello" not in done.stdout
    assert "may be written by" in done.stderr


MAPPED = 100000
_SWAPPING = """
import os, sys
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(100000); os.setuid(100000)
config = open("config.json").read().replace('"hello"', '"other"')
open("other.json", "w").write(config)
print("up", flush=True)
while True:
    for pair in ("config.json kept", "other.json config.json", "kept config.json"):
        try:
            os.rename(*pair.split())
            os.path.exists("other.json") or open("other.json", "w").write(config)
        except OSError:
            pass
"""
"""Shows its own configuration and the engine's in turn, as fast as it can."""


def test_the_root_of_a_user_namespace_cannot_show_another_configuration(
    host: Host, place: Path
) -> None:
    """As Podman makes it with --uidmap: the directory belongs to who is root in the container."""
    for number in range(8):
        bundle = make_bundle(place / f"{number}/bundle", "/bin/echo", "hello")
        config = json.loads((bundle / "config.json").read_text())
        config["linux"]["namespaces"].append({"type": "user"})
        mapping = [{"containerID": 0, "hostID": MAPPED, "size": 1000}]
        config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
        for at, _, files in os.walk(bundle / "rootfs"):
            for each in ["", *files]:
                os.chown(Path(at, each), MAPPED, MAPPED, follow_symlinks=False)
        (bundle / "config.json").write_text(json.dumps(config))
        os.chown(bundle, MAPPED, MAPPED)
        name = f"mapped-{number}"
        if not number:
            # Nobody does anything: it starts as with plain runc.
            done = run(host, bundle, name=name)
            assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr
            assert (bundle.stat().st_uid, bundle.stat().st_gid) == (0, MAPPED)
            assert len(contents(host, name, "config")) == 1
            continue
        with subprocess.Popen(
            [sys.executable, "-c", _SWAPPING, str(bundle)], stdout=subprocess.PIPE
        ) as swapping:
            try:
                assert swapping.stdout is not None and swapping.stdout.readline() == b"up\n"
                done = run(host, bundle, name=name)
            finally:
                swapping.kill()
        assert "other" not in done.stdout
        if done.returncode == 0:
            assert done.stdout == "hello\n"
            (measured,) = contents(host, name, "config")
            assert measured["config"]["process"]["args"] == ["/bin/echo", "hello"]
        else:
            # By us, or by runc, which came at a moment when the name was given to no file.
            refused = ("may be written by", "No such file", "config.json not found")
            assert any(words in done.stderr for words in refused), done


def test_a_configuration_that_was_changed_since(host: Host, place: Path) -> None:
    """What the launcher put our hooks into is what the agent measures, or nothing runs."""
    bundle = make_bundle(place / "bundle", "/bin/echo", "good")
    assert run(host, bundle).stdout == "good\n"
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/bin/echo", "other"]
    (bundle / "config.json").write_text(json.dumps(config))
    plain = ["runc", "run", "--bundle", str(bundle), "bundles"]
    done = subprocess.run(plain, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "other" not in done.stdout
    assert "is not the configuration that the launcher put our hooks into" in done.stderr
    assert run(host, bundle).stdout == "other\n"


def test_hooks_of_others_come_after_ours_and_what_they_do_is_measured(
    host: Host, place: Path
) -> None:
    bundle = make_bundle(place / "bundle", "/bin/cat", "/etc/added")
    rootfs = bundle / "rootfs"
    script = f"echo added >{rootfs}/etc/added; cat >{place}/state"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    edit(bundle, {"hooks": {"prestart": [hook]}})
    done = run(host, bundle, name="others")
    assert done.stdout == "added\n", done.stderr
    measured = contents(host, "others", "rootfs")
    assert len(measured) == 2
    assert measured[0] != measured[1]
    # Nothing is written twice where they change nothing.
    (config,) = contents(host, "others", "config")
    assert config["config"]["hooks"]["prestart"][0]["path"] == "/bin/sh"
    script = f"cat >{place}/state"
    edit(bundle, {"hooks": {"createRuntime": [hook | {"args": ["sh", "-c", script]}]}})
    assert run(host, bundle, name="quiet").returncode == 0
    assert len(contents(host, "quiet", "rootfs")) == 1


# -- crun ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Process", "Mounts", "ROOT", "Linux"])
def test_a_name_that_one_runtime_reads_and_another_does_not(
    host: Host, place: Path, name: str
) -> None:
    """runc runs what stands under "Process"; the record's readers look under "process"."""
    bundle = make_bundle(place / "bundle", "/bin/echo", "hello")
    config = json.loads((bundle / "config.json").read_text())
    other = json.loads(json.dumps(config.get(name.lower(), [])).replace('"hello"', '"other"'))
    edit(bundle, {name: other})
    done = run(host, bundle)
    assert done.returncode != 0 and not done.stdout
    assert f"{name} is a name in an unusual spelling" in done.stderr


def test_a_value_that_is_no_text_ends_in_a_reason(host: Host, place: Path) -> None:
    """Of half a surrogate pair no digest can be made; the agent says that it will not, at once."""
    bundle = make_bundle(place / "bundle", "/bin/echo", "hello")
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["env"] = ["A=\ud800"]
    edit(bundle, config)
    began = time.monotonic()
    done = run(host, bundle)
    assert done.returncode != 0 and not done.stdout
    assert "the agent refuses" in done.stderr
    assert time.monotonic() - began < 20


def test_annotations_as_large_as_engines_hand_them_on(host: Host, place: Path) -> None:
    """256 KiB of a pod's, each by itself and all of them again as JSON in one (CRI-O)."""
    bundle = make_bundle(place / "bundle", "/bin/echo", "hello")
    own = {f"example.com/{number}": '"' * 64 * 1024 for number in range(4)}
    all_of_them = {"io.kubernetes.cri-o.Annotations": json.dumps(own)}
    edit(bundle, {"annotations": own | all_of_them})
    done = run(host, bundle)
    assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr


def test_a_configuration_whose_record_nobody_could_read(host: Host, place: Path) -> None:
    """Each value of the environment becomes a digest: 1.5 MiB become 20."""
    bundle = make_bundle(place / "bundle", "/bin/echo", "hello")
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["env"] = ["A="] * 300_000
    edit(bundle, config)
    done = run(host, bundle)
    assert done.returncode != 0 and not done.stdout
    assert "its config record has" in done.stderr


@pytest.fixture(scope="module")
def crun(host: Host) -> Iterator[None]:
    if shutil.which("crun") is None:
        pytest.skip("crun is not installed")
    settings = Path("/etc/cima/config.toml")
    before = settings.read_text()
    settings.write_text(before.replace("runc", "crun"))
    yield
    settings.write_text(before)


def by_crun(host: Host, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # crun 1.8 takes no hybrid hierarchy, as this host may have: it goes without cgroups.
    command = [host.cima_runc, "--cgroup-manager=disabled", "run", f"--bundle={bundle}"]
    done = subprocess.run(
        [*command, *options, "crun"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=bundle.parent,
    )
    subprocess.run(["crun", "delete", "--force", "crun"], capture_output=True, check=False)
    if "cgroups in hybrid mode not supported" in done.stderr:
        pytest.skip("crun runs nothing on this host; tests/vm/test_hosts_of_others.py has the same")
    return done


def test_no_limit_is_written_into_hooks_for_crun(host: Host, crun: None, place: Path) -> None:
    bundle = make_bundle(place / "bundle", "/bin/echo", "hello")
    done = by_crun(host, bundle)
    assert done.stdout == "hello\n", done.stderr
    hooks = json.loads((bundle / "config.json").read_text())["hooks"]
    assert not any("timeout" in entry for entries in hooks.values() for entry in entries)


def test_a_configuration_under_another_name(host: Host, crun: None, place: Path) -> None:
    bundle = make_bundle(place / "bundle", "/bin/echo", "not this")
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["/bin/echo", "this"]
    (bundle.parent / "other.json").write_text(json.dumps(config))
    done = by_crun(host, bundle, "--config", "other.json")
    assert done.stdout == "this\n", done.stderr
    (measured,) = contents(host, "crun", "config")
    assert measured["config"]["process"]["args"] == ["/bin/echo", "this"]


def test_a_user_namespace_with_devices(host: Host, crun: None, place: Path) -> None:
    """crun then says that the bundle is ``/``."""
    bundle = make_bundle(place / "bundle", "/bin/echo", "hello")
    config = json.loads((bundle / "config.json").read_text())
    linux = config["linux"]
    linux["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 100000, "size": 1000}]
    linux |= {"uidMappings": mapping, "gidMappings": mapping}
    linux["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
    for at, _, files in os.walk(bundle / "rootfs"):
        for each in ["", *files]:
            os.chown(Path(at, each), 100000, 100000, follow_symlinks=False)
    (bundle / "config.json").write_text(json.dumps(config))
    done = by_crun(host, bundle)
    assert done.stdout == "hello\n", done.stderr
    (measured,) = contents(host, "crun", "config")
    assert measured["config"]["process"]["args"] == ["/bin/echo", "hello"]
