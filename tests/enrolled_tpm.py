"""A software TPM whose endorsement key has a certificate, as a manufacturer's TPM has."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cima_runc.tpm.device import Tpm, TpmError


@dataclass(frozen=True)
class ManufacturedTpm:
    """A TPM that runs, and the certificates of its manufacturer."""

    tpm: Tpm
    root_ca: bytes
    issuer_ca: bytes
    tcti: str
    """How tpm2-tools reach it, while nothing else does."""


@contextmanager
def manufactured_tpm(root: Path, *options: str) -> Iterator[ManufacturedTpm]:
    """Make a TPM with swtpm_setup and its ``options``, and run it."""
    (root / "state").mkdir()
    environment = {**os.environ, "XDG_CONFIG_HOME": str(root), "HOME": str(root)}
    configure = ["/usr/share/swtpm/swtpm-create-user-config-files", "--root", "--overwrite"]
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", str(root / "state"), "--create-ek-cert"]
    setup += ["--config", str(root / "swtpm_setup.conf"), *options]
    for command in (configure, setup):
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    ca = root / "var/lib/swtpm-localca"
    server = root / "tpm"
    command = ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear"]
    command += ["--tpmstate", f"dir={root / 'state'}"]
    command += ["--server", f"type=unixio,path={server}"]
    command += ["--ctrl", f"type=unixio,path={server}.ctrl"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            tpm = _open(f"swtpm:path={server}")
            yield ManufacturedTpm(
                tpm,
                (ca / "swtpm-localca-rootca-cert.pem").read_bytes(),
                (ca / "issuercert.pem").read_bytes(),
                f"swtpm:path={server}",
            )
            tpm.close()
        finally:
            process.terminate()


def _open(tcti: str) -> Tpm:
    deadline = time.monotonic() + 60
    while True:
        try:
            return Tpm.open(tcti)
        except TpmError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
