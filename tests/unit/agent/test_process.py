import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from cima_runc.agent.process import (
    ContainerProcess,
    ProcessError,
    cgroup_belongs,
    examine,
    examine_survivor,
    namespaces_in_use,
    start_ticks,
)


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
        assert not found.alive() and found.survived()
        assert found.survived(namespaces_in_use()) and not found.survived(frozenset())
        os.kill(other, signal.SIGKILL)
        for _ in range(1000):
            if not found.survived():
                break
            time.sleep(0.01)
        assert not found.survived() and not found.survived(namespaces_in_use())
        found.close()


def test_in_a_pid_namespace_of_its_own_nothing_survives_the_first_process() -> None:
    found = examine_own()
    assert not replace(found, is_init=True).survived({found.mntns})
    assert replace(found, is_init=False).survived({found.mntns})
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
        seen = [found.survived() for _ in range(10)]
        seen += [found.survived(namespaces_in_use()) for _ in range(10)]
        os.killpg(first.pid, signal.SIGKILL)
    assert all(seen)
    found.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_what_outlives_the_first_process_is_found_by_an_agent_that_comes_later() -> None:
    command = ["unshare", "--mount", "sh", "-c", "sleep 60 >/dev/null & echo $!; read wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdin is not None
        other = int(first.stdout.readline())
        gone = examine(first.pid, "box", None, needs_cgroup=False)
        first.stdin.close()
        first.wait()
        found = examine_survivor(gone.mntns, gone.start_ticks, "box", "")
        assert found is not None and (found.pid, found.is_init) == (other, False)
        assert found.alive()
        found.close()
        # Another namespace of the same number, or another cgroup.
        assert examine_survivor(gone.mntns, 2**62, "box", "") is None
        assert examine_survivor(gone.mntns, gone.start_ticks, "box", "/box") is None
        os.kill(other, signal.SIGKILL)
        for _ in range(1000):
            if examine_survivor(gone.mntns, gone.start_ticks, "box", "") is None:
                break
            time.sleep(0.01)
        assert examine_survivor(gone.mntns, gone.start_ticks, "box", "") is None
        gone.close()


def test_start_is_read_whatever_the_process_is_called() -> None:
    assert start_ticks(os.getpid()) > 0
