"""What containers rely on: found, measured by the kernel, shared, and kept up to date."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE

pytestmark = pytest.mark.unproven

PREFIX = Path("/opt/cima")
PACKAGES = PREFIX / f"lib/python3.{sys.version_info.minor}/site-packages"
OVERLAY = Path("/root/overlay")


def real(program: str) -> Path:
    found = shutil.which(program)
    assert found is not None, program
    return Path(found).resolve()


def own_code() -> list[Path]:
    version = f"cpython-3{sys.version_info.minor}"
    return [
        (PREFIX / "bin/python3").resolve(),
        PREFIX / "bin/cima-runc",
        PREFIX / "bin/cima-agent",
        PREFIX / "libexec/cima/hooks/prestart",
        PREFIX / "libexec/cima/hooks/poststop",
        PACKAGES / f"cima_runc/agent/__pycache__/service.{version}.pyc",
        PACKAGES / f"cima_runc/__pycache__/__init__.{version}.pyc",
        PACKAGES / f"psutil/__pycache__/__init__.{version}.pyc",
        PACKAGES / "cima_runc/sensor/sensor.bpf.o",
    ]


def start_docker() -> str:
    command = guest.docker("cima-runc", "-d", IMAGE, "/bin/sleep", "600")
    return guest.ok(*command).strip()


def start_podman() -> str:
    command = guest.podman("cima-runc", "-d", IMAGE, "/bin/sleep", "600")
    return guest.ok(*command).strip()


def start_ctr() -> str:
    command = [word for word in guest.ctr("cima-runc", "relies", "-d") if word != "--rm"]
    guest.ok(*command, "/bin/sleep", "600")
    return "relies"


def remove(container_id: str) -> None:
    guest.run("docker", "rm", "-f", container_id)
    guest.run("podman", "rm", "-f", container_id)
    guest.run("ctr", "task", "kill", "--signal", "9", container_id)
    guest.run("ctr", "task", "delete", "--force", container_id)
    guest.run("ctr", "container", "delete", container_id)


ENGINES = {
    "docker": (start_docker, ["dockerd", "containerd", "containerd-shim-runc-v2", "runc"]),
    "ctr": (start_ctr, ["containerd", "containerd-shim-runc-v2", "runc"]),
    "podman": (start_podman, ["podman", "conmon", "runc"]),
}


@contextmanager
def started(engine: str) -> Iterator[int]:
    """A container of this engine, and the registration of its dependencies."""
    container_id = ENGINES[engine][0]()
    try:
        number = guest.row(container_id)["dependencies"]
        assert isinstance(number, int)
        yield number
    finally:
        remove(container_id)


def dependencies(number: int) -> list[dict[str, Any]]:
    return guest.records(f"dependencies:{number}")


def contents(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [r["content"] for r in records if r["content"].get("type") == kind]


def digests(number: int, path: Path) -> set[str]:
    return {f.digest for f in guest.files(dependencies(number)) if f.path == bytes(path)}


def unmeasured_paths(records: list[dict[str, Any]]) -> set[str]:
    return {str(content["path"]) for content in contents(records, "unmeasured")}


@pytest.mark.parametrize("engine", ENGINES)
def test_services_and_our_own_code_are_in_and_measured(image: str, engine: str) -> None:
    with started(engine) as number:
        records = dependencies(number)
    files = {file.path: file for file in guest.files(records)}
    log = guest.ASCII_LOG.read_bytes().split(b"\n")
    print("unmeasured:", contents(records, "unmeasured"))
    print("services:", [(c["role"], c["path"]) for c in contents(records, "service")])
    for path in [*map(real, ENGINES[engine][1]), *own_code()]:
        file = files.get(bytes(path))
        assert file is not None, path
        assert file.digest == guest.sha256sum(path)
        assert file.ima_line is not None
        pcr, _, _, digest, name, *_ = log[file.ima_line].split(b" ")
        assert pcr == b"10"
        assert digest == b"sha256:" + file.digest.encode()
        assert name == file.path
    assert {file.mntns for file in files.values()} == {os.stat("/proc/1/ns/mnt").st_ino}
    roles = {content["role"] for content in contents(records, "service")}
    assert {"init", "agent", "runtime"} <= roles
    assert [content["type"] for content in (records[0]["content"],)] == ["register"]
    named = {bytes.fromhex(c["path_hex"]) for c in contents(records, "service")}
    assert {bytes(real(program)) for program in ENGINES[engine][1]} <= named
    libc = next(path for path in guest.libraries() if "libc.so" in path)
    assert bytes(Path(libc).resolve()) in files


def test_only_what_ran_before_the_policy_is_unmeasured(image: str) -> None:
    with started("docker") as number:
        records = dependencies(number)
    library = f"/usr/lib/python3.{sys.version_info.minor}"
    others = unmeasured_paths(records) - {library}
    # Process 1 loads the policy: it and its libraries were there before.
    init = {os.readlink("/proc/1/exe")}
    init |= {line.split()[-1] for line in Path("/proc/1/maps").read_text().splitlines()}
    assert others <= init
    for content in contents(records, "unmeasured"):
        assert content["reason"]
        if content["path"] != library:
            assert content["digest"] == guest.sha256sum(Path(content["path"]))


def test_containers_on_the_same_services_share_a_partition(image: str) -> None:
    with started("docker") as first:
        before = dependencies(first)
        with started("docker") as second, started("ctr") as other:
            assert second == first != other
            assert dependencies(first) == before
    listed = json.loads(guest.ok("cima", "ps", "--dependencies", "--json"))
    assert f"dependencies:{first}" in {row["id"] for row in listed}
    assert all(row["kind"] == "container" for row in guest.ps())
    status = guest.status()
    assert status["pcr_value"] == status["expected_value"]


def test_a_restarted_agent_goes_on_with_the_partition(image: str) -> None:
    with started("docker") as number:
        before = dependencies(number)
        guest.restart_agent()
        with started("docker") as after:
            assert after == number
            now = dependencies(number)
        assert now[: len(before)] == before
        keys = [(f.digest, f.path) for f in guest.files(now)]
        assert len(keys) == len(set(keys)), "a file is measured twice"
        known = [json.dumps(r["content"], sort_keys=True) for r in now]
        assert len(known) == len(set(known)), "something is recorded twice"


@contextmanager
def upgraded(path: Path) -> Iterator[str]:
    """Another file under the same name, as a package manager puts it there; its digest."""
    kept = path.with_name(f"{path.name}.kept")
    shutil.copy2(path, kept)
    new = path.with_name(f"{path.name}.new")
    shutil.copy2(path, new)
    with new.open("ab") as file:
        file.write(b"\0another version\n")
    new.rename(path)
    try:
        yield guest.sha256sum(path)
    finally:
        kept.rename(path)


def test_an_upgraded_runtime_and_shim_are_added(image: str) -> None:
    with started("docker") as number:
        for path in (real("runc"), real("containerd-shim-runc-v2")):
            old = digests(number, path)
            with upgraded(path) as new, started("docker") as same:
                assert same == number
                assert digests(number, path) == old | {new}


def test_a_daemon_is_what_runs_and_not_what_lies_under_its_name(image: str) -> None:
    path = real("containerd")
    with started("docker") as number:
        old = digests(number, path)
        assert old == {guest.sha256sum(path)}
        with upgraded(path) as new:
            with started("docker") as same:
                assert same == number
                assert digests(number, path) == old
            guest.ok("systemctl", "restart", "containerd")
            guest.wait_for("containerd", lambda: guest.run("ctr", "version").code == 0)
            with started("docker") as same:
                assert same == number
                assert digests(number, path) == old | {new}
        guest.ok("systemctl", "restart", "containerd")
        guest.wait_for("containerd", lambda: guest.run("ctr", "version").code == 0)


def test_what_the_kernel_did_not_measure_for_the_host_is_shown(image: str, tmp_path: Path) -> None:
    # The policy sends what overlays hold to the containers' PCR.
    for name in ("lower", "upper", "work", "merged"):
        (OVERLAY / name).mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/busybox", OVERLAY / "lower/shell")
    options = f"lowerdir={OVERLAY}/lower,upperdir={OVERLAY}/upper,workdir={OVERLAY}/work"
    guest.ok("mount", "-t", "overlay", "-o", options, "overlay", OVERLAY / "merged")
    shell = OVERLAY / "merged/shell"
    bundle = guest.make_bundle(tmp_path / "bundle", "/bin/true")
    command = f"cima-runc run --bundle {bundle} from-overlay; true"
    subprocess.run(["sh"], executable=shell, input=command.encode(), check=True)
    number = guest.row("from-overlay")["dependencies"]
    found = [
        content
        for content in contents(dependencies(number), "unmeasured")
        if content["path"] == str(shell)
    ]
    assert len(found) == 1
    assert found[0]["digest"] == guest.sha256sum(shell)
    assert found[0]["role"] == "ancestor"
    assert "PCR 10" in found[0]["reason"]
    assert not digests(number, shell)
    guest.ok("umount", OVERLAY / "merged")
