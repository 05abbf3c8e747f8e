"""Evidence of a container on a simulated host of a fleet, as a tenant would be given it.

It is of the same records, log and PCRs as the host's reports, signed with a key of its own.
"""

from typing import Any

from tests.support.fleet_host import BOOT_PCRS, Container, FleetHost
from tests.support.forger import ForgedRun, Forger
from tests.support.forger import Partition as ForgedPartition


def twin(host: FleetHost, number: int) -> Forger:
    """Return who forges evidence of the container ``number`` and the runs before it."""
    last = host.containers[number]
    forger = Forger(last.id)
    assert last.line is not None
    forger.line = last.line.hex()
    forger.pcrs = {pcr: host.tpm.pcrs[pcr] for pcr in BOOT_PCRS}
    forger.status = host.status.model_dump(mode="json")
    forger.boot_id = host.boot_id
    forger.log = [(data, at in host.violations) for at, data in enumerate(host.log)]
    runs = [one for one in host.containers.values() if one.line == last.line]
    for one in sorted(runs, key=lambda one: one.run or 0):
        assert one.run is not None
        run = ForgedRun(one.run, _partition(one), one.registration, one.boot_id, one.secret)
        run.reason = "deleted" if one.state == "stopped" else None
        forger.runs.append(run)
    if last.services is not None:
        forger.services = _partition(host.containers[last.services])
        forger.services_secret = host.containers[last.services].secret
    return forger


def disclosure(host: FleetHost) -> str:
    """Return what the host shows of its log."""
    if not host.shows_log:
        return "none"
    return "full" if host.in_full else "redacted"


def _partition(one: Container) -> ForgedPartition:
    made = ForgedPartition(one.id)
    made.records = [dict[str, Any](record) for record in one.records]
    return made
