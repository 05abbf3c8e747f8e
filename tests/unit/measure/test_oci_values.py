import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cima_runc.measure.bundle import parse_config
from cima_runc.measure.oci_values import UnlikeValueError, refuse_unlike_values
from tests.unit.measure.test_oci_names import CONFIG as NAMES

CONFIG = copy.deepcopy(NAMES)
CONFIG["process"]["capabilities"] = {"bounding": ["CAP_KILL"], "ambient": []}
CONFIG["process"]["user"]["additionalGids"] = [5]
CONFIG["linux"]["maskedPaths"] = ["/proc/kcore"]
CONFIG["linux"]["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_LOG"]
CONFIG["linux"]["seccomp"]["syscalls"][0]["args"] = [
    {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"},
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    ):
        yield from _places(inner, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _changes(config: dict[str, Any], bad: str) -> Iterator[Callable[[], None]]:
    """Everything by which ``bad`` comes into a text or a name of ``config``, one at a time."""
    for path in list(_places(config)):
        value = _at(config, path)
        if isinstance(value, dict):
            for name in list(value):

                def rename(value: dict[str, Any] = value, name: str = name) -> None:
                    value[name + bad] = value.pop(name)

                yield rename
        elif isinstance(value, str):

            def replace(path: tuple[Any, ...] = path, value: str = value) -> None:
                _at(config, path[:-1])[path[-1]] = value + bad + "x"

            yield replace


def _count(bad: str) -> int:
    return len(list(_changes(copy.deepcopy(CONFIG), bad)))


def test_what_engines_write_is_taken() -> None:
    assert parse_config(json.dumps(CONFIG).encode()) == CONFIG


@pytest.mark.parametrize("bad", ["\0", "\ud800", "\udfff"])
def test_no_text_or_name_that_runtimes_read_otherwise(bad: str) -> None:
    """crun reads a name up to its NUL: what is measured would not be what runs."""
    assert _count(bad) > 60
    for number in range(_count(bad)):
        config = copy.deepcopy(CONFIG)
        list(_changes(config, bad))[number]()
        with pytest.raises(UnlikeValueError):
            refuse_unlike_values(config)


@pytest.mark.parametrize("element", [None, 5, {}, [], True])
def test_no_element_that_runtimes_read_as_an_empty_text(element: Any) -> None:
    lists = [path for path in _places(CONFIG) if isinstance(_at(CONFIG, path), list)]
    texts = [path for path in lists if all(isinstance(each, str) for each in _at(CONFIG, path))]
    assert len(texts) > 6
    for path in lists if element is None else texts:
        for place in range(len(_at(CONFIG, path)) + 1):
            config = copy.deepcopy(CONFIG)
            _at(config, path).insert(place, element)
            with pytest.raises(UnlikeValueError, match="null, or no text"):
                refuse_unlike_values(config)


def test_a_bundles_configuration_is_looked_at() -> None:
    for raw in (
        b'{"process\\u0000": {}}',
        b'{"process": {"args": ["a", null]}}',
        b'{"x": "\\ud800"}',
    ):
        with pytest.raises(UnlikeValueError):
            parse_config(raw)
