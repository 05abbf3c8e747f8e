"""The agent's own reporter with a real TPM, against the service as a process, over HTTPS."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cima_runc.agent.fleet import reporter
from cima_runc.cli.main import app
from cima_runc.evidence.owner import generate, public_text
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.structures import parse_public
from cima_runc.tpm.swtpm import software_tpm
from tests.enrolled_tpm import manufactured_tpm
from tests.support.fleet_process import FleetProcess, fleet_process, write_settings
from tests.support.reporting_host import ReportingHost, reporting
from tests.support.served_fleet import eventually


@pytest.fixture
def config(tmp_path: Path, database_url: str) -> Path:
    return write_settings(
        tmp_path / "service", database_url, interval=2.0, min_interval=0.1, overdue=2.0
    )


@pytest.fixture
def service(config: Path) -> Iterator[FleetProcess]:
    with fleet_process(config) as process:
        (config.parent.parent / "ca.pem").write_bytes(process.ca.read_bytes())
        yield process


def join_token(service: FleetProcess, tmp_path: Path, **given: Any) -> dict[str, Any]:
    made = service.ask("POST", "/v1/join-tokens", json=given).json()
    path = tmp_path / "join-token"
    path.write_text(made["token"] + "\n")
    path.chmod(0o600)
    return {"join_token_file": str(path), "interval": 2.0, "min_interval": 0.1}


def one(service: FleetProcess, name: str) -> dict[str, Any] | None:
    rows = service.get("/v1/containers", name=name, everything=True)
    return service.get(f"/v1/containers/{rows[0]['uid']}") if rows else None


def cima(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cima_runc.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_a_host_joins_by_token_is_followed_is_cut_off_and_comes_back(
    service: FleetProcess, tpm: Tpm, tmp_path: Path
) -> None:
    given = {"labels": {"zone": "a"}, "without_ek_certificate": True}
    token = join_token(service, tmp_path, **given)
    with reporting(tmp_path / "host", tpm, service.url, **token) as host:
        number = host.do(lambda one: one.start("web"))
        found = eventually(lambda: one(service, "web"))
        assert found["place"] == "proved"
        assert "hardware not proved" in found["not_proved"]
        (row,) = service.get("/v1/hosts")
        assert row["labels"] == {"zone": "a"}
        assert row["log"]["aggregate"] == "equal"
        before = found["proved"]
        host.do(lambda one: one.run(number, b"/bin/sh", b"shell"))
        eventually(lambda: one(service, "web")["proved"] == before + 1)  # type: ignore[index]
        assert service.get("/v1/find", path="/bin/sh")[0]["container"] == "web"
    eventually(lambda: one(service, "web")["verdict"] == "STALE")  # type: ignore[index]
    # Used once: another host does not join by it.
    used = [row for row in service.get("/v1/join-tokens") if row["used"]]
    assert len(used) == 1
    with software_tpm() as tcti:
        second = Tpm.open(tcti)
        with reporting(tmp_path / "other", second, service.url, **token):
            import time

            time.sleep(1.5)
        second.close()
    assert len(service.get("/v1/hosts")) == 1
    with reporting(tmp_path / "host", tpm, service.url, **token):
        eventually(lambda: one(service, "web")["verdict"] != "STALE")  # type: ignore[index]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the agent asks slowly
def test_a_host_waits_for_approval(
    service: FleetProcess, tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "_APPROVAL_SECONDS", 1.0)
    with reporting(tmp_path / "host", tpm, service.url, interval=2.0, min_interval=0.1) as host:
        host.do(lambda one: one.start("web"))
        monkeypatch.setenv("CIMA_FLEET_URL", service.url)
        monkeypatch.setenv("CIMA_FLEET_CA", str(service.ca))
        monkeypatch.setenv("CIMA_FLEET_TOKEN", service.admin)

        def fleet(*words: str) -> Result:
            return CliRunner().invoke(app, ["fleet", *words])

        def waits() -> Any:
            return json.loads(fleet("enrolments", "--json").stdout)

        (refused,) = eventually(waits)
        assert "join token" in refused["reason"]
        assert (
            refused["ak_name"]
            == parse_public(host.host.attester.attestation_key().public).name.hex()
        )
        assert fleet("reject", refused["uid"]).exit_code == 0
        assert service.get("/v1/audit")[0]["action"] == "host.refuse"
        # It asks again; this time somebody has compared the key's name.
        (waiting,) = eventually(lambda: [one for one in waits() if one["uid"] != refused["uid"]])
        done = fleet("approve", waiting["uid"], "--label", "zone=b")
        assert done.exception is not None, "no manufacturer vouches for it"
        assert "--without-ek-certificate" in str(done.exception)
        assert service.get("/v1/hosts") == []
        approved = ("approve", waiting["uid"], "--label", "zone=b", "--without-ek-certificate")
        assert fleet(*approved).exit_code == 0
        eventually(lambda: one(service, "web"))
        assert service.get("/v1/hosts")[0]["labels"] == {"zone": "b"}
        assert service.get("/v1/audit")[0]["action"] == "host.approve"


def test_a_host_with_a_manufacturer_s_certificate(tmp_path: Path, database_url: str) -> None:
    with manufactured_tpm(tmp_path) as made:
        bundle = tmp_path / "manufacturers.pem"
        bundle.write_bytes(made.root_ca + made.issuer_ca)
        config = write_settings(
            tmp_path / "service", database_url, interval=2.0, manufacturers=str(bundle)
        )
        with fleet_process(config) as service:
            (tmp_path / "ca.pem").write_bytes(service.ca.read_bytes())
            token = join_token(service, tmp_path)
            with reporting(tmp_path / "host", made.tpm, service.url, **token) as host:
                host.do(lambda one: one.start("web"))
                found = eventually(lambda: one(service, "web"))
                assert "hardware not proved" not in found["not_proved"]
                (row,) = service.get("/v1/hosts")
                assert row["hardware_proved"]


def test_a_tenant_asks_through_the_service(service: FleetProcess, tpm: Tpm, tmp_path: Path) -> None:
    token = join_token(service, tmp_path, without_ek_certificate=True)
    token["tenants_may_enrol"] = True
    private, public = generate()
    key = tmp_path / "owner.key"
    key.write_bytes(private)
    with reporting(tmp_path / "host", tpm, service.url, **token) as host:
        number = host.do(lambda one: one.start("private", owner=public_text(public)))
        host.do(lambda one: one.run(number, b"/planted-secret", b"planted"))
        eventually(lambda: one(service, "private"))
        ak = service.get("/v1/hosts")[0]["ak_name"]
        nonce = "ab" * 32
        url = ["--ca", str(service.ca)]
        for base in (service.url, f"{service.url}/hosts/{ak}"):
            evidence = tmp_path / "evidence.json"
            cima("attest", "private", "--nonce", nonce, "-o", str(evidence), "--url", base, *url)
            pem = tmp_path / "ak.pem"
            pem.write_bytes(enrolled(host))
            options = ["--nonce", nonce, "--ak", str(pem), "--owner-key", str(key)]
            shown = cima("verify", str(evidence), *options, "--json", status=2)
            result = json.loads(shown)
            assert result["facts"]["container"] == "private", result
            assert result["facts"]["count"] == 3
        assert b"planted-secret" not in (tmp_path / "evidence.json").read_bytes()
        cima(
            *("attest", "no-such", "--nonce", nonce, "-o", "-", "--url", service.url, *url),
            status=2,
        )
        # The tenant enrols the key himself, and does not take the operator's word for it.
        at = f"{service.url}/hosts/{ak}"
        asked, challenge, answer = (tmp_path / f"{name}.json" for name in ("a", "b", "c"))
        own = tmp_path / "own.pem"
        pending = ("--pending", str(tmp_path / "pending.json"))
        cima("enroll", "request", "--url", at, *url, "-o", str(asked))
        cima("enroll", "challenge", str(asked), "--any-ek", *pending, "-o", str(challenge))
        cima("enroll", "activate", str(challenge), "--url", at, *url, "-o", str(answer))
        cima("enroll", "accept", str(answer), *pending, "-o", str(own))
        assert ak in own.read_text()
        options = ["--nonce", nonce, "--ak", str(own), "--owner-key", str(key)]
        shown = cima("verify", str(evidence), *options, "--json", status=2)
        assert json.loads(shown)["facts"]["container"] == "private"


def enrolled(host: ReportingHost) -> bytes:
    from cima_runc.verifier.enrolled import enrolled_ak_file

    return enrolled_ak_file(parse_public(host.host.attester.attestation_key().public))
