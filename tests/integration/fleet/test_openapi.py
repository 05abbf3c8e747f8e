"""The OpenAPI description, and what the service does with whatever fits it and does not."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.fleet_host import FleetHost
from tests.support.served_fleet import ServedFleet

EXAMPLES = 4
"""For each operation: there are some fifty, over two databases."""


@pytest.fixture
def schema(fleet: ServedFleet) -> Iterator[tuple[ServedFleet, object]]:
    host = FleetHost()
    fleet.enrol(host)
    host.start("web")
    fleet.sync(host)
    for rate in vars(fleet.service.rates).values():
        rate._per_minute = 1_000_000
    raw = fleet.client.get("/v1/openapi.json").json()
    yield fleet, schemathesis.openapi.from_dict(raw)


def test_it_describes_every_route(fleet: ServedFleet) -> None:
    described = fleet.client.get("/v1/openapi.json").json()
    assert described["openapi"].startswith("3.")
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)
            assert operation.get("tags"), (method, path)
    assert len(described["paths"]) > 30


def test_nothing_that_fits_it_makes_the_service_fail(
    schema: tuple[ServedFleet, object],
) -> None:
    fleet, described = schema
    failed: list[str] = []
    for result in described.get_all_operations():  # type: ignore[attr-defined]
        operation = result.ok()
        if operation.method.upper() == "POST" and operation.path.endswith("/v1/evidence"):
            continue  # waits for a host that answers; test_agent has it
        if operation.path.endswith("/activate"):
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def send(case):  # type: ignore[no-untyped-def]
            operation = case.operation
            headers = {"Authorization": f"Bearer {fleet.admin}"}
            arguments = case.as_transport_kwargs(base_url="http://testserver", headers=headers)
            arguments.pop("cookies", None)
            answer = fleet.client.request(**arguments)
            if answer.status_code >= 500 and answer.status_code != 503:
                failed.append(f"{operation.method} {operation.path}: {answer.status_code}")
            if answer.status_code != 204 and "metrics" not in operation.path:
                assert answer.headers["content-type"] == "application/json", operation.path
                answer.json()

        send()
    assert not failed, failed
    # It is there still, and its audit log is whole.
    assert fleet.get("/v1/audit/verify")["broken"] is None
    assert fleet.client.get("/v1/health").status_code == 200
