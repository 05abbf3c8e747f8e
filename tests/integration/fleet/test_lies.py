"""Hosts that lie, and strangers: each refused by name, nothing applied, others not slowed."""

import base64
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import zstandard
from sqlalchemy import func, select
from starlette.testclient import TestClient

from cima_runc.evidence.report_nonce import NonceMaker
from cima_runc.evidence.request import Asker, Request
from cima_runc.fleet import clock, hosts, passed_on, queries, schema
from cima_runc.fleet.bodies import Bodies
from tests.support.firmware_log import added_up, firmware_log
from tests.support.fleet_host import BOOT_PCRS, FleetHost
from tests.support.served_fleet import ServedFleet

Lie = Callable[[dict[str, Any]], None]


@pytest.fixture
def host(fleet: ServedFleet) -> FleetHost:
    """An enrolled host with a container, all of it confirmed."""
    made = FleetHost()
    fleet.enrol(made)
    made.start("web")
    fleet.sync(made)
    return made


def set_(name: str, value: Any) -> Lie:
    def lie(payload: dict[str, Any]) -> None:
        payload[name] = value

    return lie


def refused(fleet: ServedFleet, host: FleetHost, body: bytes, **named: Any) -> str:
    """Send a report that must be refused and change nothing; return the error's name."""
    before = state(fleet)
    answer = fleet.send(host, body, **named)
    assert answer.status_code in {400, 403, 404, 413, 422}, answer.text
    assert state(fleet) == before
    found = answer.json()
    assert found["type"] == "refused"
    return str(found["error"])


def state(fleet: ServedFleet) -> Any:
    """What the service says of hosts and containers, but for that something was refused."""
    rows = fleet.query(queries.hosts)
    shown = [{key: row[key] for key in row if not key.startswith("refused")} for row in rows]
    return shown, fleet.query(queries.containers, everything=True)


def test_nothing_is_looked_up_for_a_stranger(
    fleet: ServedFleet, host: FleetHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: whoever has a nonce, which anybody is given, has the database search for what a report
    lists, as much as there is room for, before it is known whose report it is."""
    others = FleetHost().report(bytes(56)).partition(b"\n")[2]
    body = host.report(
        fleet.nonce(host), lie_after=lambda proof: proof.update(quote=json.loads(others)["quote"])
    )

    def looked_up(*_: object) -> None:
        raise AssertionError("registers are looked up")

    monkeypatch.setattr(hosts, "known", looked_up)
    assert refused(fleet, host, body) == "SignatureError"


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (set_("hostkey", "00" * 32), "BindingError"),
        (set_("root", "11" * 32), "BindingError"),
        (set_("history", "22" * 32), "BindingError"),
        (set_("slots", 2048), "BindingError"),
        (set_("changes", [[1, "33" * 32]]), "BindingError"),
        (set_("ak", "000b" + "44" * 32), "AkNameError"),
        (set_("boot_id", "00000000-0000-4000-8000-000000000000"), "BootIdError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_payload_that_does_not_fit(
    fleet: ServedFleet, host: FleetHost, lie: Lie, error: str
) -> None:
    body = host.report(fleet.nonce(host), lie=lie)
    if error == "AkNameError":
        # The nonce is for another key, too: named first.
        assert refused(fleet, host, body) in {error, "NonceForgedError"}
        return
    assert refused(fleet, host, body) == error
    # It goes on with the truth, and what was refused is told once.
    fleet.sync(host)
    refusals = fleet.query(queries.events, kind="host.refused")
    assert [one["data"]["error"] for one in refusals] == [error]


def test_quotes_that_are_not_for_it(fleet: ServedFleet, host: FleetHost) -> None:
    nonce = fleet.nonce(host)
    outside = host.report(nonce, asker=Asker.OUTSIDE)
    assert refused(fleet, host, outside) == "QualifyingDataError"
    few = host.report(nonce, pcrs=(12,))
    assert refused(fleet, host, few) == "PcrSelectionError"
    other = host.report(nonce, qualify=lambda root: os.urandom(32))
    assert refused(fleet, host, other) == "QualifyingDataError"

    def another(proof: dict[str, Any]) -> None:
        proof["quote"]["signature"] = (
            FleetHost().report(nonce).split(b"\n")[1].decode()[:0]
            or (json.loads(FleetHost().report(nonce).split(b"\n")[1])["quote"]["signature"])
        )

    assert refused(fleet, host, host.report(nonce, lie_after=another)) == "SignatureError"


def test_what_strangers_send_fills_nothing_and_hides_nothing(
    fleet: ServedFleet, host: FleetHost
) -> None:
    """Anybody can ask for a nonce, and send a report for a host whose key's name he knows."""

    def told() -> list[str]:
        return [one["data"]["error"] for one in fleet.query(queries.events, kind="host.refused")]

    def of_another(proof: dict[str, Any]) -> None:
        proof["quote"]["signature"] = json.loads(
            FleetHost().report(fleet.nonce(host)).split(b"\n")[1]
        )["quote"]["signature"]

    def by_another_key(proof: dict[str, Any]) -> None:
        proof["ak"]["public"] = base64.b64encode(FleetHost().tpm.ak_public).decode()

    strangers = (of_another, by_another_key)
    for _ in range(3):
        for lie in strangers:
            refused(fleet, host, host.report(fleet.nonce(host), lie_after=lie))
    assert told() == ["SignatureError"]
    # What the host itself does is told of all the same, and stays.
    wrong = host.report(fleet.nonce(host), lie=set_("root", "11" * 32))
    assert refused(fleet, host, wrong) == "BindingError"
    for lie in strangers:
        refused(fleet, host, host.report(fleet.nonce(host), lie_after=lie))
    assert told() == ["BindingError", "SignatureError"]
    assert fleet.get("/v1/hosts")[0]["refused"] == "BindingError"
    fleet.sync(host)
    assert fleet.get("/v1/hosts")[0]["refused"] is None


def test_a_clock_that_the_tpm_does_not_vouch_for(
    start_service: Callable[..., ServedFleet],
) -> None:
    for required in (True, False):
        fleet = start_service(require_safe_clock=required)
        host = FleetHost()
        fleet.enrol(host, f"host-{required}")
        host.tpm.safe = False
        report = host.report(fleet.nonce(host))
        if required:
            assert refused(fleet, host, report) == "ClockUnsafeError"
            host.tpm.safe = True
            report = host.report(fleet.nonce(host))
        assert fleet.send(host, report).status_code == 200


def test_old_reports_and_nonces(fleet: ServedFleet, host: FleetHost) -> None:
    nonce = fleet.nonce(host)
    body = host.report(nonce)
    assert fleet.send(host, body).status_code == 200
    assert refused(fleet, host, body) == "OldReportError"
    host.tpm.clock -= 500
    assert refused(fleet, host, host.report(fleet.nonce(host))) == "ClockError"
    host.tpm.clock += 1_000
    host.tpm.reset_count -= 1
    assert refused(fleet, host, host.report(fleet.nonce(host))) == "ResetCountError"
    host.tpm.reset_count += 1
    assert refused(fleet, host, host.report(os.urandom(56))) == "NonceForgedError"
    stranger = NonceMaker(os.urandom(32)).issue(host.tpm.ak_name, 2e9)
    assert refused(fleet, host, host.report(stranger)) == "NonceForgedError"
    old = fleet.service.nonces.issue(host.tpm.ak_name, 1e9)
    assert refused(fleet, host, host.report(old)) == "NonceExpiredError"
    other = FleetHost()
    fleet.enrol(other)
    assert refused(fleet, host, host.report(fleet.nonce(other))) == "NonceForgedError"


def test_two_hosts_with_one_key(fleet: ServedFleet, host: FleetHost) -> None:
    twin = FleetHost(tpm=host.tpm)
    twin.start("other")
    twin.bind()
    assert refused(fleet, twin, twin.report(fleet.nonce(twin))) == "BootIdError"


def test_another_hosts_report(fleet: ServedFleet, host: FleetHost) -> None:
    other = FleetHost()
    fleet.enrol(other)
    body = other.report(fleet.nonce(other))
    error = refused(fleet, host, body, ak=host.tpm.ak_name.hex())
    assert error in {"NonceForgedError", "AkNameError"}


def test_a_host_that_is_not_enrolled(fleet: ServedFleet) -> None:
    stranger = FleetHost()
    answer = fleet.send(stranger, stranger.report(fleet.nonce(stranger)))
    assert (answer.status_code, answer.json()["error"]) == (404, "NotEnrolledError")
    assert fleet.query(queries.hosts) == []


def test_bombs_and_depth(fleet: ServedFleet, host: FleetHost) -> None:
    import gzip

    def post(body: bytes, encoding: str) -> tuple[int, str]:
        answer = fleet.client.post(
            f"/v1/hosts/{host.tpm.ak_name.hex()}/reports",
            content=body,
            headers={"Content-Encoding": encoding},
        )
        return answer.status_code, answer.json()["error"]

    assert post(gzip.compress(bytes(100 << 20)), "gzip") == (413, "BombError")
    assert post(b"\x28\xb5\x2f\xfd" + b"junk", "zstd") == (400, "EncodingError")
    assert post(b"x", "br") == (400, "EncodingError")
    deep = b"[" * (10 << 20)
    status, error = post(deep + b"\n" + deep, "identity")
    assert (status, error) in {
        (400, "EvidenceFormatError"),
        (413, "EvidenceTooDeepError"),
        (400, "EvidenceTooDeepError"),
    }
    line = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    assert post(line + b"\n" + line, "identity")[0] == 400
    answer = fleet.client.post(
        f"/v1/hosts/{host.tpm.ak_name.hex()}/reports", content=bytes(33 << 20)
    )
    assert answer.status_code == 413
    fleet.sync(host)


NAMES = (
    "'; DROP TABLE host; --",
    "<script>alert(1)</script>",
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "\u202e",
    "a\0b",
    "half \ud83d of a pair",
    "\ue000 0000",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_never_more_than_names(
    fleet: ServedFleet, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    host = FleetHost()
    fleet.enrol(host, name=name)
    number = host.start("web")
    path = b"/" + name.replace("\0", "").encode("utf-8", "surrogatepass")
    host.run(number, path)
    fleet.sync(host)
    (row,) = fleet.get("/v1/containers", everything=True)
    shown = json.dumps(
        [
            fleet.get("/v1/hosts"),
            fleet.get("/v1/events"),
            fleet.get(f"/v1/containers/{row['uid']}"),
            fleet.get("/v1/find", digest=hashlib.sha256(path).hexdigest()),
        ],
        ensure_ascii=False,
    )
    for raw in ("\x1b", "\n", "\u202e", "\0"):
        assert raw not in shown
    # Whatever is looked for, it is looked for as it is.
    asked = name.encode("utf-8", "replace").decode()
    assert fleet.get("/v1/containers", name=asked) == []
    assert fleet.get("/v1/events", kind=asked, host=asked, container=asked) == []
    metrics = fleet.ask("GET", "/v1/metrics").text
    assert "script" not in metrics and name not in metrics
    captured = capfd.readouterr()
    assert "\x1b[31m" not in captured.out + captured.err

    def named(payload: dict[str, Any]) -> None:
        payload["containers"] = [{**host._listed(host.containers[number]), "id": name}]

    body = host.report(fleet.nonce(host), lie=named)
    assert refused(fleet, host, body) == "EvidenceFormatError"


def test_records_of_another_container(fleet: ServedFleet, host: FleetHost) -> None:
    one = host.containers[host.start("a")]
    two = host.containers[host.start("b")]
    one.records, two.records = two.records, one.records
    host.bind()
    error = refused(fleet, host, host.report(fleet.nonce(host)))
    assert error in {"ForeignRecordError", "ListedError"}


FEW = 3
"""Requests a minute: however slow the machine is, fewer than are made."""


def until_limited(ask: Callable[[], httpx.Response]) -> list[int]:
    """Ask until it is too often; return the statuses before that."""
    statuses: list[int] = []
    for _ in range(1_000):
        answer = ask()
        if answer.status_code == 429:
            assert answer.headers["retry-after"]
            return statuses
        statuses.append(answer.status_code)
    raise AssertionError("nothing is too often")


def test_one_who_floods_slows_nobody(fleet: ServedFleet, host: FleetHost) -> None:
    fleet.service.rates.refused._per_minute = FEW
    fleet.service.rates.reports._per_minute = FEW
    until_limited(lambda: fleet.send(host, host.report(fleet.nonce(host))))
    other = FleetHost()
    fleet.enrol(other)
    assert fleet.send(other, other.report(fleet.nonce(other))).status_code == 200
    route = f"/v1/hosts/{other.tpm.ak_name.hex()}/reports"
    until_limited(lambda: fleet.client.post(route, content=b"rubbish"))


def test_who_floods_behind_the_same_address_slows_no_host_that_has_reported(
    fleet: ServedFleet, host: FleetHost
) -> None:
    """Many hosts have one address, behind NAT or a proxy: theirs is not one share."""
    rates = fleet.service.rates
    rates.refused._per_minute = rates.nonces._per_minute = FEW
    route = f"/v1/hosts/{host.tpm.ak_name.hex()}"
    until_limited(lambda: fleet.client.post(f"{route}/reports", content=b"rubbish"))
    until_limited(lambda: fleet.client.get(f"{route}/nonce"))
    fleet.sync(host)
    assert fleet.report(host).type == "accepted"
    # Nor does one that lies, and is known, cost the others their share of the address.
    until_limited(lambda: fleet.send(host, b"rubbish"))
    other = FleetHost()
    fleet.enrol(other)
    rates.refused._buckets.pop("testclient"), rates.nonces._buckets.pop("testclient")
    fleet.sync(other)


def test_a_host_that_fills_the_database_is_made_to_wait(
    fleet: ServedFleet, host: FleetHost
) -> None:
    """However much one report holds, and however well it is compressed."""
    fleet.service.rates.volume._per_minute = 1
    number = host.start("large")
    for at in range(2_500):
        host.run(number, b"/bin/%d" % at + b"x" * 200)
    host.piece = 10_000
    host.bind()
    assert len(host.report(fleet.nonce(host))) > 1 << 20
    assert fleet.report(host).type == "accepted"
    limited = fleet.send(host, host.report(fleet.nonce(host)))
    assert (limited.status_code, limited.json()["error"]) == (429, "LimitedError")
    other = FleetHost()
    fleet.enrol(other)
    fleet.sync(other)
    fleet.service.rates.volume._buckets.clear()
    fleet.sync(host)


def test_a_host_that_fills_the_database_with_answers_is_made_to_wait(
    fleet: ServedFleet, host: FleetHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: what a host sends has an end by one way, and none by another. Whom it asks for it is
    its own business; what nobody fetches does not stay."""
    fleet.sync(host)
    fleet.service.rates.answered._per_minute = 1
    asked = Request(boot_log=False, container="web", host="none", nonce=bytes(16), since=None)

    def answer() -> int:
        with fleet.service.database.write() as connection:
            number = passed_on.host_named(connection, host.tpm.ak_name.hex())
            name = passed_on.ask(connection, number, "evidence", asked.to_json(), "one")
        route = f"/v1/hosts/{host.tpm.ak_name.hex()}/answers/{name}"
        headers = {"Authorization": f"Bearer {host.session}", "Content-Encoding": "zstd"}
        body = zstandard.ZstdCompressor().compress(bytes(2 << 20))
        return fleet.client.post(route, content=body, headers=headers).status_code

    assert [answer(), answer()] == [204, 429]
    fleet.sync(host)
    later = clock.now() + 3 * passed_on.WAIT
    monkeypatch.setattr(clock, "now", lambda: later)
    fleet.service.worker.retention()
    with fleet.service.database.read() as connection:
        kept = connection.execute(
            select(func.count()).select_from(schema.table_of(schema.EvidenceRequest))
        )
        assert kept.scalar() == 0


def test_what_strangers_send_takes_no_room_of_known_hosts(
    fleet: ServedFleet, host: FleetHost
) -> None:
    """One report may be large, and whoever opens a connection may send one."""
    frequent = fleet.client.app._app._frequent  # type: ignore[attr-defined]
    frequent.strangers = Bodies(each=1_000)
    other = FleetHost()
    fleet.enrol(other)
    answer = fleet.send(other, os.urandom(2_000))
    assert (answer.status_code, answer.json()["error"]) == (429, "LimitedError")
    for at in range(200):
        host.run(next(iter(host.containers)), b"/bin/%d" % at + os.urandom(20).hex().encode())
    fleet.sync(host)


def test_what_one_known_host_sends_at_a_time_has_an_end(
    fleet: ServedFleet, host: FleetHost
) -> None:
    """It may open as many connections as it likes, and reports and answers may be large."""
    fleet.sync(host)
    other = FleetHost()
    fleet.enrol(other)
    fleet.sync(other)
    frequent = fleet.client.app._app._frequent  # type: ignore[attr-defined]
    frequent.reports = frequent.answers = Bodies(each=10_000, most=None)
    ak = host.tpm.ak_name.hex()
    headers = {"Authorization": f"Bearer {host.session}"}
    # What other connections of the host hold now.
    frequent.reports._held[ak] = 9_000
    for route in (f"/v1/hosts/{ak}/reports", f"/v1/hosts/{ak}/answers/{'0' * 24}"):
        answer = fleet.client.post(route, content=os.urandom(2_000), headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (429, "LimitedError")
    fleet.sync(other)


def test_who_guesses_tokens_locks_out_nobody_behind_the_same_address(fleet: ServedFleet) -> None:
    fleet.service.rates.refused._per_minute = FEW
    assert set(until_limited(lambda: fleet.ask("GET", "/v1/hosts", "cima_guess"))) <= {401}
    assert fleet.ask("GET", "/v1/hosts").status_code == 200
    page = TestClient(fleet.client.app, "https://fleet.example", follow_redirects=False)

    def sign_in(token: str) -> int:
        return page.post("/sign-in", data={"token": token, "next": "/"}).status_code

    assert sign_in("cima_guess") == 429
    assert sign_in(fleet.admin) == 303


def test_a_host_that_asks_all_the_time_is_made_to_wait(fleet: ServedFleet, host: FleetHost) -> None:
    fleet.sync(host)
    rates = fleet.service.rates
    rates.polls._per_minute = rates.answers._per_minute = FEW
    proved = {"Authorization": f"Bearer {host.session}"}
    route = f"/v1/hosts/{host.tpm.ak_name.hex()}"
    bomb = zstandard.ZstdCompressor().compress(bytes(300 << 20))
    headers = {**proved, "Content-Encoding": "zstd"}
    asked = (("GET", "nonce", b"", 200), ("POST", "answers/" + "0" * 24, bomb, 404))
    for method, path, body, status in asked:
        found = until_limited(
            lambda: fleet.client.request(method, f"{route}/{path}", headers=headers, content=body)  # noqa: B023
        )
        # What nobody has asked for is not even unpacked.
        assert set(found) == {status}
    other = FleetHost()
    fleet.enrol(other)
    fleet.sync(other)
    fleet.sync(other)


def test_hibernation_has_a_name(fleet: ServedFleet, host: FleetHost) -> None:
    host.tpm.restart_count += 1
    fleet.sync(host)
    notices = fleet.query(queries.events, kind="host.notice")
    assert [one["data"]["notice"] for one in notices] == ["hibernation"]


def test_a_base_that_the_service_does_not_have_is_resynchronised(
    fleet: ServedFleet, host: FleetHost
) -> None:
    host.start("more")
    host.bind()
    body = host.report(fleet.nonce(host), lie=set_("base", "55" * 32))
    answer = fleet.send(host, body)
    assert answer.status_code == 409
    confirmed = answer.json()["confirmed"]
    (row,) = fleet.query(queries.containers)
    assert confirmed["records"] == {row["registration"]: row["proved"]}
    from cima_runc.evidence.report_answer import parse_answer

    host.heed(parse_answer(answer.content))
    fleet.sync(host)
    assert len(fleet.query(queries.containers)) == 2


def test_the_boot_log_adds_up_to_the_boot_pcrs(fleet: ServedFleet) -> None:
    host = FleetHost()
    fleet.enrol(host)
    events = [(pcr, b"event %d" % pcr) for pcr in BOOT_PCRS]
    host.tpm.pcrs |= added_up(BOOT_PCRS, events)
    host.bind()

    def showing(*shown: tuple[int, bytes]) -> bytes:
        text = base64.b64encode(firmware_log(*shown)).decode()
        return host.report(fleet.nonce(host), lie_after=set_("boot_log", text))

    for at, (pcr, _) in enumerate(events):
        wrong = [*events[:at], (pcr, b"another"), *events[at + 1 :]]
        assert refused(fleet, host, showing(*wrong)) == "BootLogError"
    assert refused(fleet, host, showing(*events[1:])) == "BootLogError"
    answer = fleet.send(host, showing(*events))
    assert answer.status_code == 200, answer.text
