"""What a verifier found out."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.evidence.fields import U64, Digest, Hex, Model
from cima_runc.verifier.errors import Verdict, VerificationError

_CUT = " ... (cut)"


def _cut(text: str) -> str:
    most = limits.FINDING_TEXT
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def brief(text: str) -> str:
    """Return a text of others as a finding shows it: printable, and cut where it is long.

    For what many findings say alike, of which each would have a copy of the whole.
    """
    return _cut(printable(text[: limits.FINDING_TEXT + 1]))


Shown = Annotated[str, AfterValidator(_cut)]
"""A text that records may fill: the host or the tenant decides how long it would be."""


class Finding(Model):
    """Something that appraisal noticed."""

    severity: Literal["fail", "warn", "info"]
    """``fail`` makes the container untrusted, ``warn`` and ``info`` are shown."""
    what: Shown
    """One line."""
    run: int | None = None
    """The run of the line that it is about, where that is an earlier one."""
    record: int | None = None
    """Number of the record that it is about."""
    rule: str = ""
    """The rule that it breaks, such as ``file.changed``."""
    path: Shown = ""
    """The file, directory or key of the configuration, made printable."""
    got: Shown = ""
    """What is there."""
    expected: Shown = ""
    """What should be there."""
    next: Shown = ""
    """What to do next: a command, or the policy's key."""

    @classmethod
    def unless(
        cls,
        allowed: bool,
        rule: str,
        what: str,
        *,
        record: int,
        path: str = "",
        got: str = "",
        expected: str = "",
        next_: str = "",
    ) -> "Finding":
        """Return what fails unless the policy allows it; what it allows is a warning."""
        return cls(
            severity="warn" if allowed else "fail",
            rule=rule,
            what=what,
            record=record,
            path=path,
            got=got,
            expected=expected,
            next="" if allowed else next_,
        )


class Check(Model):
    """A step of verification that was done, or why it was not."""

    step: str
    """Its name, as in the design's list of steps."""
    done: bool
    detail: Shown
    """One line: what was checked and found."""


class Refusal(Model):
    """Why the evidence was refused."""

    error: str
    """Name of the error, such as ``NonceError``."""
    what: Shown
    expected: Shown
    found: Shown
    hint: Shown

    @classmethod
    def of(cls, error: VerificationError) -> "Refusal":
        """Return the error as part of a result."""
        return cls(
            error=type(error).__name__,
            what=error.what,
            expected=error.expected,
            found=error.found,
            hint=error.hint,
        )


class Host(Model):
    """Whose TPM signed."""

    ak_name: Hex
    """TPM name of the attestation key: the host's identity."""
    label: str
    """What the host was called when it was enrolled; it proves nothing."""
    known_by: Literal["name", "certificate", "key"]
    """How the key is known: by its name, by a certificate that holds it, or by the key alone."""


class Source(Model):
    """What was compared with: a file of reference values, or the policy."""

    kind: Literal["image", "host", "policy"]
    name: str
    """What it calls itself; ``default`` for the policy that is built in."""
    version: str
    """Of its form; the program's own for the default policy."""
    sha256: Digest
    """Of the file."""


class Facts(Model):
    """What verified evidence proves."""

    container: str
    ak_name: Hex
    reset_count: U64
    restart_count: U64
    clock: U64
    """Milliseconds that the TPM was powered, at the quote."""
    line: Digest
    """What this run has in common with the container's earlier and later ones."""
    run: U64
    """Which run of its line it is."""
    registration: U64
    """Of this run, on the host."""
    first_seen: bool
    """Whether nothing was remembered of the line."""
    ended: Shown | None = None
    """Why the run has ended; None for one that had not at the quote."""
    count: U64
    """Records of the run that were bound."""
    cpcr: Digest
    """The register after them."""
    since: U64
    """The first record of the run that was looked at now; those before were at an earlier time."""


class Result(Model):
    """The attestation result."""

    verdict: Verdict
    container: str | None
    """The container's id; None where the evidence cannot even be read."""
    nonce: Hex
    host: Host | None = None
    """None where it is not even known who signed."""
    sources: tuple[Source, ...] = ()
    """The reference values and the policy."""
    not_proved: tuple[str, ...] = ()
    """What this result does not vouch for, one line each."""
    checks: tuple[Check, ...] = ()
    findings: tuple[Finding, ...] = ()
    appraised: bool = False
    """Whether the records were compared with reference values."""
    facts: Facts | None = None
    """None where the evidence was refused."""
    refusal: Refusal | None = None
