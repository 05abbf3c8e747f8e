"""Whose is what: containers of one image, exec, the host, reused numbers."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE


def planted(name: str) -> str:
    """A command that makes a program of its own and executes it: /tmp/busybox-NAME."""
    return f"cp /bin/busybox /tmp/busybox-{name} && /tmp/busybox-{name} true"


def paths(container_id: str) -> set[bytes]:
    return {file.path for file in guest.files(guest.records(container_id))}


def container_lines(path: bytes) -> list[bytes]:
    """The kernel's lines for the file on a container's overlay, where the policy takes PCR 11.

    In PCR 10 it has a line too once it ran from another file system (a bundle, fuse-overlayfs).
    """
    lines = guest.ASCII_LOG.read_bytes().splitlines()
    of_containers = (line for line in lines if line.startswith(b"11 "))
    return [line for line in of_containers if line.split(b" ")[4:5] == [path]]


@pytest.fixture(scope="module")
def two(image: str) -> Iterator[tuple[str, str]]:
    """Two containers side by side, each with a program of its own."""
    ids = []
    for name in ("one", "two"):
        command = planted(f"only-{name}") + "; sleep 600"
        ids.append(
            guest.ok(*guest.docker("cima-runc", "-d", IMAGE, "/bin/sh", "-c", command)).strip()
        )
    for container_id, name in zip(ids, ("one", "two"), strict=True):
        wanted = f"/tmp/busybox-only-{name}".encode()
        guest.wait_for(name, lambda: wanted in paths(container_id))  # noqa: B023
    yield ids[0], ids[1]
    guest.ok("docker", "rm", "-f", *ids)


def test_side_by_side_both_are_complete(two: tuple[str, str]) -> None:
    first, second = two
    assert guest.row(first)["mntns"] != guest.row(second)["mntns"]
    assert guest.row(first)["state"] == guest.row(second)["state"] == "running"
    assert paths(first) == {b"/bin/busybox", b"/tmp/busybox-only-one"}
    assert paths(second) == {b"/bin/busybox", b"/tmp/busybox-only-two"}


def test_the_kernel_has_one_line_for_what_both_share(two: tuple[str, str]) -> None:
    assert len(container_lines(b"/bin/busybox")) == 1


def test_exec_is_in_the_partition(two: tuple[str, str]) -> None:
    first, second = two
    guest.ok("docker", "exec", first, "/bin/sh", "-c", planted("by-exec"))
    guest.ok("docker", "exec", first, "/bin/env", "-i", "/bin/script")
    found = paths(first)
    assert {b"/tmp/busybox-by-exec", b"/bin/env", b"/bin/script"} <= found
    assert {path.encode() for path in guest.libraries()} <= found
    assert b"/tmp/busybox-by-exec" not in paths(second)
    assert b"/bin/env" not in paths(second)


def test_programs_of_the_host_are_in_no_partition(two: tuple[str, str]) -> None:
    program = Path("/root/only-on-the-host")
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    guest.ok(program)
    for row in guest.ps():
        if row["state"] == "unmeasured":
            continue
        assert bytes(program) not in paths(row["id"])


def test_podman_exec_is_in_the_partition(image: str) -> None:
    command = guest.podman("cima-runc", "-d", "--name=pod-exec", IMAGE, "/bin/sleep", "600")
    container_id = guest.ok(*command).strip()
    try:
        # Podman is back before the container's first program has begun.
        guest.wait_for("the first program", lambda: paths(container_id))
        before = paths(container_id)
        guest.ok("podman", "exec", "pod-exec", "/bin/sh", "-c", planted("by-podman"))
        assert before == {b"/bin/busybox"}
        assert paths(container_id) == {b"/bin/busybox", b"/tmp/busybox-by-podman"}
    finally:
        guest.ok("podman", "rm", "-f", "-t", "0", "pod-exec")
    assert guest.row(container_id)["state"] == "stopped"


def test_reused_namespace_numbers_are_never_mixed_up(tmp_path: Path, image: str) -> None:
    seen: dict[int, list[str]] = {}
    for turn in range(6):
        name = f"turn-{turn}"
        bundle = guest.make_bundle(tmp_path / name, planted(name))
        guest.ok("cima-runc", "run", "--bundle", bundle, name)
        seen.setdefault(guest.row(name)["mntns"], []).append(name)
        assert paths(name) == {b"/bin/busybox", f"/tmp/busybox-{name}".encode()}
        assert len([row for row in guest.ps() if row["id"] == name]) == 1
    assert len(seen) < 6, "the kernel reused no number: the test shows nothing"


def test_one_id_used_again_is_another_registration(tmp_path: Path, image: str) -> None:
    bundle = guest.make_bundle(tmp_path / "again", "/bin/true")
    registrations = []
    for _ in range(2):
        guest.ok("cima-runc", "run", "--bundle", bundle, "again")
        registrations.append(guest.row("again")["registration"])
    assert registrations[0] != registrations[1]
    # The line's run before is closed, and the new one names where it ended.
    [now] = [row for row in guest.ps() if row["id"] == "again"]
    [register] = guest.contents(guest.records("again"), "register")
    assert (now["count"], register["run"]) == (5, 2)
    previous = register["previous"]
    assert (previous["run"], previous["count"]) == (1, 5)
    assert previous["registration"] == registrations[0]


def test_a_namespace_that_the_container_makes_is_the_containers(image: str) -> None:
    command = f"unshare -m /bin/sh -c '{planted('nested')}'"
    guest.ok(
        *guest.docker("cima-runc", "--rm", "--cap-add=SYS_ADMIN"),
        *("--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
        *(IMAGE, "/bin/sh", "-c", f"/bin/busybox {command}"),
    )
    row = guest.ps()[-1]
    nested = [f for f in guest.files(guest.records(row["id"])) if f.path == b"/tmp/busybox-nested"]
    assert len(nested) == 1
    assert nested[0].mntns != row["mntns"]


def test_many_at_once_are_all_complete(image: str, tmp_path: Path) -> None:
    count = 8
    names = [f"many-{number}" for number in range(count)]
    runs = []
    for name in names:
        bundle = guest.make_bundle(tmp_path / name, planted(name))
        runs.append(subprocess.Popen(["cima-runc", "run", "--bundle", bundle, name]))
    assert [process.wait(300) for process in runs] == [0] * count
    time.sleep(0.5)
    for name in names:
        assert paths(name) == {b"/bin/busybox", f"/tmp/busybox-{name}".encode()}


def test_names_are_bytes(image: str, tmp_path: Path) -> None:
    name = b"/tmp/busybox\nb\xff \\c"
    bundle = guest.make_bundle(
        tmp_path / "bytes",
        r"""
        n="$(printf '/tmp/busybox\nb\377 \\c')"; cp /bin/busybox "$n"; "$n" true""",
    )
    guest.ok("cima-runc", "run", "--bundle", bundle, "bytes")
    assert paths("bytes") == {b"/bin/busybox", name}
    shown = guest.ok("cima", "log", "bytes")
    assert "/tmp/busybox\\x0ab\\xff \\\\c" in shown
