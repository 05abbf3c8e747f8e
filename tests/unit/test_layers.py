"""Which rooms may know of which: what lies higher imports what lies lower, never the other way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cima_runc

HERE = Path(cima_runc.__file__).parent
LAYERS = (
    ("base",),
    ("runtime",),
    ("validation", "evidence.fields"),
    ("ima", "cpcr", "tpm", "sensor", "config"),
    ("ml",),
    ("measure",),
    ("evidence", "engines"),
    ("verifier",),
    ("agent", "fleet"),
    ("doctor",),
    ("cli",),
)
"""Rooms of one layer may know of each other, where no cycle of modules comes of it: Python says so
when they are imported."""
NEVER = {
    "sensor": {"ima", "cpcr", "tpm", "config"},
    "cpcr": {"ima", "tpm", "sensor", "config"},
    "ima": {"cpcr", "tpm", "sensor", "config"},
    "tpm": {"ima", "cpcr", "sensor", "config"},
    "engines": {"evidence", "ml"},
    "verifier": {"sensor", "engines", "config"},
    "agent": {"fleet"},
    "fleet": {"agent", "sensor", "engines", "config"},
}
"""What a room must not know of though that lies no higher."""
MODULES = sorted(HERE.rglob("*.py"))


def room_of(module: str) -> tuple[int, str]:
    """The layer and the name of the room that ``module`` (below cima_runc) is in."""
    for depth in (2, 1):
        name = ".".join(module.split(".")[:depth])
        for number, rooms in enumerate(LAYERS):
            if name in rooms:
                return number, name
    raise AssertionError(f"cima_runc.{module} is in no layer: put its room into LAYERS")


def imported(path: Path) -> set[str]:
    """The modules below cima_runc that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("cima_runc.") for name in found if name.startswith("cima_runc.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HERE)))
def test_nothing_knows_what_lies_higher(path: Path) -> None:
    own = ".".join(path.relative_to(HERE).with_suffix("").parts)
    if own == "__init__":
        return
    layer, room = room_of(own)
    for module in imported(path) - {"__version__"}:
        other_layer, other = room_of(module)
        assert other_layer <= layer, f"{own} imports {module}"
        assert other not in NEVER.get(room, ()), f"{own} imports {module}"


def test_the_writer_alone_holds_core_and_ledger() -> None:
    """Whoever else wants to change a container has to ask it (the core's errors are for all)."""
    held = {
        module: {
            str(path.relative_to(HERE)) for path in MODULES if f"agent.{module}" in imported(path)
        }
        for module in ("core.Core", "ledger.Ledger")
    }
    assert held == {
        "core.Core": {"agent/ledger.py", "agent/rooms.py", "agent/writer.py"},
        "ledger.Ledger": {"agent/writer.py"},
    }
    makes = ast.parse((HERE / "agent/rooms.py").read_bytes())
    uses = [node for node in ast.walk(makes) if isinstance(node, ast.Name) and node.id == "core"]
    assert len(uses) == 2, "it is made there, and given to the writer"


@pytest.mark.parametrize(
    "path",
    [path for room in ("base", "runtime") for path in sorted((HERE / room).glob("*.py"))],
    ids=lambda path: str(path.relative_to(HERE)),
)
def test_what_runs_in_place_of_runc_takes_the_standard_library_alone(path: Path) -> None:
    module = ".".join(path.relative_to(HERE.parent).with_suffix("").parts)
    code = "import sys; sys.path.insert(0, sys.argv[1]); __import__(sys.argv[2])"
    wanted = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
    }
    # Also what is imported when it is wanted only.
    assert wanted <= sys.stdlib_module_names | {"cima_runc"}
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(HERE.parent), module],
        check=True,
        capture_output=True,
        timeout=60,
    )
