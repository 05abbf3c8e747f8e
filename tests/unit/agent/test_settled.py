"""A container's root filesystem is looked at again after others' hooks."""

from dataclasses import replace

import pytest

from cima_runc.agent.registration import RegistrationError
from cima_runc.base import limits
from tests.support.simulated_agent import NO_ROOTFS
from tests.unit.agent.test_runs import Host


def test_what_a_user_has_looked_at_again_is_of_his_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """His own runtime says how often. Kind: records that no limit counts."""
    monkeypatch.setattr(limits, "USER_BYTES", 50_000)
    host = Host()
    host.begin()
    try:
        state = host.candidate("box").state
        candidate = host.candidate("1000/box")
        candidate = replace(candidate, uid=1000, state=replace(candidate.state, bundle="/box"))
        host.rooms.registration.register(candidate)
        with pytest.raises(RegistrationError, match="more than 50000 bytes"):
            for number in range(100):
                rootfs = NO_ROOTFS | {"reason": f"{number:010000}"}
                host.rooms.registration.measured_again(state, rootfs, 1000)
        assert host.store.size(candidate_number(host)) < 100_000
    finally:
        host.teardown()


def candidate_number(host: Host) -> int:
    found = host.writer.latest("1000/box")
    assert found is not None
    return found.number
