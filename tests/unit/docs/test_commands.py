"""Commands that pages and messages name: each is there, with the options that it is given."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from cima_runc.cli.main import app
from cima_runc.fleet.main import app as service

TOP = Path(__file__).resolve().parents[3]
PROGRAMS = {
    "cima": typer.main.get_command(app),
    "cima-verifier": typer.main.get_command(service),
}
PAGES = [
    page
    for page in [
        *TOP.glob("*.md"),
        *(TOP / "docs").rglob("*.md"),
        *(TOP / "examples").rglob("*.md"),
    ]
    if page.name != "CHANGELOG.md"  # which names what there was
]
COMMAND = re.compile(r"(?:\S*[#$] +)?(cima(?:-verifier)?) (?=[a-z-])(.*)")
END = re.compile(r"\s(?:\||;|&&|>|<)\s|\s+#\s")
FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def typed(page: str) -> Iterator[str]:
    """What a page shows as typed: lines of blocks, and code in a line of text."""
    for block in FENCED.findall(page):
        yield from block.replace("\\\n", " ").splitlines()
    rest = FENCED.sub("", page)
    yield from (line.strip() for line in rest.splitlines() if line.startswith("    "))
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest))


def hints(source: str) -> Iterator[str]:
    """What messages give as the next step, where that is a command."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in ("hint", "next"):
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield re.split(r"[,;:`()]| and | says | shows ", part.value)[0]


@cache
def below(command: Any, word: str) -> Any:
    """The command ``word`` of ``command``: made once, since each is made anew otherwise."""
    return command.get_command(None, word)


def wrong(line: str) -> str | None:
    """What of a command line its program does not know, or None."""
    if not (found := COMMAND.fullmatch(line)):
        return None
    command: Any = PROGRAMS[found[1]]
    words = shlex.split(END.split(found[2])[0].replace("'", ""))
    while hasattr(command, "list_commands") and words and not words[0].startswith("-"):
        word = words.pop(0).strip(",`")
        if word in ("…", "COMMAND"):
            return None
        command = below(command, word)
        if command is None:
            return word
    context = command.make_context("cima", [], resilient_parsing=True)
    known = {
        name
        for parameter in command.get_params(context)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    named = (word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word))
    return next((name for name in named if name not in known), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_a_page_names_commands_that_are_there(page: Path) -> None:
    assert {line: unknown for line in typed(page.read_text()) if (unknown := wrong(line))} == {}


def test_messages_name_commands_that_are_there() -> None:
    named = [line for path in (TOP / "cima_runc").rglob("*.py") for line in hints(path.read_text())]
    assert {line: unknown for line in named if (unknown := wrong(line))} == {}
    assert sum(COMMAND.fullmatch(line) is not None for line in named) > 20


def test_what_is_not_there_is_seen() -> None:
    assert wrong("cima fleet tokens join") == "join"
    assert wrong("cima fleet approve --list") == "--list"
    assert wrong("host# cima enroll open --minutes 10  # a while") is None
