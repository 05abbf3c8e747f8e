"""TOML settings, read by one parser, edited with another that keeps comments and order."""

import tomllib
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.items
from tomlkit.exceptions import TOMLKitError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.engines.engine import EngineError

_BOM = "\ufeff"
"""A byte order mark, which the readers of Podman, CRI-O and containerd 1.x skip."""


def parse(text: str, what: str) -> dict[str, Any]:
    """Return the values of a TOML text.

    Raises:
        EngineError: it is too large or not TOML.
    """
    if len(text.encode("utf-8", "surrogateescape")) > limits.ENGINE_SETTINGS:
        raise EngineError(f"{what} has more than {limits.ENGINE_SETTINGS} bytes")
    try:
        return tomllib.loads(text.removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{what} is not TOML: {error}", hint="mend it by hand") from error


def read(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        EngineError: it is too large or not TOML; names it.
        OSError: it cannot be read.
    """
    raw = read_bounded(path, limits.ENGINE_SETTINGS)
    try:
        return parse(raw.decode(), str(path))
    except UnicodeDecodeError as error:
        raise EngineError(f"{path} is not UTF-8", hint="mend it by hand") from error


def refuse_others(text: str | None, mark: str, what: str) -> None:
    """See that a file that is written as a whole is ours: begins with ``mark``, or holds nothing.

    Raises:
        EngineError: it is not; names it.
    """
    if text is not None and not text.startswith(mark) and holds_something(text, what):
        raise EngineError(
            f"{what} has settings of others, and ours go into a file of their own",
            hint="leave --file out, or name a file that is not there yet",
        )


def refuse_later(files: Iterable[Path], paths: Sequence[list[str]]) -> None:
    """See that none of ``files``, which come after ours, has the last word on what we set.

    Raises:
        EngineError: one does; names it.
    """
    for file in files:
        values = read(file)
        for path in paths:
            if at(values, path) is not None:
                raise EngineError(
                    f"{file} comes after our file and has the last word on {'.'.join(path)}",
                    hint="take it out there",
                )


def at(values: dict[str, Any], path: list[str]) -> Any:
    """Return what stands at ``path``, None where nothing does."""
    found: Any = values
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def put(text: str, path: list[str], value: Any, what: str) -> str:
    """Return ``text`` with ``value`` at ``path``.

    What is new and a table goes to the end of the text, so that the rest stays byte for byte as
    it is; what changes in a table that is there is changed in its place.

    Raises:
        EngineError: the result would not say what it should.
    """
    if text.startswith(_BOM):
        return _BOM + put(text.removeprefix(_BOM), path, value, what)
    values = parse(text, what)
    expected = _with(values, path, value)
    if values == expected:
        return text
    header = ".".join(_key(name) for name in (path if isinstance(value, dict) else path[:-1]))
    body = value if isinstance(value, dict) else {path[-1]: value}
    start = text if not text or text.endswith("\n") else text + "\n"
    appended = f"{start}\n[{header}]\n{_lines(body, header)}".lstrip("\n")
    if _says(appended, expected):
        return appended
    try:
        document = tomlkit.parse(text)
        table: Any = document
        for name in path[:-1]:
            if name not in table:
                table[name] = _new_table(table)
            table = table[name]
        table[path[-1]] = value
        edited = tomlkit.dumps(document)
    except (TOMLKitError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError(f"{what} cannot be edited: {error}", hint="edit it by hand") from error
    if not _says(edited, expected):
        dotted = ".".join(path)
        raise EngineError(f"{what} cannot be given {dotted}", hint="add it by hand")
    return edited


def drop(text: str, path: list[str], what: str) -> str:
    """Return ``text`` without what stands at ``path``, and without the tables it leaves empty.

    Raises:
        EngineError: the result would not say what it should.
    """
    if text.startswith(_BOM):
        return _BOM + drop(text.removeprefix(_BOM), path, what)
    values = parse(text, what)
    if at(values, path) is None:
        return text
    expected = _with(values, path, None)
    document = tomlkit.parse(text)
    table: Any = document
    for name in path[:-1]:
        table = table[name]
    del table[path[-1]]
    edited = tomlkit.dumps(document)
    if text.startswith(edited) and edited.endswith("\n\n"):
        # It stood at the end, after an empty line that :func:`put` began with.
        edited = edited[:-1]
    if not _says(edited, expected, ignore_empty=True):
        dotted = ".".join(path)
        raise EngineError(f"{dotted} cannot be taken out of {what}", hint="do it by hand")
    return edited


def _new_table(inside: Any) -> Any:
    """Return an empty table for another: one in braces has only such."""
    if isinstance(inside, tomlkit.items.InlineTable):
        return tomlkit.inline_table()
    return tomlkit.table(is_super_table=True)


def line(key: str, value: object) -> str:
    """Return the line ``key = value``."""
    return tomlkit.dumps({key: value}).strip()


def holds_something(text: str, what: str, *, besides: Set[str] = frozenset()) -> bool:
    """Whether any value stands in ``text``, those at top level named ``besides`` left out."""
    values = parse(text, what)
    return bool(_without_empty({k: v for k, v in values.items() if k not in besides}))


def _says(text: str, expected: dict[str, Any], *, ignore_empty: bool = False) -> bool:
    try:
        found = tomllib.loads(text)
    except ValueError:
        return False
    if ignore_empty:
        return bool(_without_empty(found) == _without_empty(expected))
    return found == expected


def _without_empty(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {name: _without_empty(item) for name, item in value.items()}
    return {name: item for name, item in kept.items() if item != {}}


def _with(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    name, *deeper = path
    changed = dict(values)
    if deeper:
        inner = changed.get(name, {})
        if not isinstance(inner, dict):
            raise EngineError(f"{name} is not a table", hint="mend it by hand")
        changed[name] = _with(inner, deeper, value)
    elif value is None:
        changed.pop(name, None)
    else:
        changed[name] = value
    return changed


def _lines(body: dict[str, Any], header: str) -> str:
    plain = {key: value for key, value in body.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in body.items() if isinstance(value, dict)}
    text = tomlkit.dumps(plain)
    for key, value in tables.items():
        inner = f"{header}.{_key(key)}"
        text += f"[{inner}]\n{_lines(value, inner)}"
    return text


def _key(name: str) -> str:
    return tomlkit.key(name).as_string()
