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
        "tests/support/oci.py": "def f():\n    import cima_runc.alone",
        "tests/unit/conftest.py": "HELPER = 'helper.c'",
        "tests/unit/test_deep.py": "from cima_runc.deep import er",
        "tests/unit/test_support.py": "from support import oci",
        "tests/vm/test_vm.py": "from tests.support.oci import f",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)


TESTS = ["tests/unit/test_deep.py", "tests/unit/test_support.py", "tests/vm/test_vm.py"]
DEEP, SUPPORT, VM = TESTS


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("cima_runc/deep/er.py", [DEEP]),
        ("cima_runc/low.py", [DEEP]),  # the package of what is imported is imported too
        ("cima_runc/alone.py", [SUPPORT, VM]),
        ("cima_runc/__init__.py", TESTS),
        ("tests/unit/conftest.py", [DEEP, SUPPORT]),
        ("native/helper.c", [DEEP, SUPPORT]),
        ("tests/vm/test_vm.py", [VM]),
        ("cima_runc/none.py", []),
        ("docs/none.md", []),
    ],
)
def test_a_test_is_touched_by_what_it_needs(file: str, expected: list[str]) -> None:
    assert changed.touched([file], TESTS) == expected
