"""The package of each other release in that release's file system; 13's is tried in a guest.

What takes a kernel of the host's own, systemd and engines that run is in tests/vm/packages.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cima_runc import __version__

TOP = Path(__file__).resolve().parents[2]
NEEDED = ("guest.py", "preloaded.py", "packages/picture.py")
USERS = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "users: ", "groups: ")
KNOWN_UNTIL_PURGED = ("packages: ", "of dpkg: ", "answers: ", ".wants/cima-agent.", "/var/lib/cima")


@pytest.mark.parametrize("release", ["12", "forky"])
def test_installed_removed_and_purged(release: str, tmp_path: Path) -> None:
    """lintian has looked at it, too: building fails on its warnings."""
    built = subprocess.run(
        [TOP / "packaging/build.sh", release, tmp_path / "built"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    given = tmp_path / "given"
    for name in NEEDED:
        (given / "tests/vm" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / "tests/vm" / name, given / "tests/vm" / name)
    shutil.copy(TOP / "tests/support/package_in_tree.py", given)
    [package] = (tmp_path / "built").glob("*.deb")
    shutil.copy(package, given)

    command = ["/usr/bin/python3", "/given/package_in_tree.py"]
    ran = subprocess.run(
        [TOP / "lab/in_tree.sh", release, "root", given, *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    seen: dict[str, Any] = json.loads(ran.stdout)
    steps = [seen[name] for name in ("install", "version", "remove", "purge")]
    assert [step["code"] for step in (*steps, *seen["configure"])] == [0] * 7, seen
    assert seen["version"]["out"] == f"cima-runc {__version__}\n"
    found = {one["check"]: one["state"] for one in json.loads(seen["doctor"]["out"])}
    assert {found[check] for check in ("installation", "own files", "runtime", "disk")} == {"ok"}
    assert "/usr/lib/cima-runc/bin/cima-runc" in seen["configured"]
    left = [line for line in seen["removed"] if not any(word in line for word in USERS)]
    assert [line for line in left if not any(word in line for word in KNOWN_UNTIL_PURGED)] == []
    assert seen["purged"] == []
