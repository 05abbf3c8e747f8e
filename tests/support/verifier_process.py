"""``cima-verifier serve`` as people start it: a process of its own, over HTTPS."""

import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_READY_SECONDS = 120.0


@dataclass(frozen=True)
class VerifierProcess:
    """A service that runs."""

    url: str
    root: Path
    process: "subprocess.Popen[str]"

    @property
    def certificate(self) -> Path:
        """Its own certificate."""
        return self.root / "certificate.pem"

    def join_token(self, *, without_ek_certificate: bool = True) -> str:
        """Make a token, for a TPM without a certificate unless told otherwise."""
        more = ["--without-ek-certificate"] if without_ek_certificate else []
        return run(self.root, "join-token", *more).strip()

    def get(self, path: str, **params: Any) -> Any:
        """Ask as the administrator."""
        return self._ask("GET", path, params=params)

    def post(self, path: str, value: Any) -> Any:
        """Change something as the administrator."""
        return self._ask("POST", path, json=value)

    def _ask(self, method: str, path: str, **named: Any) -> Any:
        token = (self.root / "admin.token").read_text().strip()
        answer = httpx.request(
            method,
            self.url + path,
            **named,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=self.certificate),
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()


def run(root: Path, *command: str) -> str:
    """Run another command of it."""
    done = subprocess.run(
        [sys.executable, "-m", "cima_runc.fleet.main", *command, "--config", root / "config.toml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def verifier_process(root: Path, port: int = 0, **settings: Any) -> Iterator[VerifierProcess]:
    """Start a service on this machine; ``settings`` are lines of its file."""
    root.mkdir(exist_ok=True)
    given = {"state_dir": str(root), "address": "127.0.0.1", "port": port, **settings}
    # JSON's strings, numbers and truth values are TOML's too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
    (root / "config.toml").write_text("\n".join(lines) + "\n")
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "cima_runc.fleet.main",
                "serve",
                "--config",
                root / "config.toml",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "https://" in first, (root / "log").read_text()
        url = first.rpartition(" ")[2].strip().rstrip("/")
        _wait_for(url, root, process)
        yield VerifierProcess(url, root, process)
    finally:
        process.terminate()
        process.wait(120)


def _wait_for(url: str, root: Path, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + _READY_SECONDS
    while True:
        try:
            httpx.get(
                f"{url}/v1/openapi.json",
                verify=ssl.create_default_context(cafile=root / "certificate.pem"),
                timeout=5,
            )
            return
        except httpx.HTTPError:
            assert process.poll() is None, (root / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
