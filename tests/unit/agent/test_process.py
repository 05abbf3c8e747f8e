import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.process import (
    ContainerProcess,
    Living,
    ProcessError,
    _mark,
    cgroup_belongs,
    examine,
    find_again,
    look_around,
    start_ticks,
)
from cima_runc.ml.store import ContainerNote

NOBODY = Living(frozenset())


@pytest.mark.parametrize(
    ("cgroup", "container_id", "cgroups_path"),
    [
        ("/docker/abc", "abc", "/docker/abc"),
        ("/system.slice/docker-abc.scope", "abc", "system.slice:docker:abc"),
        ("/machine.slice/libpod-abc.scope/container", "abc", "machine.slice:libpod:abc"),
        ("/default/box", "box", "/default/box"),
        ("/box", "box", None),
        ("/user.slice/box", "box", ""),
        ("/crun-box.scope", "box", None),
        ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope", "x", "a:cri-containerd:x"),
        ("/elsewhere/deep", "any", "deep"),
    ],
)
def test_cgroups_that_are_the_containers(
    cgroup: str, container_id: str, cgroups_path: str | None
) -> None:
    assert cgroup_belongs(cgroup, container_id, cgroups_path)


@pytest.mark.parametrize(
    ("cgroup", "container_id", "cgroups_path"),
    [
        ("/", "box", None),
        ("/docker/abcd", "abc", "/docker/abc"),
        ("/docker/abc", "other", "/docker/other"),
        ("/system.slice/docker-abc.scope", "other", "system.slice:docker:other"),
        ("/user.slice/session-1.scope", "box", None),
    ],
)
def test_cgroups_that_are_not(cgroup: str, container_id: str, cgroups_path: str | None) -> None:
    assert not cgroup_belongs(cgroup, container_id, cgroups_path)


def test_a_process_on_our_own_mount_namespace_is_refused() -> None:
    with pytest.raises(ProcessError, match="host's mount namespace"):
        examine(os.getpid(), "box", None)


def test_a_process_that_is_gone_is_refused() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessError, match="gone"):
        examine(process.pid, "box", None)


@pytest.mark.parametrize("pid", [0, -1])
def test_no_process_is_refused(pid: int) -> None:
    with pytest.raises(ProcessError, match="names no process"):
        examine(pid, "box", None)


def test_refusing_leaks_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for pid in (os.getpid(), 2**22 + 1, 0):
        with pytest.raises(ProcessError):
            examine(pid, "box", None)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
@pytest.mark.parametrize("option", ["--net", "--uts"])
def test_the_hosts_network_namespace_has_the_number_that_it_has_everywhere(option: str) -> None:
    """By whatever path it is joined: nobody else knows the host's numbers before Linux 6.18."""
    command = ["unshare", "--mount", option, "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        found = examine(process.pid, "box", None, needs_cgroup=False)
        own = os.stat(f"/proc/{process.pid}/ns/net").st_ino
        assert found.namespaces["net"] == (own if option == "--net" else 0xEFFFFFF9)
        found.close()
        process.kill()


def test_without_a_cgroup_of_its_own_none_is_left_populated() -> None:
    if os.geteuid() != 0:
        pytest.skip("takes root")
    command = ["unshare", "--mount", "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(ProcessError, match="not this container's"):
            examine(process.pid, "box", None)
        found = examine(process.pid, "box", None, needs_cgroup=False)
        assert (found.cgroup, found.cgroup_id, found.cgroup_populated()) == ("", 0, False)
        found.close()
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_what_outlives_the_first_process_is_seen_where_it_has_no_cgroup_of_its_own() -> None:
    """As with --pid=host and --cgroups=disabled: what goes on must be watched on."""
    script = "sleep 60 >/dev/null & echo $!; read wait"
    command = ["unshare", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdin is not None
        other = int(first.stdout.readline())
        found = examine(first.pid, "box", None, needs_cgroup=False)
        assert not found.is_init
        first.stdin.close()
        first.wait()
        assert not found.alive()
        assert found.left_behind(look_around(), 7) and not found.left_behind(NOBODY, 7)
        os.kill(other, signal.SIGKILL)
        while found.left_behind(look_around(), 7):
            time.sleep(0.01)
        found.close()


def test_in_a_pid_namespace_of_its_own_nothing_survives_the_first_process() -> None:
    found = examine_own()
    here = Living(frozenset({found.mntns}))
    assert not replace(found, is_init=True).left_behind(here, 7)
    assert replace(found, is_init=False).left_behind(here, 7)
    found.close()


def examine_own() -> ContainerProcess:
    """This very process, as if it were a container's first."""
    return ContainerProcess(
        pid=os.getpid(),
        pidfd=os.pidfd_open(os.getpid()),
        mntns_fd=os.open("/proc/self/ns/mnt", os.O_RDONLY),
        namespaces={"mnt": os.stat("/proc/self/ns/mnt").st_ino},
        cgroup="",
        cgroup_id=0,
        start_ticks=start_ticks(os.getpid()),
        is_init=True,
    )


_CHAIN = """
import os, sys
print(os.getpid(), flush=True)
sys.stdin.read()
while True:
    if os.fork():
        os._exit(0)
"""
"""Each process lives until it has made the next."""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_who_forks_and_ends_all_the_while_is_seen() -> None:
    command = ["unshare", "--mount", sys.executable, "-I", "-S", "-c", _CHAIN]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as first:
        assert first.stdout is not None and first.stdin is not None
        first.stdout.readline()
        found = examine(first.pid, "box", None, needs_cgroup=False)
        first.stdin.close()
        first.wait()
        seen = [found.left_behind(look_around(), 7) for _ in range(20)]
        os.killpg(first.pid, signal.SIGKILL)
    assert all(seen)
    found.close()


def note_of(process: ContainerProcess, **changes: Any) -> ContainerNote:
    """What an agent has written down of a container with this first process."""
    note = ContainerNote(
        registration=7,
        id="box",
        boot_id="boot",
        mntns=process.mntns,
        cgroup="",
        pid=process.pid,
        start_ticks=process.start_ticks,
        bundle="/box",
        started="2026-01-01T00:00:00.000Z",
        state="running",
    )
    return note.model_copy(update=changes)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_what_outlives_the_first_process_is_found_by_an_agent_that_comes_later() -> None:
    command = ["unshare", "--mount", "sh", "-c", "sleep 60 >/dev/null & echo $!; read wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdin is not None
        other = int(first.stdout.readline())
        gone = examine(first.pid, "box", None, needs_cgroup=False)
        note = note_of(gone)
        first.stdin.close()
        first.wait()
        found = find_again(note)
        assert found is not None and (found.pid, found.is_init) == (other, False)
        assert found.alive()
        found.close()
        # Another namespace of the same number, or another cgroup.
        assert find_again(note_of(gone, start_ticks=2**62)) is None
        assert find_again(note_of(gone, cgroup="/box")) is None
        os.kill(other, signal.SIGKILL)
        while (found := find_again(note)) is not None:
            found.close()
            time.sleep(0.01)
        gone.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_the_next_container_is_not_taken_for_what_the_last_left_behind() -> None:
    """While no agent ran it was started again: the kernel gives its namespace the number of the
    last one's, and the engine its cgroup the same path. The sensor's marks tell them apart."""
    with subprocess.Popen(["unshare", "--mount", "sleep", "60"]) as following:
        while os.readlink(f"/proc/{following.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            time.sleep(0.01)
        process = examine(following.pid, "box", None, needs_cgroup=False)
        before = note_of(process, pid=2**22 + 1, start_ticks=process.start_ticks - 1)
        assert find_again(before, lambda pidfd: None) is None
        assert find_again(before, lambda pidfd: 8) is None
        process.close()
        following.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_a_process_is_the_containers_wherever_it_has_gone() -> None:
    """Out of the mount namespace and the cgroup that it was registered in."""
    with subprocess.Popen(["unshare", "--mount", "sleep", "60"]) as process:
        while os.readlink(f"/proc/{process.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            time.sleep(0.01)
        as_registered = examine(process.pid, "box", None, needs_cgroup=False)
        note = note_of(as_registered, mntns=1, cgroup="/elsewhere/box")
        for one in (note, note_of(as_registered, mntns=1)):
            found = find_again(one, lambda pidfd: None)
            assert found is not None
            shown = (found.pid, found.start_ticks, found.mntns, found.cgroup)
            assert shown == (process.pid, note.start_ticks, 1, one.cgroup)
            found.close()
        # Another process of the same number.
        assert find_again(note_of(as_registered, start_ticks=1), lambda pidfd: None) is None
        # One that was left behind, by its mark alone.
        gone = note_of(as_registered, mntns=1, pid=2**22 + 1)
        found = find_again(gone, mark_with(7, process.pid))
        assert found is not None and (found.pid, found.mntns) == (process.pid, 1)
        found.close()
        assert find_again(gone, mark_with(8, process.pid)) is None
        living = look_around(mark_with(7, process.pid))
        assert living.registrations == {7}
        assert replace(as_registered, namespaces={"mnt": 1}).left_behind(living, 7)
        assert not replace(as_registered, namespaces={"mnt": 1}).left_behind(living, 8)
        as_registered.close()
        process.kill()


def mark_with(registration: int, pid: int) -> Callable[[int], int | None]:
    """Return what the sensor says where it has marked this process alone."""

    def mark_of(pidfd: int) -> int | None:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as lines:
            return registration if f"Pid:\t{pid}\n" in lines.readlines() else None

    return mark_of


_FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("up", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""
"""exit(2), which ends one thread."""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_a_process_whose_first_thread_has_ended_goes_on() -> None:
    """The kernel shows no namespaces of such a thread, and any program can be such a process."""
    command = ["unshare", "--mount", sys.executable, "-I", "-S", "-c", _FIRST_THREAD_ENDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        while os.path.exists(f"/proc/{process.pid}/ns/mnt"):
            time.sleep(0.01)
        found = examine(process.pid, "box", None, needs_cgroup=False)
        assert found.alive() and found.mntns != os.stat("/proc/self/ns/mnt").st_ino
        again = find_again(note_of(found))
        assert again is not None and again.pid == process.pid
        assert found.left_behind(look_around(), 7)
        again.close()
        process.kill()
        process.wait()
        assert not found.left_behind(look_around(), 7) and find_again(note_of(found)) is None
        found.close()


def test_a_cgroup_of_version_1_holds_what_is_in_those_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cgroup.procs of version 1 names the processes of one cgroup alone."""
    monkeypatch.setattr("cima_runc.agent.process.CGROUP", tmp_path)
    below = tmp_path / "pids/box/a/b"
    below.mkdir(parents=True)
    for directory in (below, below.parent, below.parent.parent):
        (directory / "cgroup.procs").write_text("")
    process = replace(examine_own(), cgroup="/box")
    assert not process.cgroup_populated()
    (below / "cgroup.procs").write_text("17\n")
    assert process.cgroup_populated()
    process.close()


def test_start_is_read_whatever_the_process_is_called() -> None:
    assert start_ticks(os.getpid()) > 0


def test_whose_processes_are_is_not_guessed() -> None:
    """Where the sensor cannot say it, nobody may be taken for ended."""

    def refused(pidfd: int) -> int | None:
        raise PermissionError(1, "no")

    with pytest.raises(PermissionError):
        look_around(refused)
    own = examine_own()
    with pytest.raises(PermissionError):
        find_again(note_of(own, pid=2**22 + 1), refused)
    own.close()


def test_threads_and_what_has_ended_have_no_marks() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert thread.native_id is not None
    for pid in (thread.native_id, 2**22 + 1):
        assert _mark(pid, lambda pidfd: 7) is None
    stop.set()
    thread.join()
    assert _mark(os.getpid(), lambda pidfd: 7) == 7
