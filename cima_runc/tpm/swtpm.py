"""A software TPM for development and tests: proves nothing about the machine it runs on."""

import shutil
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
    with tempfile.TemporaryDirectory(prefix="cima-swtpm-", ignore_cleanup_errors=True) as directory:
        server = Path(directory) / "server"
        # However this process ends, its end of the pipe does with it, and the shell tidies up.
        command = ["sh", "-c", '"$@" & read _; kill $!; wait; rm -rf "$0"', directory]
        command += ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear"]
        command += ["--tpmstate", f"dir={directory}"]
        command += ["--server", f"type=unixio,path={server}"]
        command += ["--ctrl", f"type=unixio,path={server}.ctrl"]
        if shutil.which("swtpm") is None:
            raise TpmError("swtpm is not installed", hint="apt install swtpm")
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # what a terminal tells this one's group ends it no sooner
        )
        try:
            tcti = f"swtpm:path={server}"
            _wait_ready(tcti)
            yield tcti
        finally:
            process.communicate()


def _wait_ready(tcti: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            Tpm.open(tcti).close()
        except TpmError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
