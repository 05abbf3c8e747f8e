"""How commands print: data on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.base.unexpected import unexpected
from cima_runc.cli import context

_LINE = 500
"""Characters of a line about an error, at most: what is wrong may be somebody's megabyte."""

CANNOT = 2
"""The exit status of what could not be done: 1 says UNTRUSTED, and nothing else."""


def print_json(value: Any) -> None:
    """Print ``value`` as JSON, indented."""
    typer.echo(json.dumps(value, indent=2))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in aligned columns; every cell is made printable."""
    cells = [list(heads), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def note(line: str) -> None:
    """Print a line for the person on standard error."""
    typer.echo(f"cima: {line}", err=True)


def note_once(line: str) -> None:
    """Print a line, however often a command finds it out."""
    if context.first_time(line):
        note(line)


def wrote(path: Path, then: str = "") -> None:
    """Tell a person at a terminal what was written, and what comes next."""
    if sys.stderr.isatty() and str(path) != "-":
        note(f"wrote {printable(str(path))}")
        if then:
            note(f"next: {then}")


def _cut(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _LINE else f"{shown[:_LINE]}..."


def fail(error: CimaError, *, as_json: bool = False) -> NoReturn:
    """Print the error and what to do next, and end the process with its exit status.

    ``as_json``: an object ``{"error": {"kind", "what", "hint"}}`` on standard output besides.
    """
    note(_cut(error.what))
    if error.hint:
        note(_cut(error.hint))
    if as_json:
        kind = type(error).__name__.removesuffix("Error")
        what = {"kind": kind, "what": _cut(error.what), "hint": _cut(error.hint)}
        print_json({"error": what})
    sys.exit(error.exit_code)


def fail_unexpectedly(error: Exception, *, as_json: bool) -> NoReturn:
    """End the process after a fault of this program's own, with the traceback if it is wanted."""
    fail(unexpected(error, "cima"), as_json=as_json)
