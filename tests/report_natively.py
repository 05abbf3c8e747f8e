#!/usr/bin/env python3
"""A real agent with a software TPM and real runc on this machine reports to a service.

Run in a process of its own, since it changes its mounts. Takes root.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import native_host

from cima_runc.ml.contents import Config, Exit, Register
from tests.support.fleet_service import TOKEN, Service, served

NAMES = ("reported", "after-it")
with socket.create_server(("127.0.0.1", 0)) as _free:
    METRICS_PORT: int = _free.getsockname()[1]


def main() -> int:
    """Have a container reported from its start to its end, the service away in between."""
    with tempfile.TemporaryDirectory(prefix="cima-report-") as name:
        directory = Path(name)
        native_host.private_mounts(directory)
        prefix = native_host.installation(directory)
        service = Service()
        with served(service, directory) as url:
            token = directory / "token"
            token.write_text(TOKEN)
            token.chmod(0o600)
            settings = (
                f'[fleet]\nurl = "{url}"\nca = "{directory}/ca.pem"\n'
                f'join_token_file = "{token}"\n[attestation]\nevent_log = "/nowhere"\n'
                f"[metrics]\nport = {METRICS_PORT}\n"
            )
            with native_host.agent(prefix, directory, settings):
                try:
                    return follow(prefix, directory, service)
                finally:
                    for one in NAMES:
                        delete(prefix, one)
                    print((directory / "agent.log").read_text(), file=sys.stderr)
    return 1


def check_metrics() -> None:
    """What Prometheus reads of the agent: its own state, and no container's name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=60) as answer:
        shown = answer.read().decode()
    lines = dict(line.rsplit(" ", 1) for line in shown.splitlines() if line[0] != "#")
    assert lines["cima_agent_fleet_enrolled"] == "1.0", shown
    assert lines["cima_agent_fleet_trouble"] == "0.0", shown
    assert lines["cima_agent_binding_matches"] == "1.0", shown
    assert float(lines["cima_agent_containers"]) >= 1, shown
    assert not any(name in shown for name in NAMES), shown


def delete(prefix: Path, name: str) -> None:
    """End a container."""
    command = [prefix / "bin/cima-runc", "delete", "-f", name]
    subprocess.run(command, check=False, capture_output=True)


def run(prefix: Path, directory: Path, name: str) -> float:
    """Start a container, and return how long that took."""
    bundle = native_host.make_bundle(directory / name, "/bin/sleep", "600")
    began = time.monotonic()
    with open("/dev/null", "r+b") as null:
        subprocess.run(
            [prefix / "bin/cima-runc", "run", "-d", "-b", str(bundle), name],
            check=True,
            stdin=null,
            stdout=null,
            stderr=null,
        )
    return time.monotonic() - began


def follow(prefix: Path, directory: Path, service: Service) -> int:
    """Start, look, end."""

    def whole(name: str) -> int | None:
        keeper = service.keeper
        for one in keeper.known.registers.values() if keeper else ():
            if one.id == name and one.is_whole:
                return one.registration
        return None

    print(f"started in {run(prefix, directory, NAMES[0]):.2f} s")
    service.until(lambda: whole(NAMES[0]) is not None, 30)
    number = whole(NAMES[0])
    assert number is not None and service.keeper is not None
    kinds = [type(one) for one in service.keeper.contents(number)]
    assert kinds[:2] == [Register, Config], kinds
    print("reported")
    status = json.loads(native_host.ask(prefix, "status"))["fleet"]
    assert status["enrolled"] and status["trouble"] is None, status
    check_metrics()
    service.away = True
    time.sleep(2)
    delete(prefix, NAMES[0])
    print(f"started while the service is away in {run(prefix, directory, NAMES[1]):.2f} s")
    assert json.loads(native_host.ask(prefix, "status"))["fleet"]["trouble"]
    service.away = False
    service.until(lambda: whole(NAMES[1]) is not None and ended(service, number), 60)
    print("all is there")
    assert service.refusals == [], service.refusals
    return 0


def ended(service: Service, number: int) -> bool:
    """Whether the service has a container's end."""
    assert service.keeper is not None
    found = service.keeper.contents(number)
    return isinstance(found[-1], Exit)


if __name__ == "__main__":
    sys.exit(main())
