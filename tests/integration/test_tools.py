"""tpm2-tools' own check of our quotes."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_host import SimulatedHost, simulated_host

from cima_runc.evidence.models import parse_evidence
from cima_runc.evidence.tools_files import write_tools_files


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    with simulated_host(tmp_path) as made:
        yield made


@pytest.mark.parametrize("disclosure", ["none", "redacted"])
def test_checkquote_accepts_and_refuses(host: SimulatedHost, disclosure: str) -> None:
    host.start("plain")
    raw = host.evidence("plain", os.urandom(32), host=disclosure)
    directory = host.root / "quote"
    command = shlex.split(write_tools_files(parse_evidence(raw), directory))
    accepted = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert accepted.returncode == 0, accepted.stderr
    # tpm2-tools read the values that we wrote.
    assert host.tpm.read_pcrs([12])[12].hex() in accepted.stdout.lower()
    pcrs = bytearray((directory / "quote.pcrs").read_bytes())
    pcrs[140] ^= 1
    (directory / "quote.pcrs").write_bytes(pcrs)
    refused = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    assert refused.returncode != 0
