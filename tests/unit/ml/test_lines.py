import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.ml.contents import NO_ENGINE, Engine, Previous
from cima_runc.ml.lines import LineError, Lines, LineState, line_name, line_of
from cima_runc.ml.pods import Pod, pod_of

OWNER, OTHER = "x25519:" + "A" * 43 + "=", "x25519:" + "B" * 43 + "="
LAST = Previous(run=2, boot_id="b", registration=7, count=9, cpcr=bytes(32), reason="deleted")


def test_identity_is_the_designs() -> None:
    text = f'{{"name":["annotation","web"],"owners":["{OWNER}","{OTHER}"],"user":7}}'
    wanted = hashlib.sha256(b"cima-line-v2\0" + text.encode()).digest()
    assert line_of(7, [OTHER, OWNER], ("annotation", "web")) == wanted
    text = '{"name":["cri","uid","web"],"owners":[],"user":0}'
    wanted = hashlib.sha256(b"cima-line-v2\0" + text.encode()).digest()
    assert line_of(0, [], ("cri", "uid", "web")) == wanted


names = st.one_of(
    st.tuples(st.just("annotation"), st.text("ab", max_size=2)),
    st.tuples(st.just("cri"), st.text("ab", max_size=2), st.text("ab", max_size=2)),
    st.tuples(st.just("id"), st.text("ab", max_size=2)),
)
lines = st.tuples(
    st.integers(0, 2), st.frozensets(st.sampled_from([OWNER, OTHER]), max_size=2), names
)


@given(lines, lines)
def test_lines_never_cross(one: Any, other: Any) -> None:
    assert (line_of(*one) == line_of(*other)) == (one == other)


ENGINES = (
    NO_ENGINE,
    Engine(name="docker"),
    Engine(name="podman"),
    Engine(name="containerd"),
    CONTAINERD := Engine(name="containerd", cri=True),
    CRIO := Engine(name="cri-o", cri=True),
)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("annotations", "wanted", "by"),
    [
        ({}, ("id", "i"), None),
        ({"io.cima.name": "n"}, ("annotation", "n"), None),
        ({"io.cima.name": ""}, ("id", "i"), None),
        ({"io.cima.name": 7}, ("id", "i"), None),
        (
            {
                "io.kubernetes.cri.sandbox-uid": "u",
                "io.kubernetes.cri.container-name": "c",
            },
            ("cri", "u", "c"),
            CONTAINERD,
        ),
        (  # containerd 1.6
            {"io.kubernetes.cri.sandbox-id": "s", "io.kubernetes.cri.container-name": "c"},
            ("cri", "s", "c"),
            CONTAINERD,
        ),
        (  # a sandbox itself
            {"io.kubernetes.cri.sandbox-id": "s", "io.kubernetes.cri.sandbox-uid": "u"},
            ("id", "i"),
            None,
        ),
        (
            {
                "io.kubernetes.cri.sandbox-id": "s",
                "io.kubernetes.cri.sandbox-uid": "u",
                "io.kubernetes.cri.container-name": "c",
            },
            ("cri", "u", "c"),
            CONTAINERD,
        ),
        (
            {"io.kubernetes.pod.uid": "u", "io.kubernetes.container.name": "c"},
            ("cri", "u", "c"),
            CRIO,
        ),
        ({"io.kubernetes.pod.uid": "u"}, ("id", "i"), None),
        (  # one's uid with another's name
            {"io.kubernetes.pod.uid": "u", "io.kubernetes.cri.container-name": "c"},
            ("id", "i"),
            None,
        ),
        (
            {
                "io.cima.name": "n",
                "io.kubernetes.pod.uid": "u",
                "io.kubernetes.container.name": "c",
            },
            ("annotation", "n"),
            None,
        ),
    ],
)
def test_name(annotations: dict[str, Any], wanted: Any, by: Engine | None, engine: Engine) -> None:
    """What an annotation says of a pod counts only where the CRI called that writes it."""
    expected = wanted if by in {None, engine} else ("id", "i")
    assert line_name("i", annotations, engine) == expected


OF_CONTAINERD = {
    "io.kubernetes.cri.sandbox-uid": "u",
    "io.kubernetes.cri.sandbox-id": "s",
    "io.kubernetes.cri.container-name": "c",
    "io.kubernetes.cri.sandbox-namespace": "n",
    "io.kubernetes.cri.sandbox-name": "p",
}
OF_CRIO = {
    "io.kubernetes.pod.uid": "u",
    "io.kubernetes.cri-o.SandboxID": "s",
    "io.kubernetes.container.name": "c",
    "io.kubernetes.pod.namespace": "n",
    "io.kubernetes.pod.name": "p",
}


@given(
    st.sampled_from(ENGINES),
    st.dictionaries(
        st.sampled_from(sorted(OF_CONTAINERD | OF_CRIO)), st.sampled_from(["mine", "", 7, None])
    ),
)
def test_another_engines_keys_change_nothing(engine: Engine, claimed: dict[str, Any]) -> None:
    """Whatever a pod writes by them, it is the pod that the engine itself wrote."""
    own = {"containerd": OF_CONTAINERD, "cri-o": OF_CRIO}.get(engine.name or "", {})
    honest = own if engine.cri else {}
    pod = Pod("u", "s", "c", "n", "p") if honest else Pod()
    assert pod_of(engine, claimed | honest) == pod
    assert line_name("i", claimed | honest, engine) == line_name("i", honest, engine)


def a_state(line: bytes, **changes: Any) -> LineState:
    fields: dict[str, Any] = {"line": line, "run": 3, "last": LAST, "time": "2025-01-01"}
    return LineState(**{**fields, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kept = Lines(tmp_path / "lines")
    one = b"1" * 32
    assert kept.read(one) is None
    for state in (a_state(one), a_state(one, last=None), a_state(one, run=2**53 - 1)):
        kept.write(state)
        assert Lines(tmp_path / "lines").read(one) == state
    kept.remove(one)
    kept.remove(one)
    assert kept.read(one) is None


@pytest.mark.parametrize("text", [b"{}", b"[]", b'{"line":"00"}', b" "])
def test_a_damaged_file_is_an_error(tmp_path: Path, text: bytes) -> None:
    kept = Lines(tmp_path)
    (tmp_path / f"{'31' * 32}.json").write_bytes(text)
    with pytest.raises(LineError):
        kept.read(b"1" * 32)


@pytest.mark.parametrize("text", [b"", b"\0" * 100])
def test_a_file_whose_content_a_crash_took_is_none(tmp_path: Path, text: bytes) -> None:
    """It was made for a first run, and nothing of that was answered before it was durable."""
    kept = Lines(tmp_path)
    (tmp_path / f"{'31' * 32}.json").write_bytes(text)
    assert kept.read(b"1" * 32) is None
    kept.write(a_state(b"1" * 32))
    assert kept.read(b"1" * 32) == a_state(b"1" * 32)


def test_a_file_of_another_line_is_an_error(tmp_path: Path) -> None:
    kept = Lines(tmp_path)
    kept.write(a_state(b"1" * 32))
    path = tmp_path / f"{'31' * 32}.json"
    path.rename(tmp_path / f"{'32' * 32}.json")
    with pytest.raises(LineError, match="another line"):
        kept.read(b"2" * 32)


def test_lines_by_age(tmp_path: Path) -> None:
    kept = Lines(tmp_path / "lines")
    assert kept.begun_before("2030-01-01") == []
    for number, time in enumerate(("2020-01-01", "2020-01-01", "2026-01-01")):
        kept.write(a_state(bytes([number]) * 32, time=time))
    (tmp_path / "lines" / "other").write_text("")
    (tmp_path / "lines" / f"{'09' * 32}.json").write_text("damaged")
    assert sorted(kept.begun_before("2025-01-01")) == [bytes(32), b"\1" * 32]


def test_lines_have_a_bound_whatever_their_age(tmp_path: Path) -> None:
    """Each container that is not named has a line of its own, and most never come again."""
    kept = Lines(tmp_path / "lines")
    assert kept.forget_above(0, frozenset()) == 0
    for number in range(6):
        kept.write(a_state(bytes([number]) * 32))
        path = tmp_path / "lines" / f"{bytes([number]).hex() * 32}.json"
        os.utime(path, (1000 - number, 1000 - number))
    assert kept.forget_above(6, frozenset()) == 0
    assert kept.forget_above(3, frozenset([bytes([5]) * 32])) == 3
    names = {path.name[:2] for path in (tmp_path / "lines").iterdir()}
    assert names == {"00", "01", "05"}
    everything = frozenset(bytes([number]) * 32 for number in range(6))
    assert kept.forget_above(1, everything) == 0
