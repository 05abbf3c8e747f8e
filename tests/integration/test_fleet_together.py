"""The agent's reporter and cima-verifier, over HTTPS, with a software TPM: nothing is simulated but
the kernel."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from enrolled_tpm import manufactured_tpm

from cima_runc.cli.remote import call_url
from cima_runc.evidence.owner import generate, parse_private, public_text
from cima_runc.evidence.request import Request
from cima_runc.runtime.agent_socket import AgentRefusedError
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.structures import parse_public
from cima_runc.tpm.swtpm import software_tpm
from cima_runc.verifier.enrolled import enrolled_ak_file, parse_enrolled_ak
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.verify import verify
from tests.support.reporting_host import reporting
from tests.support.verifier_process import VerifierProcess, verifier_process


@pytest.fixture
def service(tmp_path: Path) -> Iterator[VerifierProcess]:
    with verifier_process(tmp_path / "service", interval=1.0, min_interval=0.2) as found:
        (tmp_path / "ca.pem").write_bytes(found.certificate.read_bytes())
        yield found


def joining(service: VerifierProcess, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "token"
    path.write_text(service.join_token())
    return {"join_token_file": str(path)}


def until(check: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def container(service: VerifierProcess, name: str) -> Any:
    rows = service.get("/v1/containers", name=name, everything=True)
    return service.get(f"/v1/containers/{rows[0]['uid']}") if rows else None


def test_records_come_and_nothing_is_lost_while_the_service_is_away(
    tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cima_runc.agent.fleet.reporter._BACKOFF_LAST", 0.5)
    root = tmp_path / "service"
    with verifier_process(root, interval=1.0, min_interval=0.2) as service:
        (tmp_path / "ca.pem").write_bytes(service.certificate.read_bytes())
        port = int(service.url.rpartition(":")[2])
        settings = joining(service, tmp_path)
        host = reporting(tmp_path / "host", tpm, service.url, name="rack-7", **settings)
        made = host.__enter__()
        try:
            number = made.do(lambda one: one.start("one"))
            until(lambda: (container(service, "one") or {}).get("proved") == 2)
            (row,) = service.get("/v1/hosts")
            assert row["name"] == "rack-7"
        finally:
            service.process.terminate()
            service.process.wait(30)
    try:
        made.do(lambda one: one.run(number, b"/bin/away", b"away"))
        made.do(lambda one: one.end(number))
        second = made.do(lambda one: one.start("one"))
        made.do(lambda one: one.writer.bind())
        assert second != number
        until(lambda: made.reporter.trouble)
        with verifier_process(root, port=port, interval=1.0, min_interval=0.2) as service:

            def all_there() -> bool:
                rows = service.get("/v1/containers", name="one", everything=True)
                return sorted(row["proved"] for row in rows) == [2, 4]

            until(all_there)
    finally:
        host.__exit__(None, None, None)


def test_a_tenant_attests_through_the_service(
    tpm: Tpm, service: VerifierProcess, tmp_path: Path
) -> None:
    pem, _ = generate()
    private = parse_private(pem)
    key = public_text(private.public_key().public_bytes_raw())
    url = service.url
    with reporting(tmp_path / "host", tpm, url, **joining(service, tmp_path)) as host:
        host.do(lambda one: one.start("sealed", owner=key))
        host.do(lambda one: one.start("open"))
        until(lambda: container(service, "sealed"))
        nonce = secrets.token_bytes(32)

        def ask(name: str) -> bytes:
            request = Request(container=name, boot_log=False, host="none", nonce=nonce, since=None)
            return call_url(
                url,
                "evidence",
                request.to_json(),
                ca=service.certificate,
                certificate=None,
                key=None,
                timeout=60,
            )

        public = host.host.attester.attestation_key().public
        wanted = Expectation(
            nonce=nonce,
            ak=parse_enrolled_ak(enrolled_ak_file(parse_public(public))),
            container="sealed",
            owner_key=private,
        )
        result = verify(ask("sealed"), wanted)
        assert result.refusal is None, result.refusal
        with pytest.raises(AgentRefusedError):
            ask("open")


def test_a_host_without_a_token_waits_for_approval(
    tpm: Tpm, service: VerifierProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cima_runc.agent.fleet.reporter._APPROVAL_SECONDS", 0.3)
    nothing = {"join_token_file": str(tmp_path / "none")}
    with reporting(tmp_path / "host", tpm, service.url, **nothing) as host:
        until(lambda: "approve" in (host.reporter.trouble or ""))
        assert service.get("/v1/hosts") == []
        (waiting,) = service.get("/v1/enrolments")
        approval = {"labels": {"rack": "b"}, "without_ek_certificate": True}
        service.post(f"/v1/enrolments/{waiting['uid']}/approve", approval)
        number = host.do(lambda one: one.start("one"))
        until(lambda: host.reporter.confirmed(number) == 2)
        (row,) = service.get("/v1/hosts")
        assert row["labels"] == {"rack": "b"}
        assert "hardware not proved" in container(service, "one")["not_proved"]


def test_a_host_joins_by_its_manufacturer_s_certificate(tmp_path: Path) -> None:
    (tmp_path / "tpm").mkdir()
    with ExitStack() as stack:
        made = stack.enter_context(manufactured_tpm(tmp_path / "tpm"))
        roots = tmp_path / "roots.pem"
        roots.write_bytes(made.root_ca + made.issuer_ca)
        service = stack.enter_context(
            verifier_process(
                tmp_path / "service", interval=1.0, min_interval=0.2, manufacturers=str(roots)
            )
        )
        (tmp_path / "ca.pem").write_bytes(service.certificate.read_bytes())
        token = tmp_path / "token"
        token.write_text(service.join_token(without_ek_certificate=False))
        host = stack.enter_context(
            reporting(tmp_path / "host", made.tpm, service.url, join_token_file=str(token))
        )
        number = host.do(lambda one: one.start("one"))
        until(lambda: host.reporter.confirmed(number) == 2)
        assert "hardware not proved" not in container(service, "one")["not_proved"]


def test_a_token_is_good_once(tpm: Tpm, service: VerifierProcess, tmp_path: Path) -> None:
    settings = joining(service, tmp_path)
    with reporting(tmp_path / "host", tpm, service.url, **settings) as host:
        until(lambda: host.reporter.last is not None)
    with software_tpm() as tcti:
        other = Tpm.open(tcti)
        with reporting(tmp_path / "other", other, service.url, **settings) as host:
            until(lambda: "TokenRefused" in (host.reporter.trouble or ""))
        other.close()
    assert len(service.get("/v1/hosts")) == 1
