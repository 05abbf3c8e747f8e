import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.sensor.events import (
    DIGEST_SIZES,
    HEADER,
    SHA256,
    EventError,
    Func,
    Kind,
    Why,
    parse,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
errnos = st.integers(1, 4095)
paths = st.binary(max_size=4095).map(lambda raw: raw.replace(b"\0", b"/"))


def record(
    registration: int = 1,
    time_ns: int = 2,
    cgroup_id: int = 3,
    ino: int = 4,
    mntns: int = 5,
    pid: int = 6,
    uid: int = 7,
    dev: int = 8 << 20 | 9,
    algo: int = SHA256,
    path_len: int | None = None,
    func: int = 1,
    denied: int = 0,
    kind: int = 0,
    why: int = 0,
    digest: bytes = b"\xaa" * 32,
    path: bytes = b"/bin/sh\0",
) -> bytes:
    """The bytes of one event, field by field, as ``struct event`` of sensor.h lays them out."""
    return (
        struct.pack("=QQQQ", registration, time_ns, cgroup_id, ino)
        + struct.pack("=IIII", mntns, pid, uid, dev)
        + struct.pack("=ii", algo, len(path) if path_len is None else path_len)
        + struct.pack("=IIII", func, denied, kind, why)
        + digest.ljust(64, b"\0")
        + path
    )


@given(u64, u64, u64, u64, u32, u32, u32, u32, st.sampled_from(Func), paths)
def test_every_field_comes_through(
    registration: int,
    time_ns: int,
    cgroup_id: int,
    ino: int,
    mntns: int,
    pid: int,
    uid: int,
    dev: int,
    func: Func,
    path: bytes,
) -> None:
    event = parse(
        record(
            registration,
            time_ns,
            cgroup_id,
            ino,
            mntns,
            pid,
            uid,
            dev,
            func=func,
            path=path + b"\0",
        )
    )
    assert event.registration == registration
    assert event.time_ns == time_ns
    assert event.cgroup_id == cgroup_id
    assert event.ino == ino
    assert event.mntns == mntns
    assert event.pid == pid
    assert event.uid == uid
    assert event.dev[0] << 20 | event.dev[1] == dev
    assert event.dev[1] < 1 << 20
    assert event.func is func
    assert (event.path, event.path_error) == (path, 0)
    assert (event.digest, event.hash_algo, event.error) == (b"\xaa" * 32, SHA256, 0)


@given(st.integers(0, len(DIGEST_SIZES) - 1), st.binary(min_size=64, max_size=64))
def test_a_digest_is_as_long_as_its_algorithm_says(algo: int, digest: bytes) -> None:
    event = parse(record(algo=algo, digest=digest))
    assert event.hash_algo == algo
    assert event.digest == digest[: DIGEST_SIZES[algo]]


@pytest.mark.parametrize(("algo", "size"), [(1, 16), (2, 20), (4, 32), (5, 48), (6, 64), (20, 32)])
def test_the_sizes_are_the_algorithms(algo: int, size: int) -> None:
    assert DIGEST_SIZES[algo] == size


@given(errnos, errnos)
def test_errors_take_the_place_of_digest_and_path(code: int, path_code: int) -> None:
    event = parse(record(algo=-code, path_len=-path_code, path=b""))
    assert (event.digest, event.hash_algo, event.error) == (None, -1, code)
    assert (event.path, event.path_error) == (None, path_code)


def test_what_was_denied() -> None:
    assert [parse(record(denied=denied)).denied for denied in (0, 1)] == [False, True]


@given(st.sampled_from(Kind), st.sampled_from(list(enumerate(Why))))
def test_what_it_is_about_and_why(kind: Kind, why: tuple[int, Why]) -> None:
    event = parse(record(kind=kind, why=why[0]))
    assert (event.kind, event.why) == (kind, why[1])


def test_a_path_that_is_too_long() -> None:
    assert parse(record(path_len=-36, path=b"")).path_error == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        record()[:135],
        record(kind=len(Kind)),
        record(why=len(Why)),
        record(func=9),
        record(denied=2),
        record(algo=len(DIGEST_SIZES)),
        record(path_len=0, path=b""),
        record(path_len=0),
        record(path_len=7),
        record(path_len=9),
        record(path_len=-2),
        record(path=b"/no end"),
        record(path=b"/in\0side\0"),
        record(path=b"/" * 4096 + b"\0"),
    ],
)
def test_what_the_sensor_never_sends_is_refused(raw: bytes) -> None:
    with pytest.raises(EventError):
        parse(raw)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_an_error(raw: bytes) -> None:
    try:
        event = parse(raw)
    except EventError:
        return
    assert len(raw) == HEADER.size + (0 if event.path is None else len(event.path) + 1)


def test_a_view_is_as_good_as_bytes() -> None:
    assert parse(memoryview(record())) == parse(record())
