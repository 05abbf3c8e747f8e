"""The owner's part, which answers this very request; and what is remembered of line and host."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cima_runc.base.text import printable
from cima_runc.evidence.errors import EvidenceError
from cima_runc.evidence.models import Evidence, OwnerPart, parse_owner_part
from cima_runc.evidence.padding import SMALLEST, padme
from cima_runc.evidence.request import Asker, Request
from cima_runc.evidence.seal import UnsealError, open_sealed
from cima_runc.tpm.structures import ClockInfo
from cima_runc.verifier import errors
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.state import Memory, Remembered, RememberedHost
from cima_runc.verifier.steps.bound import Bound
from cima_runc.verifier.steps.hints import ANEW, CLEARED, REPORT


@dataclass(frozen=True)
class Opened:
    """The owner's part of the request that was asked; its records are not looked at yet."""

    bound: Bound
    part: OwnerPart
    was_sealed: bool

    @property
    def evidence(self) -> Evidence:
        """The evidence."""
        return self.bound.quoted.evidence


@dataclass(frozen=True)
class Recalled:
    """What is remembered of line and host, behind which the TPM has not gone back."""

    opened: Opened
    remembered: Remembered | None
    host: RememberedHost | None

    @property
    def same_start(self) -> bool:
        """Whether the TPM has not started again since what is remembered."""
        clock, known = self.opened.bound.quoted.clock, self.remembered
        return known is not None and (clock.reset_count, clock.restart_count) == (
            known.reset_count,
            known.restart_count,
        )


def open_owner_part(bound: Bound, wanted: Expectation) -> Opened:
    """Decrypt the owner's part where it is sealed, and compare the request in it."""
    evidence = bound.quoted.evidence
    if evidence.owner is not None:
        opened = Opened(bound, evidence.owner, was_sealed=False)
    else:
        opened = Opened(bound, _unsealed(evidence, wanted.owner_key), was_sealed=True)
    _check_request(opened, wanted)
    return opened


def recall(opened: Opened, memory: Memory | None) -> Recalled:
    """Look up what is remembered; the TPM's counters have not gone back."""
    public, clock = opened.bound.quoted.signed.public, opened.bound.quoted.clock
    remembered, host = None, None
    if memory is not None:
        remembered = memory.recall(public.name, opened.part.line, opened.evidence.container)
        host = memory.recall_host(public.name)
    if host is not None:
        _check_starts(clock, host)
    if remembered is not None:
        _check_starts(clock, remembered)
        _check_clock(clock, remembered)
    return Recalled(opened, remembered, host)


def _unsealed(evidence: Evidence, key: X25519PrivateKey | None) -> OwnerPart:
    if key is None:
        raise errors.OwnerKeyError(
            "the container's records are encrypted to its owner",
            expected="the owner's private key",
            found="none",
            hint="give it with --owner-key",
        )
    texts = []
    for sealed in evidence.sealed or ():
        try:
            texts.append(open_sealed(key, sealed, Asker.OUTSIDE, evidence.request))
        except UnsealError:
            continue
    if not texts:
        raise errors.OwnerKeyError(
            "the owner's part does not open",
            expected="one that is encrypted to this key, for this request",
            found="it is encrypted to others, was made for another request, or was changed",
            hint="give the private key of the owner that the container was started with",
        )
    if len(texts) > 1:
        raise errors.OwnerPartError(
            "the owner's part is there more than once for one key",
            expected="1",
            found=str(len(texts)),
            hint=REPORT,
        )
    (text,) = texts
    body = text.rstrip(b" ")
    padded = padme(max(len(body), SMALLEST))
    if len(text) != padded or body != body.strip():
        raise errors.OwnerPartError(
            "the owner's part is not padded as it must be",
            expected=f"{padded} bytes",
            found=f"{len(text)} bytes",
            hint=REPORT,
        )
    try:
        return parse_owner_part(text)
    except EvidenceError as error:
        raise errors.OwnerPartError(error.what, hint=REPORT) from error


def _check_request(opened: Opened, wanted: Expectation) -> None:
    evidence, answered = opened.evidence, opened.part.request
    if answered.digest() != evidence.request:
        raise errors.RequestError(
            "the request under the seal is not the one that the quote was made for",
            expected=evidence.request.hex(),
            found=answered.digest().hex(),
            hint=REPORT,
        )
    asked = Request(
        boot_log=wanted.boot_log,
        container=evidence.container if wanted.container is None else wanted.container,
        host=wanted.host,
        nonce=wanted.nonce,
        since=answered.since if wanted.since == "remembered" else wanted.since,
    )
    for name in Request.model_fields:
        one, other = getattr(asked, name), getattr(answered, name)
        if one != other:
            raise errors.RequestError(
                f"another request was answered: its {name} is another",
                expected=_shown(one),
                found=_shown(other),
                hint=ANEW,
            )


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else printable(str(value))


def _check_starts(clock: ClockInfo, remembered: RememberedHost) -> None:
    if clock.reset_count < remembered.reset_count:
        raise errors.ResetCountError(
            "the TPM's count of resets has gone back",
            expected=f"{remembered.reset_count} or more",
            found=str(clock.reset_count),
            hint=CLEARED,
        )
    same_reset = clock.reset_count == remembered.reset_count
    if same_reset and clock.restart_count < remembered.restart_count:
        raise errors.RestartCountError(
            "the TPM's count of restarts has gone back",
            expected=f"{remembered.restart_count} or more",
            found=str(clock.restart_count),
            hint=CLEARED,
        )


def _check_clock(clock: ClockInfo, remembered: Remembered) -> None:
    """Of the line alone: evidence of two containers may be verified in another order than it was
    made in."""
    start = (clock.reset_count, clock.restart_count)
    if start == remembered.counters[:2] and clock.clock < remembered.clock:
        raise errors.ClockError(
            "the TPM's clock has gone back",
            expected=f"{remembered.clock} ms or more",
            found=f"{clock.clock} ms",
            hint=CLEARED,
        )
