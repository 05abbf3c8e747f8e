"""Webhooks: signed, at least once, durable, and to nowhere that they must not reach."""

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import text

from cima_runc.base import limits
from cima_runc.evidence.owner import generate, public_text
from cima_runc.fleet import changes, events, queries, webhooks
from cima_runc.fleet.access import Role
from cima_runc.fleet.database import Database
from cima_runc.fleet.webhooks import WebhookError
from tests.support.fleet_host import FleetHost
from tests.support.served_fleet import ServedFleet, eventually


def deliver_due(database: Database) -> int:
    """Send what is due, once, and wait for it; return how much was tried."""
    outbox = webhooks.Outbox(database, "x", webhooks.Private(operator=True, tenants=True))
    try:
        return outbox.begin_due()
    finally:
        outbox.close()


class Receiver:
    """Takes webhooks, or not."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                if receiver.status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook?x=1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def hook(fleet: ServedFleet, url: str, *kinds: str, tenant: int | None = None) -> tuple[str, str]:
    return fleet.write(  # type: ignore[no-any-return]
        changes.add_webhook, url, kinds=list(kinds), tenant=tenant, allow_private=True
    )


def test_a_verdict_reaches_its_receiver_once_and_signed(
    fleet: ServedFleet, receiver: Receiver
) -> None:
    uid, secret = hook(fleet, receiver.url, "container.verdict")
    host = FleetHost()
    fleet.enrol(host)
    host.start("web")
    fleet.sync(host)
    eventually(lambda: receiver.got)
    fleet.report(host)
    eventually(lambda: fleet.get("/v1/webhooks")[0]["delivered"] == 1)
    ((headers, body),) = receiver.got
    event = json.loads(body)
    assert headers["content-type"] == "application/cloudevents+json"
    assert (event["specversion"], event["type"]) == ("1.0", "io.cima.container.verdict")
    assert event["data"]["verdict"] == "UNKNOWN"
    assert event["subject"].startswith(host.tpm.ak_name.hex())
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    wanted = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"
    assert headers["webhook-id"] == event["id"]
    assert uid == fleet.get("/v1/webhooks")[0]["uid"]
    assert secret not in json.dumps(fleet.get("/v1/webhooks"))


def test_what_is_not_taken_is_sent_again_until_it_is(
    fleet: ServedFleet, receiver: Receiver
) -> None:
    receiver.status = 500
    hook(fleet, receiver.url, "host.enrolled", "host.refused")
    with fleet.service.database.write() as connection:
        events.tell(connection, events.Kind.HOST_ENROLLED, {"name": "x"})
    eventually(lambda: len(receiver.got) == 1)
    waiting = eventually(lambda: [row for row in fleet.get("/v1/deliveries") if row["error"]])
    assert waiting[0]["error"] == "the receiver answers with status 500"
    receiver.status = 302
    eventually(lambda: len(receiver.got) == 2)
    receiver.status = 204
    event = waiting[0]["event"]
    assert fleet.ask("POST", f"/v1/events/{event}/redeliver").json() == {"deliveries": 1}
    eventually(lambda: fleet.get("/v1/webhooks")[0]["delivered"] == 1)
    assert len({one["id"] for one in receiver.events}) == 1
    assert fleet.get("/v1/deliveries") == []


def test_a_delivery_that_somebody_began_and_did_not_end_is_anybody_s_again(
    fleet: ServedFleet, receiver: Receiver
) -> None:
    fleet.service.worker.stop()
    hook(fleet, receiver.url)
    with fleet.service.database.write() as connection:
        events.tell(connection, events.Kind.HOST_ENROLLED, {})
    with fleet.service.database.write() as connection:
        assert len(webhooks._take(connection, "x")) == 1  # and this process dies
    database = fleet.service.database
    assert deliver_due(database) == 0
    with fleet.service.database.write() as connection:
        connection.execute(text("UPDATE delivery SET due = due - 60001"))
    assert deliver_due(database) == 1
    assert len(receiver.got) == 1


def test_a_tenant_s_webhook_gets_what_is_his(fleet: ServedFleet, receiver: Receiver) -> None:
    keys = [public_text(generate()[1]) for _ in range(2)]
    fleet.write(changes.add_tenant, "ares", [keys[0]])
    fleet.write(changes.add_tenant, "boreas", [keys[1]])
    token = fleet.token(Role.TENANT, "ares")
    made = fleet.ask("POST", "/v1/webhooks", token, json={"url": receiver.url})
    assert made.status_code == 201
    host = FleetHost()
    fleet.enrol(host, name="named-by-the-operator")
    host.start("ares-1", (keys[0],))
    host.start("boreas-1", (keys[1],))
    host.start("operators")
    fleet.sync(host)
    eventually(lambda: receiver.got)
    eventually(lambda: fleet.query(queries.backlog)["deliveries"] == 0)
    assert [one["data"]["container"] for one in receiver.events] == ["ares-1"]
    assert "named-by-the-operator" not in str(receiver.got)


class Silent:
    """Takes connections, and says nothing until it is let go."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/"
        self.asked: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.asked.append(self._server.accept()[0])

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # close(2) alone would leave accept(2) waiting
        self._thread.join(60)
        self._server.close()
        for one in self.asked:
            one.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    made = Silent()
    yield made
    made.close()


def test_a_receiver_that_does_not_answer_delays_nobody_else_s(
    fleet: ServedFleet, receiver: Receiver, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As long as the test is: nothing of this may be waited for.
    monkeypatch.setattr(webhooks, "_SECONDS", 3600.0)
    key = public_text(generate()[1])
    fleet.write(changes.add_tenant, "slow", [key])
    with fleet.service.database.read() as connection:
        tenant = changes.tenant_number(connection, "slow")
    for _ in range(webhooks._LANES):
        hook(fleet, silent.url, tenant=tenant)
    host = FleetHost()
    fleet.enrol(host)
    for number in range(20):
        host.start(f"theirs-{number}", (key,))
    fleet.sync(host)
    eventually(lambda: len(silent.asked) == webhooks._LANES_EACH)
    hook(fleet, receiver.url)
    for _ in range(webhooks._IN_A_ROW + 4):
        with fleet.service.database.write() as connection:
            events.tell(connection, events.Kind.HOST_ENROLLED, {})
    eventually(lambda: len(receiver.got) == webhooks._IN_A_ROW + 4)
    assert len(silent.asked) == webhooks._LANES_EACH
    silent.close()


def test_what_one_receiver_was_to_get_waits_with_the_first_that_did_not_reach_it(
    fleet: ServedFleet,
) -> None:
    fleet.service.worker.stop()
    hook(fleet, "http://127.0.0.1:1/")
    for _ in range(5):
        with fleet.service.database.write() as connection:
            events.tell(connection, events.Kind.HOST_ENROLLED, {})
    assert deliver_due(fleet.service.database) == 5
    with fleet.service.database.read() as connection:
        rows = connection.execute(text("SELECT attempts FROM delivery ORDER BY id")).scalars()
        assert list(rows) == [1, 0, 0, 0, 0]
    assert deliver_due(fleet.service.database) == 0


def test_there_is_an_end_to_how_many_there_are(fleet: ServedFleet) -> None:
    fleet.write(changes.add_tenant, "ares", [])
    with fleet.service.database.read() as connection:
        number = changes.tenant_number(connection, "ares")
    for tenant in (None, number):
        for _ in range(limits.WEBHOOKS):
            uid, _ = hook(fleet, "https://example.org/", tenant=tenant)
        with pytest.raises(changes.ChangeError):
            hook(fleet, "https://example.org/", tenant=tenant)
        fleet.write(changes.remove_webhook, uid)
        hook(fleet, "https://example.org/", tenant=tenant)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "https://user:password@example.org/",
        "ftp://example.org/",
        "https:///nohost",
        "https://example.org:99999/",
        "https://example.org/\r\nX: y",
        "file:///etc/passwd",
        "https://" + "a" * 3000,
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(WebhookError):
        webhooks.check_url(url, allow_private=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "192.168.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "64:ff9b:1::7f00:1",
        "::7f00:1",
        "fec0::1",
        "5f00::1",
        "4000::1",
        "ff0e::1",
        "168.63.129.16",
        "rubbish",
    ],
)
def test_addresses_inside_are_not_reached(address: str) -> None:
    assert not webhooks._is_public(address)
    if address != "rubbish":
        host = f"[{address}]" if ":" in address else address
        parcel = webhooks._Parcel(1, 1, None, 1, f"https://{host}/", "whsec_AAAA", "id", b"{}")
        with pytest.raises(webhooks._AwayError, match="not public"):
            webhooks._send(parcel, allow_private=False)


def test_what_an_operator_may_reach_is_not_the_tenants(
    start_service: Callable[..., ServedFleet],
) -> None:
    """Kind: a setting that is for one is for all."""
    fleet = start_service(allow_private_tenant_webhooks=False)
    fleet.write(changes.add_tenant, "ares", [])
    inside = {"url": "http://127.0.0.1:9/"}
    assert fleet.ask("POST", "/v1/webhooks", json=inside).status_code == 201
    token = fleet.token(Role.TENANT, "ares")
    assert fleet.ask("POST", "/v1/webhooks", token, json=inside).status_code == 400
    added = fleet.ask("POST", "/v1/webhooks", token, json={"url": "https://127.0.0.1:9/"})
    assert added.status_code == 201  # what it leads to is looked at when it is sent to
    private = webhooks.Private.by(fleet.service.settings)
    assert (private.of(None), private.of(1)) == (True, False)


def test_addresses_outside_are() -> None:
    assert webhooks._is_public("93.184.216.34")
    assert webhooks._is_public("2606:2800:220:1::1")
