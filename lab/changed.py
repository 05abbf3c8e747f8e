"""Which tests a change touches, told by what they import, for the minutes while working.

A test is touched by a Python file that it or anything it imports imports, by the conftest.py files
beside and above it, and by another file whose name any of these mention.
"""

import ast
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from suites import CHECKOUT

ROOTS = ("", "tests/", "lab/")
"""Where modules are looked for: pytest's `pythonpath`."""


def changed_files() -> set[str]:
    """Return what differs from where this branch left main, committed or not."""
    base = _git("merge-base", "HEAD", "main") or ["HEAD"]
    new = _git("ls-files", "--others", "--exclude-standard")
    return {*_git("diff", "--name-only", base[0]), *new}


def _git(*words: str) -> list[str]:
    command = ["git", "-C", str(CHECKOUT), *words]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    return ran.stdout.splitlines()


def touched(changed: Iterable[str], tests: Iterable[str]) -> list[str]:
    """Return those of the files of tests that the changed files touch, in their order."""
    python = {file for file in changed if file.endswith(".py")}
    names = {Path(file).name for file in changed} - {Path(file).name for file in python}
    return [test for test in tests if _is_touched(test, python, names)]


def _is_touched(test: str, python: set[str], names: set[str]) -> bool:
    needs = needed_by(test)
    return bool(needs & python) or any(name in _text(file) for file in needs for name in names)


def needed_by(test: str) -> set[str]:
    """Return the test itself and all files that it needs, directly or not."""
    waiting = [test, *(f"{above}/conftest.py" for above in Path(test).parents)]
    found: set[str] = set()
    while waiting:
        file = waiting.pop()
        if file not in found and (CHECKOUT / file).is_file():
            found.add(file)
            waiting += imports(file)
    return found


@cache
def imports(file: str) -> frozenset[str]:
    """Return the files of the checkout that a Python file imports itself."""
    return frozenset(
        found for module in _modules(ast.parse(_text(file)), file) for found in _files_of(module)
    )


def _modules(tree: ast.AST, file: str) -> Iterator[str]:
    package = Path(file).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def _files_of(module: str) -> Iterator[str]:
    """A module's own file, and those of the packages that it is in."""
    parts = module.split(".")
    for root in ROOTS:
        for length in range(1, len(parts) + 1):
            path = root + "/".join(parts[:length])
            for file in (f"{path}.py", f"{path}/__init__.py"):
                if (CHECKOUT / file).is_file():
                    yield file


@cache
def _text(file: str) -> str:
    return (CHECKOUT / file).read_text(errors="replace")
