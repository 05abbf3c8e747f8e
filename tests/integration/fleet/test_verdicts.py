"""Verdicts of a service: from what hosts report, by policies and references, and by the time."""

import pytest

from cima_runc.fleet import changes, queries
from cima_runc.verifier.reference.file import ImageReference
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


def ready(fleet: ServedFleet, reference: ImageReference | None = None) -> None:
    fleet.write(changes.add_policy, "default", POLICY)
    if reference is not None:
        fleet.write(changes.add_reference, "app", reference_file(reference))


def settle(fleet: ServedFleet) -> None:
    """Wait until nothing is to be appraised anew."""
    eventually(lambda: fleet.query(queries.backlog)["jobs"] == 0)


def test_a_container_of_a_known_image_is_trusted(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = FleetHost()
    fleet.enrol(host)
    start(host, "web", reference)
    fleet.sync(host)
    found = fleet.container("web")
    assert (found["verdict"], found["policy"], found["reference"]) == (
        "TRUSTED",
        "default@2",
        "app@1",
    ), found
    assert found["proved"] == found["records"] == 4
    assert "hardware not proved" in found["not_proved"]
    assert found["host"] == host.tpm.ak_name.hex()
