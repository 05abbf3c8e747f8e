#!/usr/bin/env python3
"""A real agent is killed, and stopped, while it reports: the next one goes on.

Run in a process of its own, since it changes its mounts. Takes root.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import native_host
import report_natively

from cima_runc.tpm.swtpm import software_tpm
from tests.support.fleet_service import TOKEN, Service, served

NAME = "reported-over-restarts"


def start(prefix: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start an agent, and wait until it is ready."""
    before = log.read_text().count("ready on")
    with log.open("ab") as output:
        command = [prefix / "bin/python3", "-m", "cima_runc.agent.main"]
        process = subprocess.Popen(command, stderr=output, cwd="/")
    until = time.monotonic() + 60
    while log.read_text().count("ready on") == before:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the agent did not start: {log.read_text()}")
        time.sleep(0.05)
    return process


def main() -> int:
    """Have one container reported by three agents."""
    with tempfile.TemporaryDirectory(prefix="cima-report-") as name, software_tpm() as tcti:
        directory = Path(name)
        native_host.private_mounts(directory)
        prefix = native_host.installation(directory)
        service, log = Service(), directory / "agent.log"
        log.touch()
        with served(service, directory) as url:
            (directory / "token").write_text(TOKEN)
            native_host.SETTINGS_FILE.write_text(
                f'runtimes = ["runc"]\nstate_dir = "{directory}/state"\n[tpm]\ntcti = "{tcti}"\n'
                "[ima]\nrequired = false\n[sensor]\nrequired = false\n"
                f'[fleet]\nurl = "{url}"\nca = "{directory}/ca.pem"\n'
                f'join_token_file = "{directory}/token"\n'
            )
            agent = start(prefix, log)
            try:
                report_natively.run(prefix, directory, NAME)
                service.until(lambda: whole(service) is not None, 30)
                for number in (signal.SIGKILL, signal.SIGTERM):
                    agent.send_signal(number)
                    agent.wait(30)
                    agent = start(prefix, log)
                    before = len(service.reports)
                    service.until(lambda before=before: len(service.reports) > before + 1, 30)
                registration = whole(service)
                assert registration is not None
                report_natively.delete(prefix, NAME)
                service.until(lambda: report_natively.ended(service, registration), 30)
            finally:
                report_natively.delete(prefix, NAME)
                agent.terminate()
                agent.wait(30)
                print(log.read_text(), file=sys.stderr)
        assert service.refusals == [], service.refusals
        assert service.keeper is not None and service.keeper.last is not None
        assert not service.keeper.last.events
        print("all is there")
    return 0


def whole(service: Service) -> int | None:
    """Return the container's registration, once all of its records are proved."""
    keeper = service.keeper
    for one in keeper.known.registers.values() if keeper else ():
        if one.id == NAME and one.is_whole:
            return one.registration
    return None


if __name__ == "__main__":
    sys.exit(main())
