"""Which record each event becomes."""

import dataclasses
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sensor_events import event_of

from cima_runc.agent.violations import content_of, is_measured
from cima_runc.ml import contents
from cima_runc.sensor.events import Event, Func, Kind, Why

EVENT = event_of(1, b"/bin/sh")
MEMORY = {Why.EXECMEM, Why.EXECMOD, Why.EXECSTACK, Why.EXECHEAP}
DONE = {
    Kind.CHANGED: {
        *(Why.OPENED_WHILE_MAPPED, Why.TRUNCATED_WHILE_MAPPED, Why.PROCESS_MEMORY),
        *(Why.PTRACE, Why.USERFAULTFD),
    },
    Kind.GUARD: {Why.BPF, Why.TRACING},
    Kind.ENTRY: {Why.CAPABILITIES, Why.NO_SECCOMP},
    Kind.HELPER: {Why.HELPER_SET, Why.HELPER_RAN},
    Kind.MEMORY: MEMORY,
}
UNSTABLE = set(Why) - {Why.STABLE} - set().union(*DONE.values())


def changed(**changes: object) -> Event:
    return dataclasses.replace(EVENT, **changes)  # type: ignore[arg-type]


def violation(**changes: object) -> contents.Violation:
    content = content_of(changed(**changes))
    assert isinstance(content, contents.Violation)
    assert contents.parse(content.to_json()) == content
    return content


def test_a_stable_file_is_a_measurement() -> None:
    assert is_measured(EVENT)


@pytest.mark.parametrize("why", sorted(UNSTABLE - {Why.NO_DIGEST_KEPT}))
def test_what_is_not_believed_is_unstable_with_its_digest(why: Why) -> None:
    assert not is_measured(changed(why=why))
    found = violation(why=why)
    assert (found.kind, found.why, found.denied) == ("unstable", why.value, False)
    assert found.digest == EVENT.digest
    denied = violation(why=why, denied=True)
    assert (denied.kind, denied.why) == ("denied", why.value)
    assert denied.reason == f"denied, {found.reason}"


@pytest.mark.parametrize(("kind", "why"), [(k, w) for k in DONE for w in sorted(DONE[k])])
def test_what_was_done(kind: Kind, why: Why) -> None:
    if kind is Kind.MEMORY:
        memory = content_of(changed(kind=kind, why=why, denied=True))
        assert isinstance(memory, contents.Memory)
        assert (memory.kind, memory.denied) == (why.value, True)
        assert (memory.program_path_hex, memory.program_digest) == (EVENT.path, EVENT.digest)
        return
    for denied in (False, True):
        found = violation(kind=kind, why=why, denied=denied, func=Func.NONE)
        assert (found.kind, found.why) == (kind.name.lower(), why.value)
        assert (found.denied, found.func) == (denied, None)


def test_no_digest_at_all() -> None:
    gone = {"digest": None, "hash_algo": -1, "error": errno.EIO}
    assert violation(**gone).kind == "unnamed"
    assert "Input/output error" in violation(**gone, why=Why.NO_DIGEST_KEPT).reason
    assert violation(**gone, why=Why.NO_DIGEST_KEPT).kind == "unnamed"
    read = violation(**gone, why=Why.NO_DIGEST_KEPT, func=Func.FILE_CHECK)
    assert (read.kind, read.path_hex) == ("unstable", b"/bin/sh")


@given(
    st.sampled_from([(kind, why) for kind in DONE for why in sorted(DONE[kind])])
    | st.sampled_from([(Kind.USE, why) for why in sorted(UNSTABLE | {Why.STABLE})]),
    st.booleans(),
    st.sampled_from(Func),
    st.sampled_from([4, 2, -1]),
    st.none() | st.binary(min_size=1, max_size=20),
)
def test_every_event_is_one_or_the_other(
    about: tuple[Kind, Why], denied: bool, func: Func, algo: int, path: bytes | None
) -> None:
    event = changed(
        kind=about[0],
        why=about[1],
        denied=denied,
        func=func,
        hash_algo=algo,
        digest=b"d" * 32 if algo > 0 else None,
        error=0 if algo > 0 else 5,
        path=path,
        path_error=0 if path else 2,
    )
    if not is_measured(event):
        content = content_of(event)
        assert contents.parse(content.to_json()) == content
