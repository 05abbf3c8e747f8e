import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cima_runc.engines import json_text

names = st.text(max_size=8)
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(names, values, max_size=4)
indents = st.sampled_from([None, 0, 1, 2, 4, "\t"])


@given(objects, indents, st.booleans(), names, names, leaves)
def test_put_changes_one_member_and_no_byte_of_the_others(
    value: dict[str, Any], indent: Any, ascii_only: bool, first: str, second: str, new: Any
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    path = [first, second] if isinstance(value.get(first, {}), dict) else [first]
    edited = json_text.put(text, path, new)
    expected = value
    inner = expected.setdefault(first, {}) if len(path) == 2 else expected
    inner[path[-1]] = new
    assert json.loads(edited) == expected
    if edited.startswith(text[:-1].rstrip()):
        assert edited.endswith(text[-1])


@given(objects, indents, names, leaves)
def test_drop_undoes_put(value: dict[str, Any], indent: Any, name: str, new: Any) -> None:
    value.pop(name, None)
    text = json.dumps(value, indent=indent)
    edited = json_text.drop(json_text.put(text, [name], new), [name])
    assert json.loads(edited) == value
    if value:
        assert edited == text


@given(objects, names)
def test_drop_of_what_is_there_and_what_is_not(value: dict[str, Any], name: str) -> None:
    text = json.dumps(value, indent=2)
    edited = json_text.drop(text, [name, "x"] if name not in value else [name])
    value.pop(name, None)
    assert json.loads(edited) == value


def test_the_form_of_the_rest_stays() -> None:
    text = '{\n\t"dns": [ "1.1.1.1",   "8.8.8.8" ],\n\t"debug" : true\n}\n'
    assert json_text.put(text, ["runtimes", "x"], {"path": "/p"}) == (
        '{\n\t"dns": [ "1.1.1.1",   "8.8.8.8" ],\n\t"debug" : true,\n'
        '\t"runtimes": {\n\t\t"x": {\n\t\t\t"path": "/p"\n\t\t}\n\t}\n}\n'
    )
