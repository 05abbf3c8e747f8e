"""A user's own Podman, with the agent of the host: off by default, and his containers only."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest, images
from tests.vm.guest import IMAGE, Ran
from tests.vm.test_appraisal import rootfs as measured_rootfs
from tests.vm.test_appraisal import trusted

pytestmark = pytest.mark.debian("12")

USER, UID = "alice", 2000
HOME = Path("/home/alice")
STORAGE = HOME / ".config/containers/storage.conf"


def as_user(*command: str) -> Ran:
    """Run a command as the user, in that user's systemd session."""
    runtime = f"/run/user/{UID}"
    become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups", "env"]
    session = ["systemd-run", "--user", "--quiet", "--pipe", "--wait", "--collect"]
    session += ["--property=KillMode=process"]  # a detached container goes on
    own = [f"XDG_RUNTIME_DIR={runtime}", f"DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus"]
    return guest.run(*become, *own, *session, f"--working-directory={HOME}", *command, timeout=600)


def podman(*rest: str) -> Ran:
    return as_user("podman", "--runtime=cima-runc", *rest)


def set_storage(options: str = "") -> None:
    """Choose the driver overlay, which Podman 4 takes by itself on some file systems only."""
    STORAGE.parent.mkdir(parents=True, exist_ok=True)
    STORAGE.write_text(f'[storage]\ndriver = "overlay"\n{options}')
    for path in (HOME / ".config", HOME / ".config/containers", STORAGE):
        os.chown(path, UID, UID)


@pytest.fixture(scope="module")
def user(image: str) -> Iterator[None]:
    """A user with a session of systemd's, as after a login, and the image in his storage."""
    guest.ok("useradd", "--create-home", f"--uid={UID}", "--shell=/bin/sh", USER)
    guest.ok("systemctl", "unmask", "--runtime", "systemd-logind.service")
    guest.ok("systemctl", "unmask", "systemd-logind.service")
    guest.ok("systemctl", "start", "systemd-logind.service")
    guest.ok("loginctl", "enable-linger", USER)
    guest.wait_for("the user's systemd", Path(f"/run/user/{UID}/bus").exists, seconds=120)
    set_storage()
    archive = HOME / "image.tar"
    guest.ok("podman", "save", "-o", archive, f"localhost/{IMAGE}:latest")
    shutil.chown(archive, USER, USER)
    done = as_user("podman", "load", "-i", str(archive))
    assert done.code == 0, done.err
    yield
    guest.run("loginctl", "disable-linger", USER)
    guest.run("systemctl", "stop", f"user@{UID}.service")
    # The next file of tests in this guest makes him anew.
    guest.ok("userdel", "--force", "--remove", USER)


@pytest.fixture(scope="module")
def allowed(user: None) -> Iterator[None]:
    """The setting that lets the user's group in."""
    with guest.Settings(f'[users]\ngroup = "{USER}"\n'):
        guest.restart_agent()
        yield
    guest.restart_agent()


def own(row: dict[str, Any]) -> bool:
    return str(row["id"]).startswith(f"{UID}/")


def test_off_by_default(user: None) -> None:
    done = podman("run", "--rm", "--network=none", IMAGE, "/bin/echo", "hello")
    assert done.code != 0 and "hello" not in done.out
    assert "no agent measures your containers here" in done.err
    assert "users.group" in done.err
    assert not any(map(own, guest.ps()))


def run_measured(*options: str) -> list[dict[str, Any]]:
    """Run a container with runc and with cima-runc, and return the latter's records."""
    command = ["run", "--rm", "--network=none", *options, IMAGE, "/bin/sh", "-c", guest.COMMAND]
    plain = as_user("podman", "--runtime=runc", *command)
    ours = podman(*command)
    assert (ours.code, ours.out) == (plain.code, plain.out) == (7, "the script ran\n" * 2), ours.err
    row = guest.ps()[-1]
    assert own(row) and row["uid"] == UID
    records = guest.records(row["id"])
    assert records[0]["content"]["uid"] == UID
    assert ran(records) == guest.files_of_command()
    return records


def ran(records: list[dict[str, Any]]) -> dict[bytes, str]:
    """Digests by paths of what ran, also of what no digest is believed of."""
    unstable = {
        bytes.fromhex(each["path_hex"]): each["digest"]
        for each in guest.contents(records, "violation")
        if (each["kind"], each["why"]) == ("unstable", "server-can-answer-twice")
    }
    return unstable | {file.path: file.digest for file in guest.files(records)}


def test_native_overlay(allowed: None) -> None:
    records = run_measured()
    rootfs = records[2]["content"]
    assert (rootfs["filesystem"], rootfs["reason"]) == ("overlay", "")
    assert (rootfs["root"]["uid"], rootfs["root"]["gid"]) == (0, 0)
    # The layers are what they are for root's Podman.
    guest.run(*guest.podman("cima-runc", "--rm", IMAGE, "/bin/true"))
    of_root = guest.records(guest.ps()[-1]["id"])[2]["content"]
    lower, of_roots = (
        [layer["digest"] for layer in each["layers"] if layer["kind"] == "lower"]
        for each in (rootfs, of_root)
    )
    assert lower == of_roots
    assert records[0]["content"]["cgroup"].startswith("/user.slice/")


def test_keep_id(allowed: None) -> None:
    """A user namespace in the user's: the container's root is one of the subordinate ids."""
    records = run_measured("--userns=keep-id", "--user=0")
    rootfs = records[2]["content"]
    assert (rootfs["root"]["uid"], rootfs["root"]["gid"]) == (0, 0)


def test_a_user_whom_the_image_does_not_know(allowed: None, tmp_path: Path) -> None:
    archive = HOME / "numbered.tar"
    shutil.copy(images.archive("numbered"), archive)
    shutil.chown(archive, USER, USER)
    assert as_user("podman", "load", "-i", str(archive)).code == 0
    done = podman("run", "--rm", "--network=none", "localhost/numbered")
    assert done.code == 0, done.err
    assert "./etc/passwd" in measured_rootfs()["layers"][-1]["manifest"]
    trusted("numbered", tmp_path)


def test_a_life(allowed: None) -> None:
    loop = "trap 'exit 5' TERM; echo up; while :; do sleep 0.2; done"
    run = ["run", "-d", "--name=life", "--network=none", IMAGE, "/bin/sh", "-c", loop]
    assert podman(*run).code == 0
    done = podman(
        "exec", "life", "/bin/sh", "-c", "cp /bin/env /tmp/e; /tmp/e -i /bin/true; exit 3"
    )
    assert done.code == 3
    row = guest.ps()[-1]
    assert row["state"] == "running"
    assert b"/tmp/e" in {file.path for file in guest.files(guest.records(row["id"]))}
    shown = json.loads(as_user("cima", "ps", "--json").out)
    assert {each["uid"] for each in shown} == {UID}
    assert as_user("cima", "log", row["id"].removeprefix(f"{UID}/")[:12]).code == 0
    assert as_user("cima", "status").code != 0
    assert podman("stop", "life").code == 0
    assert podman("rm", "life").code == 0
    assert guest.row(row["id"])["state"] == "stopped"


def test_fuse_overlayfs(allowed: None) -> None:
    guest.ok("modprobe", "fuse")
    as_user("podman", "system", "reset", "--force")
    set_storage('[storage.options.overlay]\nmount_program = "/usr/bin/fuse-overlayfs"\n')
    done = as_user("podman", "load", "-i", str(HOME / "image.tar"))
    assert done.code == 0, done.err
    records = run_measured()
    # The user's own process serves the files: the digests are the kernel's, and not believed.
    assert guest.files(records) == []
    rootfs = records[2]["content"]
    assert (rootfs["filesystem"], rootfs["reason"]) == ("fuse-overlayfs", "")
    assert [layer["kind"] for layer in rootfs["layers"]] == ["lower", "upper"]
