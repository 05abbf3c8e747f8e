"""A file's record that is read at once is read as any other."""

import copy
import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.ima.template import Func, pack_cima_ng
from cima_runc.ml.records import CIMA, IMA_TEMPLATE, Record, digest_of, file_content
from cima_runc.verifier.checked_record import content_of, file_at_once, read_record
from cima_runc.verifier.errors import RecordShapeError, VerificationError

DATA = pack_cima_ng(os.urandom(32), b"/bin/sh", 4026532000, Func.BPRM_CHECK)


def record(content: dict[str, Any], kind: str = IMA_TEMPLATE) -> dict[str, Any]:
    made = Record(3, "box", digest_of(kind, content), kind, content, {"time": "t"})
    value: dict[str, Any] = json.loads(made.to_line())
    return value


GOOD = record(file_content(DATA))


def in_words(value: Any) -> Any:
    """The content, the digest and whose it is, or the name of what is wrong."""
    try:
        found = read_record(value)
        if (found.recnum, found.cpcr) != (3, "box"):
            return None
        return content_of(found), found.digest
    except VerificationError as error:
        return type(error)


def test_a_file() -> None:
    assert file_at_once(GOOD, 3, "box") == in_words(GOOD) != None  # noqa: E711 - it is a pair
    assert file_at_once(record({"type": "exit", "reason": "r"}, CIMA), 3, "box") is None


@pytest.mark.parametrize("odd", ["\ud800", "\udc41", 1e400, float("nan"), 2**53, 10**400])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda odd: odd,
        lambda odd: {"a": odd},
        lambda odd: [odd],
        lambda odd: {odd: 1},
        lambda odd: {"a": {odd: 1}},
        lambda odd: [{"a": {odd: {}}}],
    ],
)
def test_what_json_may_hold_and_no_record_is_refused_by_name(
    odd: Any, wrap: Callable[[Any], Any]
) -> None:
    """Kind: a part of a record that no model has looked into."""
    value = record({"type": "config", "config": {}}, CIMA)
    value["content"]["config"] = {"annotations": wrap(odd)}
    assert in_words(value) is RecordShapeError


PLACES = [
    *[(key,) for key in GOOD],
    *[("content", key) for key in GOOD["content"]],
    ("digests", 0),
    *[("digests", 0, key) for key in GOOD["digests"][0]],
    *[(*above, "more") for above in ((), ("content",), ("digests", 0))],
]
TEXT = GOOD["content"]["template_data"]
VALUES = [
    *(None, True, 3, 3.0, "3", 2, [], {}, "", "box", "Box", [GOOD["digests"][0]] * 2),
    *(TEXT + "=", TEXT[:-4], TEXT[:-1] + "?", " " + TEXT, TEXT + "AAAA", "AAA="),
    *("cima-ng", "ima-ng", "sha1", "cima", GOOD["digests"][0]["digest"].upper(), "00" * 32),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_what_is_wrong_is_said_in_words(place: tuple[Any, ...]) -> None:
    """Whatever stands in any place: at once is taken what is taken otherwise, and nothing else."""
    for value in VALUES:
        changed = copy.deepcopy(GOOD)
        *above, last = place
        holder: Any = changed
        for key in above:
            holder = holder[key]
        holder[last] = value
        found = file_at_once(changed, 3, "box")
        assert found is None or found == in_words(changed)
        assert (found is None) == (not isinstance(in_words(changed), tuple))
        if place != ("digests", 0):
            del holder[last]
            assert file_at_once(changed, 3, "box") is None or place[-1] == "more"
    assert file_at_once(GOOD, 4, "box") is None
    assert file_at_once(GOOD, 3, "Box") is None


@given(st.binary(max_size=80))
def test_any_template_data(data: bytes) -> None:
    value = record(file_content(data))
    found, words = file_at_once(value, 3, "box"), in_words(value)
    assert found == words if isinstance(words, tuple) else found is None
