"""Who may write a bundle, in Python and in the launcher's quick form, on real directories."""

import errno
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cima_runc.runtime.bundle_guard import ForeignBundleError, foreign_part

ROOT = Path(__file__).parents[3]
USER, GROUP = 2, 8
"""Named entries of an access control list (linux/posix_acl.h)."""
_DRIVER = """
#include "bundle_guard.h"
int main(int argc, char **argv)
{
	char real[PATH_MAX];
	return argc == 2 && is_callers_alone(argv[1], real, sizeof real) ? 0 : 1;
}
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("driver")
    (directory / "driver.c").write_text(_DRIVER)
    command = ["gcc", "-D_GNU_SOURCE", "-I", ROOT / "native", "-o", directory / "driver"]
    subprocess.run([*command, directory / "driver.c"], check=True)
    return directory / "driver"


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that everybody may enter; pytest's own are private, so that nothing counts."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def bundle(base: Path) -> Path:
    path = base / "a" / "bundle"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def quick(driver: Path, path: Path) -> bool:
    return subprocess.run([driver, path], check=False).returncode == 0


def test_a_bundle_of_roots(base: Path, driver: Path) -> None:
    path = bundle(base)
    assert foreign_part(f"{path}/config.json", 0) is None
    assert quick(driver, path)


@pytest.mark.parametrize("part", ["a", "a/bundle", "a/bundle/config.json"])
@pytest.mark.parametrize(
    ("uid", "gid", "mode", "who"),
    [
        (1000, 0, None, "user 1000"),
        (0, 0, 0o757, "everybody"),
        (0, 50, 0o775, "group 50"),
        (0, 0, 0o775, None),
        (0, 50, 0o755, None),
    ],
)
def test_a_part_that_others_may_write(
    base: Path, driver: Path, part: str, uid: int, gid: int, mode: int | None, who: str | None
) -> None:
    path = bundle(base)
    os.chown(base / part, uid, gid)
    if mode is not None:
        (base / part).chmod(mode)
    found = foreign_part(f"{path}/config.json", 0)
    assert (found.path if found else None) == (str(base / part) if who else None)
    assert quick(driver, path) == (who is None)
    if found is not None:
        assert found.who == who
        with pytest.raises(ForeignBundleError, match=str(base / part)):
            raise found.refusal()
        # The user himself may: it is his.
        assert (foreign_part(f"{path}/config.json", 1000) is None) == (uid == 1000)


@pytest.mark.parametrize("part", ["a", "a/bundle", "a/bundle/config.json"])
@pytest.mark.parametrize(
    ("tag", "number", "rights", "mask", "who"),
    [
        (USER, 1000, 7, 7, "user 1000"),
        (GROUP, 50, 7, 7, "group 50"),
        (USER, 1000, 5, 7, None),
        (USER, 1000, 7, 5, None),
        (USER, 0, 7, 7, None),
    ],
)
def test_a_part_that_a_list_lets_others_write(
    base: Path,
    driver: Path,
    part: str,
    *,
    tag: int,
    number: int,
    rights: int,
    mask: int,
    who: str | None,
) -> None:
    """Owner, group and mode are as of any bundle of root's that root's group may write."""
    path = bundle(base)
    entries = ((1, 7, -1), (USER, rights, number), (4, 5, -1), (16, mask, -1), (32, 5, -1))
    entries = tuple((tag if each == USER else each, *rest) for each, *rest in entries)
    packed = b"".join(struct.pack("<HHi", *entry) for entry in sorted(entries))
    try:
        os.setxattr(base / part, "system.posix_acl_access", b"\2\0\0\0" + packed)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        pytest.skip("no access control lists on this file system")
    found = foreign_part(f"{path}/config.json", 0)
    assert (found and found.who) == who
    if who is not None:
        assert not quick(driver, path)
        assert (foreign_part(f"{path}/config.json", 1000) is None) == (number == 1000)
    if not mask & 2:
        assert quick(driver, path)


def test_the_sticky_bit_and_a_private_directory(base: Path, driver: Path) -> None:
    path = bundle(base)
    (base / "a").chmod(0o1777)
    assert foreign_part(f"{path}/config.json", 0) is None
    assert quick(driver, path)
    # As Podman does with --uidmap: below a directory that nobody else enters.
    os.chown(path, 100000, 100000)
    assert foreign_part(f"{path}/config.json", 0) is not None
    (base / "a").chmod(0o700)
    assert foreign_part(f"{path}/config.json", 0) is None
    assert quick(driver, path)


def test_symbolic_links_on_the_way(base: Path, driver: Path) -> None:
    path = bundle(base)
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    (base / "open/link").symlink_to(path)
    found = foreign_part(f"{base}/open/link/config.json", 0)
    assert found is not None and found.path == f"{base}/open"
    (base / "link").symlink_to("open/../a")
    found = foreign_part(f"{base}/link/bundle/config.json", 0)
    assert found is not None and found.path == f"{base}/open"
    (base / "good").symlink_to(path)
    assert foreign_part(f"{base}/good/config.json", 0) is None
    assert not quick(driver, base / "good"), "in doubt the launcher asks"
    (base / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic"):
        foreign_part(f"{base}/loop/config.json", 0)


def test_a_relative_path(base: Path, driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle(base)
    monkeypatch.chdir(path)
    assert foreign_part("./config.json", 0) is None
    assert foreign_part("../bundle/config.json", 0) is None
    assert quick(driver, Path())
    os.chown(base / "a", 1000, 0)
    assert foreign_part("config.json", 0) is not None
    assert not quick(driver, Path())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1000]),
            st.sampled_from([0, 50]),
            st.sampled_from([0o755, 0o775, 0o757, 0o1777, 0o700, 0o711, 0o770]),
        ),
        min_size=4,
        max_size=4,
    )
)
def test_the_launcher_says_no_more_than_python(
    driver: Path, rights: list[tuple[int, int, int]]
) -> None:
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        path = bundle(base)
        parts = [base, base / "a", path, path / "config.json"]
        for part, (uid, gid, mode) in zip(parts, rights, strict=True):
            os.chown(part, uid, gid)
            part.chmod(mode)
        assert quick(driver, path) == (foreign_part(f"{path}/config.json", 0) is None)
    finally:
        shutil.rmtree(base)
