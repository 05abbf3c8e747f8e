"""A host of its own for these tests: cima-runc installed, its agent running, runc's state apart."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import native_host
import pytest

from cima_runc.tpm.device import Tpm
from cima_runc.tpm.swtpm import software_tpm

USERS = '[users]\ngroup = "users"\n'


@pytest.fixture(scope="session")
def host() -> Iterator[native_host.Host]:
    reason = native_host.is_possible()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="cima-host-") as name:
        directory = Path(name)
        prefix = native_host.installation(directory)
        native_host.private_mounts(directory)
        with native_host.agent(prefix, directory, USERS) as agent:
            yield native_host.Host(prefix, directory, agent)


@pytest.fixture
def tpm() -> Iterator[Tpm]:
    with software_tpm() as tcti:
        opened = Tpm.open(tcti)
        yield opened
        opened.close()
