"""Editing a JSON object as text, so that everything else keeps its form.

Positions are offsets into the text, which must have been parsed before: nothing here judges it.
"""

import json
import re
from dataclasses import dataclass

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Member:
    """One member of an object."""

    name: str
    start: int
    """Where its name begins."""
    value_start: int
    end: int
    """Just after its value."""


def members(text: str, start: int) -> tuple[list[Member], int]:
    """Return the members of the object at ``start``, and where its closing brace is."""
    found: list[Member] = []
    at = _skip(text, _skip(text, start) + 1)
    while text[at] != "}":
        name, after = _DECODER.raw_decode(text, at)
        value_start = _skip(text, _skip(text, after) + 1)
        _, end = _DECODER.raw_decode(text, value_start)
        found.append(Member(name, at, value_start, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at


def put(text: str, path: list[str], value: object) -> str:
    """Return ``text`` with ``value`` at ``path`` in its object, objects on the way made."""
    return _put(text, 0, path, value, 1)


def _put(text: str, start: int, path: list[str], value: object, depth: int) -> str:
    name, *deeper = path
    present, closing = members(text, start)
    unit = _unit(text)
    for member in present:
        if member.name == name:
            if deeper:
                return _put(text, member.value_start, deeper, value, depth + 1)
            written = _dump(value, unit, depth)
            return text[: member.value_start] + written + text[member.end :]
    for outer in reversed(deeper):
        value = {outer: value}
    line = f"{json.dumps(name)}: {_dump(value, unit, depth)}"
    if present:
        last = present[-1].end
        return f"{text[:last]},\n{unit * depth}{line}{text[last:]}"
    opening = _skip(text, start) + 1
    return f"{text[:opening]}\n{unit * depth}{line}\n{unit * (depth - 1)}{text[closing:]}"


def drop(text: str, path: list[str]) -> str:
    """Return ``text`` without the member at ``path``; the same text where there is none."""
    start = 0
    for name in path[:-1]:
        inner = [member for member in members(text, start)[0] if member.name == name]
        if not inner:
            return text
        start = inner[0].value_start
    present, closing = members(text, start)
    for index, member in enumerate(present):
        if member.name != path[-1]:
            continue
        if len(present) == 1:
            opening = _skip(text, start) + 1
            return text[:opening] + text[closing:]
        if index == 0:
            return text[: member.start] + text[present[1].start :]
        return text[: present[index - 1].end] + text[member.end :]
    return text


def _unit(text: str) -> str:
    found = re.search(r"\n([ \t]+)\"", text)
    return found.group(1) if found else "  "


def _dump(value: object, unit: str, depth: int) -> str:
    lines = json.dumps(value, indent=unit, ensure_ascii=False).split("\n")
    return f"\n{unit * depth}".join(lines)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()
