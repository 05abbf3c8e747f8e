import base64
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cima_runc.doctor import own_files
from cima_runc.doctor.finding import UnfitError

PACKAGES = "lib/python3.11/site-packages"
DATA = {
    f"{PACKAGES}/tool/__init__.py": b"a = 1\n",
    f"{PACKAGES}/tool/part.so": b"\x7fELF",
    f"{PACKAGES}/tool-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tool\nVersion: 1\n",
    "bin/tool": b"#!/bin/sh\n",
    "libexec/cima/hooks/prestart": b"\x7fELF hook",
}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment as pip makes it: one distribution, byte code, links, an activate script."""
    made = tmp_path / "prefix"
    lines = []
    for name, data in DATA.items():
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{os.path.relpath(path, made / PACKAGES)},sha256={digest},{len(data)}")
    cache = made / PACKAGES / "tool/__pycache__/__init__.cpython-311.pyc"
    cache.parent.mkdir()
    cache.write_bytes(b"byte code")
    lines += ["tool/__pycache__/__init__.cpython-311.pyc,,", "tool-1.dist-info/RECORD,,"]
    (made / PACKAGES / "tool-1.dist-info/RECORD").write_text("\n".join(lines) + "\n")
    (made / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (made / "bin/activate").write_text("")
    (made / "bin/python3").symlink_to("/usr/bin/python3")
    for path in [made, *made.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755)
    return made


def look(prefix: Path, dpkg: Path = Path("/nowhere")) -> str:
    return own_files.look(prefix, os.getuid(), dpkg)


def test_what_was_installed_is_counted(prefix: Path) -> None:
    assert look(prefix).startswith(f"{len(DATA)} files below ")
    assert "no list has 1 of byte code" in look(prefix)


def edited(prefix: Path) -> str:
    (prefix / "bin/tool").write_bytes(b"#!/bin/sh\nx\n")
    return "bin/tool is not what was installed"


def gone(prefix: Path) -> str:
    (prefix / "libexec/cima/hooks/prestart").unlink()
    return "prestart is gone"


def added(prefix: Path) -> str:
    (prefix / PACKAGES / "tool/more.py").write_text("")
    return "more.py was not installed"


def added_beside(prefix: Path) -> str:
    (prefix / PACKAGES / "site.pth").write_text("import os\n")
    return "site.pth was not installed"


def byte_code_of_nothing(prefix: Path) -> str:
    (prefix / PACKAGES / "tool/__pycache__/other.cpython-311.pyc").write_bytes(b"")
    return "other.cpython-311.pyc was not installed"


def open_directory(prefix: Path) -> str:
    (prefix / PACKAGES / "tool").chmod(0o775)
    return "tool can be written by others"


def open_file(prefix: Path) -> str:
    (prefix / "bin/tool").chmod(0o757)
    return "bin/tool can be written by others"


def cut(prefix: Path) -> str:
    (prefix / PACKAGES / "tool/part.so").write_bytes(b"")
    return "part.so is not what was installed"


def many(prefix: Path) -> str:
    for number in range(5):
        (prefix / PACKAGES / f"tool/m{number}\x1b.py").write_text("")
    return "and 2 more were not installed"


def two_cut(prefix: Path) -> str:
    (prefix / "bin/tool").write_bytes(b"")
    cut(prefix)
    return "part.so are not what was installed"


def two_gone(prefix: Path) -> str:
    (prefix / "bin/tool").unlink()
    gone(prefix)
    return "prestart are gone"


WRONG = (
    *(two_cut, two_gone),
    *(edited, gone, added, added_beside, byte_code_of_nothing),
    *(open_directory, open_file, cut, many),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong.__name__))
def test_what_is_wrong_is_named(prefix: Path, wrong: Callable[[Path], str]) -> None:
    expected = wrong(prefix)
    with pytest.raises(UnfitError) as raised:
        look(prefix)
    assert expected in raised.value.what
    assert "\x1b" not in raised.value.what
    assert "install.sh" in raised.value.hint


def test_files_of_another_user_are_not_measured(prefix: Path) -> None:
    """What `pip install` as root leaves in an environment that the user cima owns."""
    with pytest.raises(UnfitError, match="are not the user's"):
        own_files.look(prefix, os.getuid() + 1, Path("/nowhere"))


def test_dpkg_knows_of_byte_code(prefix: Path, tmp_path: Path) -> None:
    cache = prefix / PACKAGES / "tool/__pycache__/__init__.cpython-311.pyc"
    sums = tmp_path / "md5sums"
    digest = hashlib.md5(b"byte code").hexdigest()
    sums.write_text(f"{digest}  {str(cache).lstrip('/')}\n{digest}  usr/share/doc/other\n")
    assert "byte code" not in look(prefix, sums)
    cache.write_bytes(b"other code")
    with pytest.raises(UnfitError, match="pyc is not what was installed"):
        look(prefix, sums)


def test_a_package_leaves_out_what_a_wheel_had(prefix: Path, tmp_path: Path) -> None:
    sums = tmp_path / "md5sums"
    names = [name for name in DATA if name != "bin/tool"]
    sums.write_text("".join(f"{'0' * 32}  {str(prefix / name).lstrip('/')}\n" for name in names))
    (prefix / "bin/tool").unlink()
    assert look(prefix, sums)
    (prefix / names[1]).unlink()
    with pytest.raises(UnfitError, match=r"part\.so is gone"):
        look(prefix, sums)


def test_an_environment_of_nothing_is_not_one(prefix: Path) -> None:
    shutil.rmtree(prefix / PACKAGES / "tool-1.dist-info")
    with pytest.raises(UnfitError, match="were not installed"):
        look(prefix)
