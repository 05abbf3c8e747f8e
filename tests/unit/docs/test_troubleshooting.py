"""Troubleshooting by message: what the page says that is printed is printed by the code."""

import re
from pathlib import Path

import pytest

from cima_runc.verifier.completeness import _KINDS

TOP = Path(__file__).resolve().parents[3]
PAGE = (TOP / "docs/troubleshooting.md").read_text()
FIRST = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
MESSAGES = [text for cell in FIRST for text in re.findall(r"\*([^*]+)\*", cell)]
RULES = [name for cell in FIRST for name in re.findall(r"`([a-z]+\.[a-z_*]+)`", cell)]
CODE = "\n".join(path.read_text() for path in sorted((TOP / "cima_runc").rglob("*.py")))
JOINED = re.sub(r"\"\s*\n\s*f?\"", "", CODE)
"""Strings that stand on several lines are one."""


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_that_is_printed(message: str) -> None:
    wanted = r".{0,80}?".join(
        re.escape(part.strip()) for part in message.split("…") if part.strip()
    )
    wanted = re.sub(r"\\ \d+\\ ", r".{0,40}?", wanted)
    assert re.search(wanted, JOINED), message


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_one_that_is_found(rule: str) -> None:
    room, _, kind = rule.removesuffix("*").partition(".")
    assert f'"{room}.{kind}' in CODE or (room == "records" and kind in _KINDS), rule


def test_there_is_something_to_look_up() -> None:
    assert len(MESSAGES) > 5 and len(RULES) > 4
