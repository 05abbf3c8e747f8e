"""What one container does to the sensor's maps is its own loss, and nobody else's.

Needs root and the BPF LSM; digests need IMA.
"""

import ctypes
import errno
import hashlib
import mmap
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cima_runc.sensor.events import Kind, Why
from cima_runc.sensor.loader import Rights, Sensor
from cima_runc.sensor.options import Options
from cima_runc.sensor.tables import class_of
from tests.vm.test_sensor import (
    Watched,
    drain,
    install,
    libc,
    map_executable,
    overlay,
    program,
    uses,
)
from tests.vm.test_sensor_options import Enforced, is_denied

USERS_MAX = 4
"""Of sensor.h: containers that are told of a change to a file in use."""


def test_a_container_has_its_share_of_digests_and_no_more(tmp_path: Path) -> None:
    share = 3
    files = [tmp_path / f"prog{number}" for number in range(2 * share)]
    for file in files:
        install(file, program(file.name.encode()))
    install(tmp_path / "other", program(b"other"))
    install(tmp_path / "later", program(b"later"))
    with Sensor.load(Options(digests_share=share)) as sensor:
        greedy, other = Watched(sensor), Watched(sensor)
        for file in files:
            greedy.run(file)
        # What is not believed may be said of twice: of the program, and of its mapping.
        believed: dict[bytes | None, set[bool]] = {}
        for event in uses(drain(sensor)):
            believed.setdefault(event.path, set()).add(event.why is Why.STABLE)
        assert list(believed) == [bytes(file) for file in files]
        assert list(believed.values()) == [{True}] * share + [{False}] * share
        other.run(tmp_path / "other")
        assert [event.why for event in drain(sensor)] == [Why.STABLE]
        for file in files:
            file.unlink()
        greedy.run(tmp_path / "later")
        assert [event.why for event in drain(sensor)] == [Why.STABLE]
        assert sensor.lost() == {}
        for one in (greedy, other):
            one.close()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that no container can write, with a program."""
    place = tmp_path / "read-only"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "t", place], check=True)
    install(place / "prog", program(b"cannot be written"))
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    yield place / "prog"
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("late", [True, False])
def test_digests_that_find_no_room_are_believed_of_what_cannot_be_written(
    tmp_path: Path, read_only: Path, late: bool
) -> None:
    """Others have taken all the room there is; each no more than its share."""
    room, own = 4, tmp_path / "own"
    files = [tmp_path / f"prog{number}" for number in range(room)]
    for file in (*files, own):
        install(file, program(file.name.encode()))
    with Sensor.load(Options(digests_share=room, digests=room, late=late)) as sensor:
        greedy, other = Watched(sensor), Watched(sensor)
        for file in files:
            greedy.run(file)
        assert {event.why for event in uses(drain(sensor))} == {Why.STABLE}
        for file in (read_only, own):
            other.run(file)
        found = [(event.path, event.digest, event.why) for event in uses(drain(sensor))]
        digest = hashlib.sha256(read_only.read_bytes()).digest()
        assert found[0] == (bytes(read_only), digest, Why.STABLE)
        assert {(path, why) for path, _, why in found[1:]} == {(bytes(own), Why.MAP_FULL)}
        assert sensor.lost() == {}
        for one in (greedy, other):
            one.close()


def test_a_layer_that_was_written_is_not_believed_where_digests_find_no_room(
    tmp_path: Path,
) -> None:
    """By the file's handle, or in the engine's directory."""
    room = 4
    files = [tmp_path / f"prog{number}" for number in range(room)]
    (tmp_path / "lower").mkdir()
    for file in (*files, tmp_path / "lower/prog"):
        install(file, program(file.name.encode()))
    with overlay(tmp_path) as merged, Sensor.load(Options(digests=room)) as sensor:
        device = merged.stat().st_dev
        root = os.major(device) << 20 | os.minor(device)
        greedy, other = Watched(sensor), Watched(sensor, rights=Rights(root_device=root))
        for file in files:
            greedy.run(file)
        drain(sensor)
        other.run(merged / "prog")
        assert {event.why for event in uses(drain(sensor))} == {Why.STABLE}
        install(tmp_path / "lower/prog", program(b"evil"))
        other.run(merged / "prog")
        assert Why.STABLE not in {event.why for event in uses(drain(sensor))}
        for one in (greedy, other):
            one.close()


def map_writable(file: Path) -> None:
    with file.open("r+b") as opened:
        mmap.mmap(opened.fileno(), 0).close()


SHARE = 3


@pytest.fixture(params=["programs", pytest.param("scripts", marks=pytest.mark.debian("13"))])
def beyond(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Sensor, Watched, Path]]:
    """A sensor that remembers few files, a container that mapped more than those writable, and the
    first that was one too many: it can still be written, and is in no map."""
    files = [tmp_path / f"file{number}" for number in range(SHARE + 1)]
    install(tmp_path / "interpreter", program(b"interpreter"))
    for file in files:
        script = f"#!{tmp_path}/interpreter {file.name}\n".encode()
        install(file, script if request.param == "scripts" else program(file.name.encode()))
    with Sensor.load(Options(digests_share=SHARE)) as sensor:
        greedy = Watched(sensor)
        for file in files * 2:
            greedy.call(partial(map_writable, file))
        yield sensor, greedy, files[SHARE]
        greedy.close()
        assert sensor.lost() == {}


@pytest.mark.parametrize("by", ["itself", "another"])
def test_what_a_container_maps_writable_beyond_its_share_is_not_believed(
    beyond: tuple[Sensor, Watched, Path], by: str
) -> None:
    sensor, greedy, file = beyond
    user = greedy if by == "itself" else Watched(sensor)
    for _ in range(2):
        user.run(file)
    found = [event.why for event in uses(drain(sensor)) if event.path == bytes(file)]
    assert set(found) == {Why.WAS_MAPPED}
    if user is not greedy:
        user.close()


@pytest.mark.debian("13")
def test_nothing_that_was_mapped_writable_beyond_a_share_runs_where_that_is_enforced(
    beyond: tuple[Sensor, Watched, Path], tmp_path: Path
) -> None:
    sensor, _, file = beyond
    other = tmp_path / "other"
    digests = [hashlib.sha256(file.read_bytes()).digest(), install(other, program(b"other"))]
    enforced = Enforced(sensor, *digests)
    enforced.run(other)
    enforced.call(lambda: is_denied(lambda: map_executable(file)))
    found = [(event.path, event.why, event.denied) for event in uses(drain(sensor))]
    assert found == [(bytes(other), Why.STABLE, False), (bytes(file), Why.WAS_MAPPED, True)]
    enforced.close()


@pytest.mark.debian("13")
def test_a_share_that_is_used_up_is_nobody_elses_loss(
    beyond: tuple[Sensor, Watched, Path], tmp_path: Path
) -> None:
    """Not even of other files of its own; and one that is gone leaves its room."""
    sensor, greedy, file = beyond
    known, later = tmp_path / "known", tmp_path / "later"
    for path in (known, later):
        install(path, program(path.name.encode()))
    other = Watched(sensor)
    other.run(known)
    greedy.run(known)
    # Its inode is looked up, and found: there is room for the mark.
    greedy.call(lambda: map_writable(known))
    other.run(known)
    other.run(later)
    found = {(event.path, event.why) for event in uses(drain(sensor))}
    assert found == {
        (bytes(known), Why.STABLE),
        (bytes(known), Why.WAS_MAPPED),
        (bytes(later), Why.STABLE),
    }
    file.unlink()
    other.close()


def test_a_change_to_a_file_of_many_is_a_loss_of_who_uses_it_alone(
    sensor: Sensor, tmp_path: Path
) -> None:
    """Not of who is one too many of another file's, but for one in 64 (class_of)."""
    file, elsewhere = tmp_path / "lib", tmp_path / "other-lib"
    for path in (file, elsewhere):
        install(path, path.name.encode())
    users = [Watched(sensor) for _ in range(USERS_MAX + 1)]
    other = Watched(sensor)
    while class_of(other.registration) == class_of(users[-1].registration):
        users.insert(0, other)
        other = Watched(sensor)
    users, idle = users[-USERS_MAX - 1 :], users[: -USERS_MAX - 1]
    for user in users:
        user.call(lambda: map_executable(file))
    for user in (*users[:USERS_MAX], other):
        user.call(lambda: map_executable(elsewhere))
    drain(sensor)
    with file.open("rb") as reader:
        held = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
    file.open("r+b").close()
    held.close()
    told = [event.registration for event in drain(sensor) if event.kind is Kind.CHANGED]
    assert told == [user.registration for user in users[:USERS_MAX]]
    assert sensor.lost() == {users[-1].registration: 1}
    for one in (*users, *idle, other):
        one.close()


def test_who_has_used_up_his_share_spoils_no_file_that_he_only_reads(tmp_path: Path) -> None:
    """IMA keeps the digest that it takes for him, and takes no other: the next must know it."""
    share = 3
    volume, reads = tmp_path / "volume", tmp_path / "reads"
    for directory in (volume, reads):
        directory.mkdir()
    for number in range(share):
        install(tmp_path / f"own{number}", program(b"own%d" % number))
    for name in ("first", "second", "writable"):
        install(volume / name, program(name.encode()))
    with Sensor.load(Options(digests_share=share)) as sensor:
        greedy, other = Watched(sensor), Watched(sensor)

        def uses_all() -> None:
            subprocess.run(["mount", "--bind", volume, reads], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", reads], check=True)
            for number in range(share):
                map_executable(tmp_path / f"own{number}")
            map_executable(reads / "first")
            map_executable(reads / "second")
            map_executable(volume / "writable")

        greedy.call(uses_all)
        drain(sensor)
        for name in ("first", "second", "writable"):
            other.run(volume / name)
        found = {event.path: event.why for event in uses(drain(sensor))}
        assert found == {
            bytes(volume / "first"): Why.STABLE,
            bytes(volume / "second"): Why.STABLE,
            bytes(
                volume / "writable"
            ): Why.MAP_FULL,  # who can write it need not do that to spoil it
        }
        for one in (greedy, other):
            one.close()


def test_who_fills_the_ring_leaves_room_for_those_who_send_little(tmp_path: Path) -> None:
    """While nobody reads it."""
    install(tmp_path / "prog", program(b"greedy"))
    install(tmp_path / "other", program(b"other"))
    names = [tmp_path / f"name{number}" for number in range(600)]
    for name in names:
        name.hardlink_to(tmp_path / "prog")
    size = 1 << 16
    with Sensor.load(Options(ring_bytes=size, bytes_per_second=size)) as sensor:
        greedy, other = Watched(sensor), Watched(sensor)

        def runs_all() -> None:
            for name in names:
                map_executable(name)

        greedy.call(runs_all)
        other.run(tmp_path / "other")
        assert sensor.lost().keys() == {greedy.registration}
        found = drain(sensor)
        assert found[-1].path == bytes(tmp_path / "other")
        assert len(found) > len(names) / 8
        for one in (greedy, other):
            one.close()


def test_who_mounts_too_many_is_refused_and_nobody_else(tmp_path: Path) -> None:
    """File systems in memory are not counted: what runs from them is."""
    for name in ("lower", "upper", "work", "merged", "memory"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower:{tmp_path}/merged".encode()

    def mount(kind: bytes, data: bytes | None) -> int:
        done = libc.mount(kind, bytes(tmp_path / "memory"), kind, 0, data)
        return ctypes.get_errno() if done else 0

    share = 10
    with Sensor.load(Options(digests_share=8 * share)) as sensor:
        greedy, other = Watched(sensor), Watched(sensor)

        def mounts() -> None:
            for _ in range(2 * share):
                assert mount(b"tmpfs", None) == 0
            for _ in range(share):
                assert mount(b"overlay", options) == 0
                assert libc.umount2(bytes(tmp_path / "memory"), 0) == 0
            for _ in range(share):
                assert mount(b"overlay", options) == 0
            assert mount(b"overlay", options) == errno.ENOMEM

        greedy.call(mounts)

        def mounts_one() -> None:
            assert mount(b"overlay", options) == 0

        other.call(mounts_one)
        for one in (greedy, other):
            one.close()
