"""A fleet of one guest: its agent joins the service, and what it runs has a verdict there."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import oci
from tests.vm import guest, images

# Agent, engine and kernel are tried elsewhere on each release, and the service natively.
pytestmark = pytest.mark.debian("13")

PYTHON = "/opt/cima-test/fleet/bin/python"
PORT = 18444
URL = f"https://127.0.0.1:{PORT}"
POLICY = """
[config]
allow_privileged = true
host_namespaces = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
"""
SLEEP = ["/bin/sh", "-c", "/bin/script; exec /bin/sleep 6000"]


class Receiver:
    """Takes a webhook's events."""

    def __init__(self) -> None:
        got: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.got = got
        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def verdicts(self, container: str) -> list[str]:
        """What it was told of a container, in order."""
        data = [one["data"] for one in self.got if one["type"].endswith("container.verdict")]
        return [one["verdict"] for one in data if one["container"] == container]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a service that runs, with an SQLite file."""
    root = tmp_path_factory.mktemp("service")
    settings = root / "verifier.toml"
    given = {
        "state_dir": str(root),
        "port": PORT,
        "interval": 30.0,
        "min_interval": 0.5,
        "overdue": 20.0,
        "manufacturers": "/opt/cima-test/tpm-ca.pem",
        "allow_private_webhooks": True,
    }
    settings.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [PYTHON, "-m", "cima_runc.fleet.main", "serve", "--config", settings],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), (root / "log").read_text()
        yield root
    finally:
        process.terminate()
        process.wait(120)


@pytest.fixture
def cima_fleet(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cima fleet` finds the service."""
    monkeypatch.setenv("CIMA_FLEET_URL", URL)
    monkeypatch.setenv("CIMA_FLEET_CA", str(service / "certificate.pem"))
    monkeypatch.setenv("CIMA_FLEET_TOKEN_FILE", str(service / "admin.token"))


def fleet(*command: str | Path) -> Any:
    return json.loads(guest.ok("cima", "fleet", *command, "--json"))


def shown(container: str) -> dict[str, Any]:
    """A container as the service has it; empty while it does not."""
    rows = [row for row in fleet("containers") if row["container"] == container]
    return dict(fleet("show", rows[0]["uid"])) if rows else {}


def until(container: str, verdict: str, seconds: float = 150.0) -> dict[str, Any]:
    """Wait for a verdict on a container; return it as the service shows it."""
    deadline = time.monotonic() + seconds
    while (found := shown(container)).get("verdict") != verdict:
        assert time.monotonic() < deadline, (found, fleet("hosts"), fleet("events"))
        time.sleep(1)
    return found


@pytest.mark.usefixtures("cima_fleet")
def test_a_host_joins_and_an_unknown_program_reaches_the_webhook_once(
    service: Path, tmp_path: Path
) -> None:
    archive = oci.docker_save(
        tmp_path / "image.tar", *images.busybox(), tag="fleet:latest", config={"Cmd": SLEEP}
    )
    guest.ok("docker", "load", "-i", archive)
    guest.ok("cima", "reference", "image", archive, "-o", tmp_path / "image.json")
    (tmp_path / "policy.toml").write_text(POLICY)
    fleet("references", "add", "app", tmp_path / "image.json")
    fleet("policies", "add", "default", tmp_path / "policy.toml")
    receiver = Receiver()
    fleet("webhooks", "add", receiver.url)
    token = tmp_path / "join-token"
    token.touch(0o600)
    token.write_text(fleet("join-tokens", "add", "--label", "zone=a")["secret"])
    with guest.Settings():
        guest.ok(
            *("cima", "configure", "fleet", "--url", URL, "--ca", service / "certificate.pem"),
            *("--join-token-file", token),
        )
        guest.restart_agent()
        try:
            container = guest.ok(*guest.docker("cima-runc", "-d", "--name", "web", "fleet")).strip()
            until(container, "TRUSTED")
            (host,) = fleet("hosts")
            assert host["labels"] == {"zone": "a"}
            assert host["hardware_proved"], "the TPM has its manufacturer's certificate"
            drift = "mkdir -p /new && cp /bin/busybox /new/busybox && /new/busybox true"
            guest.ok("docker", "exec", "web", "/bin/sh", "-c", drift)
            found = until(container, "UNTRUSTED")
            guest.wait_for("the webhook", lambda: "UNTRUSTED" in receiver.verdicts(container), 120)
            assert "/new/busybox" in [one["path"] for one in found["findings"]]
            assert receiver.verdicts(container).count("UNTRUSTED") == 1
        finally:
            guest.run("docker", "rm", "-f", "web")
    guest.restart_agent()
    assert os.path.exists(service / "fleet.db")
