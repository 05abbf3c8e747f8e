"""What a guest is to do, and the conversation with it about that."""

import io
import json
import selectors
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from guest import Guest
from machine import JOB_DISK, LAB, GuestError

CHECKOUT = LAB.parent
PARTS = ("examples", "tests", "docs/how-to", "pyproject.toml")
"""What of the checkout a guest gets beside the installed program, in /opt/cima-test."""
CERTIFICATES = "/opt/cima-test/tpm-ca.pem"
BOOT_SECONDS = 1200
GRACE_SECONDS = 120
CHUNK = 1 << 16


@dataclass(frozen=True)
class Job:
    """A script with its arguments, and files to copy (from, to) into and out of the guest.

    `limit` is how long it may run (seconds). Without `agent` the guest need not have one. With
    `freeze` the guest stops when the script has ended well, to be thawed for other jobs.
    """

    script: Path
    args: list[str] = field(default_factory=list)
    put: list[tuple[str, str]] = field(default_factory=list)
    get: list[tuple[str, str]] = field(default_factory=list)
    agent: bool = True
    limit: float | None = None
    freeze: bool = False

    def write(self, disk: Path, *more: tuple[str, str]) -> None:
        """Write the tar archive that the guest extracts over its `/`, with `more` to put."""
        script = f"root/{self.script.name}"
        job = {
            "script": f"/{script}",
            "args": self.args,
            "agent": self.agent,
            "timeout": self.limit,
            "get": [guest for guest, _ in self.get],
            "freeze": self.freeze,
        }
        with tarfile.open(disk, "w") as archive:
            for part in PARTS:
                if (CHECKOUT / part).exists():
                    archive.add(CHECKOUT / part, f"opt/cima-test/{part}", filter=_of_root)
            for local, guest in [*self.put, *more]:
                name = f"{guest}{Path(local).resolve().name}" if guest.endswith("/") else guest
                archive.add(local, name.lstrip("/"), filter=_of_root)
            archive.add(self.script.resolve(), script, filter=_of_root_executable)
            text = json.dumps(job).encode()
            member = tarfile.TarInfo("run/cima-lab/job.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        with disk.open("r+b") as file:
            if file.seek(0, io.SEEK_END) < JOB_DISK:
                file.truncate(JOB_DISK)


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return None if Path(member.name).name == "__pycache__" else member


def _of_root_executable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.mode = 0o755
    return _of_root(member)


class Conversation:
    """What a guest says of its job.

    `sinks` are where the streams `out`, `err` and `files` go; `on_start` is called when the script
    starts. The guest itself keeps to the job's limit, and what does not end `GRACE_SECONDS` later
    is a guest that hangs. `on_tick` is called at least once a second.
    """

    def __init__(
        self,
        guest: Guest,
        sinks: dict[str, BinaryIO],
        limit: float | None,
        *,
        on_start: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda _: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.started = False
        self._guest = guest
        self._sinks = sinks
        self._limit = limit
        self._on_start = on_start
        self._note = note
        self._on_tick = on_tick
        self._deadline: float | None = None
        self._late = ""
        self._received = dict.fromkeys(sinks, 0)
        self._before = dict.fromkeys(sinks, 0)
        self._result: dict[str, Any] | None = None
        self._awake: dict[str, Any] | None = None
        self._pending = b""

    def wake(self, seconds: float) -> dict[str, Any]:
        """Tell a guest that was frozen what the time is; return what it says of itself."""
        self._deadline = time.monotonic() + seconds
        self._late = f"the thawed guest did not answer within {seconds:.0f} s"
        message = json.dumps({"event": "thawed", "time": time.time()}) + "\n"
        self._guest.ports["control"].sendall(message.encode())
        self._receive_until(lambda: self._awake is not None)
        assert self._awake is not None
        return self._awake

    def run(self) -> dict[str, Any]:
        """Pass the streams on until the job is done and return what the guest says of it."""
        if not self.started:
            self._deadline = time.monotonic() + BOOT_SECONDS
            self._late = f"the guest started no script within {BOOT_SECONDS} s"

        def done() -> bool:
            return self._result is not None and self._received == {
                name: self._before[name] + sent for name, sent in self._result["sent"].items()
            }

        self._receive_until(done)
        assert self._result is not None
        return self._result

    def _rebooting(self, sent: dict[str, int]) -> None:
        for name, count in sent.items():
            self._before[name] += count
        self.started = False
        self._deadline = time.monotonic() + BOOT_SECONDS
        self._late = f"the guest did not come back from a reboot within {BOOT_SECONDS} s"

    def _receive_until(self, condition: Callable[[], bool]) -> None:
        with selectors.DefaultSelector() as selector:
            for name, port in self._guest.ports.items():
                selector.register(port, selectors.EVENT_READ, name)
            while not condition():
                for key, _ in selector.select(1):
                    self._receive(key.data)
                self._on_tick()
                if self._deadline and time.monotonic() > self._deadline:
                    raise GuestError(self._late)

    def _receive(self, port: str) -> None:
        data = self._guest.ports[port].recv(CHUNK)
        if not data:
            raise GuestError("the guest died")
        if port == "control":
            *lines, self._pending = (self._pending + data).split(b"\n")
            for line in lines:
                self._heard(json.loads(line))
            return
        self._sinks[port].write(data)
        self._sinks[port].flush()
        self._received[port] += len(data)

    def _heard(self, message: dict[str, Any]) -> None:
        """Take in a message of the guest's."""
        match message["event"]:
            case "refused":
                raise GuestError(message["why"])
            case "note":
                self._note(message["what"])
            case "awake":
                self._awake = message
            case "rebooting":
                self._rebooting(message["sent"])
            case "started":
                if self.started:
                    raise GuestError("the guest restarted without being asked to")
                self.started = True
                self._deadline = self._limit and time.monotonic() + self._limit + GRACE_SECONDS
                self._late = f"the guest did not end the script {GRACE_SECONDS} s after its time"
                self._on_start()
            case "done":
                self._result = message
