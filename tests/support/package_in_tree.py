"""Installs the package that is in /given, looks, removes and purges it; prints JSON of what it saw.

Runs in a release's file system, with its Python alone: tests/integration/test_packages.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, "/given")

from tests.vm.packages import picture  # noqa: E402

ENGINES = ("docker", "containerd", "podman")
DAEMON = Path("/etc/docker/daemon.json")


def run(*command: str) -> dict[str, Any]:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return {"code": ran.returncode, "out": ran.stdout, "err": ran.stderr}


def main() -> None:
    [package] = Path("/given").glob("*.deb")
    DAEMON.parent.mkdir(exist_ok=True)
    DAEMON.write_text('{\n   "debug":false }')
    before = picture.take()
    seen = {
        "install": run("dpkg", "--install", str(package)),
        "version": run("cima", "version"),
        "doctor": run("cima", "doctor", "--json"),
        "configure": [run("cima", "configure", engine) for engine in ENGINES],
        "configured": DAEMON.read_text(),
        "remove": run("dpkg", "--remove", "cima-runc"),
        "removed": picture.differences(before, picture.take()),
        "purge": run("dpkg", "--purge", "cima-runc"),
        "purged": picture.differences(before, picture.take()),
    }
    print(json.dumps(seen))


main()
