"""What docs/design.md and docs/evidence.md say is enough: evidence is verified without our code.

The verdict of ``cima_runc.verifier`` is compared with that of the independent verifier, on honest
evidence of the agent's own attester with a TPM's interface (swtpm).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from simulated_host import SimulatedHost, simulated_host
from support import evidence_by_hand as by_hand

from cima_runc.agent import enrolment
from cima_runc.evidence.owner import generate, parse_private, public_text
from cima_runc.tpm import keys
from cima_runc.verifier.appraisal import References
from cima_runc.verifier.enrol import accept, challenge
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.reference.file import HostReference
from cima_runc.verifier.verify import Appraisal, verify

PEM, PUBLIC = generate()
SERVICES = (b"/usr/bin/containerd", b"/usr/bin/run_c")
HOST = HostReference(files={})


def ak_name(host: SimulatedHost) -> bytes:
    name = host.enrolled().name
    assert name is not None
    return name


def by_both(
    simulated: SimulatedHost, raw: bytes, nonce: bytes, pem: bytes | None, **asked: Any
) -> dict[str, Any]:
    """What both verifiers say of evidence, which must be the same."""
    ours = verify(
        raw,
        Expectation(
            nonce,
            simulated.enrolled(),
            container="tenant",
            owner_key=parse_private(pem) if pem else None,
            **asked,
        ),
        appraisal=Appraisal(lambda *_: [], References(), bytes(32)),
    )
    assert ours.refusal is None, ours.refusal
    found = by_hand.verify(raw, nonce, ak_name(simulated), "tenant", private_pem=pem, **asked)
    assert ours.facts is not None
    assert ours.facts.count == len(found["records"])
    assert ours.facts.run == found["runs"][-1]["run"]
    assert ours.facts.reset_count == found["reset_count"]
    assert ours.facts.restart_count == found["restart_count"]
    if asked.get("host", "none") != "none":
        assert found["host_log"]["aggregate"] == "equal"
        (detail,) = [check.detail for check in ours.checks if check.step == "host-log"]
        assert detail.startswith(f"{found['host_log']['lines']} ")
    return found


def test_nothing_of_ours_is_used() -> None:
    assert "cima_runc import" not in Path(by_hand.__file__).read_text()
    assert "import cima_runc" not in Path(by_hand.__file__).read_text()


@pytest.mark.parametrize("disclosure", ["none", "redacted", "full"])
@pytest.mark.parametrize("owner", [None, public_text(PUBLIC)], ids=["nobody", "owner"])
def test_verified_by_hand(tmp_path: Path, disclosure: str, owner: str | None) -> None:
    pem = PEM if owner else None
    with simulated_host(tmp_path) as host:
        relied_on = host.start_services(*SERVICES)
        number = host.start("tenant", owner=owner, env=["A=ü"], dependencies=relied_on)
        for path in (b"/bin/sh", b"/a b\n\xff"):
            host.run(number, path, path)
        host.host_runs(b"/usr/bin/runc", b"r" * 32)
        host.tpm.extend(12, b"somebody else's".ljust(32))
        nonce = os.urandom(32)
        raw = host.evidence("tenant", nonce, host=disclosure, boot_log=True)
        found = by_both(host, raw, nonce, pem, host=disclosure, boot_log=True)
        assert [len(found[part]) for part in ("records", "dependencies")] == [4, 3]
        assert found["values"][12] == host.tpm.read_pcrs([12])[12]
        assert found["status"]["foreign"]["count"] == 1

        # Many that share a quote.
        host.run(number, b"/bin/more", b"more")
        nonces = [os.urandom(16) for _ in range(5)]
        waiting = [
            host.attester.ask(host.request("tenant", one, host=disclosure), source=None)
            for one in nonces
        ]
        host.attester.serve()
        for one, answer in zip(nonces, waiting, strict=True):
            raw = host.assembly.evidence(answer.result())
            found = by_both(host, raw, one, pem, host=disclosure)
            assert len(found["records"]) == 5
        with pytest.raises(AssertionError):
            by_hand.verify(
                raw, nonces[0], ak_name(host), "tenant", private_pem=pem, host=disclosure
            )

        # Runs of one line, the latest of them ended.
        host.end(number)
        again = host.start("tenant", owner=owner, dependencies=relied_on)
        host.run(again, b"/bin/again", b"again")
        host.end(again)
        nonce = os.urandom(32)
        raw = host.evidence("tenant", nonce, host=disclosure)
        found = by_both(host, raw, nonce, pem, host=disclosure)
        assert [run["run"] for run in found["runs"]] == [1, 2]


def test_the_independent_one_notices(tmp_path: Path) -> None:
    """Every field of honest evidence, changed one by one: it must be refused by both, or mean
    nothing (a shown time, a member that proves nothing)."""
    with simulated_host(tmp_path) as host:
        number = host.start("tenant", dependencies=host.start_services(*SERVICES))
        host.run(number, b"/bin/sh", b"sh")
        nonce = os.urandom(32)
        raw = host.evidence("tenant", nonce, host="redacted")
        by_both(host, raw, nonce, None, host="redacted")
        wanted = Expectation(nonce, host.enrolled(), container="tenant", host="redacted")
        good = Appraisal(lambda *_: [], References(), bytes(32))
        checked = 0
        for changed, path in mutations(json.loads(raw), ()):
            if "meta" in path or path[-1:] == ("template",) or "missing" in path[:2]:
                continue
            text = json.dumps(changed).encode()
            ours = verify(text, wanted, appraisal=good)
            assert ours.refusal is not None, path
            assert ours.refusal.error != "UnexpectedError", path
            try:
                by_hand.verify(text, nonce, ak_name(host), "tenant", host="redacted")
            except Exception:
                checked += 1
            else:
                raise AssertionError(f"the independent verifier takes it: {path}")
        assert checked > 100


def mutations(value: Any, path: tuple[Any, ...]) -> Any:
    """Yield the same with one leaf changed, and where."""
    root = value

    def walk(at: Any, path: tuple[Any, ...]) -> Any:
        items = at.items() if isinstance(at, dict) else enumerate(at)
        for key, inner in list(items):
            if isinstance(inner, dict | list):
                yield from walk(inner, (*path, key))
                continue
            at[key] = other(inner)
            yield root, (*path, key)
            at[key] = inner

    yield from walk(value, path)


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str) and value:
        last = value[len(value) // 2]
        return value.replace(last, "1" if last == "0" else "0", 1)
    return "0"


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
        by_both(host, raw, nonce, None)
        good = Appraisal(lambda *_: [], References(), bytes(32))
        result = verify(raw, Expectation(nonce, host.enrolled()), appraisal=good)
        assert result.verdict == Verdict.TRUSTED
