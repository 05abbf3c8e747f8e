"""Enrolment by credential activation, against a TPM that has a manufacturer's certificate."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enrolled_tpm import ManufacturedTpm, manufactured_tpm
from simulated_host import SimulatedHost, simulated_host
from software_key import software_public
from tpm2_pytss import TPM2_CAP

from cima_runc.agent import enrolment
from cima_runc.base.errors import CimaError
from cima_runc.evidence.enrolment import EnrolmentAnswer
from cima_runc.tpm.device import TpmError
from cima_runc.tpm.keys import endorsement_key, load_ak, unload
from cima_runc.verifier.ek_certificate import EkCertificateError
from cima_runc.verifier.enrol import EnrolmentError, accept, challenge
from cima_runc.verifier.enrolled import enrolled_ak_file, parse_enrolled_ak


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManufacturedTpm]:
    with manufactured_tpm(tmp_path_factory.mktemp("tpm")) as tpm:
        yield tpm


@pytest.fixture
def host(made: ManufacturedTpm, tmp_path: Path) -> Iterator[SimulatedHost]:
    host = SimulatedHost(tmp_path, made.tpm)
    yield host
    unload(made.tpm, host.attester.attestation_key())


def test_enrolment(host: SimulatedHost, made: ManufacturedTpm) -> None:
    request = enrolment.request(host.attester)
    assert request.ek_certificate
    asked, pending = challenge(request, made.root_ca + made.issuer_ca)
    public = accept(enrolment.answer(host.attester, asked), pending)
    assert parse_enrolled_ak(enrolled_ak_file(public)) == host.enrolled()
    assert public.name == host.attester.attestation_key().name
    with pytest.raises(EnrolmentError, match="not what was"):
        accept(EnrolmentAnswer(secret=bytes(32)), pending)


def test_manufacturer_must_be_trusted(
    host: SimulatedHost, made: ManufacturedTpm, tmp_path: Path
) -> None:
    request = enrolment.request(host.attester)
    with pytest.raises(EkCertificateError, match="no trusted manufacturer"):
        challenge(request, made.root_ca)  # the issuer between is missing
    with_chain = request.model_copy(update={"ek_chain": [_der(made.issuer_ca)]})
    challenge(with_chain, made.root_ca)
    (tmp_path / "other").mkdir()
    with simulated_host(tmp_path / "other") as other:
        theirs = enrolment.request(other.attester)
    assert theirs.ek_certificate is None
    with pytest.raises(EnrolmentError, match="no certificate"):
        challenge(theirs, made.root_ca)
    borrowed = theirs.model_copy(update={"ek_certificate": request.ek_certificate})
    with pytest.raises(EkCertificateError, match="another endorsement key"):
        challenge(borrowed, made.root_ca + made.issuer_ca)
    with pytest.raises(CimaError):
        challenge(request.model_copy(update={"ek_certificate": b"x"}), made.root_ca)


def test_another_key_or_tpm_opens_nothing(
    host: SimulatedHost, made: ManufacturedTpm, tmp_path: Path
) -> None:
    request = enrolment.request(host.attester)
    (tmp_path / "other").mkdir()
    with simulated_host(tmp_path / "other") as other:
        theirs = enrolment.request(other.attester)
        asked, _ = challenge(request, None)
        with pytest.raises(TpmError, match="does not activate"):
            enrolment.answer(other.attester, asked)
    # Our endorsement key, but a name that is not in our TPM.
    mixed = request.model_copy(update={"ak_public": theirs.ak_public})
    asked, _ = challenge(mixed, None)
    with pytest.raises(TpmError, match="does not activate"):
        enrolment.answer(host.attester, asked)


def test_persistent_endorsement_key_is_used(made: ManufacturedTpm) -> None:
    def transient() -> int:
        _, data = made.tpm.esapi.get_capability(TPM2_CAP.HANDLES, 0x80000000, 8)
        return int(data.data.handles.count)

    before = transient()
    for _ in range(5):
        with endorsement_key(made.tpm) as kept:
            assert kept.certificate is not None
            assert transient() == before
    persistent = made.tpm.esapi.tr_from_tpmpublic(0x81010001)
    public, _, _ = made.tpm.esapi.read_public(persistent)
    assert public.publicArea.marshal() == kept.public


def test_unrestricted_key_is_not_enrolled(host: SimulatedHost) -> None:
    request = enrolment.request(host.attester)
    for attributes in (0x00040472, 0x00050470, 0x00070472):
        weak = request.model_copy(update={"ak_public": software_public(attributes)})
        with pytest.raises(EnrolmentError, match="not a restricted key"):
            challenge(weak, None)


def test_key_survives(made: ManufacturedTpm) -> None:
    first = load_ak(made.tpm)
    name = first.name
    unload(made.tpm, first)
    again = load_ak(made.tpm)
    unload(made.tpm, again)
    kept = load_ak(made.tpm, 0x81010101)
    found = load_ak(made.tpm, 0x81010101)
    assert name == again.name == kept.name == found.name
    with pytest.raises(TpmError, match="no attestation key"):
        load_ak(made.tpm, 0x81010001)  # swtpm_setup keeps the endorsement key there
    with pytest.raises(TpmError, match="no persistent handle"):
        load_ak(made.tpm, 0x40000001)


def _der(pem: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_what_the_host_is_called_stands_in_results(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cima_runc.cli.main import app

    with simulated_host(tmp_path) as host:
        asked, pending = challenge(enrolment.request(host.attester), None)
        answer = enrolment.answer(host.attester, asked)
        (tmp_path / "answer.json").write_text(answer.model_dump_json())
        (tmp_path / "pending.json").write_text(pending.model_dump_json())
        words = ["enroll", "accept", tmp_path / "answer.json", "--pending"]
        words += [tmp_path / "pending.json", "-o", tmp_path / "ak.pem", "--label", "rack 7"]
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        assert parse_enrolled_ak((tmp_path / "ak.pem").read_bytes()).label == "rack 7"
        host.start("plain")
        nonce = os.urandom(32)
        (tmp_path / "evidence.json").write_bytes(host.evidence("plain", nonce))
        words = ["verify", tmp_path / "evidence.json", "--nonce", nonce.hex()]
        words += ["--ak", tmp_path / "ak.pem"]
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert "(rack 7)" in done.stdout


def test_another_hosts_key_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cima_runc.cli.main import app

    def accept_of(host: SimulatedHost, *options: str) -> Any:
        asked, pending = challenge(enrolment.request(host.attester), None)
        answer = enrolment.answer(host.attester, asked)
        (tmp_path / "answer.json").write_text(answer.model_dump_json())
        (tmp_path / "pending.json").write_text(pending.model_dump_json())
        words = ["enroll", "accept", tmp_path / "answer.json", "--pending"]
        words += [tmp_path / "pending.json", "-o", tmp_path / "ak.pem", *options]
        return CliRunner().invoke(app, [str(word) for word in words])

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with simulated_host(tmp_path / "one") as one, simulated_host(tmp_path / "two") as two:
        assert accept_of(one).exit_code == 0
        # The same host again: with another label, for instance.
        assert accept_of(one, "--label", "rack 7").exit_code == 0
        kept = (tmp_path / "ak.pem").read_bytes()
        refused = accept_of(two)
        assert "is not this host's key" in refused.exception.what
        assert "--replace" in refused.exception.hint
        assert (tmp_path / "ak.pem").read_bytes() == kept
        assert accept_of(two, "--replace").exit_code == 0
        assert parse_enrolled_ak((tmp_path / "ak.pem").read_bytes()) == two.enrolled()
        (tmp_path / "ak.pem").write_text("somebody's notes")
        assert accept_of(one).exception is not None
        assert (tmp_path / "ak.pem").read_text() == "somebody's notes"
