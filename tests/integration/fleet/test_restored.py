"""A database restored from an earlier day: hosts resynchronise, nothing is TRUSTED by it."""

import sqlite3
from pathlib import Path

import pytest

from cima_runc.fleet import changes, queries
from cima_runc.verifier.reference.file import ImageReference
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually, served_fleet


def enrolled(fleet: ServedFleet, directory: Path) -> tuple[ImageReference, FleetHost]:
    """A host, and the policy and reference of its containers."""
    reference = image(directory)
    fleet.write(changes.add_policy, "default", POLICY)
    fleet.write(changes.add_reference, "app", reference_file(reference))
    host = FleetHost()
    fleet.enrol(host)
    return reference, host


def test_what_was_trusted_then_is_stale_until_its_host_reports(tmp_path: Path) -> None:
    early, late = tmp_path / "early.db", tmp_path / "late.db"
    settings = {"interval": 1.0, "overdue": 1.0}
    with served_fleet(tmp_path / "state", f"sqlite:///{late}", **settings) as fleet:
        reference, host = enrolled(fleet, tmp_path)
        number = start(host, "web", reference)
        fleet.sync(host)
        eventually(lambda: fleet.container("web")["verdict"] in {"TRUSTED", "STALE"})
        with sqlite3.connect(late) as source, sqlite3.connect(early) as copy:
            source.backup(copy)
        host.run(number, b"/tmp/miner")
        fleet.sync(host)
        assert fleet.container("web")["verdict"] == "UNTRUSTED"
        kept = fleet.get("/v1/audit/verify")["head"]
        fleet.write(changes.retire_reference, "app")
        after = fleet.get("/v1/audit/verify")["head"]
    with served_fleet(tmp_path / "state", f"sqlite:///{early}", **settings) as fleet:
        eventually(lambda: fleet.container("web")["verdict"] == "STALE")
        host.bind()
        for _ in range(5):
            fleet.report(host)
            assert fleet.container("web")["verdict"] != "TRUSTED"
        fleet.sync(host)
        found = fleet.container("web")
        assert (found["verdict"], found["proved"]) == ("UNTRUSTED", found["records"])
        # Who kept a digest sees which changes are not there any more.
        digests = {row["digest"] for row in fleet.get("/v1/audit")}
        assert kept in digests and after not in digests


@pytest.mark.parametrize("boots_anew", [False, True])
def test_records_that_no_host_holds_any_more_are_told_as_gone(
    fleet: ServedFleet, tmp_path: Path, boots_anew: bool
) -> None:
    """What the copy has of a container is a beginning: the rest went with the database."""
    reference, host = enrolled(fleet, tmp_path)
    number = start(host, "web", reference)
    other = start(host, "stays", reference)
    fleet.sync(host)
    # Since the copy was made, the container ran something, ended, and was let go of.
    host.run(number, b"/tmp/miner")
    host.end(number)
    host.forget(number)
    del host.containers[number]
    if boots_anew:
        host.reboot()
    # Nor by what is appraised in the background: of what the policies are, and are to be again.
    fleet.write(changes.restored)
    fleet.write(changes.add_policy, "default", POLICY)
    eventually(lambda: fleet.query(queries.backlog)["jobs"] == 0)
    assert fleet.container("web")["verdict"] == "UNKNOWN"
    host.bind()
    for _ in range(5):
        fleet.report(host)
        assert fleet.container("web")["verdict"] != "TRUSTED"
    gone = fleet.get("/v1/events", kind="records.gone")
    wanted = ["web", "stays"] if boots_anew else ["web"]
    assert {event["container"] for event in gone} == {
        fleet.container(name)["uid"] for name in wanted
    }
    assert len(gone) == 1 + boots_anew, "each is told of once"
    assert fleet.container("stays")["verdict"] == ("STALE" if boots_anew else "TRUSTED"), other


def test_what_ended_before_is_appraised_anew_when_its_host_reports(
    fleet: ServedFleet, tmp_path: Path
) -> None:
    """By the policies of the copy; its host has nothing of it to send any more."""
    reference, host = enrolled(fleet, tmp_path)
    number = start(host, "job", reference)
    fleet.sync(host)
    host.end(number)
    fleet.sync(host)
    eventually(lambda: fleet.container("job")["verdict"] == "TRUSTED")
    host.forget(number)
    del host.containers[number]
    fleet.sync(host)
    fleet.write(changes.restored)
    assert fleet.container("job")["verdict"] == "UNKNOWN"
    fleet.sync(host)
    eventually(lambda: fleet.container("job")["verdict"] == "TRUSTED")
