"""What docs/evidence.md says is enough: evidence is verified without any code of ours."""

import os
from pathlib import Path
from typing import Any

import pytest
from simulated_host import SimulatedHost, simulated_host
from support import evidence_by_hand as by_hand

from cima_runc.agent import enrolment
from cima_runc.evidence.models import Request
from cima_runc.evidence.owner import generate, public_text
from cima_runc.tpm import keys
from cima_runc.verifier.enrol import accept, challenge
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.verify import Appraisal, Expectation, verify

PEM, PUBLIC = generate()


def ak_name(host: SimulatedHost) -> bytes:
    name = host.enrolled().name
    assert name is not None
    return name


def checked(host: SimulatedHost, raw: bytes, nonce: bytes, pem: bytes | None) -> dict[str, Any]:
    return by_hand.verify(raw, nonce, ak_name(host), "tenant", private_pem=pem)


def test_nothing_of_ours_is_used() -> None:
    assert "cima_runc import" not in Path(by_hand.__file__).read_text()


@pytest.mark.parametrize("disclosure", ["none", "redacted", "full"])
@pytest.mark.parametrize("owner", [None, public_text(PUBLIC)], ids=["nobody", "owner"])
def test_verified_by_hand(tmp_path: Path, disclosure: str, owner: str | None) -> None:
    pem = PEM if owner else None
    with simulated_host(tmp_path) as host:
        relied_on = host.start("dependencies:1", kind="dependencies")
        host.run(relied_on, b"/usr/bin/containerd", b"containerd")
        number = host.start("tenant", owner=owner, env=["A=ü"], dependencies=relied_on)
        for path in (b"/bin/sh", b"/a b\n\xff"):
            host.run(number, path, path)
        host.host_runs(b"/usr/bin/runc", b"r" * 32)
        host.tpm.extend(12, b"somebody else's".ljust(32))
        nonce = os.urandom(32)
        raw = host.evidence("tenant", nonce, host=disclosure)
        found = checked(host, raw, nonce, pem)
        assert [len(found[part]) for part in ("records", "dependencies")] == [4, 3]
        assert found["values"][12] == host.tpm.read_pcrs([12])[12]

        # Many that share a quote.
        host.run(number, b"/bin/more", b"more")
        nonces = [os.urandom(16) for _ in range(5)]
        waiting = [
            host.attester.ask(Request(container="tenant", nonce=one), anybody=False)
            for one in nonces
        ]
        host.attester.serve()
        for one, answer in zip(nonces, waiting, strict=True):
            raw = host.attester.assemble(answer.result())
            assert len(checked(host, raw, one, pem)["records"]) == 5
        with pytest.raises(AssertionError):
            checked(host, raw, nonces[0], pem)


def test_tpm_without_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """swtpm has it: it is asked for an RSA key as one that answers otherwise would be."""
    monkeypatch.setattr(keys, "_has_p256", lambda tpm: False)
    with simulated_host(tmp_path) as host:
        host.start("tenant")
        request = enrolment.request(host.attester)
        assert request.ak_public[:2] == b"\0\1"
        asked, pending = challenge(request, None)
        assert accept(enrolment.answer(host.attester, asked), pending).name == ak_name(host)
        nonce = os.urandom(32)
        raw = host.evidence("tenant", nonce)
        checked(host, raw, nonce, None)
        good = Appraisal(lambda *_: [], None, bytes(32))
        result = verify(raw, Expectation(nonce, host.enrolled()), appraisal=good).result
        assert result.verdict == Verdict.TRUSTED
