"""A fleet's service in this process, over a real database, and what tests do with it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from sqlalchemy import insert
from starlette.testclient import TestClient

from cima_runc.evidence.compressed import ENCODING, compressed
from cima_runc.evidence.report_answer import Answer, Invitation, parse_answer
from cima_runc.fleet import changes, clock, setup
from cima_runc.fleet.access import Role
from cima_runc.fleet.app import application
from cima_runc.fleet.schema import Host, new_uid, table_of
from cima_runc.fleet.service import Service
from cima_runc.fleet.settings import Settings
from tests.support.fleet_host import FleetHost

_Any = TypeVar("_Any")


def new_host(host: FleetHost, name: str = "host", **labels: str) -> dict[str, Any]:
    """Return the row of a simulated host, as an approval makes it; it has no endorsement key."""
    return {
        "uid": new_uid(),
        "ak_name": host.tpm.ak_name.hex(),
        "ak_public": host.tpm.ak_public,
        "tpm": b"{}",
        "ek_digest": host.tpm.ak_name.hex()[4:],
        "hardware": "",
        "name": name,
        "labels": labels,
        "state": "enrolled",
        "enrolled": clock.now(),
        "enrolled_by": "tester",
        "log": {},
        "log_lines": 0,
        "has_boot_log": False,
        "stale_told": 0,
        "refused": "",
    }


class ServedFleet:
    """The service, its HTTP, and an administrator's token."""

    def __init__(self, service: Service, client: TestClient, admin: str) -> None:
        self.service = service
        self.client = client
        self.admin = admin

    def write(self, do: Callable[..., _Any], *arguments: Any, **named: Any) -> _Any:
        """Call a function of :mod:`cima_runc.fleet.changes` as ``tester``."""
        with self.service.database.write() as connection:
            return do(connection, "tester", *arguments, **named)

    def query(self, do: Callable[..., _Any], *arguments: Any, **named: Any) -> _Any:
        """Call a function of :mod:`cima_runc.fleet.queries`."""
        with self.service.database.read() as connection:
            return do(connection, *arguments, **named)

    def token(self, role: Role, tenant: str | None = None) -> str:
        """Make a token."""
        return self.write(changes.make_token, "someone", role, tenant=tenant)[1]

    def get(self, path: str, token: str | None = None, /, **params: Any) -> Any:
        """Ask, as the administrator unless another token is given; return what is answered."""
        answer = self.ask("GET", path, token, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask(self, method: str, path: str, token: str | None = None, **named: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token or self.admin}"}
        return self.client.request(method, path, headers=headers, **named)

    # -- hosts --------------------------------------------------------------------------------

    def enrol(self, host: FleetHost, name: str = "host", **labels: str) -> None:
        """Enrol a simulated host, as an approval does; it has no endorsement key."""
        with self.service.database.write() as connection:
            connection.execute(insert(table_of(Host)).values(**new_host(host, name, **labels)))

    def nonce(self, host: FleetHost) -> bytes:
        """Ask for a nonce, as a host does."""
        return self.invitation(host).nonce

    def invitation(self, host: FleetHost, wait: float = 0.0) -> Invitation:
        route = f"/v1/hosts/{host.tpm.ak_name.hex()}/nonce"
        answer = self.client.get(route, params={"wait": wait}, headers=self._proved(host))
        assert answer.status_code == 200, answer.text
        found = parse_answer(answer.content)
        assert isinstance(found, Invitation)
        return found

    def send(self, host: FleetHost, body: bytes, *, ak: str | None = None) -> httpx.Response:
        """Send a report."""
        return self.client.post(
            f"/v1/hosts/{ak or host.tpm.ak_name.hex()}/reports",
            content=compressed(body),
            headers={"Content-Encoding": ENCODING, **self._proved(host)},
        )

    def _proved(self, host: FleetHost) -> dict[str, str]:
        return {"Authorization": f"Bearer {host.session}"} if host.session else {}

    def report(self, host: FleetHost, **lies: Any) -> Answer:
        """Have a host report, and heed what it is answered."""
        answer = self.send(host, host.report(self.nonce(host), **lies))
        found = parse_answer(answer.content)
        host.heed(found)
        return found

    def sync(self, host: FleetHost) -> None:
        """Bind what is new, and report until all is confirmed."""
        host.bind()
        for _ in range(20):
            answer = self.report(host)
            if not host.changed and not self._behind(host):
                return
        raise AssertionError(f"the service does not confirm everything: {answer}")

    def _behind(self, host: FleetHost) -> bool:
        return any(
            one.is_readable and host._done(one) < one.partition.count
            for one in host.containers.values()
        )

    def container(self, name: str, token: str | None = None) -> dict[str, Any]:
        """Return the one container of this id, with its findings."""
        rows = self.get("/v1/containers", token, name=name, everything=True)
        assert len(rows) == 1, rows
        found: dict[str, Any] = self.get(f"/v1/containers/{rows[0]['uid']}", token)
        return found


def eventually(check: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until ``check`` gives something true."""
    until = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < until, f"it does not come to that: {found!r}"
        time.sleep(0.05)
    return found


@contextmanager
def served_fleet(root: Path, url: str, **settings: Any) -> Iterator[ServedFleet]:
    """Run a service in this process."""
    private = {"allow_private_webhooks": True, "allow_private_tenant_webhooks": True}
    given = {**private, "reports_per_minute": 6000, **settings}
    made = Settings(state_dir=root, database=url, **given)
    setup.prepare(made)
    service = Service(made)
    service.rates.refused._per_minute = 100_000
    with TestClient(application(service), raise_server_exceptions=False) as client:
        yield ServedFleet(service, client, setup.admin_token_path(made).read_text("ascii").strip())
