"""The attester and the verifier against each other, with a real TPM interface (swtpm).

What a verifier refuses, and by which name, is in tests/unit/verifier/test_forgeries.py; what runs
say of each other in tests/unit/verifier/test_runs.py. Here the two meet.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_host import SimulatedHost, simulated_host, tampered

from cima_runc.agent.attester import AttestError, NotForYouError
from cima_runc.evidence.owner import generate, parse_private, public_text
from cima_runc.verifier import StateDirectory, Verdict
from cima_runc.verifier.appraisal import References, compare
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import ImageReference, ReferenceConfig
from cima_runc.verifier.result import Finding, Result
from cima_runc.verifier.state import Memory
from cima_runc.verifier.verify import Appraisal, verify

PEM, PUBLIC = generate()
OWNER = parse_private(PEM)
GOOD = Appraisal(lambda *_: [], References(), b"r" * 32)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    with simulated_host(tmp_path) as made:
        yield made


def nonce() -> bytes:
    return os.urandom(32)


def check(
    host: SimulatedHost,
    raw: bytes,
    asked: bytes,
    /,
    *,
    memory: Memory | None = None,
    appraisal: Appraisal | None = GOOD,
    **more: Any,
) -> Result:
    wanted = Expectation(**{"nonce": asked, "ak": host.enrolled(), "owner_key": OWNER, **more})
    return verify(raw, wanted, memory=memory, appraisal=appraisal)


def container(host: SimulatedHost, name: str = "tenant-a", **more: Any) -> int:
    number = host.start(name, owner=public_text(PUBLIC), **more)
    for program in (b"/bin/sh", b"/usr/bin/id", b"/opt/a b\n"):
        host.run(number, program, name.encode() + program)
    return number


def rules(result: Result, severity: str = "fail") -> set[str]:
    assert result.refusal is None, result.refusal
    return {finding.rule for finding in result.findings if finding.severity == severity}


def test_honest_container_is_trusted(host: SimulatedHost) -> None:
    relied_on = host.start_services(b"/usr/bin/containerd")
    container(host, dependencies=relied_on)
    host.host_runs(b"/usr/bin/runc", b"r" * 32)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, host="redacted", boot_log=True)
    wanted = {"container": "tenant-a", "host": "redacted", "boot_log": True}
    result = check(host, raw, asked, **wanted)
    assert result.verdict == Verdict.TRUSTED, (result.refusal, result.findings)
    assert result.facts is not None
    assert (result.facts.count, result.facts.run) == (5, 1)
    done = {item.step: item.done for item in result.checks}
    assert done["boot-log"] and done["host-log"] and done["dependencies"]
    assert result.not_proved == (
        "that the container has not gone back: nothing is remembered of it",
        "the host's other files: their names were not asked for",
    )


def test_nothing_appraised_is_not_trusted(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    result = check(host, host.evidence("tenant-a", asked), asked, appraisal=None)
    assert result.verdict == Verdict.UNKNOWN
    assert not result.appraised
    assert any("nothing was appraised" in finding.what for finding in result.findings)
    assert result.facts is not None


def test_findings_of_appraisal_decide(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()

    def bad(records: Any, reference: Any, *_: object) -> list[Finding]:
        return [Finding(severity="fail", rule="x", what=f"{reference} of {len(records)}")]

    raw = host.evidence("tenant-a", asked)
    result = check(host, raw, asked, appraisal=Appraisal(bad, "drift", b"r" * 32))
    assert result.verdict == Verdict.UNTRUSTED
    assert "drift of 5" in {finding.what for finding in result.findings}


def test_reference_values_are_compared_with_what_is_proved(host: SimulatedHost) -> None:
    container(host)
    asked = nonce()
    image = ImageReference(
        platform="linux",
        image_id="sha256:" + "0" * 64,
        config=ReferenceConfig(),
        layers=(),
        files={},
    )
    wanted = Appraisal(compare, References(image), b"r" * 32)
    result = check(host, host.evidence("tenant-a", asked), asked, appraisal=wanted)
    assert result.verdict == Verdict.UNTRUSTED
    drift = [each for each in result.findings if each.rule == "file.added"]
    assert [each.path for each in drift] == ["/bin/sh", "/usr/bin/id", "/opt/a b\\x0a"]


def test_lost_events_are_not_trusted(host: SimulatedHost) -> None:
    number = container(host)
    host.writer.lost(number, 3, "a flood")
    host.writer.write()
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    assert rules(check(host, raw, asked)) == {"records.lost"}
    assert check(host, raw, asked, policy=Policy(allow_lost=True)).verdict == "TRUSTED"


def test_each_of_several_owners_can_read_it(host: SimulatedHost) -> None:
    other, public = generate()
    (host.root / "owners" / "both").write_text(f"{public_text(PUBLIC)}\n{public_text(public)}\n")
    host.start("shared", owner="both")
    asked = nonce()
    raw = host.evidence("shared", asked)
    for key in (OWNER, parse_private(other)):
        assert check(host, raw, asked, owner_key=key).verdict == Verdict.TRUSTED


# -- what is remembered ---------------------------------------------------------------------------


class Watching:
    """One who asks again and again, for what is new."""

    def __init__(self, host: SimulatedHost, directory: Path, appraisal: Appraisal = GOOD) -> None:
        self.host = host
        self.memory = StateDirectory(directory)
        self.appraisal = appraisal

    def look(self, name: str = "tenant-a", *, whole: bool = False, policy: str = "") -> Result:
        asked = nonce()
        since = None if whole else self.memory.since_of(name)
        raw = self.host.evidence(name, asked, since=since)
        return check(
            self.host,
            raw,
            asked,
            container=name,
            since=since,
            memory=self.memory,
            appraisal=self.appraisal,
            policy=parse_policy(policy.encode()),
        )


@pytest.fixture
def watching(host: SimulatedHost, tmp_path: Path) -> Watching:
    def drift(records: Any, *_: object) -> list[Finding]:
        found = [one for one in records if getattr(one.content, "path", b"")[:5] == b"/tmp/"]
        return [Finding(severity="fail", rule="file.added", what="drift") for _ in found]

    return Watching(host, tmp_path / "seen", Appraisal(drift, References(), b"r" * 32))


def test_what_is_new_is_enough(host: SimulatedHost, watching: Watching) -> None:
    number = container(host)
    assert watching.look().verdict == Verdict.TRUSTED
    for _ in range(2):  # nothing new, then something
        result = watching.look()
        assert result.verdict == Verdict.TRUSTED
        assert result.facts is not None
        assert result.facts.since >= 5
        host.run(number, b"/bin/more", b"more")
    host.run(number, b"/tmp/x", b"x")
    assert rules(watching.look()) == {"file.added"}
    assert rules(watching.look()) == {"runs.untrusted"}
    assert rules(watching.look(whole=True)) == {"file.added"}


def test_a_restart_launders_nothing(host: SimulatedHost, watching: Watching) -> None:
    number = container(host)
    host.run(number, b"/tmp/x", b"x")
    assert watching.look().verdict == Verdict.UNTRUSTED
    host.end(number)
    container(host)
    for whole in (True, False):
        result = watching.look(whole=whole)
        assert result.verdict == Verdict.UNTRUSTED
        assert "runs.untrusted" in rules(result)


def test_two_restarts_between_two_looks(host: SimulatedHost, watching: Watching) -> None:
    """As where process 1 is killed under --restart=always, after something of one's own ran."""
    number = container(host)
    assert watching.look().verdict == Verdict.TRUSTED
    host.run(number, b"/tmp/x", b"x")
    host.end(number)
    for _ in range(2):
        number = container(host)
        host.end(number)
    container(host)
    result = watching.look()
    assert rules(result) == {"file.added"}
    (found,) = [one for one in result.findings if one.rule == "file.added"]
    assert found.run == 1


def test_honest_restarts_are_trusted_with_a_word(host: SimulatedHost, watching: Watching) -> None:
    number = container(host)
    assert watching.look().verdict == Verdict.TRUSTED
    host.end(number)
    ended = watching.look()
    assert ended.verdict == Verdict.TRUSTED
    assert ended.facts is not None
    assert ended.facts.ended == "deleted"
    container(host)
    result = watching.look()
    assert result.verdict == Verdict.TRUSTED
    assert "runs.restarted" in rules(result, "info")
    assert watching.look(whole=True).verdict == Verdict.TRUSTED


@pytest.mark.parametrize("gone", [0, 1, 2])
@pytest.mark.parametrize("damaged", [True, False])
def test_runs_that_nothing_vouches_for_are_not_shown(
    host: SimulatedHost, watching: Watching, gone: int, *, damaged: bool
) -> None:
    """A run in the midst of others was removed, or the disk gave back something else: those before
    it are of no use, and no reason to refuse the others."""
    numbers = []
    for _ in range(3):
        numbers.append(container(host))
        assert watching.look().verdict == Verdict.TRUSTED
        host.end(numbers[-1])
        assert watching.look().verdict == Verdict.TRUSTED
    if damaged:
        path = host.store.root / f"containers/{numbers[gone]:08d}" / "records.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"', b"'", 3))
    else:
        host.writer.discard(numbers[gone])
    container(host)
    if damaged and gone == 2:
        # The last is what the next goes on from: it is lost.
        assert rules(watching.look()) == {"runs.forgotten", "runs.lost"}
        result = watching.look(whole=True, policy="allow_restarts = true")
        assert result.verdict == Verdict.TRUSTED
    else:
        for whole in (False, True):
            assert watching.look(whole=whole).verdict == Verdict.TRUSTED


def test_the_same_name_is_the_same_line_for_the_same_owner(
    host: SimulatedHost, watching: Watching
) -> None:
    named = {"io.cima.name": "web"}
    number = container(host, "one", annotations=named)
    host.run(number, b"/tmp/x", b"x")
    assert watching.look("one").verdict == Verdict.UNTRUSTED
    host.end(number)
    container(host, "two", annotations=named)
    assert "runs.untrusted" in rules(watching.look("two", whole=True))
    other, public = generate()
    for more in ({"uid": 1000}, {"owner": public_text(public)}):
        number = host.start("three", **{"owner": public_text(PUBLIC), "annotations": named, **more})
        asked = nonce()
        raw = host.evidence("three", asked)
        key = parse_private(other) if "owner" in more else OWNER
        result = check(host, raw, asked, memory=watching.memory, owner_key=key)
        assert result.verdict == Verdict.TRUSTED
        assert result.facts is not None
        assert result.facts.first_seen
        host.end(number)


def test_a_relay_that_hands_over_an_older_run(host: SimulatedHost, watching: Watching) -> None:
    named = {"io.cima.name": "web"}
    old = container(host, "one", annotations=named)
    asked = nonce()
    clean = host.evidence("one", asked)
    assert check(host, clean, asked, memory=watching.memory).verdict == Verdict.TRUSTED
    host.end(old)
    number = container(host, "two", annotations=named)
    host.run(number, b"/tmp/x", b"x")
    assert watching.look("two", whole=True).verdict == Verdict.UNTRUSTED
    stale = check(host, clean, nonce(), memory=watching.memory)
    assert stale.refusal is not None
    assert stale.refusal.error == "NonceError"
    with pytest.raises(AttestError):  # its leaf went when the next run was bound
        host.evidence("one", nonce(), anybody=True)


def test_foreign_extend_is_shown_and_mended(host: SimulatedHost, watching: Watching) -> None:
    number = container(host)
    assert watching.look().verdict == Verdict.TRUSTED
    host.tpm.extend(12, b"f" * 32)
    result = watching.look()
    assert result.verdict == Verdict.TRUSTED
    assert "host.foreign" in rules(result, "warn")
    strict = watching.look(policy="allow_foreign_extends = false")
    assert rules(strict) == {"host.foreign"}
    # Two between two binds, with changes of our own.
    host.run(number, b"/usr/bin/more", b"more")
    host.tpm.extend(12, b"g" * 32)
    host.tpm.extend(12, b"h" * 32)
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    assert json.loads(raw)["binding"]["status"]["foreign"]["count"] == 2
    result = check(host, raw, asked)
    assert result.verdict == Verdict.TRUSTED
    hidden = tampered(raw, binding__status__foreign={"count": 0, "last": []})
    refused = check(host, hidden, asked)
    assert refused.refusal is not None
    assert refused.refusal.error == "BindingError"


# -- while others are at work ---------------------------------------------------------------------


class Interrupted:
    """A TPM at which others are at work, too."""

    def __init__(self, tpm: Any) -> None:
        self.tpm = tpm
        self.before_reading: Callable[[], None] = lambda: None
        self.before_quoting: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tpm, name)

    @property
    def esapi(self) -> Any:
        self.before_quoting()
        return self.tpm.esapi

    def read_pcrs(self, pcrs: list[int]) -> dict[int, bytes]:
        if 10 in pcrs:
            self.before_reading()
        read: dict[int, bytes] = self.tpm.read_pcrs(pcrs)
        return read


def test_host_that_is_busy_while_it_is_quoted(host: SimulatedHost) -> None:
    busy = Interrupted(host.tpm)
    host.attester._tpm = busy  # type: ignore[assignment]
    container(host)
    count = iter(range(1000))
    busy.before_reading = lambda: host.host_runs(b"/usr/bin/busy-%d" % next(count), os.urandom(32))
    asked = nonce()
    raw = host.evidence("tenant-a", asked, host="redacted")
    # What was read is newer than the quote: the kernel's log says what was quoted.
    assert next(count) == 1
    assert check(host, raw, asked, host="redacted").verdict == Verdict.TRUSTED


def test_foreign_extend_between_bind_and_quote(host: SimulatedHost) -> None:
    container(host)
    host.attester.attestation_key()
    interrupted = Interrupted(host.tpm)
    host.attester._tpm = interrupted  # type: ignore[assignment]
    left = [b"1" * 32, b"2" * 32]
    interrupted.before_quoting = lambda: host.tpm.extend(12, left.pop()) if left else None
    asked = nonce()
    raw = host.evidence("tenant-a", asked)
    assert not left
    assert json.loads(raw)["binding"]["status"]["foreign"]["count"] == 2
    assert check(host, raw, asked).verdict == Verdict.TRUSTED


def test_pcrs_that_never_stand_still(host: SimulatedHost) -> None:
    container(host)
    host.attester.attestation_key()
    interrupted = Interrupted(host.tpm)
    host.attester._tpm = interrupted  # type: ignore[assignment]
    interrupted.before_quoting = lambda: host.tpm.extend(12, b"x" * 32)
    with pytest.raises(AttestError, match="stand still"):
        host.evidence("tenant-a", nonce())
    interrupted.before_quoting = lambda: None
    asked = nonce()
    assert check(host, host.evidence("tenant-a", asked), asked).verdict == "TRUSTED"


# -- who may ask ----------------------------------------------------------------------------------


def test_anybody_gets_sealed_evidence_only(host: SimulatedHost) -> None:
    container(host)
    host.start("keyless")
    told = set()
    for name, wanted in (
        ("keyless", {}),
        ("missing", {}),
        ("tenant", {}),
        ("tenant-a", {"host": "full"}),
        ("tenant-a", {"host": "redacted"}),
    ):
        with pytest.raises(NotForYouError) as caught:
            host.evidence(name, nonce(), anybody=True, **wanted)
        told.add(str(caught.value))
    assert len(told) == 1
    assert host.evidence("tenant-a", nonce(), anybody=True)


def test_ended_container_within_retention(host: SimulatedHost) -> None:
    number = container(host)
    host.end(number)
    asked = nonce()
    raw = host.evidence("tenant-a", asked, anybody=True)
    assert check(host, raw, asked).verdict == Verdict.TRUSTED
    host.writer.forget_ended(0)
    assert host.core.get(number) is not None
    host.writer.forget_ended(1 << 62)
    assert host.core.get(number) is None
    with pytest.raises(NotForYouError):
        host.evidence("tenant-a", nonce(), anybody=True)
    container(host, "tenant-b")
    asked = nonce()
    assert check(host, host.evidence("tenant-b", asked), asked).verdict == Verdict.TRUSTED
