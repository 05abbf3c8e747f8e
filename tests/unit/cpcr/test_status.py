import hashlib

import pytest
from pydantic import ValidationError

from cima_runc.cpcr.status import Foreign, Gap, Status


def hour(number: int) -> str:
    return f"2025-01-31T{number:02d}:00:00Z"


def test_digest_of_a_quiet_boot() -> None:
    text = b'{"foreign":{"count":0,"last":[]},"gaps":{"count":0,"last":[]},"initial":null}'
    assert Status.begin().digest() == hashlib.sha256(text).digest()


def test_digest_of_all_of_it() -> None:
    status = (
        Status.begin(bytes(32))
        .with_foreign(Foreign(kind="zero", time=hour(3)))
        .with_gap(Gap(kind="disk", since=hour(3), until=hour(4)))
    )
    text = (
        '{"foreign":{"count":1,"last":[{"kind":"zero","time":"2025-01-31T03:00:00Z"}]},'
        '"gaps":{"count":1,"last":[{"kind":"disk","since":"2025-01-31T03:00:00Z",'
        f'"until":"2025-01-31T04:00:00Z"}}]}},"initial":"{"0" * 64}"}}'
    )
    assert status.digest() == hashlib.sha256(text.encode()).digest()


def test_all_are_counted_and_the_last_eight_named() -> None:
    status = Status.begin()
    for number in range(20):
        status = status.with_foreign(Foreign(kind="changed", time=hour(number)))
        status = status.with_gap(Gap(kind="tpm", since=hour(number), until=hour(number)))
    assert status.foreign.count == status.gaps.count == 20
    assert [change.time for change in status.foreign.last] == [hour(n) for n in range(12, 20)]
    assert [gap.since for gap in status.gaps.last] == [hour(n) for n in range(12, 20)]


@pytest.mark.parametrize("time", ["2025-01-31T03:04:00Z", "2025-01-31T03:00:00", "now", ""])
def test_a_time_is_cut_to_the_hour(time: str) -> None:
    with pytest.raises(ValidationError):
        Foreign(kind="changed", time=time)
