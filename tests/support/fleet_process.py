"""``cima-verifier serve`` as a process, with its own certificate."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from cima_runc.evidence.compressed import ENCODING, compressed
from cima_runc.evidence.report_answer import Answer, Invitation, parse_answer
from cima_runc.fleet import setup
from cima_runc.fleet.settings import Settings
from tests.support.fleet_host import FleetHost


def write_settings(root: Path, database_url: str, **more: Any) -> Path:
    """Write a settings file; processes with the same one are equal."""
    root.mkdir(exist_ok=True)
    values = {
        "state_dir": str(root),
        "database": database_url,
        "port": 0,
        "allow_private_webhooks": True,
        "reports_per_minute": 60_000,
        "tenants_per_minute": 60_000,
        "enrolments_per_minute": 60_000,
        **more,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = root / "verifier.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


class FleetProcess:
    """One process of the service."""

    def __init__(self, config: Path) -> None:
        self.root = config.parent
        self._log = (self.root / f"log-{os.urandom(4).hex()}").open("wb")
        command = [sys.executable, "-m", "cima_runc.fleet.main", "serve", "--config", str(config)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        found = re.search(r"https://[^/\s]+", first)
        assert found is not None, Path(self._log.name).read_text()
        self.url = found[0]
        for line in self._process.stdout:
            if "join-token" in line and "--config" in line:
                break
        self.ca = self.root / "certificate.pem"
        context = ssl.create_default_context(cafile=str(self.ca))
        self.client = httpx.Client(base_url=self.url, verify=context, timeout=60)
        self._wait()

    def _wait(self) -> None:
        for _ in range(200):
            try:
                if self.client.get("/v1/health").status_code == 200:
                    return
            except httpx.TransportError:
                assert self._process.poll() is None, Path(self._log.name).read_text()
        raise AssertionError("the service does not answer")

    @property
    def admin(self) -> str:
        """The first administrator's token."""
        return setup.admin_token_path(Settings(state_dir=self.root)).read_text("ascii").strip()

    def ask(self, method: str, path: str, token: str | None = None, **named: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token or self.admin}"}
        return self.client.request(method, path, headers=headers, **named)

    def get(self, path: str, /, **params: Any) -> Any:
        answer = self.ask("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def report(self, host: FleetHost) -> Answer:
        """Have a simulated host report, and heed the answer."""
        ak = host.tpm.ak_name.hex()
        proved = {"Authorization": f"Bearer {host.session}"} if host.session else {}
        asked = self.client.get(f"/v1/hosts/{ak}/nonce", headers=proved)
        if asked.status_code in {429, 503}:
            raise httpx.TransportError("the service cannot answer now")
        invitation = parse_answer(asked.content)
        assert isinstance(invitation, Invitation)
        answer = self.client.post(
            f"/v1/hosts/{ak}/reports",
            content=compressed(host.report(invitation.nonce)),
            headers={"Content-Encoding": ENCODING, **proved},
        )
        if answer.status_code in {429, 503}:
            raise httpx.TransportError("the service cannot answer now")
        found = parse_answer(answer.content)
        host.heed(found)
        return found

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it in order."""
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._log.close()


@contextmanager
def fleet_process(config: Path) -> Iterator[FleetProcess]:
    """Run one."""
    process = FleetProcess(config)
    try:
        yield process
    finally:
        process.stop()
