"""The page on the agent's log lists every event that the agent logs, with its priority."""

import ast
import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error"}


def logged() -> dict[str, str]:
    """Each event and its level, from the calls in the agent's code."""
    found = {}
    for path in (TOP / "cima_runc/agent").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            named = {}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and (event := event_of(node.value)):
                    [target] = node.targets
                    assert isinstance(target, ast.Name)
                    named[target.id] = event
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    for keyword in node.keywords:
                        if keyword.arg == "extra":
                            name = getattr(keyword.value, "id", "")
                            event = event_of(keyword.value) or named[name]
                            found[event] = LEVELS[node.func.attr]
    return found


def event_of(node: ast.AST) -> str | None:
    is_event = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "about"
    if not is_event:
        return None
    assert isinstance(node, ast.Call)
    [first] = node.args
    assert isinstance(first, ast.Constant)
    return str(first.value)


def test_every_event_is_documented() -> None:
    page = (TOP / "docs/how-to/logs.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z-]+)` \| ([a-z]+) \|", page, re.MULTILINE))
    assert documented == logged()
    assert len(documented) > 8
