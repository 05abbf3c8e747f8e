"""What a container, a host or a stranger chooses decides nothing for others."""

import hashlib
import random
from pathlib import Path

import pytest

from cima_runc.fleet import changes, clock
from cima_runc.verifier.reference.file import HostReference, format_reference
from tests.integration.fleet.test_tokens import STRICT, Issuing, issuing_
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually

__all__ = ["issuing_"]


def test_a_program_of_a_long_path(fleet: ServedFleet) -> None:
    """Kind: a container chooses what the database cannot index, and its whole host is refused."""
    host = FleetHost()
    fleet.enrol(host)
    one = host.start("web")
    words = random.Random(7)
    path = b"/" + b"/".join(words.randbytes(15).hex().encode() for _ in range(130))
    assert 3_900 < len(path) < 4_096
    host.run(one, path)
    fleet.sync(host)
    [found] = fleet.get("/v1/find", path=path.decode())
    assert found["path"] == path.decode()
    assert not fleet.get("/v1/find", path=path.decode()[:-1])


def test_a_token_waits_for_other_values_of_the_host(issuing_: Issuing) -> None:
    """Kind: what waits to be appraised by other values is taken for what was appraised by them."""
    fleet = issuing_.fleet
    text = STRICT + "[dependencies]\nrequired = false\n"
    fleet.write(changes.add_policy, "web", text)
    fleet.write(changes.add_reference, "hosts", hosts("0"))
    match = {"label": {"zone": "a"}, "image": issuing_.reference.image_id}
    fleet.write(changes.unassign, issuing_.assignment)
    services = issuing_.host.serve(b"/usr/bin/engine")
    number = start(issuing_.host, "relies", issuing_.reference, services=services)
    digest = hashlib.sha256(b"/usr/bin/engine").hexdigest()
    fleet.write(changes.add_reference, "hosts", hosts(digest))
    fleet.write(changes.assign, "web", match, host_reference="hosts")
    fleet.sync(issuing_.host)
    eventually(lambda: fleet.container("relies")["verdict"] == "TRUSTED")
    assert issuing_.host.containers[number].boot_id
    token = issuing_.given(token=fleet.admin, name="relies")
    # The engine is found to be bad: nothing has been appraised by that yet.
    fleet.service.worker.stop()
    fleet.write(changes.add_reference, "hosts", hosts("1" * 64))
    answer = issuing_.ask(token=fleet.admin, name="relies")
    assert answer.status_code == 409, answer.text
    assert issuing_.introspect(token) == {"active": False}


def hosts(digest: str) -> bytes:
    return format_reference(HostReference(files={"/usr/bin/engine": (digest.ljust(64, "0"),)}))


def test_what_a_policy_would_say_is_as_old_as_the_report(
    fleet: ServedFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: TRUSTED is shown of a host that does not report any more."""
    reference = image(tmp_path)
    fleet.write(changes.add_reference, "app", reference_file(reference))
    fleet.write(changes.add_policy, "next", POLICY)
    fleet.write(changes.assign, "next", {}, mode="observe")
    host = FleetHost()
    fleet.enrol(host)
    start(host, "web", reference)
    fleet.sync(host)
    assert fleet.container("web")["observed"] == "TRUSTED"
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + 600_000)
    assert fleet.container("web")["observed"] == "STALE"
    assert [row["observed"] for row in fleet.get("/v1/containers")] == ["STALE"]
