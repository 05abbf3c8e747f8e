"""Which tests a change touches, told by what they import, for the minutes while working.

A test is touched by a Python file that it or anything it imports imports, also by a text that is a
module's name, by the conftest.py files beside and above it, and by another file that any of these
mention. A C header is mentioned where what includes it is.
"""

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from suites import CHECKOUT

ROOTS = ("", "tests/", "lab/")
"""Where modules are looked for: pytest's `pythonpath`."""
OURS = "cima_runc."
IN_C = ("native", "hooks", "cima_runc/sensor")
INCLUDE = re.compile(r"^#include \"([^\"]+)\"", re.MULTILINE)


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
    files = set(changed)
    mentions = {_mention(file) for file in files | _including(files)}
    return [test for test in tests if _is_touched(test, files, mentions)]


def _is_touched(test: str, files: set[str], mentions: set[str]) -> bool:
    needs = needed_by(test)
    return bool(needs & files) or any(said in _text(file) for file in needs for said in mentions)


def _mention(file: str) -> str:
    """Return how a text names a file. A Python file's own name, as main.py, would say little."""
    path = Path(file)
    return "/".join(path.parts[-2:]) if path.suffix == ".py" else path.name


def _including(files: set[str]) -> set[str]:
    """Return the C files that include one of these, directly or not."""
    sources = [
        str(path.relative_to(CHECKOUT))
        for room in IN_C
        for path in (CHECKOUT / room).glob("*.[ch]")
    ]
    found: set[str] = set()
    names = {Path(file).name for file in files}
    while True:
        new = {
            file
            for file in sources
            if file not in found
            and any(Path(said).name in names for said in INCLUDE.findall(_text(file)))
        }
        if not new:
            return found
        found |= new
        names |= {Path(file).name for file in new}


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
        elif isinstance(node, ast.Constant) and str(node.value).startswith(OURS):
            # Of importlib, or `python -m`; the beginning of a name may become any of its package.
            yield from _beginning_with(str(node.value))


def _beginning_with(name: str) -> Iterator[str]:
    if not name.endswith("."):
        yield name
        return
    package = CHECKOUT / name.replace(".", "/")
    yield from (f"{name}{path.stem}" for path in package.glob("*.py"))


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
