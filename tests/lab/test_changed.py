"""Which tests a change touches."""

from pathlib import Path

import changed
import pytest


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed, "CHECKOUT", tmp_path)
    changed.imports.cache_clear()
    changed._text.cache_clear()
    files = {
        "cima_runc/__init__.py": "",
        "cima_runc/low.py": "",
        "cima_runc/deep/__init__.py": "from ..low import x",
        "cima_runc/deep/er.py": "import os",
        "cima_runc/alone.py": "",
        "cima_runc/cli/main.py": "import_module(f'cima_runc.cli.{name}')",
        "cima_runc/cli/ps.py": "",
        "cima_runc/child.py": "",
        "native/constants.py": "",
        "native/shared.h": "",
        "cima_runc/sensor/uses.h": '#include "../../native/shared.h"\n',
        "cima_runc/sensor/sensor.bpf.c": '#include "uses.h"\n',
        "tests/unit/test_cli.py": "from cima_runc.cli.main import app",
        "tests/unit/test_child.py": "MODULE = 'cima_runc.child'\nRUN = 'native/constants.py'",
        "tests/unit/test_sensor.py": "PROGRAM = 'sensor.bpf.c'",
        "tests/support/oci.py": "def f():\n    import cima_runc.alone",
        "tests/unit/conftest.py": "HELPER = 'helper.c'",
        "tests/unit/test_deep.py": "from cima_runc.deep import er",
        "tests/unit/test_support.py": "from support import oci",
        "tests/vm/test_vm.py": "from tests.support.oci import f",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)


TESTS = [
    *("tests/unit/test_deep.py", "tests/unit/test_support.py", "tests/unit/test_cli.py"),
    *("tests/unit/test_child.py", "tests/unit/test_sensor.py", "tests/vm/test_vm.py"),
]
DEEP, SUPPORT, CLI, CHILD, SENSOR, VM = TESTS
UNIT = [DEEP, SUPPORT, CLI, CHILD, SENSOR]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("cima_runc/deep/er.py", [DEEP]),
        ("cima_runc/low.py", [DEEP]),  # the package of what is imported is imported too
        ("cima_runc/alone.py", [SUPPORT, VM]),
        ("cima_runc/__init__.py", [DEEP, SUPPORT, CLI, CHILD, VM]),
        ("tests/unit/conftest.py", UNIT),
        ("native/helper.c", UNIT),
        ("cima_runc/cli/ps.py", [CLI]),  # imported by a name that is put together
        ("cima_runc/child.py", [CHILD]),  # run by its name
        ("native/constants.py", [CHILD]),  # run as a file
        ("cima_runc/sensor/uses.h", [SENSOR]),
        ("native/shared.h", [SENSOR]),  # included by what is included
        ("tests/vm/test_vm.py", [VM]),
        ("cima_runc/none.py", []),
        ("docs/none.md", []),
    ],
)
def test_a_test_is_touched_by_what_it_needs(file: str, expected: list[str]) -> None:
    assert changed.touched([file], TESTS) == expected
