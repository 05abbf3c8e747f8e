"""Lies of a host whose TPM is real: its quotes are good, what it says beside them is not."""

import pytest

from tests.support.fleet_host import FleetHost
from tests.support.fleet_keeper import Keeper
from tests.support.fleet_lies import LIES, tell
from tests.support.swtpm_ak import swtpm_ak


def test_the_truth_is_taken() -> None:
    with swtpm_ak() as tpm:
        host = FleetHost(tpm=tpm)  # type: ignore[arg-type]
        keeper = Keeper(tpm.ak_public)
        for name in ("one", "two"):
            number = host.start(name)
            host.bind()
            host.heed(keeper.take(host.report(keeper.nonce())))
            assert keeper.known.registers[number].is_whole


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_by_name(name: str) -> None:
    with swtpm_ak() as tpm:
        host = FleetHost(tpm=tpm)  # type: ignore[arg-type]
        tell(host, Keeper(tpm.ak_public), name)
