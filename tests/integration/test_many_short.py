"""Short containers by the hundred: the kernel gives the number of a namespace that is gone to the
next, long before the end of who had it is recorded."""

import json
import os
import subprocess
import sys

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
    found = json.loads(done.stdout)
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
