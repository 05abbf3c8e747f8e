import hashlib

import pytest
from pydantic import ValidationError

from cima_runc.cpcr.status import Foreign, Gap, Status
from cima_runc.evidence.fields import as_tuples


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


def test_none_is_named_that_is_not_counted() -> None:
    """Kind: a status that says two things, of which a verifier heeds the one that says less."""
    honest = Status.begin().with_foreign(Foreign(kind="changed", time=hour(3)))
    honest = honest.with_gap(Gap(kind="tpm", since=hour(3), until=hour(3)))
    shown = honest.model_dump(mode="json")
    assert Status.model_validate(as_tuples(shown)) == honest
    for part in ("foreign", "gaps"):
        hidden = {**shown, part: {**shown[part], "count": 0}}
        with pytest.raises(ValidationError):
            Status.model_validate(as_tuples(hidden))


@pytest.mark.parametrize(
    "time",
    [
        *("2025-01-31T03:04:00Z", "2025-01-31T03:00:00", "now", ""),
        *("2025-13-01T03:00:00Z", "2025-02-30T03:00:00Z", "2025-01-31T24:00:00Z"),
    ],
)
def test_a_time_is_cut_to_the_hour(time: str) -> None:
    with pytest.raises(ValidationError):
        Foreign(kind="changed", time=time)
