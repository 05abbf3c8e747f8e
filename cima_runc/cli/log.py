"""``cima log``: what ran in a container, for people as a table, for machines in other forms."""

import sys
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Annotated

import typer

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.cli import context
from cima_runc.cli.records import record_lines
from cima_runc.config import Settings
from cima_runc.ima.template import unpack_cima_ng
from cima_runc.ml.export import cel_json, cel_tlv, ima_ascii
from cima_runc.ml.records import IMA_TEMPLATE, Record, parse_line, template_data

_FOLLOW_SECONDS = 1.0
_HEADS = ("#", "what", "digest of file", "since", "file")
_WIDTHS = (4, 11, 14, 20)


class OptionsError(CimaError):
    """Options that do not go together."""


class Form(StrEnum):
    """How a log is printed."""

    table = "table"
    ima_ascii = "ima-ascii"
    cel_json = "cel-json"
    cel_tlv = "cel-tlv"


def log(
    container: Annotated[str, typer.Argument(metavar="ID", help="Id, how it begins, or name.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records as they are stored, a line each.")
    ] = False,
    form: Annotated[Form, typer.Option("--format", help="How it is printed.")] = Form.table,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until it ends.")
    ] = False,
) -> None:
    """Print a container's measurement log: what ran in it, and since when.

    A file is written down once, when it is first used; its digest is the kernel's.
    """
    if as_json and form is not Form.table:
        raise OptionsError("give either --json or --format")
    if follow and form not in (Form.table, Form.ima_ascii):
        raise OptionsError(f"--follow goes with a form of lines, and {form.value} is one value")
    settings = context.settings()
    lines = record_lines(settings, container)
    if as_json or form is Form.ima_ascii:
        _print_lines(lines, as_json)
        if follow:
            for more in _followed(settings, container, lines):
                _print_lines(more, as_json)
        return
    records = [parse_line(line) for line in lines]
    if form is Form.cel_json:
        sys.stdout.writelines(cel_json(records))
    elif form is Form.cel_tlv:
        sys.stdout.buffer.writelines(map(cel_tlv, records))
    else:
        typer.echo(_row(_HEADS))
        _print(records)
        if follow:
            for more in _followed(settings, container, lines):
                _print(map(parse_line, more))


def _print_lines(lines: Iterable[bytes], as_json: bool) -> None:
    for line in lines:
        typer.echo(line if as_json else ima_ascii(parse_line(line)))


def _followed(settings: Settings, container: str, lines: list[bytes]) -> Iterator[list[bytes]]:
    """Yield what comes after these records, as it comes, until the container has ended."""
    shown, last = len(lines), lines[-1:]
    while not (last and parse_line(last[0]).content.get("type") == "exit"):
        sys.stdout.flush()
        time.sleep(_FOLLOW_SECONDS)
        more = record_lines(settings, container)[shown:]
        yield more
        shown, last = shown + len(more), more[-1:]


def _print(records: Iterable[Record]) -> None:
    for record in records:
        typer.echo(_row(cells(record)))


def _row(cells: Iterable[str]) -> str:
    *columns, last = cells
    padded = (cell.ljust(width) for cell, width in zip(columns, _WIDTHS, strict=True))
    return "  ".join([*padded, last]).rstrip()


def cells(record: Record) -> tuple[str, str, str, str, str]:
    """Return number, what, digest of the file, time and file of a record, all printable."""
    since = printable(str(record.meta.get("time", "")))[:19].replace("T", " ")
    number = str(record.recnum)
    if record.content_type == IMA_TEMPLATE:
        file_digest, file_path, _, func = unpack_cima_ng(template_data(record.content))
        return number, func, file_digest.hex()[:12], since, printable(file_path)
    content = record.content
    what = printable(str(content.get("type")))
    path_hex = content.get("path_hex") or content.get("program_path_hex")
    try:
        path = printable(bytes.fromhex(path_hex)) if isinstance(path_hex, str) else ""
    except ValueError:
        path = printable(str(path_hex))
    digest = content.get("digest") or content.get("program_digest") or ""
    shown = printable(str(digest))[:12] if what in ("violation", "memory", "service") else ""
    why = printable(str(content.get("reason") or content.get("kind") or ""))
    about = ": ".join(part for part in (path, why) if part) if what not in ("register",) else ""
    return number, what, shown, since, about
