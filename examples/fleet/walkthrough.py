#!/usr/bin/env python3
"""A fleet on this machine: the service, two hosts with software TPMs, drift on one, its webhook.

`./dev fleet` starts it. The service, the hosts' reporter, their TPMs (swtpm) and the webhook are
what they are on a real fleet; the hosts' kernel is simulated: no container runs. `--once` ends when
all is shown, else it goes on until it is interrupted, so that the page can be looked at.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(TOP), str(TOP / "tests")]

from cima_runc.ml import contents  # noqa: E402 - where it is was said just now
from cima_runc.tpm.device import Tpm  # noqa: E402
from cima_runc.tpm.swtpm import software_tpm  # noqa: E402
from cima_runc.verifier.reference.file import ImageReference  # noqa: E402
from tests.simulated_host import SimulatedHost  # noqa: E402
from tests.support.fleet_image import (  # noqa: E402
    LIBRARY,
    POLICY,
    SHELL,
    image,
    reference_file,
)
from tests.support.reporting_host import ReportingHost, reporting  # noqa: E402
from tests.support.verifier_process import VerifierProcess, verifier_process  # noqa: E402

SECONDS = 120.0


def say(text: str) -> None:
    """Print a headline."""
    print(f"\n== {text}", flush=True)


class Receiver:
    """Where the webhook's events arrive; each signature is checked."""

    def __init__(self) -> None:
        self.secret = ""
        self.events: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                good = receiver.is_signed(self.headers, body)
                if good:
                    receiver.events.append(json.loads(body))
                self.send_response(204 if good else 401)
                self.end_headers()

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def is_signed(self, headers: Any, body: bytes) -> bool:
        """Whether the service signed it (Standard Webhooks 1.0)."""
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        wanted = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return hmac.compare_digest(headers["webhook-signature"], wanted)


class Person:
    """Who types `cima fleet`."""

    def __init__(self, service: VerifierProcess) -> None:
        self._environment = {
            **os.environ,
            "CIMA_FLEET_URL": service.url,
            "CIMA_FLEET_CA": str(service.certificate),
            "CIMA_FLEET_TOKEN_FILE": str(service.root / "admin.token"),
        }

    def cima(self, *words: str, shown: bool = True) -> str:
        """Run a command, and show it as it is typed."""
        done = subprocess.run(
            [sys.executable, "-m", "cima_runc.cli.main", "fleet", *words],
            env=self._environment,
            cwd=TOP,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"cima fleet {' '.join(words)}: {done.stderr}")
        if shown:
            print(f"   $ cima fleet {' '.join(words)}")
            print(
                "".join(f"     {line}\n" for line in done.stdout.splitlines()), end="", flush=True
            )
        return done.stdout


def until(what: str, check: Callable[[], Any]) -> Any:
    """Wait for what should come."""
    end = time.monotonic() + SECONDS
    while not (found := check()):
        if time.monotonic() > end:
            raise SystemExit(f"it does not come to that: {what}")
        time.sleep(0.2)
    return found


def start(host: SimulatedHost, name: str, reference: ImageReference) -> int:
    """Start a container of the image; it runs its shell."""
    number = host.start(name)
    layers = tuple(
        contents.Layer(
            kind="lower",
            digest=layer.digest,
            entries=layer.entries,
            files=layer.files,
            bytes=layer.bytes,
            changed=(),
            changed_count=0,
        )
        for layer in reference.layers
    )
    root = contents.RootAttributes(mode="0755", uid=0, gid=0)
    host.writer.add(
        number,
        contents.Rootfs(
            mode="full",
            format="cima-layer-1",
            filesystem="overlay",
            reason="",
            root=root,
            layers=layers,
        ),
    )
    host.run(number, b"/bin/sh", SHELL)
    host.run(number, b"/lib/lib.so", LIBRARY)
    return number


def join(stack: ExitStack, root: Path, person: Person, service: VerifierProcess, name: str) -> Any:
    """Have a host with a TPM of its own join by a token."""
    token = root / f"{name}.token"
    token.write_text(
        person.cima(
            "join-tokens", "add", "--label", "zone=a", "--without-ek-certificate", shown=False
        )
    )
    tpm = Tpm.open(stack.enter_context(software_tpm()))
    stack.callback(tpm.close)
    return stack.enter_context(
        reporting(root / name, tpm, service.url, name=name, join_token_file=str(token))
    )


def walk(stack: ExitStack, root: Path) -> VerifierProcess:
    """Show all of it."""
    settings = {"interval": 2.0, "min_interval": 0.5, "allow_private_webhooks": True}
    service = stack.enter_context(verifier_process(root / "service", **settings))
    (root / "ca.pem").write_bytes(service.certificate.read_bytes())
    person, receiver = Person(service), Receiver()
    say(f"cima-verifier serve: {service.url}/, one SQLite file, keys and certificate of its own")

    say("What containers may be: a policy, and the image's reference values")
    reference = image(root)
    (root / "policy.toml").write_text(POLICY)
    (root / "app.json").write_bytes(reference_file(reference))
    person.cima("policies", "add", "default", str(root / "policy.toml"), shown=False)
    person.cima("references", "add", "app", str(root / "app.json"), shown=False)
    person.cima("policies")
    receiver.secret = person.cima(
        "webhooks", "add", receiver.url, "--kind", "container.verdict", shown=False
    ).strip()

    say("Two hosts join, each by a token of its own")
    hosts: list[ReportingHost] = [
        join(stack, root, person, service, name) for name in ("host-1", "host-2")
    ]
    numbers = [
        host.do(lambda one, name=name: start(one, name, reference))
        for host, name in zip(hosts, ("web", "database"), strict=True)
    ]

    def verdicts() -> dict[str, str]:
        return {row["container"]: row["verdict"] for row in service.get("/v1/containers")}

    both = {"web": "TRUSTED", "database": "TRUSTED"}
    until("both containers are TRUSTED", lambda: verdicts() == both)
    person.cima("hosts")
    person.cima("containers")

    say("A program that is not of the image runs in one of them")
    began = time.monotonic()
    hosts[0].do(lambda one: one.run(numbers[0], b"/tmp/miner", b"not of the image"))

    def arrived() -> dict[str, Any] | None:
        wrong = (one for one in receiver.events if one["data"].get("verdict") == "UNTRUSTED")
        return next(wrong, None)

    event = until("the webhook arrives", arrived)
    print(f"   the webhook, {time.monotonic() - began:.1f} s later, its signature is good:")
    print("".join(f"     {line}\n" for line in json.dumps(event, indent=1).splitlines()), end="")
    person.cima("show", "web")
    person.cima("find", "/tmp/miner")  # noqa: S108 - of the simulated container
    person.cima("overview")
    person.cima("audit", "verify")
    return service


def main() -> None:
    """Show it, and stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="end when all is shown")
    once = parser.parse_args().once
    with tempfile.TemporaryDirectory(prefix="cima-fleet-") as directory, ExitStack() as stack:
        service = walk(stack, Path(directory))
        say(f"The page: {service.url}/")
        token = service.root / "admin.token"
        print(f"   sign in with the token in {token}; the certificate is the service's own")
        if not once:
            print("   Ctrl-C ends it all", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    main()
