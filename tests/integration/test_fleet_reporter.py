"""The agent's reporter, over HTTPS, with a software TPM: what it tells a service, and when."""

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cima_runc.agent.fleet import line
from cima_runc.agent.fleet.reporter import Reporter
from cima_runc.base import limits
from cima_runc.evidence.owner import generate, parse_private, public_text
from cima_runc.evidence.report_answer import Refused, parse_answer
from cima_runc.evidence.request import Request
from cima_runc.ml.contents import Exit, File
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.enrolled import enrolled_ak_file, parse_enrolled_ak
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.verify import verify
from tests.support.fleet_service import TOKEN, Service, lines, served
from tests.support.reporting_host import reporting

OTHER_BOOT = "6f4b4c55-0000-4000-8000-000000000002"


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def url(service: Service, tmp_path: Path) -> Iterator[str]:
    with served(service, tmp_path) as address:
        yield address


def token(tmp_path: Path, text: str = TOKEN) -> dict[str, Any]:
    path = tmp_path / "token"
    path.write_text(text + "\n")
    return {"join_token_file": str(path)}


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def proved(service: Service, number: int) -> int:
    keeper = service.keeper
    if keeper is None or number not in keeper.known.registers:
        return -1
    return keeper.known.registers[number].proved.count


def paths(service: Service, number: int) -> list[bytes]:
    assert service.keeper is not None
    return [one.path for one in service.keeper.contents(number) if isinstance(one, File)]


def test_a_host_joins_by_token_and_is_followed(
    tpm: Tpm, service: Service, url: str, tmp_path: Path
) -> None:
    owner, _ = generate()
    key = public_text(parse_private(owner).public_key().public_bytes_raw())
    with reporting(tmp_path / "host", tpm, url, name="rack-7", **token(tmp_path)) as host:
        readable = host.do(lambda one: one.start("readable"))
        sealed = host.do(lambda one: one.start("sealed", owner=key))
        service.until(lambda: proved(service, readable) == 2)
        assert service.names == ["rack-7"]
        assert service.keeper is not None
        known = service.keeper.known.registers
        assert known[sealed].secret is None
        assert known[sealed].owners == (key,)
        assert service.keeper.known.host_log is not None
        assert service.keeper.boot_log
        host.do(lambda one: one.run(readable, b"/bin/sh", b"sh"))
        host.do(lambda one: one.run(sealed, b"/bin/secret", b"secret"))
        service.until(lambda: proved(service, readable) == 3)
        assert paths(service, readable) == [b"/bin/sh"]
        host.do(lambda one: one.end(readable))
        service.until(lambda: proved(service, readable) == 4)
        assert isinstance(service.keeper.contents(readable)[-1], Exit)
        assert not any(b"/bin/secret" in body for body in service.reports)
        assert service.refusals == []
        assert service.resyncs == 0


@pytest.mark.parametrize("shown", ["none", "full"])
def test_the_host_s_log_is_shown_as_the_settings_say(
    tpm: Tpm, service: Service, url: str, tmp_path: Path, shown: str
) -> None:
    with reporting(tmp_path / "host", tpm, url, host_log=shown, **token(tmp_path)) as host:
        service.until(lambda: bool(service.reports))
        host.do(lambda one: one.host_runs(b"/usr/bin/id", bytes(32)))
        if shown == "none":
            assert lines(service.reports[-1])[1]["host_log"] is None
            return

        def lines_there() -> int:
            assert service.keeper is not None
            known = service.keeper.known.host_log
            return known.lines if known else 0

        service.until(lambda: lines_there() == 2)
        logs = [lines(body)[1]["host_log"]["entries"] for body in service.reports]
        entries = [one for log in logs for one in log]
        assert [b"/usr/bin/id" in bytes.fromhex(one["data"]) for one in entries] == [False, True]
        assert service.refusals == []


def test_certificates_that_are_not_there_keep_nothing_from_going_on(
    tpm: Tpm, service: Service, url: str, tmp_path: Path
) -> None:
    settings = {**token(tmp_path), "ca": str(tmp_path / "later.pem")}
    with reporting(tmp_path / "host", tpm, url, **settings) as host:
        number = host.do(lambda one: one.start("one"))
        until(lambda: "later.pem" in (host.reporter.trouble or ""))
        (tmp_path / "later.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
        service.until(lambda: proved(service, number) == 2)


def test_the_service_s_own_key_lets_it_read(
    tpm: Tpm, service: Service, url: str, tmp_path: Path
) -> None:
    owner, _ = generate()
    key = public_text(parse_private(owner).public_key().public_bytes_raw())
    settings = {**token(tmp_path), "service_key": key}
    with reporting(tmp_path / "host", tpm, url, **settings) as host:
        number = host.do(lambda one: one.start("sealed", owner=key))
        service.until(lambda: proved(service, number) == 2)


def test_nobody_joins_with_another_token(
    tpm: Tpm, service: Service, url: str, tmp_path: Path
) -> None:
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path, "wrong")) as host:
        until(lambda: "JoinTokenError" in (host.reporter.trouble or ""))
    assert service.keeper is None
    assert service.reports == []


def test_without_a_token_somebody_approves(
    tpm: Tpm, service: Service, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cima_runc.agent.fleet.reporter._APPROVAL_SECONDS", 0.1)
    nothing = {"join_token_file": str(tmp_path / "none")}
    with reporting(tmp_path / "host", tpm, url, **nothing) as host:
        until(lambda: "approve" in (host.reporter.trouble or ""))
        assert service.reports == []
        service.approves = True
        service.until(lambda: bool(service.reports))


def test_a_service_that_was_away_gets_all(
    tpm: Tpm, service: Service, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cima_runc.agent.fleet.reporter._BACKOFF_LAST", 0.2)
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path)) as host:
        number = host.do(lambda one: one.start("one"))
        service.until(lambda: proved(service, number) == 2)
        service.away = True
        for at in range(20):
            host.do(lambda one, at=at: one.run(number, b"/bin/%d" % at, b"%d" % at))
            time.sleep(0.02)
        host.do(lambda one: one.end(number))
        until(lambda: host.reporter.trouble is not None)
        assert host.reporter.wants(host.host.container(number).note, 23)
        service.away = False
        service.until(lambda: proved(service, number) == 23)
        until(lambda: not host.reporter.wants(host.host.container(number).note, 23))
        assert service.resyncs == 0


def test_an_answer_that_was_lost_costs_nothing(
    tpm: Tpm, service: Service, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cima_runc.agent.fleet.reporter._BACKOFF_LAST", 0.2)
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path)) as host:
        number = host.do(lambda one: one.start("one"))
        service.until(lambda: proved(service, number) == 2)
        service.deaf = True
        before = len(service.reports)
        host.do(lambda one: one.run(number, b"/bin/a", b"a"))
        service.until(lambda: len(service.reports) > before)
        # The answer to it is lost, too, not only on its way.
        until(lambda: host.reporter.trouble is not None)
        host.do(lambda one: one.run(number, b"/bin/b", b"b"))
        service.deaf = False
        service.until(lambda: proved(service, number) == 4)
        assert service.resyncs > 0
        assert paths(service, number) == [b"/bin/a", b"/bin/b"]


def test_an_agent_that_starts_again_goes_on(
    tpm: Tpm, service: Service, url: str, tmp_path: Path
) -> None:
    root, settings = tmp_path / "host", token(tmp_path)
    with reporting(root, tpm, url, **settings) as host:
        first = host.do(lambda one: one.start("one"))
        service.until(lambda: proved(service, first) == 2)
        host.do(lambda one: one.run(first, b"/bin/sh", b"sh"))
        service.until(lambda: proved(service, first) == 3)
    (tmp_path / "token").unlink()
    sent = len(service.reports)
    with reporting(root, tpm, url, boot_id=OTHER_BOOT, **settings) as host:
        # The same TPM without a reset, in what calls itself another boot.
        service.until(lambda: any("BootIdError" in one for one in service.refusals))
        assert len(service.reports) == sent


def test_pieces_stay_within_the_limit(
    tpm: Tpm, service: Service, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REPORT_PIECE", 4 * limits.KIB)
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path)) as host:
        service.away = True

        def many(one: Any) -> int:
            number: int = one.start("one")
            for at in range(100):
                one.run(number, b"/bin/%d" % at, b"%d" % at)
            return number

        number = host.do(many)
        service.away = False
        service.until(lambda: proved(service, number) == 102, 40)
        assert len(service.reports) > 5
        assert all(len(body) < 12 * limits.KIB for body in service.reports[1:])
        assert service.refusals == []


def test_a_run_that_gave_way_is_proved_by_the_next(
    tpm: Tpm, service: Service, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cima_runc.agent.fleet.reporter._BACKOFF_LAST", 0.2)
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path)) as host:
        first = host.do(lambda one: one.start("one"))
        service.until(lambda: proved(service, first) == 2)
        service.away = True
        host.do(lambda one: one.run(first, b"/bin/sh", b"sh"))
        second = host.do(lambda one: one.start("one"))

        # Binding the second has let go of the first.
        host.do(lambda one: one.writer.bind())
        assert host.host.core.get(first) is None
        service.away = False
        service.until(lambda: proved(service, second) == 2)
        service.until(lambda: proved(service, first) == 4)
        assert service.refusals == []


def test_an_unchanged_report_is_small_and_cheap(
    tpm: Tpm, service: Service, url: str, tmp_path: Path
) -> None:
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path)) as host:
        numbers = [host.do(lambda one, at=at: one.start(f"c{at}")) for at in range(100)]
        service.until(lambda: all(proved(service, number) == 2 for number in numbers), 60)
        service.until(lambda: lines(service.reports[-1])[0]["containers"] == [])
        before = len(service.reports)
        service.until(lambda: len(service.reports) > before + 3)
        payload, proof = lines(service.reports[-1])
        assert payload["changes"] == payload["records"] == proof["host_log"]["entries"] == []
        assert service.sizes[-1] < 4 * limits.KIB


@pytest.mark.parametrize("comes_with", ["a long poll", "a nonce for a report"])
def test_a_tenant_gets_his_evidence_through_the_service(
    tpm: Tpm,
    service: Service,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    comes_with: str,
) -> None:
    if comes_with == "a nonce for a report":
        monkeypatch.setattr("cima_runc.agent.fleet.reporter._NONCE_SECONDS", -1.0)
        monkeypatch.setattr(Reporter, "_poll_on", lambda self: self._stopping.wait())
    owner, _ = generate()
    private = parse_private(owner)
    key = public_text(private.public_key().public_bytes_raw())
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path)) as host:
        host.do(lambda one: one.start("sealed", owner=key))
        host.do(lambda one: one.start("open"))
        service.until(lambda: bool(service.reports))
        nonce = secrets.token_bytes(32)
        asked = {"boot_log": False, "host": "none", "nonce": nonce, "since": None}
        service.ask("a1", Request(container="sealed", **asked))
        service.ask("a2", Request(container="open", **asked))
        service.ask("a3", Request(container="nobody's", **asked))
        service.until(lambda: service.answers.keys() == {"a1", "a2", "a3"})
        public = host.host.attester.attestation_key().public
        expectation = Expectation(
            nonce=nonce,
            ak=parse_enrolled_ak(enrolled_ak_file(parse_public(public))),
            container="sealed",
            owner_key=private,
        )
        result = verify(service.answers["a1"], expectation)
        assert result.refusal is None, result.refusal
        # Both others are answered in the same words.
        refusals = [parse_answer(service.answers[name]) for name in ("a2", "a3")]
        assert isinstance(refusals[0], Refused)
        assert refusals[0] == refusals[1]


def test_unconfirmed_records_go_last_and_it_is_said(
    tpm: Tpm, service: Service, url: str, tmp_path: Path
) -> None:
    more = {"storage": {"quota_mib": 1, "keep_days": 1}}
    with reporting(tmp_path / "host", tpm, url, more=more, **token(tmp_path)) as host:
        kept = host.do(lambda one: one.start("confirmed"))
        host.do(lambda one: one.end(kept))
        note = host.host.container(kept).note
        until(lambda: host.reporter.confirmed(kept) == 3)
        assert not host.reporter.wants(note, 3)
        service.away = True
        late = host.do(lambda one: one.start("late"))
        host.do(lambda one: one.end(late))

        def fill(one: Any) -> None:
            for number in (kept, late):
                path = one.store.root / "containers" / f"{number:08d}" / "filler"
                path.write_bytes(bytes(700 * limits.KIB))

        host.do(fill)
        host.do(lambda one: host.retention.apply())
        assert host.host.store.registrations() == [late]
        host.do(lambda one: fill_more(one, late))
        host.do(lambda one: host.retention.apply())
        assert host.host.store.registrations() == []
        said = [json.loads(text) for text in (host.host.store.root / "removed.jsonl").open()]
        assert [(one["registration"], one["records"], one["confirmed"]) for one in said] == [
            (late, 3, 0)
        ]


def fill_more(one: Any, number: int) -> None:
    path = one.store.root / "containers" / f"{number:08d}" / "filler"
    path.write_bytes(bytes(1100 * limits.KIB))


def test_reading_on_costs_what_is_new(
    tpm: Tpm, service: Service, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    lines_from = line.Store.lines_from

    def counted(self: Any, number: int, at: int) -> Iterator[Any]:
        nonlocal read
        for one in lines_from(self, number, at):
            read += 1
            yield one

    monkeypatch.setattr(line.Store, "lines_from", counted)
    with reporting(tmp_path / "host", tpm, url, **token(tmp_path)) as host:
        number = host.do(lambda one: one.start("one"))
        for at in range(30):
            host.do(lambda one, at=at: one.run(number, b"/bin/%d" % at, b"%d" % at))
            service.until(lambda at=at: proved(service, number) == 3 + at)
        assert read < 3 * 32
