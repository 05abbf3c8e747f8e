"""What an error says to do next: it is said where there is something, and can be done."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import cima_runc
from cima_runc.cli.main import app

_SOURCE = Path(cima_runc.__file__).parent
_COMMAND = re.compile(r"(?:^|[:;,] )cima ((?:[a-z-]+ ?)+)")


def errors() -> Iterator[tuple[str, str, ast.expr | None]]:
    """Yield where each error is made, what it says, and its hint."""
    for path in sorted(_SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func)
            if name.endswith("Error"):
                hint = next((one.value for one in node.keywords if one.arg == "hint"), None)
                where = f"{path.relative_to(_SOURCE)}:{node.lineno}"
                yield where, text_of(node.args[0]), hint


def text_of(expression: ast.AST) -> str:
    """What stands in the source of a text, the values left out."""
    parts = (one.value for one in ast.walk(expression) if isinstance(one, ast.Constant))
    return "".join(part for part in parts if isinstance(part, str))


def test_what_is_not_there_is_said_with_where_to_look() -> None:
    """Kind: an error without a next step, where there is one."""
    missing = [
        (where, what)
        for where, what, hint in errors()
        if where.startswith(("cli/", "fleet/")) and what.startswith("there is no ") and hint is None
    ]
    assert missing == []


def is_command(words: list[str]) -> bool:
    found: Any = typer.main.get_command(app)
    for word in words:
        names = getattr(found, "list_commands", lambda _: [])(None)
        if not names:
            return True  # what follows is a command's own
        if word not in names:
            return False
        found = found.get_command(None, word)
    return True


def test_commands_that_list_what_is_not_there() -> None:
    """Their names are given to a function of changes.py."""
    tree = ast.parse((_SOURCE / "fleet/changes.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    listed = [text_of(one.args[2]) for one in calls if ast.unparse(one.func) == "_must"]
    assert listed
    assert [words for words in listed if not is_command(["fleet", *words.split()])] == []


def test_commands_in_hints_are_there() -> None:
    wrong = []
    for where, _, hint in errors():
        for said in _COMMAND.findall(text_of(hint) if hint is not None else ""):
            if not is_command(said.split()[:2]):
                wrong.append((where, said))
    assert wrong == []
