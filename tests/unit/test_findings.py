"""Each fault that an independent verifier found in evidence of version 1 is a test of its kind.

Such a test's docstring begins with the finding's number, and says what kind of fault it was.
"""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FINDINGS = set(range(1, 14))
NUMBERED = re.compile(r"Findings? ((?:\d+(?:, | and )?)+)[.:]\s+\S+")


def test_each_has_one() -> None:
    found: dict[int, list[str]] = {}
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                named = NUMBERED.match(ast.get_docstring(node) or "")
                for number in re.findall(r"\d+", named[1]) if named else ():
                    found.setdefault(int(number), []).append(node.name)
    assert found.keys() == FINDINGS
