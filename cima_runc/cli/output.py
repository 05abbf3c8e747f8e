"""How commands print: data on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable


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


def fail(error: CimaError) -> NoReturn:
    """Print the error and what to do next, and end the process with its exit status."""
    note(printable(error.what))
    if error.hint:
        note(printable(error.hint))
    sys.exit(error.exit_code)
