import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import assume, given
from hypothesis import strategies as st

from cima_runc.engines import toml_text
from cima_runc.engines.engine import EngineError

names = st.text('abc._- é"', min_size=1, max_size=4)
leaves = st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6)
values = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8)
tables = st.dictionaries(names, values, max_size=4)


@given(tables, st.lists(names, min_size=1, max_size=3), leaves | st.dictionaries(names, leaves))
def test_put_says_what_it_should(table: dict[str, Any], path: list[str], new: Any) -> None:
    text = tomlkit.dumps(table)
    assume(tomllib.loads(text) == table)
    inner: Any = table
    for name in path[:-1]:
        inner = inner.setdefault(name, {}) if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        with pytest.raises(EngineError):
            toml_text.put(text, path, new, "it")
        return
    inner[path[-1]] = new
    assert tomllib.loads(toml_text.put(text, path, new, "it")) == table


@given(tables, st.lists(names, min_size=2, max_size=3), st.dictionaries(names, leaves, min_size=1))
def test_drop_undoes_put(table: dict[str, Any], path: list[str], new: dict[str, Any]) -> None:
    assume(path[0] not in table)
    text = "# begins\n" + tomlkit.dumps(table)
    assume(tomllib.loads(text) == table)
    put = toml_text.put(text, path, new, "it")
    assert put.startswith(text)
    assert toml_text.holds_something(put, "it")
    dropped = toml_text.drop(put, path, "it")
    assert toml_text.at(tomllib.loads(dropped), path) is None
    assert dropped.startswith("# begins\n")


@given(st.text(max_size=60))
def test_any_text_is_toml_or_an_error(text: str) -> None:
    try:
        toml_text.put(text, ["a", "b"], {"c": 1}, "it")
    except EngineError as error:
        assert str(error)


def test_comments_and_order_stay() -> None:
    text = "# one\nb = 1 # two\n[t] # three\n  k = [ 1,2 ]\n\n# four\n[a]\nx.y = 2\n"
    assert toml_text.put(text, ["t", "k2"], "v", "it").replace('k2 = "v"\n', "") == text
    assert toml_text.put(text, ["t", "u"], {"v": 1}, "it") == text + "\n[t.u]\nv = 1\n"


@pytest.mark.parametrize("text", ["", "a = 1\n", "# only this\n", "[b]\n  c = 2\n", "a = 1\n\n"])
@pytest.mark.parametrize("new", [{"c": "x"}, {"c": {"d": 1}, "e": True}])
def test_drop_leaves_no_empty_line_of_what_put_appended(text: str, new: dict[str, Any]) -> None:
    """Byte for byte, also where nothing is known any more of what the file was before."""
    path = ["plugins", "io.containerd.cri", "ours"]
    added = toml_text.put(text, path, new, "test")
    assert added.startswith(text) and added != text
    assert toml_text.drop(added, path, "test") == text
