"""Containers of users other than root: whose they are, and that nobody reaches another's."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from native_host import SOCKET, Host, ask, make_bundle

from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.request import STALLED_SECONDS
from cima_runc.agent.rootless import Looks, RootlessError
from cima_runc.base import limits
from cima_runc.config import parse_settings
from cima_runc.runtime.agent_socket import USERS_SUFFIX

ALICE, MALLORY = 12345, 23456
GROUP = 100  # users

_MANY = """
import socket, sys, time
channels = []
for _ in range(int(sys.argv[2])):
    channels.append(socket.socket(socket.AF_UNIX))
    channels[-1].connect(sys.argv[1])
time.sleep(0.5)
try:
    channels[-1].sendall(b"ps 2\\n{}")
except BrokenPipeError:
    pass  # it has been answered at once
print(channels[-1].recv(1000).decode())
"""
_HANG = """
import ctypes, os, sys, time
fuse = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
if ctypes.CDLL(None, use_errno=True).mount(b"x", sys.argv[1].encode(), b"fuse", 0, options):
    raise OSError(ctypes.get_errno(), "mount")
print("up", flush=True)
time.sleep(600)
"""
"""A file system that answers nothing, as its server never reads a request."""


_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


@dataclass(frozen=True)
class User:
    uid: int
    host: Host

    def _become(self, gid: int) -> list[str]:
        return ["setpriv", f"--reuid={self.uid}", f"--regid={gid}", "--clear-groups"]

    def run(self, *command: str, gid: int = GROUP) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._become(gid), *command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def as_root(self, *command: str, gid: int = GROUP) -> subprocess.CompletedProcess[str]:
        """Run a command as root in a new user namespace, as Podman does."""
        return self.run(*_UNSHARE, *command, gid=gid)

    def bundle(self, name: str, *args: str, gid: int = GROUP) -> Path:
        path = make_bundle(self.host.directory / name, *args)
        (path / "config.json").unlink()
        for directory, names, files in os.walk(path):
            for each in (".", *names, *files):
                os.chown(Path(directory, each), self.uid, gid, follow_symlinks=False)
        made = self.as_root("runc", "spec", "--rootless", "--bundle", str(path), gid=gid)
        assert made.returncode == 0, made.stderr
        config = json.loads((path / "config.json").read_text())
        config["process"] |= {"terminal": False, "args": list(args)}
        (path / "config.json").write_text(json.dumps(config))
        return path

    def start(self, name: str, *args: str, gid: int = GROUP) -> subprocess.CompletedProcess[str]:
        bundle = self.bundle(name, *args, gid=gid)
        runtime = [self.host.cima_runc, "--root", str(bundle / "state")]
        return self.as_root(*runtime, "run", "--bundle", str(bundle), name, gid=gid)

    @contextmanager
    def lives(self, *command: str) -> Iterator[int]:
        """Yield a process that is root in namespaces of its own, and has said a line."""
        process = subprocess.Popen(
            [*self._become(GROUP), *_UNSHARE, *command], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield process.pid
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def hangs(self, directory: Path) -> Iterator[int]:
        """Yield a process of whose ``directory`` nothing can be read."""
        directory.mkdir(exist_ok=True)
        os.chown(directory, self.uid, GROUP)
        python = f"{self.host.prefix}/bin/python3"
        with self.lives(python, "-I", "-c", _HANG, str(directory)) as pid:
            yield pid

    def tell(self, verb: str, state: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """Say to the agent what a hook would."""
        hook = f"exec {self.host.hooks}/{verb}"
        env = f"CIMA_SOCKET={SOCKET}{USERS_SUFFIX}"
        return self.run("sh", "-c", f"echo '{json.dumps(state)}' | {env} {hook}")


@pytest.fixture
def alice(host: Host) -> Iterator[User]:
    host.directory.chmod(0o711)
    yield User(ALICE, host)


@pytest.fixture
def mallory(alice: User) -> User:
    return User(MALLORY, alice.host)


SLEEP = ["sh", "-c", "echo up; exec sleep 600"]


def rows(host: Host, name: str) -> list[dict[str, Any]]:
    return [row for row in json.loads(ask(host.prefix, "ps")) if row["id"] == name]


def test_a_users_container_is_measured(alice: User) -> None:
    done = alice.start("rootless", "/bin/echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    (row,) = rows(alice.host, f"{ALICE}/rootless")
    assert (row["uid"], row["state"]) == (ALICE, "stopped")
    lines = ask(alice.host.prefix, "log", row["id"]).splitlines()
    register, config, rootfs, unmeasured, end = (json.loads(line)["content"] for line in lines)
    assert (register["id"], register["uid"]) == (f"{ALICE}/rootless", ALICE)
    assert config["config"]["process"]["args"] == ["/bin/echo", "hello"]
    assert "hooks" not in config["config"]
    (layer,) = rootfs["layers"]
    assert layer["files"] == 1 and not layer["changed_count"]
    # Owners are as the container sees them: everything is its root's.
    assert (rootfs["root"]["uid"], rootfs["root"]["gid"]) == (0, 0)
    assert unmeasured["role"] == "dependencies"
    assert end["type"] == "exit"


def test_nobody_else_is_let_in(alice: User) -> None:
    done = alice.start("stranger", "/bin/echo", "hello", gid=65534)
    assert done.returncode != 0 and "hello" not in done.stdout
    assert "no agent measures your containers here" in done.stderr
    assert "users.group" in done.stderr
    assert not rows(alice.host, f"{ALICE}/stranger")


def test_a_process_of_another_is_refused(alice: User, mallory: User) -> None:
    bundle = mallory.bundle("mine", "/bin/true")
    with alice.lives(*SLEEP) as pid:
        done = mallory.tell("prestart", {"id": "mine", "pid": pid, "bundle": str(bundle)})
    assert done.returncode == 1
    assert f"process {pid} is not user {MALLORY}'s" in done.stderr
    assert not rows(alice.host, f"{MALLORY}/mine")


def test_a_process_in_no_user_namespace_is_refused(mallory: User) -> None:
    bundle = mallory.bundle("hosts", "/bin/true")
    unshared = ["unshare", "--mount", *SLEEP]
    with subprocess.Popen(unshared, stdout=subprocess.PIPE) as roots:
        assert roots.stdout is not None and roots.stdout.readline()
        own = ["setpriv", f"--reuid={MALLORY}", "--clear-groups", f"--regid={GROUP}", *SLEEP]
        # Of the right uid, but not in a namespace of that uid's.
        with subprocess.Popen(["unshare", "--mount", *own], stdout=subprocess.PIPE) as uids:
            assert uids.stdout is not None and uids.stdout.readline()
            for process in (roots, uids):
                state = {"id": "hosts", "pid": process.pid, "bundle": str(bundle)}
                done = mallory.tell("prestart", state)
                assert done.returncode == 1
                assert f"is not user {MALLORY}'s" in done.stderr
                process.kill()


def test_a_user_cannot_claim_roots_mount_namespace(mallory: User) -> None:
    """A user namespace of his own in a mount namespace that is not."""
    bundle = mallory.bundle("inner", "/bin/true")
    become = ["setpriv", f"--reuid={MALLORY}", "--clear-groups", f"--regid={GROUP}"]
    command = ["unshare", "--mount", *become, "unshare", "--user", "--map-root-user", *SLEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        state = {"id": "inner", "pid": process.pid, "bundle": str(bundle)}
        done = mallory.tell("prestart", state)
        process.kill()
    assert done.returncode == 1
    assert f"is not user {MALLORY}'s" in done.stderr


def test_ids_are_the_users_own(alice: User, mallory: User) -> None:
    """Same id, same bundle: neither another user nor its own can end a container that lives."""
    bundle = alice.bundle("same", "/bin/true")
    with alice.lives(*SLEEP) as pid:
        state = {"id": "same", "pid": pid, "bundle": str(bundle)}
        assert alice.tell("prestart", state).returncode == 0
        assert mallory.tell("poststop", state).returncode == 0
        done = alice.tell("poststop", state)
        assert done.returncode == 1 and "has not ended" in done.stderr
        (row,) = rows(alice.host, f"{ALICE}/same")
        assert row["state"] == "created"
        python = [f"{alice.host.prefix}/bin/python3", "-I", "-m", "cima_runc.cli.main"]
        own = json.loads(alice.run(*python, "ps", "--json").stdout)
        assert {each["uid"] for each in own} == {ALICE}
        assert alice.run(*python, "log", "same", "--json").stdout.count('"recnum"') == 4
        assert "no container" in mallory.run(*python, "log", "same").stderr
        assert not json.loads(mallory.run(*python, "ps", "--json").stdout)
    assert alice.tell("poststop", state).returncode == 0
    assert rows(alice.host, f"{ALICE}/same")[0]["state"] == "stopped"


@pytest.mark.parametrize("what", ["config.json", "rootfs"])
def test_what_the_user_may_not_read_is_not_read(alice: User, what: str) -> None:
    secret = alice.host.directory / "secret"
    secret.mkdir(mode=0o700, exist_ok=True)
    (secret / "config.json").write_text('{"root": {"path": "rootfs"}, "password": "hunter2"}')
    bundle = alice.bundle(f"link-{what}", "/bin/true")
    place = bundle / what
    if what == "rootfs":
        place.rename(bundle / "moved")
        place.symlink_to(secret)
    else:
        place.unlink()
        place.symlink_to(secret / what)
    with alice.lives(*SLEEP) as pid:
        state = {"id": f"link-{what}", "pid": pid, "bundle": str(bundle)}
        done = alice.tell("prestart", state)
    assert done.returncode == 1
    assert re.search("Permission denied|cannot be read", done.stderr), done.stderr
    assert "hunter2" not in done.stderr
    assert not rows(alice.host, f"{ALICE}/link-{what}")


def test_a_file_system_that_never_answers_holds_up_nobody_else(
    alice: User, mallory: User, tmp_path: Path
) -> None:
    with alice.hangs(alice.host.directory / "hanging") as pid:
        state = {"id": "hanging", "pid": pid, "bundle": str(alice.host.directory / "hanging")}
        line = f"echo '{json.dumps(state)}' | exec {alice.host.hooks}/prestart"
        become = ["setpriv", f"--reuid={ALICE}", f"--regid={GROUP}", "--clear-groups"]
        env = {"CIMA_SOCKET": f"{SOCKET}{USERS_SUFFIX}"}
        waiting = [
            subprocess.Popen([*become, "sh", "-c", line], env=env, stderr=subprocess.DEVNULL)
            for _ in range(8)
        ]
        try:
            started = time.monotonic()
            bundle = make_bundle(tmp_path / "root", "/bin/echo", "root's")
            runtime = [alice.host.cima_runc, "run", "--bundle", str(bundle), "roots"]
            assert subprocess.check_output(runtime, text=True) == "root's\n"
            assert mallory.start("others", "/bin/echo", "other's").stdout == "other's\n"
            assert time.monotonic() - started < 50
            assert all(each.poll() is None for each in waiting)
        finally:
            for each in waiting:
                each.send_signal(signal.SIGKILL)
                each.wait()


def test_looking_has_an_end(alice: User) -> None:
    async def look() -> None:
        with alice.hangs(alice.host.directory / "late") as pid:
            state = {"id": "late", "pid": pid, "bundle": str(alice.host.directory / "late")}
            started = time.monotonic()
            with pytest.raises(RootlessError, match="takes too long"):
                seven = CurrentSettings(parse_settings({"hook_timeout_seconds": 7}))
                await Looks(seven).look_at(json.dumps(state).encode(), ALICE)
            assert time.monotonic() - started < 20
        # With the file system the helper ends.
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=60)

    asyncio.run(look())


def test_connections_are_counted_by_user(alice: User, mallory: User) -> None:
    python = [f"{alice.host.prefix}/bin/python3", "-I", "-c", _MANY, f"{SOCKET}{USERS_SUFFIX}"]
    done = alice.run(*python, str(limits.USER_REQUESTS + 1))
    assert f"user {ALICE} has {limits.USER_REQUESTS} requests under way" in done.stdout
    assert mallory.run(*python, "1").stdout.startswith("ok ")


_NEVER_READS = """
import socket, sys, time
channels = []
for _ in range(int(sys.argv[2])):
    channels.append(socket.socket(socket.AF_UNIX))
    channels[-1].connect(sys.argv[1])
    channels[-1].sendall(b'log 12\\n{"id":"big"}')
print("asked", flush=True)
time.sleep(600)
"""


def test_who_never_reads_holds_no_memory_and_is_cut_off(alice: User, mallory: User) -> None:
    bundle = alice.bundle("big", "/bin/true")
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "x": "x" * 6_000_000}))
    with alice.lives(*SLEEP) as pid:
        state = {"id": "big", "pid": pid, "bundle": str(bundle)}
        assert alice.tell("prestart", state).returncode == 0
    assert alice.tell("poststop", state).returncode == 0
    python = f"{alice.host.prefix}/bin/python3"
    own = [python, "-I", "-m", "cima_runc.cli.main"]
    assert len(alice.run(*own, "log", "big", "--json").stdout) > 6_000_000
    before, handles = memory(alice.host), open_handles(alice.host)
    command = [python, "-I", "-c", _NEVER_READS, f"{SOCKET}{USERS_SUFFIX}", "60"]
    become = ["setpriv", f"--reuid={ALICE}", f"--regid={GROUP}", "--clear-groups"]
    with subprocess.Popen([*become, *command], stdout=subprocess.PIPE) as idle:
        try:
            assert idle.stdout is not None and idle.stdout.readline() == b"asked\n"
            time.sleep(2)
            others = json.loads(mallory.run(*own, "ps", "--json").stdout)
            assert {row["uid"] for row in others} <= {MALLORY}
            assert memory(alice.host) - before < 32 * limits.MIB
            assert open_handles(alice.host) - handles <= 60 + 2 * limits.USER_ANSWERS
        finally:
            idle.kill()
    deadline = time.monotonic() + 12 * STALLED_SECONDS
    while open_handles(alice.host) > handles and time.monotonic() < deadline:
        time.sleep(0.5)
    assert open_handles(alice.host) <= handles


def memory(host: Host) -> int:
    """Bytes of the agent's memory."""
    status = Path(f"/proc/{host.agent.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def open_handles(host: Host) -> int:
    return len(os.listdir(f"/proc/{host.agent.pid}/fd"))


def test_other_requests_are_not_answered(alice: User) -> None:
    code = "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]); "
    for verb in ("status", "attest", "activate", "nonsense"):
        ask_it = f"c.sendall(b'{verb} 2\\n{{}}'); print(c.recv(1000).decode())"
        python = [f"{alice.host.prefix}/bin/python3", "-I", "-c", code + ask_it]
        done = alice.run(*python, f"{SOCKET}{USERS_SUFFIX}")
        assert f"no such request of a user's: {verb}" in done.stdout
