import compileall
import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cima_runc.measure.own_code import module_files, own_files


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    """The source of a module that can be imported; its byte code is a second older than now."""
    source = tmp_path / "own_code_of_cima.py"
    source.write_text("x = 1\n")
    compileall.compile_file(str(source), quiet=1)
    sys.path.insert(0, str(tmp_path))
    yield source
    sys.path.remove(str(tmp_path))
    sys.modules.pop(source.stem, None)


def found(source: Path, started_ns: int) -> list[Path]:
    sys.modules.pop(source.stem, None)
    importlib.invalidate_caches()
    return module_files([importlib.import_module(source.stem)], source.parent, started_ns)


def byte_code(source: Path) -> Path:
    (file,) = (source.parent / "__pycache__").iterdir()
    return file


def test_byte_code_that_was_there_before_us_was_read(module: Path) -> None:
    assert found(module, time.time_ns()) == [byte_code(module)]


def test_byte_code_that_came_after_us_was_not(module: Path) -> None:
    assert found(module, byte_code(module).stat().st_mtime_ns - 1) == [module]


def test_byte_code_of_another_source_was_not(module: Path) -> None:
    later = module.stat().st_mtime + 5
    os.utime(module, (later, later))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        assert found(module, time.time_ns()) == [module]
    finally:
        sys.dont_write_bytecode = before


def test_byte_code_that_is_checked_by_hash_or_not_at_all(module: Path) -> None:
    import py_compile

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(module), invalidation_mode=mode)
    assert found(module, time.time_ns()) == [byte_code(module)]


def test_modules_elsewhere_are_left_out(module: Path, tmp_path: Path) -> None:
    loaded = [*sys.modules.values(), importlib.import_module(module.stem)]
    assert module_files(loaded, tmp_path / "other", time.time_ns()) == []
    assert module_files(loaded, module.parent, time.time_ns()) == [byte_code(module)]


def test_this_installation() -> None:
    files = dict(own_files(time.time_ns()))
    prefix = os.fsencode(Path(sys.prefix).resolve())
    assert all(path.startswith(prefix) for path in files)
    assert prefix + b"/pyvenv.cfg" in files
    assert any(b"/pytest/" in path for path in files)
