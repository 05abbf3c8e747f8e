"""Containers that share namespaces, have a user namespace, or are made in an unusual way."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE, Ran

pytestmark = pytest.mark.debian("13")

CLIS = ["docker", "podman"]
SUBORDINATE = 300000


def run_command(cli: str, runtime: str, *rest: str) -> list[str]:
    return guest.docker(runtime, *rest) if cli == "docker" else guest.podman(runtime, *rest)


def same_with_both(cli: str, *rest: str) -> tuple[Ran, dict[str, Any]]:
    """What it says with runc and cima-runc alike, and its row."""
    plain = guest.run(*run_command(cli, "runc", "--rm", *rest))
    ours = guest.run(*run_command(cli, "cima-runc", "--rm", *rest))
    assert (ours.code, ours.out) == (plain.code, plain.out), ours.err
    return ours, guest.ps()[-1]


def register(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = guest.records(row["id"])[0]["content"]
    return found


def host_namespace(kind: str) -> int:
    return Path(f"/proc/1/ns/{kind}").stat().st_ino


@pytest.fixture(params=CLIS)
def cli(request: pytest.FixtureRequest, image: str) -> str:
    return str(request.param)


def test_namespaces_of_the_host(cli: str) -> None:
    shared = ("pid", "ipc", "uts")
    options = [f"--{kind}=host" for kind in shared]
    done, row = same_with_both(cli, *options, IMAGE, "/bin/echo", "hello")
    assert done.out == "hello\n"
    namespaces = register(row)["namespaces"]
    assert {kind: namespaces[kind] for kind in shared} == {
        kind: host_namespace(kind) for kind in shared
    }
    assert namespaces["mnt"] != host_namespace("mnt")


@contextmanager
def running(cli: str, *options: str) -> Iterator[dict[str, Any]]:
    command = run_command(cli, "cima-runc", "-d", "--name=first", *options, IMAGE)
    guest.ok(*command, "/bin/sleep", "1000")
    try:
        yield guest.ps()[-1]
    finally:
        guest.run(cli, "kill", "first")
        guest.run(cli, "rm", "-f", "first")


def test_namespaces_of_another_container(cli: str) -> None:
    """Sharing all that can be shared, each has its own files and its own register."""
    sharable = ["--ipc=shareable"] if cli == "docker" else []
    with running(cli, *sharable) as first:
        joined = ["--ipc=container:first", "--pid=container:first"]
        command = [*run_command(cli, "cima-runc", "--rm", *joined), IMAGE, "/bin/cp"]
        guest.ok(*command, "/bin/env", "/tmp/copied")
        second = guest.ps()[-1]
        assert second["id"] != first["id"]
        of_first, of_second = register(first)["namespaces"], register(second)["namespaces"]
        assert {kind for kind in of_first if of_first[kind] == of_second[kind]} >= {"ipc", "pid"}
        assert of_first["mnt"] != of_second["mnt"]
        before = guest.row(first["id"])["count"]
        guest.ok(*command[:-1], "/bin/env", "-i", "/bin/script")
        assert guest.row(first["id"])["count"] == before


def test_an_init_process(cli: str) -> None:
    done, row = same_with_both(cli, "--init", IMAGE, "/bin/sh", "-c", "cat /proc/1/comm; exit 4")
    assert done.code == 4
    assert done.out in {"docker-init\n", "catatonit\n", "podman-init\n"}
    paths = [file.path for file in guest.files(guest.records(row["id"]))]
    assert any(path.endswith((b"docker-init", b"podman-init", b"catatonit")) for path in paths)


def test_a_read_only_root_with_tmpfs_and_volume(cli: str, tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(Path("/usr/bin/id").read_bytes())
    (tmp_path / "tool").chmod(0o755)
    script = (
        "cp /bin/env /no 2>/dev/null || echo read-only; "
        "cp /bin/env /scratch/env && /scratch/env -i /bin/script; cp /bin/env /data/env; ls /data"
    )
    options = ["--read-only", "--tmpfs=/scratch:exec", f"--volume={tmp_path}:/data"]
    done, row = same_with_both(cli, *options, IMAGE, "/bin/sh", "-c", script)
    assert done.out == "read-only\nthe script ran\nenv\ntool\n"
    paths = {file.path for file in guest.files(guest.records(row["id"]))}
    assert {b"/scratch/env", b"/bin/script"} <= paths


def test_mount_namespaces_of_its_own_belong_to_it(cli: str) -> None:
    """A privileged container unshares: what runs in there is the container's."""
    script = "unshare -m /bin/sh -c 'cp /bin/env /tmp/inner; /tmp/inner -i /bin/true'"
    command = ["/bin/busybox", "sh", "-c", script.replace("unshare", "/bin/busybox unshare")]
    _, row = same_with_both(cli, "--privileged", IMAGE, *command)
    inner = [f for f in guest.files(guest.records(row["id"])) if f.path == b"/tmp/inner"]
    assert len(inner) == 1
    assert inner[0].mntns != row["mntns"]


def check_user_namespace(row: dict[str, Any], shown: str) -> None:
    """Root in there is nobody out here, and owners are recorded as the container sees them."""
    inside, outside, *_ = shown.split()
    assert inside == "0" and int(outside) >= 1000
    records = guest.records(row["id"])
    assert records[0]["content"]["namespaces"]["user"] != host_namespace("user")
    rootfs = records[2]["content"]
    assert rootfs["type"] == "rootfs" and not rootfs["reason"]
    assert (rootfs["root"]["uid"], rootfs["root"]["gid"]) == (0, 0)
    assert b"/bin/busybox" in {file.path for file in guest.files(records)}


def layers_without_user_namespace(cli: str) -> list[str]:
    guest.run(*run_command(cli, "cima-runc", "--rm", IMAGE, "/bin/true"))
    rootfs = guest.records(guest.ps()[-1]["id"])[2]["content"]
    return [layer["digest"] for layer in rootfs["layers"] if layer["kind"] == "lower"]


@contextmanager
def subordinate_ids(name: str) -> Iterator[None]:
    """A user with ids for user namespaces, as `--userns=auto` and dockerd want one."""
    # dockerd has made its own where it was asked for "default".
    is_new = guest.run("useradd", "--system", "--no-create-home", name).code == 0
    kept = {path: path.read_bytes() for path in map(Path, ("/etc/subuid", "/etc/subgid"))}
    for path, before in kept.items():
        path.write_bytes(before + f"{name}:{SUBORDINATE}:262144\n".encode())
    try:
        yield
    finally:
        for path, before in kept.items():
            path.write_bytes(before)
        if is_new:
            guest.ok("userdel", name)


def test_podman_userns_auto(image: str) -> None:
    plain = layers_without_user_namespace("podman")
    with subordinate_ids("containers"):
        command = ["--userns=auto", IMAGE, "/bin/cat", "/proc/self/uid_map"]
        done = guest.run(*guest.podman("cima-runc", "--rm", *command))
        assert done.code == 0, done.err
        row = guest.ps()[-1]
        check_user_namespace(row, done.out)
        rootfs = guest.records(row["id"])[2]["content"]
    lower = [layer["digest"] for layer in rootfs["layers"] if layer["kind"] == "lower"]
    assert lower == plain


@contextmanager
def docker_settings(**changes: Any) -> Iterator[None]:
    path = Path("/etc/docker/daemon.json")
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | changes))
    guest.restart("docker")
    try:
        yield
    finally:
        path.write_bytes(before)
        guest.restart("docker")


def test_docker_userns_remap(image: str) -> None:
    plain = layers_without_user_namespace("docker")
    with subordinate_ids("dockremap"), docker_settings(**{"userns-remap": "dockremap"}):
        # dockerd keeps images for each map of ids.
        archive = Path("/root/image.tar")
        guest.ok("docker", "load", "-i", str(archive))
        done, row = same_with_both("docker", IMAGE, "/bin/cat", "/proc/self/uid_map")
        check_user_namespace(row, done.out)
        rootfs = guest.records(row["id"])[2]["content"]
        lower = [layer["digest"] for layer in rootfs["layers"] if layer["kind"] == "lower"]
        assert lower == plain


def cgroup_of(row: dict[str, Any]) -> str:
    return str(register(row)["cgroup"])


def test_docker_with_cgroups_of_its_own_making(image: str) -> None:
    """The driver cgroupfs; all other tests have systemd's."""
    with docker_settings(**{"exec-opts": ["native.cgroupdriver=cgroupfs"]}):
        done, row = same_with_both("docker", IMAGE, "/bin/cat", "/bin/script")
    assert done.code == 0
    assert cgroup_of(row) == f"/docker/{row['id']}"


@pytest.mark.parametrize("manager", ["systemd", "cgroupfs"])
def test_podman_with_either_cgroup_manager(image: str, manager: str) -> None:
    command = ["podman", "--runtime=cima-runc", f"--cgroup-manager={manager}", "run", "--rm"]
    guest.ok(*command, "--network=none", IMAGE, "/bin/true")
    row = guest.ps()[-1]
    wanted = rf"/libpod-{row['id']}\.scope" if manager == "systemd" else rf"/libpod-{row['id']}"
    assert re.search(wanted + "(/container)?$", cgroup_of(row)), cgroup_of(row)
