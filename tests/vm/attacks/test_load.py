"""As fast as the guest can, in a container and beside it: nothing is lost, nothing left behind."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cima_runc.sensor.libbpf import Libbpf
from tests.vm import guest
from tests.vm.attacks import container

pytestmark = pytest.mark.debian()  # every attack takes minutes a release: --everything

PINNED = Path("/sys/fs/bpf/cima")
HASHES = {"1", "9"}
"""BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_LRU_HASH."""
OF_INODES = ("digests", "writes")
"""Maps whose entries end with an inode, which the kernel keeps for as long as it likes."""
NEW_FILES = 200
FULL = {"open": 2_000_000, "execute": 20_000, "fork": 50_000}
IN_SHORT = {"open": 40_000, "execute": 400, "fork": 1_000}


def entries() -> dict[str, int]:
    """How many entries each map of the agent's sensor has, by its name."""
    libbpf, found = Libbpf(), {}
    for path in PINNED.glob("*/map-*"):
        handle = libbpf.open_pinned(os.fsencode(path))
        shown = Path(f"/proc/self/fdinfo/{handle}").read_text()
        fields = dict(re.findall(r"^(\w+):\s+(\S+)$", shown, re.M))
        if fields["map_type"] in HASHES:
            most = 2 * int(fields["max_entries"])
            found[path.name.removeprefix("map-")] = len(
                libbpf.keys(handle, int(fields["key_size"]), most)
            )
        os.close(handle)
    return found


@pytest.fixture(scope="module", autouse=True)
def image() -> Iterator[None]:
    container.make_image()
    with guest.Settings():
        guest.restart_agent()
        yield


def in_container(command: str) -> tuple[str, str]:
    """Run a command in a container, and return its id and what it said."""
    with container.bundle(["/bin/sh", "-c", command], "docker", container.fresh("tmpfs")) as (
        directory,
        name,
    ):
        return name, container.run(directory, name, seconds=3000)


def test_what_cannot_run_is_not_remembered() -> None:
    before = entries()
    done = container.attack("direct_pipes", "docker", "ext4")
    assert done.said == "200 pipes\n", done
    assert (done.verdict, done.evidence) == ("TRUSTED", frozenset()), done
    assert entries()["writes"] - before["writes"] < 100, "of 400 pipes"


@pytest.mark.parametrize(
    "counts", [IN_SHORT, pytest.param(FULL, marks=pytest.mark.debian())], ids=["short", "full"]
)
def test_load_loses_nothing_and_leaves_nothing(counts: dict[str, int]) -> None:
    in_container("true")
    guest.wait_for("no container", lambda: guest.status()["sensor"]["watched"] == 0)
    before = entries()
    assert before
    new = (
        f"i=0; while [ $i -lt {NEW_FILES} ]; do cp /data/script /data/s$i; "
        "echo '#' $i >>/data/s$i; /data/s$i >/dev/null; rm /data/s$i; i=$((i+1)); done"
    )
    work = "; ".join(
        f"/bin/spawn {kind} {count} /data/program >/dev/null" for kind, count in counts.items()
    )
    name, said = in_container(f"set -e; {work}; {new}; echo done")
    assert said.splitlines()[-1] == "done", said[-2000:]
    for kind, count in counts.items():  # and by a task that is in no container
        guest.ok(container.BUILT / "spawn", kind, str(count), container.BUILT / "program.good")
    found = guest.records(name)
    assert guest.contents(found, "lost") == []
    scripts = {file.path for file in guest.files(found) if file.path.startswith(b"/data/s")}
    assert len(scripts - {b"/data/script"}) == NEW_FILES
    guest.wait_for("no container", lambda: guest.status()["sensor"]["watched"] == 0)
    left = {name: count - before[name] for name, count in entries().items() if name != "seen"}
    assert {
        name: count for name, count in left.items() if count > 0 and name not in OF_INODES
    } == {}
    assert all(left.get(name, 0) < NEW_FILES for name in OF_INODES), left


@pytest.fixture
def preempted_anywhere() -> Iterator[None]:
    """The kernel takes the processor from a task also where that is in the midst of the kernel."""
    mode = Path("/sys/kernel/debug/sched/preempt")
    before = re.findall(r"\((\w+)\)", mode.read_text())[0] if mode.exists() else ""
    if before:
        mode.write_text("full")
    yield
    if before:
        mode.write_text(before)


@pytest.mark.usefixtures("preempted_anywhere")
def test_hundreds_of_tasks_at_once_lose_nothing() -> None:
    """Each may be preempted while it has one of the buffers that events are built in."""
    tasks, each = 400, 20
    name, said = in_container(
        f"i=0; while [ $i -lt {tasks} ]; do /bin/spawn execute {each} /data/program >/dev/null & "
        "i=$((i+1)); done; wait; echo done"
    )
    assert said.splitlines()[-1] == "done", said[-2000:]
    assert guest.contents(guest.records(name), "lost") == []
