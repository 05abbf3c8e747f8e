"""A software TPM for development and tests: proves nothing about the machine it runs on."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cima_runc.tpm.device import Tpm, TpmError

_READY_SECONDS = 10.0


@contextmanager
def software_tpm() -> Iterator[str]:
    """Run swtpm while the context lasts, and give its TCTI.

    Raises:
        TpmError: swtpm is not installed, or does not get ready.
    """
    with tempfile.TemporaryDirectory(prefix="cima-swtpm-") as directory:
        server = Path(directory) / "server"
        command = ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear"]
        command += ["--tpmstate", f"dir={directory}"]
        command += ["--server", f"type=unixio,path={server}"]
        command += ["--ctrl", f"type=unixio,path={server}.ctrl"]
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except FileNotFoundError as error:
            raise TpmError("swtpm is not installed", hint="apt install swtpm") from error
        try:
            tcti = f"swtpm:path={server}"
            _wait_ready(process, tcti)
            yield tcti
        finally:
            process.terminate()
            process.wait()


def _wait_ready(process: "subprocess.Popen[bytes]", tcti: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            Tpm.open(tcti).close()
        except TpmError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
