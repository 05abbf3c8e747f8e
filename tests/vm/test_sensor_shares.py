"""What one container does to the sensor's maps is its own loss, and nobody else's.

Needs root and the BPF LSM; digests need IMA.
"""

import mmap
from pathlib import Path

import pytest

from cima_runc.sensor.events import Kind, Why
from cima_runc.sensor.loader import Sensor
from cima_runc.sensor.options import Options
from tests.vm.test_sensor import Watched, drain, install, map_executable, program, uses

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


def test_what_a_container_maps_writable_beyond_its_share_is_refused(tmp_path: Path) -> None:
    """One that is not remembered would be believed, and one that is gone leaves its room."""
    share = 3
    files = [tmp_path / f"file{number}" for number in range(share + 1)]
    for file in files:
        install(file, b"content")

    def map_it(file: Path) -> None:
        with file.open("r+b") as opened:
            mmap.mmap(opened.fileno(), 0).close()

    with Sensor.load(Options(digests_share=share)) as sensor:
        greedy, other = Watched(sensor), Watched(sensor)
        for file in files[:share] * 2:
            greedy.call(lambda file=file: map_it(file))

        def is_refused() -> None:
            with pytest.raises(OSError, match="Cannot allocate memory"):
                map_it(files[share])

        greedy.call(is_refused)
        other.call(lambda: map_it(files[share]))
        files[0].unlink()
        install(tmp_path / "new", b"content")
        greedy.call(lambda: map_it(tmp_path / "new"))
        for one in (greedy, other):
            one.close()


def test_a_change_to_a_file_of_many_is_a_loss_of_who_uses_it_alone(
    sensor: Sensor, tmp_path: Path
) -> None:
    file = tmp_path / "lib"
    install(file, b"library")
    users = [Watched(sensor) for _ in range(USERS_MAX + 1)]
    other = Watched(sensor)
    for user in users:
        user.call(lambda: map_executable(file))
    drain(sensor)
    with file.open("rb") as reader:
        held = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
    file.open("r+b").close()
    held.close()
    told = [event.registration for event in drain(sensor) if event.kind is Kind.CHANGED]
    assert told == [user.registration for user in users[:USERS_MAX]]
    assert sensor.lost() == {users[-1].registration: 1}
    for one in (*users, other):
        one.close()
