"""Short containers by the hundred: the kernel gives the number of a namespace that is gone to the
next, long before the end of who had it is recorded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import native_host
import pytest
from native_host import Host

from cima_runc.ima.template import unpack_cima_ng
from cima_runc.ml.records import template_data

AT_ONCE = 8


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_none_is_refused_and_none_has_anothers_records(
    host: Host, runtime: str, pytestconfig: pytest.Config
) -> None:
    count = 2000 if pytestconfig.getoption("--everything") else 48
    command = [sys.executable, "-m", "tests.support.many_short", str(host.prefix), runtime]
    done = subprocess.run(
        [*command, str(count), str(AT_ONCE)],
        cwd=native_host.TOP,
        env={**os.environ, "PYTHONPATH": f"{native_host.TOP}:{native_host.TOP}/tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), runtime, count)


def test_under_podman(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """In the file system of Debian 12, with cima-runc from its package."""
    count = 2000 if pytestconfig.getoption("--everything") else 16
    build = [native_host.TOP / "packaging/build.sh", "12", tmp_path / "built"]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    given = tmp_path / "given"
    given.mkdir()
    shutil.copytree(native_host.TOP / "tests/support", given / "tests/support")
    shutil.copy(native_host.TOP / "tests/native_host.py", given / "tests")
    [package] = (tmp_path / "built").glob("*.deb")
    shutil.copy(package, given)
    prefix = "/usr/lib/cima-runc"
    program = f"{prefix}/bin/python3 -m tests.support.many_short {prefix} podman {count} {AT_ONCE}"
    script = f"""
dpkg --install /given/*.deb >&2
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
cd /given
PYTHONPATH=/given:/given/tests {program}"""
    command = [native_host.TOP / "lab/in_tree.sh", "12", "root", given, "sh", "-euc", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), "podman", count)


def check(found: dict[str, Any], runtime: str, count: int) -> None:
    """None was refused, and each has its own records."""
    print(f"{runtime}: {count} containers, {AT_ONCE} at once, in {found['seconds']:.0f} s")
    assert not found["wrong"]
    rows = [row for row in found["rows"] if row["kind"] == "container"]
    assert len(rows) == count
    assert {row["state"] for row in rows} == {"stopped"}
    reused = count - len({row["mntns"] for row in rows})
    print(f"{reused} got the number of a namespace that was gone")
    for row in rows:
        register, *others, end = found["logs"][str(row["registration"])]
        assert register["id"] == row["id"]
        ran = [unpack_cima_ng(template_data(one)) for one in others if "template_data" in one]
        mntns = register["namespaces"]["mnt"]
        # What it did first and last is its own, and comes before its end.
        assert [path for _, path, _, _ in ran] == [b"/first/%d" % mntns, b"/last/%d" % mntns]
        assert end["type"] == "exit"
