"""Hundreds of short containers, several at once, on an agent of their own with a simulated sensor.

Run as a program: ``many_short PREFIX RUNTIME COUNT AT_ONCE`` prints what became of them, as JSON.
The runtime is runc, crun, or podman, which calls runc.
The agent runs in its own process; its sensor is simulated there: it says of each mount namespace
that is watched what ran in it first and last, and by whose registration it finds it at that moment.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from cima_runc.sensor.events import Event
from cima_runc.sensor.loader import Lost, SensorStatus

_ENDED_SECONDS = 120


class NamespaceSensor:
    """What the agent uses of a sensor. Two live containers in one namespace are a mistake."""

    def __init__(self) -> None:
        self._ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watched: dict[int, int] = {}
        self._ended: dict[int, Lost] = {}
        self._ring: list[Event] = []
        self._taken = 0

    def fileno(self) -> int:
        return self._ready

    def registrations(self) -> set[int]:
        return set(self._watched.values())

    @property
    def missing_hooks(self) -> tuple[str, ...]:
        return ()

    def lost_in(self, registration: int) -> int | None:
        return None

    def watch(
        self,
        mntns: int,
        registration: int,
        cgroup_id: int,
        allowlist: int | None = None,
        rights: object = None,
    ) -> None:
        if mntns in self._watched:
            raise OSError(17, "the namespace is watched already")
        self._watched[mntns] = registration
        self._see(mntns, b"first")

    def unwatch(self, registration: int) -> Lost:
        (mntns,) = [one for one, number in self._watched.items() if number == registration]
        self._see(mntns, b"last")
        del self._watched[mntns]
        self._ended[registration] = Lost(registration, 0, 0)
        return self._ended[registration]

    def mark_of(self, pidfd: int) -> int | None:
        return None

    def unwatched(self) -> dict[int, Lost]:
        return dict(self._ended)

    def forget(self, registration: int) -> None:
        self._ended.pop(registration, None)

    def events(self, batch: int) -> Iterator[list[Event]]:
        while self._taken < len(self._ring):
            found = self._ring[self._taken : self._taken + batch]
            self._taken += len(found)
            yield found

    def release(self) -> None:
        del self._ring[: self._taken]
        self._taken = 0
        if not self._ring:
            with suppress(BlockingIOError):
                os.eventfd_read(self._ready)

    def lost(self) -> dict[int, int]:
        return {}

    def status(self) -> SensorStatus:
        return SensorStatus("", (), len(self._watched), 0, 0, 0, 0)

    def _see(self, mntns: int, what: bytes) -> None:
        from dataclasses import replace

        from tests.support.sensor_events import event_of

        path = b"/%s/%d" % (what, mntns)
        event = replace(event_of(self._watched[mntns], path), mntns=mntns)
        self._ring.append(event)
        os.eventfd_write(self._ready, 1)


def serve() -> int:
    """Run the agent with that sensor."""
    from cima_runc.agent import main, sources

    def opened(settings: Any) -> sources.Sources:
        return sources.Sources(None, NamespaceSensor(), None)  # type: ignore[arg-type]

    main.open_sources = opened  # type: ignore[assignment]
    return main.main()


def run(prefix: Path, runtime: str, count: int, at_once: int) -> dict[str, Any]:
    """Start, await and delete so many containers; returns what went wrong with each, and a log."""
    import native_host

    with tempfile.TemporaryDirectory(prefix="cima-short-") as name:
        directory = Path(name)
        native_host.private_mounts(directory)
        if runtime != "runc" and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            # They do not run in hybrid mode.
            subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)
        called = "crun" if runtime == "crun" else "runc"
        native_host.SETTINGS_FILE.write_text(
            f'runtimes = ["{called}"]\nstate_dir = "{directory}/state"\n'
        )
        log = directory / "agent.log"
        with log.open("wb") as output:
            command = [prefix / "bin/python3", "-m", "tests.support.many_short", "serve"]
            agent = subprocess.Popen(
                command,
                stderr=output,
                cwd=native_host.TOP,
                env={**os.environ, "PYTHONPATH": f"{native_host.TOP}:{native_host.TOP}/tests"},
            )
        try:
            while "ready on" not in log.read_text():
                if agent.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.05)
            return _all(prefix, directory, runtime, count, at_once)
        finally:
            agent.terminate()
            agent.wait(60)


def _all(prefix: Path, directory: Path, runtime: str, count: int, at_once: int) -> dict[str, Any]:
    import native_host

    cima_runc = str(prefix / "bin/cima-runc")
    bundle = native_host.make_bundle(directory / "bundle", "/bin/true")
    template = (bundle / "config.json").read_text()

    def under_podman(number: int) -> str:
        stores = [f"--root={directory}/store", f"--runroot={directory}/store-run"]
        podman = ["podman", *stores, "--cgroup-manager=cgroupfs", "--events-backend=none"]
        podman += [f"--runtime={cima_runc}", "run", "--rm", "--network=none", "--pids-limit=-1"]
        command = [*podman, f"--name=short-{number}", "--rootfs", bundle / "rootfs", "/bin/true"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"{number}: {done.stderr}" if done.returncode else ""

    def one(number: int) -> str:
        name = f"short-{os.getpid()}-{number}"
        own = directory / name
        own.mkdir()
        config = json.loads(template)
        config["root"]["path"] = str(bundle / "rootfs")
        config["linux"].pop("resources", None)
        (own / "config.json").write_text(json.dumps(config))
        try:
            started = subprocess.run(
                [cima_runc, "run", "-d", "--bundle", str(own), name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            if started.returncode:
                return f"{name}: {started.stderr}"
            return _deleted(cima_runc, name)
        finally:
            shutil.rmtree(own)

    each = under_podman if runtime == "podman" else one
    begun = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        wrong = [found for found in pool.map(each, range(count)) if found]
    seconds = time.monotonic() - begun
    rows = json.loads(native_host.ask(prefix, "ps"))
    logs = {}
    for row in rows:
        if row["kind"] == "container":
            number = row["registration"]
            lines = (directory / f"state/containers/{number:08d}/records.jsonl").read_bytes()
            logs[str(number)] = [json.loads(line)["content"] for line in lines.splitlines()]
    return {"wrong": wrong, "seconds": seconds, "rows": rows, "logs": logs}


def _deleted(cima_runc: str, name: str) -> str:
    deadline = time.monotonic() + _ENDED_SECONDS
    while True:
        done = subprocess.run(
            [cima_runc, "delete", name], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return ""
        if time.monotonic() > deadline:
            return f"{name}: {done.stderr}"
        time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        sys.argv[1:] = []
        sys.exit(serve())
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
