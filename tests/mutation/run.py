"""Mutation run: does a test notice when one thing in the code is another?

    python tests/mutation/run.py [--seconds N] [--part K/N] FILE... -- TEST...

Each mutant is one change: a comparison turned round, a condition negated or made constant, `and`
for `or`, a number one more, a `raise` or a plain call left out, an element of a tuple comparison
dropped. First it is counted which tests run which lines; for each mutant those that run its line
run, in a process of their own, forked with the libraries loaded, and stop at the first failure.
Printed are those that survive, one a line; exit status 1 if there are any.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage
import cryptography.hazmat.primitives.hpke
import hypothesis
import pydantic
import pytest

# Loaded before the forks, so that none has to load them.
assert cryptography and hypothesis and pydantic

OPTIONS = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
TOP = Path(__file__).resolve().parents[2]
OPPOSITE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module with one thing changed, and what; the change is within these lines."""

    tree: ast.Module
    what: str
    first: int
    last: int


def mutants(tree: ast.Module) -> Iterator[Mutant]:
    """Yield the module with one thing changed, in every way."""
    for at, node in enumerate(ast.walk(tree)):
        for number in range(_ways(node)):
            changed = copy.deepcopy(tree)
            target = next(found for index, found in enumerate(ast.walk(changed)) if index == at)
            before = ast.unparse(target)
            after = _change(target, number)
            if after is not None:
                ast.fix_missing_locations(changed)
                first = getattr(node, "lineno", 0)
                last = getattr(node, "end_lineno", first)
                if isinstance(node, ast.If | ast.FunctionDef):
                    # The condition, or the statement that is left out.
                    inner = node.test if isinstance(node, ast.If) else node.body[number]
                    first, last = inner.lineno, inner.end_lineno or inner.lineno
                what = f"{first}: {before[:90]!r} -> {after[:90]!r}"
                yield Mutant(changed, what, first, last)


def _ways(node: ast.AST) -> int:
    match node:
        case ast.Compare():
            return 1
        case ast.BoolOp():
            return 1
        case ast.If() | ast.IfExp():
            return 2
        case ast.Constant(value=bool() | int()):
            return 1
        case ast.FunctionDef(body=body):
            return len(body)
        case ast.UnaryOp(op=ast.Not()):
            return 1
        case ast.Return(value=value) if value is not None:
            return 0
    return 0


def _change(node: ast.AST, number: int) -> str | None:
    match node:
        case ast.Compare(ops=[op, *_]):
            node.ops[0] = OPPOSITE[type(op)]()
        case ast.BoolOp(op=op):
            node.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.If() | ast.IfExp():
            node.test = ast.Constant(value=bool(number))
            return f"if {bool(number)}"
        case ast.Constant(value=bool() as value):
            node.value = not value
        case ast.Constant(value=int() as value):
            node.value = value + 1
        case ast.UnaryOp():
            node.op = ast.UAdd()
            return "without not" if isinstance(node.operand, ast.Constant) else None
        case ast.FunctionDef():
            statement = node.body[number]
            is_plain = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if not is_plain:
                return None
            node.body[number] = ast.Pass()
            return f"without {ast.unparse(statement)}"
    return ast.unparse(node)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, name: str, tree: ast.Module, path: Path) -> None:
        self.name, self.tree, self.path = name, tree, path

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: object) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


class Coverage:
    """Which tests run which lines, and how long each takes; counted in a process of its own."""

    def __init__(self, tests: list[str]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            child = os.fork()
            if child == 0:
                os._exit(_count(tests, Path(directory)))
            _, status = os.waitpid(child, 0)
            if status:
                sys.exit("the tests fail without a mutant")
            data = coverage.CoverageData(str(Path(directory) / "data"))
            data.read()
            self._seconds: dict[str, float] = json.loads((Path(directory) / "seconds").read_text())
            self._lines: dict[str, dict[int, list[str]]] = {
                file: data.contexts_by_lineno(file) for file in data.measured_files()
            }

    def tests_of(self, path: Path, first: int, last: int) -> list[str]:
        """Return the tests that run one of these lines, the shortest first.

        Of what runs when a module is imported that is every test which runs any line of it.
        """
        lines = self._lines.get(str(path), {})
        found = {test for line in range(first, last + 1) for test in lines.get(line, ()) if test}
        if not found:
            found = {test for tests in lines.values() for test in tests if test}
        return sorted(found, key=lambda test: self._seconds.get(test, 0.0))


def _count(tests: list[str], directory: Path) -> int:
    seconds: dict[str, float] = {}
    counter = coverage.Coverage(
        str(directory / "data"), source=[str(TOP / "cima_runc")], config_file=False
    )

    class Contexts:
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            counter.switch_context(nodeid)

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration

    counter.start()
    status = pytest.main([*OPTIONS, *tests], plugins=[Contexts()])
    counter.stop()
    counter.save()
    (directory / "seconds").write_text(json.dumps(seconds))
    return int(status)


def survives(name: str, tree: ast.Module, path: Path, tests: list[str], seconds: float) -> bool:
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.meta_path.insert(0, _Finder(name, tree, path))
        status = pytest.main(["-x", *OPTIONS, *tests])
        os._exit(0 if status == 0 else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status == 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("files", nargs="+")
    at = sys.argv.index("--")
    options, tests = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    sys.path[:0] = [str(TOP), str(TOP / "tests")]
    os.chdir(TOP)
    covered = Coverage(tests)
    end = time.monotonic() + options.seconds
    part, parts = map(int, options.part.split("/"))
    todo = []
    for file in options.files:
        path = (TOP / file).resolve()
        name = ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        todo += [(name, path, mutant) for mutant in mutants(tree)]
    random.Random(7).shuffle(todo)
    todo = todo[part - 1 :: parts]
    killed = survived = 0
    for done, (name, path, mutant) in enumerate(todo):
        print(f"{done} of {len(todo)}", end="\r", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            print(f"time is over: {len(todo) - done} of {len(todo)} not tried")
            break
        chosen = covered.tests_of(path, mutant.first, mutant.last)
        if not chosen or survives(name, mutant.tree, path, chosen, 120):
            survived += 1
            print(f"SURVIVED {name}:{mutant.what} ({len(chosen)} tests)", flush=True)
        else:
            killed += 1
    print(f"{killed} killed, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
