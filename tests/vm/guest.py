"""What tests in a guest share: commands, images, engines, and what the agent says."""

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import preloaded

IMAGE = "cima-test"
SOCKET = "/run/cima/agent.sock"
STATE = Path("/var/lib/cima")
ASCII_LOG = Path("/sys/kernel/security/ima/ascii_runtime_measurements")

NEW_PROGRAM_EACH_SECOND = """
n=0
until [ -e /stop ]; do
    cp /bin/busybox /tool$n; echo $n >>/tool$n; /tool$n true
    n=$((n+1)); sleep 1
done
echo $n
"""
"""For a shell in a container."""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


PATIENCE = 900.0
"""Seconds for a command. How long an emulated processor takes beside others says nothing."""

# Of programs that ask systemd or Docker, which have much to do in a guest: 25 and 60 s otherwise.
os.environ.setdefault("SYSTEMD_BUS_TIMEOUT", f"{PATIENCE:.0f}s")
os.environ.setdefault("COMPOSE_HTTP_TIMEOUT", f"{PATIENCE:.0f}")


def run(*command: str | Path, stdin: str | bytes = b"", timeout: float = PATIENCE) -> Ran:
    """Run a command to its end; `cima` is forked from a Python that has its imports."""
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    if command[0] == "cima" and os.path.exists(preloaded.SOCKET):
        ran = _run_preloaded(raw, timeout, *map(str, command))
    else:
        ran = run_anew(*command, stdin=raw, timeout=timeout)
    if command[0] == "cima" and "--json" in command:
        _check_shape(tuple(map(str, command[1:])), ran)
    return ran


def _check_shape(words: tuple[str, ...], ran: Ran) -> None:
    """What is printed has no key that is not documented; guests of packages cannot tell."""
    if importlib.util.find_spec("cima_runc") is not None:
        from cima_runc.cli import shapes

        shapes.check(words, ran.out)


def run_anew(*command: str | Path, stdin: bytes = b"", timeout: float = PATIENCE) -> Ran:
    """Run a command to its end in a process that really starts."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
    return Ran(done.returncode, _text(done.stdout), _text(done.stderr))


def _run_preloaded(stdin: bytes, timeout: float, program: str, *args: str) -> Ran:
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        code = preloaded.call(program, args, [file.fileno() for file in files], timeout)
        for file in files[1:]:
            file.seek(0)
        return Ran(code, _text(files[1].read()), _text(files[2].read()))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def ok(*command: str | Path, stdin: str | bytes = b"", timeout: float = PATIENCE) -> str:
    ran = run(*command, stdin=stdin, timeout=timeout)
    assert ran.code == 0, f"{command} ended with {ran.code}: {ran.err}{ran.out}"
    return ran.out


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


# -- the agent ----------------------------------------------------------------------------------


def ask(verb: str, body: bytes = b"{}") -> bytes:
    """Ask the agent as `cima` does, without the seconds that a new Python takes here."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(SOCKET)
        channel.sendall(f"{verb} {len(body)}\n".encode() + body)
        with channel.makefile("rb") as answers:
            word, length = answers.readline().split()
            answer = answers.read(int(length))
    assert word == b"ok", answer
    return answer


def ps() -> list[dict[str, Any]]:
    return [row for row in json.loads(ask("ps")) if row["kind"] == "container"]


def row(container_id: str) -> dict[str, Any]:
    """The latest registration with this id."""
    return [row for row in ps() if row["id"] == container_id][-1]


def run_of(container_id: str) -> int:
    """Which run of its line the latest one is: each start is another."""
    (register,) = contents(records(container_id), "register")
    run: int = register["run"]
    return run


def records(container_id: str) -> list[dict[str, Any]]:
    lines = ask("log", json.dumps({"id": container_id}).encode()).splitlines()
    return [json.loads(line) for line in lines]


def stored(registration: int) -> list[str]:
    """The records of a registration as they lie on the disk, a line each."""
    directory = STATE / "containers" / f"{registration:08d}"
    return (directory / "records.jsonl").read_text().splitlines()


def status() -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(ask("status"))
    return shown


def contents(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The contents of the records of this type."""
    return [record["content"] for record in found if record["content"].get("type") == kind]


def types(found: list[dict[str, Any]]) -> list[str]:
    return [r["content"].get("type", "file") for r in found]


@dataclass(frozen=True)
class Measured:
    digest: str
    path: bytes
    mntns: int
    func: str
    ima_line: int | None


def files(found: list[dict[str, Any]]) -> list[Measured]:
    """The file measurements, read as the design says and not with our code."""
    measured = []
    for record in found:
        if record["content_type"] != "ima_template":
            continue
        data = base64.b64decode(record["content"]["template_data"])
        assert hashlib.sha256(data).hexdigest() == record["digests"][0]["digest"]
        fields = []
        while data:
            (size,) = struct.unpack_from("<I", data)
            fields.append(data[4 : 4 + size])
            data = data[4 + size :]
        digest, path, mntns, func = fields
        assert digest.startswith(b"sha256:\0") and path.endswith(b"\0")
        measured.append(
            Measured(
                digest[8:].hex(),
                path[:-1],
                struct.unpack("<I", mntns)[0],
                func.decode(),
                record["meta"]["ima_line"],
            )
        )
    return measured


def restart(unit: str) -> None:
    """Restart a service, however often that was done before."""
    run("systemctl", "reset-failed", unit)
    ok("systemctl", "restart", unit)


def agent_pid() -> int:
    """The agent's process; 0 while there is none."""
    return int(ok("systemctl", "show", "-p", "MainPID", "--value", "cima-agent"))


def restart_agent() -> None:
    restart("cima-agent")


class Settings:
    """/etc/cima/config.toml as a test wants it, and afterwards as it was.

    Whoever changes what the agent reads restarts it.
    """

    path = Path("/etc/cima/config.toml")
    patience = "hook_timeout_seconds = 600\n"
    """In all of them: how long an emulated processor takes says nothing."""

    def __init__(self, text: str = "") -> None:
        self._text = self.patience + text
        self._before: str | None = None

    def __enter__(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self._before = self.path.read_text() if self.path.exists() else None
        self.path.write_text(self._text)

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            self.path.unlink(missing_ok=True)
        else:
            self.path.write_text(self._before)


# -- images and engines -------------------------------------------------------------------------

TREE = Path("/root/image")
SCRIPT = b"#!/bin/sh\necho the script ran\n"


def make_tree() -> Path:
    """A root file system with a shell, a script, and a dynamically linked program."""
    if TREE.exists():
        return TREE
    building = TREE.with_suffix(".new")
    for directory in ("bin", "tmp", "proc", "sys", "dev", "etc"):
        (building / directory).mkdir(parents=True)
    shutil.copy("/bin/busybox", building / "bin/busybox")
    for applet in ("sh", "cat", "cp", "echo", "ln", "ls", "mkdir", "sleep", "true", "chmod", "rm"):
        (building / "bin" / applet).symlink_to("busybox")
    (building / "bin/script").write_bytes(SCRIPT)
    (building / "bin/script").chmod(0o755)
    shutil.copy("/usr/bin/env", building / "bin/env")
    for library in libraries():
        (building / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, building / library.lstrip("/"))
    return building.rename(TREE)


def load_image() -> None:
    """Have the tree as an image in Docker, Podman and containerd."""
    saved = Path("/root/image.tar")
    if saved.exists():
        return
    archive = subprocess.run(
        ["tar", "-C", make_tree(), "-c", "."], stdout=subprocess.PIPE, check=True
    ).stdout
    ok("docker", "import", "-", IMAGE, stdin=archive)
    ok("podman", "import", "-", IMAGE, stdin=archive)
    ok("docker", "save", IMAGE, "-o", saved)
    ok("ctr", "image", "import", saved)


def libraries() -> list[str]:
    """What /usr/bin/env is linked with, the loader too."""
    words = ok("ldd", "/usr/bin/env").split()
    return [word for word in words if word.startswith("/")]


def sha256sum(path: Path) -> str:
    return ok("sha256sum", path).split()[0].lstrip("\\")


def digest_in_image(path: str) -> tuple[bytes, str]:
    return path.encode(), sha256sum(TREE / path.lstrip("/"))


COMMAND = "/bin/script; /bin/env -i /bin/script; /bin/true; echo to stderr >&2; exit 7"


def files_of_command() -> dict[bytes, str]:
    """Path and digest of every file that COMMAND executes, maps or runs as a script."""
    paths = ["/bin/busybox", "/bin/script", "/bin/env", *libraries()]
    return dict(digest_in_image(path) for path in paths)


def docker(runtime: str, *rest: str) -> list[str]:
    return ["docker", "run", f"--runtime={runtime}", "--network=none", *rest]


def podman(runtime: str, *rest: str) -> list[str]:
    return ["podman", f"--runtime={runtime}", "run", "--network=none", *rest]


ENDS_LISTENED_TO = 8


def check_it_is_killed_for_memory(cli: str, command: list[str], name: str) -> None:
    """The kernel kills what ``command`` starts as the container ``name``, and the engine says so.

    Engines hear of the kernel's kill beside the end of the process: at times too late, with plain
    runc as well. So one that says so is enough; the exit code is always the kill's.
    """
    shown = "{{.State.ExitCode}} {{.State.OOMKilled}}"
    ended: list[str] = []
    while len(ended) < ENDS_LISTENED_TO and "137 true" not in ended:
        run(*command)
        ended.append(ok(cli, "inspect", "--format", shown, name).strip())
        ok(cli, "rm", "-f", name)
    assert "137 true" in ended
    assert set(ended) <= {"137 true", "137 false"}


def ctr(runtime: str, name: str, *rest: str) -> list[str]:
    binary = shutil.which(runtime)
    image = f"docker.io/library/{IMAGE}:latest"
    return ["ctr", "run", "--rm", f"--runc-binary={binary}", *rest, image, name]


def make_bundle(directory: Path, command: str) -> Path:
    """A bundle for runc itself, over the image's tree."""
    directory.mkdir(parents=True)
    ok("runc", "spec", "--bundle", directory)
    config = json.loads((directory / "config.json").read_text())
    config["process"]["terminal"] = False
    config["process"]["args"] = ["/bin/sh", "-c", command]
    config["root"] = {"path": str(TREE), "readonly": False}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def run_once(command: str = COMMAND) -> dict[str, Any]:
    """Run one measured container to its end without an engine, which takes a tenth of the work.

    Returns its row.
    """
    with tempfile.TemporaryDirectory(prefix="cima-test-") as directory:
        bundle = make_bundle(Path(directory) / "bundle", command)
        name = Path(directory).name
        run("cima-runc", "run", "--bundle", bundle, name)
        return row(name)


def with_docker_once(command: str = COMMAND) -> dict[str, Any]:
    """Run one measured container to its end and return its row."""
    run(*docker("cima-runc", "--rm", IMAGE, "/bin/sh", "-c", command))
    return ps()[-1]
