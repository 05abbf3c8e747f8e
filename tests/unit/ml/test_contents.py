"""Contents: exact both ways, and refused by name where they are not of a known type and shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.ima.template import Func
from cima_runc.ml import contents
from cima_runc.ml.contents import Content, ContentError, ShapeError, UnknownTypeError
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record, digest_of, parse_line

FIXTURES = Path(__file__).parents[2] / "fixtures" / "engines"
LINE = bytes(range(32))
REGISTER: dict[str, Any] = {
    "id": "box",
    "boot_id": "5f0c",
    "registration": 7,
    "cgroup": "/box",
    "namespaces": {"mnt": 4026532180},
    "dependencies": 3,
    "missing": ("ima",),
}
PREVIOUS = contents.Previous(
    run=1, boot_id="5f0c", registration=6, count=9, cpcr=LINE, reason="it ended"
)
SEEN: dict[str, Any] = {
    "denied": False,
    "reason": "r",
    "func": "BPRM_CHECK",
    "digest": LINE,
    "path_hex": b"/bin/\xff\n",
    "mntns": 4026532180,
    "inode": "18446744073709551615",
    "device": "8:1",
}
LAYER = contents.Layer(
    kind="lower", digest="sha256:" + "0a" * 32, entries=3, files=2, bytes=1, changed=(),
    changed_count=0,
)  # fmt: skip
ONE_OF_EACH: list[Content] = [
    contents.RegisterV1(**REGISTER),
    contents.RegisterV1(**REGISTER, uid=1000, enforced="sha256:00"),
    contents.Register(**REGISTER, line=LINE, run=1, previous=None),
    contents.Register(**REGISTER, line=LINE, run=4, previous=PREVIOUS),
    contents.Register(**REGISTER, line=LINE, run=2, previous="lost"),
    contents.ServicesRegister(
        id="dependencies:3",
        kind="dependencies",
        boot_id="5f0c",
        registration=3,
        services=(contents.ServicePath(role="runtime", path_hex=b"/runc", path="/runc"),),
        missing=(),
    ),
    contents.Adopted(line=LINE, run=1, previous="lost"),
    contents.Config(config={"process": {"args": ["/bin/sh"], "x": [1, True, None, {"y": "z"}]}}),
    contents.Rootfs(
        mode="full", format="cima-layer-1", filesystem="overlay", reason="",
        root=contents.RootAttributes(mode="0755", uid=0, gid=0),
        layers=(LAYER, LAYER.model_copy(update={"kind": "upper", "manifest": "#mtree\n"})),
    ),
    contents.Rootfs(
        mode="off", format="cima-layer-1", filesystem="tree", reason="", root=None, layers=()
    ),
    contents.Lost(count=None, reason="r"),
    contents.Lost(count=3, reason="r"),
    contents.ViolationV1(**SEEN),
    contents.Violation(**SEEN, kind="unnamed"),
    contents.Violation(**SEEN, kind="unstable", why="it is mapped writable"),
    contents.Violation(
        **dict.fromkeys(SEEN, None) | {"denied": True, "reason": "r"}, kind="guard", why="bpf"
    ),
    contents.Lost(count=3, reason="r", mntns=4026532000),
    contents.Memory(
        kind="execmem", program_path_hex=b"/x", program_digest=LINE, mntns=1, denied=False
    ),
    contents.Application(kind="model", digest=LINE),
    contents.Application(kind="configuration", data=b"abc"),
    contents.Handed(kind="token", audience="bank", count=4),
    contents.Handed(kind="evidence", audience=None, count=1),
    contents.Exit(reason="deleted"),
    contents.Service(role="shim", path_hex=b"/s", path="/s", digest=None),
    contents.Unmeasured(
        role="shim", path_hex=None, path=None, digest=None, func=None, reason="gone"
    ),
]  # fmt: skip


def record_of(value: Any, content_type: str = "cima") -> Record:
    return Record(0, "box", bytes(32), content_type, value, {})


@pytest.mark.parametrize("content", ONE_OF_EACH, ids=lambda each: type(each).__name__)
def test_a_content_is_measured_stored_and_read_as_it_was_built(content: Content) -> None:
    record = Partition("box").add(content, {"time": "now"})
    stored = parse_line(record.to_line())
    assert contents.read(stored) == content
    assert type(contents.read(stored)) is type(content)
    assert contents.read(stored).to_json() == stored.content  # type: ignore[union-attr]
    assert digest_of("cima", content.to_json()) == record.digest


def test_every_type_of_the_union_is_among_them() -> None:
    def below(kind: type[Content]) -> set[type[Content]]:
        return {kind}.union(*map(below, kind.__subclasses__())) - {Content}

    assert {type(each) for each in ONE_OF_EACH} == below(Content)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*/*.jsonl")), ids=lambda path: path.stem)
def test_what_agents_of_version_1_have_recorded_is_read_by_name(path: Path) -> None:
    for line in path.read_bytes().splitlines():
        record = parse_line(line)
        content = contents.read(record)
        if isinstance(content, Content):
            assert content.to_json() == record.content


def _mutations(value: Any) -> list[Any]:
    """The same object with one thing changed, at every place."""
    changed: list[Any] = []
    if isinstance(value, dict):
        changed.append(value | {"surplus": 1})
        for key, inner in value.items():
            changed.append({name: kept for name, kept in value.items() if name != key})
            changed += [
                value | {key: other} for other in (*_mutations(inner), [], {}, 1.0, [inner])
            ]
            if type(inner) is int:
                changed += [value | {key: float(inner)}, value | {key: bool(inner)}]
                changed += [value | {key: str(inner)}, value | {key: -1}, value | {key: 2**53}]
            if isinstance(inner, str) and key not in {"path", "reason"}:
                changed += [value | {key: inner.upper() + "A"}, value | {key: inner + "\n"}]
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            changed += [[*value[:at], other, *value[at + 1 :]] for other in _mutations(inner)]
    return changed


@pytest.mark.parametrize("content", ONE_OF_EACH, ids=lambda each: type(each).__name__)
def test_another_shape_is_refused_by_name_or_is_exactly_another_content(content: Content) -> None:
    """Kind: a reading that is laxer than the writing, so that two texts mean the same."""
    refused = 0
    own = json.dumps(content.to_json(), sort_keys=True)
    for value in _mutations(content.to_json()):
        if json.dumps(value, sort_keys=True) == own:
            continue
        try:
            read = contents.read(record_of(value))
        except ContentError as error:
            assert isinstance(error, ShapeError | UnknownTypeError)
            assert error.what.isprintable()
            refused += 1
        else:
            assert isinstance(read, Content)
            assert read.to_json() == value
            assert rfc8785.dumps(read.to_json()) == rfc8785.dumps(value)
            assert read != content
    assert refused > len(type(content).model_fields)


@pytest.mark.parametrize(
    "kind", [["register"], {"a": 1}, None, 1, True, 1.5, "", "Register", "x\x1b[31m", "register "]
)
def test_an_unknown_type_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(UnknownTypeError) as caught:
        contents.read(record_of({"type": kind}))
    assert caught.value.what.isprintable()
    with pytest.raises(UnknownTypeError):
        contents.read(record_of({}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.sampled_from(["register", "config", "lost", "violation", "exit", "service", "handed"]),
    st.sampled_from(["reason", "kind", "config", "previous", "line", "services"]),
)
def test_no_content_is_a_traceback(anything: Any, kind: str, field: str) -> None:
    for value in ({"type": anything}, {"type": kind, field: anything}, {field: anything}):
        try:
            contents.read(record_of(value))
        except ContentError as error:
            assert error.what.isprintable()


def test_a_file_is_read_from_its_template() -> None:
    record = Partition("box").add_file(LINE, b"/bin/\xff\n", 5, Func.MMAP_CHECK, {})
    assert contents.read(record) == contents.File(LINE, b"/bin/\xff\n", 5, Func.MMAP_CHECK)
    whole = dict(record.content)
    for other in (
        whole | {"more": 1},
        whole | {"template_data": whole["template_data"] + "="},
        whole | {"template_data": 1},
        whole | {"template_name": "ima-ng"},
        {"template_name": "cima-ng"},
    ):
        with pytest.raises(ShapeError):
            contents.read(record_of(other, "ima_template"))
    with pytest.raises(UnknownTypeError):
        contents.read(record_of(whole, "ima_templates"))
