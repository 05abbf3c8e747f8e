"""A real Chromium without a window, spoken to over two pipes (Chrome DevTools Protocol)."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
_SECONDS = 90.0


class ChromiumError(Exception):
    """The browser answers with an error, or not at all."""


class Chromium:
    """One tab."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers, self._buffer = to, answers, b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.call(f"{domain}.enable")
        self.call("Security.setIgnoreCertificateErrors", ignore=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method; return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        raw = json.dumps(message).encode("ascii") + b"\0"
        while raw:
            raw = raw[os.write(self._to, raw) :]
        while True:
            answer = self._read()
            if answer.get("id") != self._number:
                continue
            if "error" in answer:
                raise ChromiumError(f"{method}: {answer['error']['message']}")
            found: dict[str, Any] = answer["result"]
            return found

    def _read(self, seconds: float = _SECONDS) -> dict[str, Any]:
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while b"\0" not in self._buffer:
            # Not select(2): it knows no descriptor above 1,023.
            ready = poll.poll(1000 * max(0, until - time.monotonic()))
            part = os.read(self._answers, 1 << 16) if ready else b""
            if not part:
                raise ChromiumError("the browser does not answer")
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self.events.append(message)
        return message

    def go(self, url: str) -> None:
        """Open a page, and wait until it is there."""
        self.events.clear()
        answer = self.call("Page.navigate", url=url)
        if answer.get("errorText"):
            raise ChromiumError(f"{url}: {answer['errorText']}")
        until = time.monotonic() + _SECONDS
        while not any(one["method"] == "Page.loadEventFired" for one in self.events):
            self._read(max(0.0, until - time.monotonic()))

    def look(self, *, width: int, dark: bool) -> None:
        """Have a window of this width, and a person who likes it dark or light."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """Evaluate JavaScript as the tools of developers do; return what its promise gives."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise ChromiumError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(made["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Chromium]:
    """Run the browser."""
    assert PROGRAM is not None
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    # It reads from 3 and writes to 4.
    command = (
        f'exec 3<&{in_read} 4>&{out_write}; exec "$0" "$@"',
        PROGRAM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--ignore-certificate-errors",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "about:blank",
    )
    process = subprocess.Popen(
        ["bash", "-c", *command],
        pass_fds=(in_read, out_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(in_read)
    os.close(out_write)
    try:
        yield Chromium(in_write, out_read)
    finally:
        os.close(in_write)
        os.close(out_read)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(20)
        process.kill()
        process.wait()
