"""Pictures of a terminal, made from a transcript: what was printed is what is shown.

A screenshot (SVG, by Rich) and a recording in asciinema's format, which ``asciinema play`` plays.
Of the times in it only the order is real.
Source: docs.asciinema.org, "asciicast v2".
"""

import io
import json
import re
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

_COLUMNS = 118
_SECONDS = {"==": 1.2, "$": 0.9}
"""Before a heading and before a command; a line of output comes at once."""


def transcript(page: str, command: str) -> list[str]:
    """Return the lines of a page's transcript: the block of lines that are indented by four."""
    block = page.partition(f"{command}")[2].partition("\n    ")[2]
    lines = f"    {block}".splitlines()
    own = [line.removeprefix("    ") for line in lines if not line or line.startswith("    ")]
    return [f"$ {command}", "", *own]


def screenshot(lines: list[str], title: str) -> str:
    """Return an SVG that shows the lines."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), color_system="truecolor")
    for line in lines:
        bold = line.startswith("==") or line.strip().startswith("$")
        console.print(Text(line, style="bold" if bold else ""), soft_wrap=False, overflow="fold")
    made = console.export_svg(title=title, unique_id="terminal")
    # Rich's fonts come from elsewhere, and the site asks nobody else for anything.
    return re.sub(r"@font-face \{.*?\}\s*", "", made, flags=re.DOTALL)


def recording(lines: list[str]) -> str:
    """Return an asciicast of the lines."""
    head = {"version": 2, "width": _COLUMNS, "height": 34}
    return "\n".join([json.dumps(head), *map(json.dumps, _events(lines))]) + "\n"


def _events(lines: list[str]) -> Iterator[list[object]]:
    at = 0.0
    for line in lines:
        at += _SECONDS.get(line.strip().partition(" ")[0], 0.05)
        yield [round(at, 2), "o", f"{line}\r\n"]
