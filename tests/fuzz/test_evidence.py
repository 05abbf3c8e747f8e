"""Evidence changed anywhere: always a result, and never one that trusts what was changed."""

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_host import simulated_host

from cima_runc.verifier.enrolled import EnrolledAk
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.verify import Appraisal, Expectation, verify

GOOD = Appraisal(lambda *compared: [], None, bytes(32))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=70)
    | st.text("0123456789abcdef", min_size=64, max_size=64)
    | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)

UNPROVED = ("meta", "template", "missing")
"""Fields that are shown and not proved."""


@dataclass(frozen=True, repr=False)
class Honest:
    raw: bytes
    nonce: bytes
    ak: EnrolledAk

    def verdict(self, raw: bytes) -> Verdict:
        wanted = Expectation(self.nonce, self.ak, container="plain", host="redacted")
        result = verify(raw, wanted, appraisal=GOOD)
        assert result.refusal is None or result.refusal.error != "UnexpectedError"
        return result.verdict


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Honest]:
    with simulated_host(tmp_path_factory.mktemp("host")) as host:
        relied_on = host.start_services(b"/usr/bin/containerd")
        number = host.start("plain", dependencies=relied_on)
        host.run(number, b"/bin/sh", b"sh")
        host.host_runs(b"/usr/bin/runc", b"r" * 32)
        nonce = os.urandom(32)
        made = Honest(host.evidence("plain", nonce, host="redacted"), nonce, host.enrolled())
        assert made.verdict(made.raw) == Verdict.TRUSTED
        yield made


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from places(item, (*at, key))


@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_one_field_replaced(honest: Honest, data: st.DataObject) -> None:
    evidence = json.loads(honest.raw)
    *above, last = data.draw(st.sampled_from(list(places(evidence))[1:]))
    changed = copy.deepcopy(evidence)
    holder = changed
    for key in above:
        holder = holder[key]
    if data.draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(JSON)
    verdict = honest.verdict(json.dumps(changed).encode())
    proved = not any(key in UNPROVED for key in (*above, last))
    if changed != evidence and proved:
        assert verdict != Verdict.TRUSTED, (above, last)


@settings(max_examples=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0), st.binary(max_size=4))
def test_bytes_replaced(honest: Honest, at: int, some: bytes) -> None:
    at %= len(honest.raw)
    honest.verdict(honest.raw[:at] + some + honest.raw[at + len(some) :])
