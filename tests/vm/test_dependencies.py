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

pytestmark = pytest.mark.debian("13")

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
        PACKAGES / f"cima_runc/agent/__pycache__/assembly.{version}.pyc",
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


def remove(engine: str, container_id: str) -> None:
    if engine == "ctr":
        guest.ok("ctr", "task", "delete", "--force", container_id)
        guest.ok("ctr", "container", "delete", container_id)
    else:
        guest.ok(engine, "rm", "-f", container_id)


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
        remove(engine, container_id)


@pytest.fixture(scope="module")
def docker(image: str) -> Iterator[int]:
    """A container that runs all the time."""
    with started("docker") as number:
        yield number


def dependencies(number: int) -> list[dict[str, Any]]:
    return guest.records(f"dependencies:{number}")


def digests(number: int, path: Path) -> set[str]:
    return {f.digest for f in guest.files(dependencies(number)) if f.path == bytes(path)}


def unmeasured_paths(records: list[dict[str, Any]]) -> set[str]:
    return {str(content["path"]) for content in guest.contents(records, "unmeasured")}


def check_services(number: int, engine: str) -> None:
    records = dependencies(number)
    # By digest too: what was upgraded since the boot is in it as it was and as it is.
    files = {(file.path, file.digest): file for file in guest.files(records)}
    paths = {path for path, _ in files}
    log = guest.ASCII_LOG.read_bytes().split(b"\n")
    for path in [*map(real, ENGINES[engine][1]), *own_code()]:
        file = files.get((bytes(path), guest.sha256sum(path)))
        assert file is not None, path
        assert file.ima_line is not None
        pcr, _, _, digest, name, *_ = log[file.ima_line].split(b" ")
        assert pcr == b"10"
        assert digest == b"sha256:" + file.digest.encode()
        assert name == file.path
    assert {file.mntns for file in files.values()} == {os.stat("/proc/1/ns/mnt").st_ino}
    assert records[0]["content"]["type"] == "register"
    services = guest.contents(records, "service")
    assert {"init", "agent", "runtime"} <= {content["role"] for content in services}
    named = {bytes.fromhex(content["path_hex"]) for content in services}
    assert {bytes(real(program)) for program in ENGINES[engine][1]} <= named
    libc = next(path for path in guest.libraries() if "libc.so" in path)
    assert bytes(Path(libc).resolve()) in paths


def test_services_and_our_own_code_are_in_and_measured(docker: int) -> None:
    check_services(docker, "docker")


@pytest.mark.parametrize("engine", ["ctr", "podman"])
def test_services_of_other_engines(docker: int, engine: str) -> None:
    with started(engine) as number:
        assert number != docker
        check_services(number, engine)


def test_only_what_ran_before_the_policy_is_unmeasured(docker: int) -> None:
    records = dependencies(docker)
    library = f"/usr/lib/python3.{sys.version_info.minor}"
    others = unmeasured_paths(records) - {library}
    # Process 1 loads the policy: it and its libraries were there before.
    init = {os.readlink("/proc/1/exe")}
    init |= {line.split()[-1] for line in Path("/proc/1/maps").read_text().splitlines()}
    assert others <= init
    for content in guest.contents(records, "unmeasured"):
        assert content["reason"]
        if content["path"] != library:
            assert content["digest"] == guest.sha256sum(Path(content["path"]))


def test_containers_on_the_same_services_share_a_partition(docker: int) -> None:
    before = dependencies(docker)
    with started("docker") as second:
        assert second == docker
        assert dependencies(docker) == before
    listed = json.loads(guest.ok("cima", "ps", "--dependencies", "--json"))
    assert f"dependencies:{docker}" in {row["id"] for row in listed}
    assert all(row["kind"] == "container" for row in guest.ps())
    status = guest.status()
    assert status["pcr_value"] == status["expected_value"]


def test_a_restarted_agent_goes_on_with_the_partition(docker: int) -> None:
    before = dependencies(docker)
    guest.restart_agent()
    with started("docker") as after:
        assert after == docker
        now = dependencies(docker)
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


def test_an_upgraded_runtime_and_shim_are_added(docker: int) -> None:
    runc, shim = real("runc"), real("containerd-shim-runc-v2")
    before = {path: digests(docker, path) for path in (runc, shim)}
    with upgraded(runc) as new_runc, upgraded(shim) as new_shim, started("docker") as same:
        assert same == docker
        assert digests(docker, runc) == before[runc] | {new_runc}
        assert digests(docker, shim) == before[shim] | {new_shim}


def test_a_daemon_is_what_runs_and_not_what_lies_under_its_name(docker: int) -> None:
    path = real("containerd")
    old = digests(docker, path)
    assert old == {guest.sha256sum(path)}
    with upgraded(path) as new:
        with started("docker") as same:
            assert same == docker
            assert digests(docker, path) == old
        restart_containerd()
        # No container is started for it: the agent looks at the services again each minute.
        wanted = old | {new}
        guest.wait_for("the refresh", lambda: digests(docker, path) == wanted, seconds=300)
    restart_containerd()


def restart_containerd() -> None:
    guest.restart("containerd")
    guest.wait_for("containerd", lambda: guest.run("ctr", "version").code == 0, seconds=300)


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
        for content in guest.contents(dependencies(number), "unmeasured")
        if content["path"] == str(shell)
    ]
    assert len(found) == 1
    assert found[0]["digest"] == guest.sha256sum(shell)
    assert found[0]["role"] == "ancestor"
    assert "PCR 10" in found[0]["reason"]
    assert not digests(number, shell)
    guest.ok("umount", OVERLAY / "merged")
