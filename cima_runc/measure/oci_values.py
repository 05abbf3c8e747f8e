"""Values of the OCI runtime configuration that not all runtimes read as they stand there.

crun's reader ends a text, and a name, at its first NUL: ``"process\\0"`` is ``"process"`` to it.
Half of a surrogate pair becomes U+FFFD in runc and a question mark in crun. In a list of texts
both read null as an empty one, and so crun does with whatever is no text. What is measured would
then be one, and what runs the other. No engine writes any of them.
Source: libocispec (generated parsers; yajl and strdup(3)); Go's encoding/json, Unmarshal.
"""

from collections.abc import Iterator
from typing import Any

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

_LISTS_OF_TEXTS = """
args env bounding effective inheritable permitted ambient options flags maskedPaths readonlyPaths
names architectures schemata
"""
_TEXTS = frozenset(_LISTS_OF_TEXTS.split())
"""Names of the specification whose values are lists of texts, wherever they stand."""


class UnlikeValueError(CimaError):
    """The configuration holds a value that runtimes read differently, or not as it stands."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"config.json: {printable(where[:100])} {what}, which not every runtime reads so",
            hint="take it out; no engine writes such",
        )


def refuse_unlike_values(config: dict[str, Any]) -> None:
    """See that all runtimes read the values, and the names, of ``config`` as they stand there.

    Raises:
        UnlikeValueError: there is one that they do not.
    """
    todo: list[tuple[str, object]] = [("", config)]
    while todo:
        where, value = todo.pop()
        if isinstance(value, str):
            _refuse_text(where, value)
        elif isinstance(value, list):
            if None in value or (where in _TEXTS and not _are_texts(where, value)):
                raise UnlikeValueError(where, "has an element that is null, or no text among texts")
            todo.extend((where, each) for each in value)
        elif isinstance(value, dict):
            todo.extend(_members(value))


def _are_texts(where: str, value: list[Any]) -> bool:
    # Of a rule of seccomp's the arguments are objects.
    return all(isinstance(each, str) for each in value) or (
        where == "args" and all(isinstance(each, dict) for each in value)
    )


def _members(value: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for name, inner in value.items():
        _refuse_text("a name", name)
        yield name, inner


def _refuse_text(where: str, text: str) -> None:
    if "\0" in text:
        raise UnlikeValueError(where, "has a NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnlikeValueError(where, "has half of a surrogate pair") from None
