"""Containers that are restored from a checkpoint, by runc and under Podman.

What the checkpoint's files hold runs, and no execution stands for it: whoever can write them
decides. So such a run is never trusted but by a policy that says so.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest, images
from tests.vm.test_appraisal import Appraised, appraise, cima, reference

# A guest of its own, and a minute or two there: with --everything.
pytestmark = pytest.mark.debian()

IMAGE = "busybox"
LOOP = "/bin/script; word=honest; while :; do echo $word >/tmp/says; sleep 0.2; done"
ADDED = "cp /bin/env /tmp/added; /tmp/added -i /bin/true"


def register_of(container: str) -> dict[str, Any]:
    (register,) = guest.contents(guest.records(container), "register")
    return register


def suggested(container: str, tmp_path: Path) -> str:
    policy = tmp_path / "suggested.toml"
    made = cima("policy", "suggest", container, "--reference", reference(IMAGE), "-o", policy)
    assert made.code == 0, made
    return policy.read_text()


def is_untrusted_for_its_memory(container: str, tmp_path: Path, policy: str) -> None:
    """The policy is one by which the run before, which was started, is trusted."""
    assert register_of(container)["missing"] == ["memory"]
    appraised = appraise(container, IMAGE, tmp_path, policy)
    assert (appraised.code, appraised.verdict) == (1, "UNTRUSTED")
    assert "records.missing" in appraised.failed, appraised.failed
    text = suggested(container, tmp_path)
    assert 'allow_missing = ["memory"]' in text or "allow_missing = ['memory']" in text
    # CRIU's own work in the container is recorded, too.
    assert appraise(container, IMAGE, tmp_path, text).failed.keys() <= {"records.memory"}


def trusted(appraised: Appraised) -> None:
    assert (appraised.code, appraised.verdict) == (0, "TRUSTED"), appraised.failed


@pytest.fixture(name="says")
def _says() -> Iterator[Path]:
    guest.make_tree()
    path = guest.TREE / "tmp/says"
    yield path
    path.unlink(missing_ok=True)


def test_other_code_in_the_files_of_a_checkpoint(says: Path, tmp_path: Path) -> None:
    bundle = guest.make_bundle(tmp_path / "bundle", LOOP)
    name, files = "restored", tmp_path / "files"
    place = (f"--image-path={files}", f"--work-path={tmp_path}")
    # Its descriptors must be some that can be opened again.
    start = 'cd "$1"; shift; exec "$@" </dev/null >/dev/null 2>/dev/null'
    by_hand = ("sh", "-c", start, "sh", bundle)
    try:
        guest.ok(*by_hand, "cima-runc", "run", "--detach", name)
        guest.wait_for("it says so", lambda: says.exists() and says.read_text() == "honest\n")
        policy = suggested(name, tmp_path)
        assert "missing" not in policy
        trusted(appraise(name, IMAGE, tmp_path, policy))
        done = guest.run("cima-runc", "checkpoint", *place, name)
        assert done.code == 0, (done, log_of(tmp_path, files))
        guest.wait_for("its end", lambda: guest.row(name)["state"] == "stopped")
        for file in files.glob("pages-*.img"):
            file.write_bytes(file.read_bytes().replace(b"word=honest", b"word=forged"))
        guest.run("runc", "delete", "--force", name)
        with guest.Settings('runtimes = ["crun"]\n'):
            done = guest.run(*by_hand, "cima-runc", "restore", "--detach", *place, name)
        assert done.code == 1 and guest.run_of(name) == 1
        done = guest.run(*by_hand, "cima-runc", "restore", "--detach", *place, name)
        assert done.code == 0, (done, log_of(tmp_path, files))
        guest.wait_for("it says something else", lambda: says.read_text() == "forged\n", 60)
        assert guest.run_of(name) == 2
        is_untrusted_for_its_memory(name, tmp_path, policy)
        guest.ok("cima-runc", "exec", name, "/bin/sh", "-c", ADDED)
        appraised = appraise(name, IMAGE, tmp_path, 'allow_missing = ["memory"]\n' + policy)
        assert "file.added" in appraised.failed
    finally:
        guest.run("cima-runc", "delete", "--force", name)


def log_of(*directories: Path) -> str:
    found = [path for each in directories for path in each.glob("*.log")]
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in found)


def test_podman(tmp_path: Path) -> None:
    guest.ok("podman", "load", "-i", images.archive(IMAGE))
    run = guest.podman("cima-runc", "-d", f"localhost/{IMAGE}", "/bin/sh", "-c", LOOP)
    container = guest.ok(*run).strip().splitlines()[-1]
    podman = ("podman", "--runtime=cima-runc")
    try:
        guest.wait_for("the script", lambda: b"/bin/script" in paths(container))
        policy = suggested(container, tmp_path)
        trusted(appraise(container, IMAGE, tmp_path, policy))
        guest.ok(*podman, "container", "checkpoint", container)
        guest.ok(*podman, "container", "restore", container)
        guest.wait_for("the second run", lambda: guest.run_of(container) == 2)
        is_untrusted_for_its_memory(container, tmp_path, policy)
    finally:
        guest.run(*podman, "rm", "-f", "--time=0", container)


def paths(container: str) -> set[bytes]:
    return {each.path for each in guest.files(guest.records(container))}
