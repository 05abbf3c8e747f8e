"""Each engine with runc and with cima-runc: the same for the user, and measured."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import COMMAND, IMAGE, Ran

Engine = Callable[[str], Ran]


def with_docker(runtime: str) -> Ran:
    return guest.run(*guest.docker(runtime, "--rm", IMAGE, "/bin/sh", "-c", COMMAND))


def with_podman(runtime: str) -> Ran:
    return guest.run(*guest.podman(runtime, "--rm", IMAGE, "/bin/sh", "-c", COMMAND))


def with_ctr(runtime: str) -> Ran:
    name = f"ctr-{runtime}"
    return guest.run(*guest.ctr(runtime, name), "/bin/sh", "-c", COMMAND)


def with_runc(runtime: str) -> Ran:
    bundle = Path(f"/root/bundle-{runtime}")
    guest.make_bundle(bundle, COMMAND)
    return guest.run(runtime, "run", "--bundle", bundle, f"plain-{runtime}")


@pytest.mark.parametrize("engine", [with_docker, with_podman, with_ctr, with_runc])
def test_same_for_the_user_and_every_file_measured_once(image: str, engine: Engine) -> None:
    plain = engine("runc")
    before = len(guest.ps())
    measured = engine("cima-runc")
    rows = guest.ps()[before:]

    assert plain == measured
    assert measured.code == 7
    assert measured.out == "the script ran\nthe script ran\n"
    assert measured.err == "to stderr\n"

    assert len(rows) == 1
    assert rows[0]["state"] == "stopped"
    records = guest.records(rows[0]["id"])
    assert guest.types(records)[:3] == ["register", "config", "rootfs"]
    assert guest.types(records)[-1] == "exit"
    assert len(records) == rows[0]["count"]
    files = guest.files(records)
    found = {file.path: file.digest for file in files}
    assert found == guest.files_of_command()
    assert len(files) == len(found), "a file is measured twice"
    assert {file.mntns for file in files} == {rows[0]["mntns"]}
    assert all(file.ima_line is not None for file in files)
    by_path = {file.path: file.func for file in files}
    assert by_path[b"/bin/script"] == by_path[b"/bin/busybox"] == "BPRM_CHECK"
    assert by_path[guest.libraries()[0].encode()] == "MMAP_CHECK"


def test_the_named_line_of_the_kernels_log_is_that_file(image: str) -> None:
    row = guest.run_once()
    # What follows a newline in a name (another test has such) is a line, but no entry.
    lines = re.findall(rb"(?m)^[ 0-9]?[0-9] [0-9a-f]{40} .*$", guest.ASCII_LOG.read_bytes())
    for file in guest.files(guest.records(row["id"])):
        assert file.ima_line is not None
        fields = lines[file.ima_line].split(b" ")
        assert fields[3] == b"sha256:" + file.digest.encode()
        assert fields[4] == file.path


def test_the_configuration_is_measured_without_our_hooks_and_without_values(image: str) -> None:
    secret_value = "a-value-that-must-not-be-stored"
    guest.ok(*guest.docker("cima-runc", "--rm", "-e", f"TOKEN={secret_value}", IMAGE, "/bin/true"))
    row = guest.ps()[-1]
    records = guest.records(row["id"])
    config = next(r["content"]["config"] for r in records if r["content"].get("type") == "config")
    assert config["process"]["args"] == ["/bin/true"]
    assert "libexec/cima" not in str(config)
    stored = [path for path in guest.STATE.rglob("*") if path.is_file()]
    assert stored
    for path in stored:
        assert secret_value.encode() not in path.read_bytes()
    registration = f"{row['registration']:08d}"
    secret = (guest.STATE / "containers" / registration / "secret").read_bytes()
    import hmac

    hidden = hmac.new(secret, secret_value.encode(), "sha256").hexdigest()
    assert f"TOKEN={hidden}" in config["process"]["env"]
