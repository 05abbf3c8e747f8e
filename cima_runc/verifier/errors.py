"""Why evidence was refused: one class for each reason, in the order of the checks.

Each says what was expected, what was found, and what to do, and which verdict follows.
"""

from enum import StrEnum

from cima_runc.base.errors import CimaError


class Verdict(StrEnum):
    """What a verifier says of a container."""

    TRUSTED = "TRUSTED"
    """Fresh and complete evidence, and everything in it is as the reference values want it."""
    UNTRUSTED = "UNTRUSTED"
    """The evidence is false, or shows what must not be."""
    STALE = "STALE"
    """The evidence was true once; whether it still is, a new one tells."""
    UNKNOWN = "UNKNOWN"
    """Nothing can be said."""

    @property
    def exit_code(self) -> int:
        """Exit status of ``cima verify``: 0 trusted, 1 untrusted, 2 stale or unknown."""
        return {"TRUSTED": 0, "UNTRUSTED": 1}.get(self.value, 2)


class VerificationError(CimaError):
    """The evidence is refused. ``expected`` and ``found`` may be empty."""

    verdict = Verdict.UNTRUSTED

    def __init__(self, what: str, *, expected: str = "", found: str = "", hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.expected = expected
        self.found = found


class UnreadableError(VerificationError):
    """The evidence is not JSON, or not of the form that evidence has."""

    verdict = Verdict.UNKNOWN


class TooLargeError(UnreadableError):
    """The evidence is larger than any that we take."""


class TooDeepError(UnreadableError):
    """The evidence is nested deeper than any that we take."""


class VersionError(UnreadableError):
    """The evidence is of a version that this program does not know."""


class AkNotEnrolledError(VerificationError):
    """The evidence is signed with another key than the enrolled one."""


class AkAttributesError(VerificationError):
    """The key may sign what no TPM made, or may leave the TPM."""


class AkHierarchyError(VerificationError):
    """The key is not a primary key of the endorsement hierarchy: resetCount would be obscured."""


class SignatureError(VerificationError):
    """The quote is not signed by the key."""


class QuoteMagicError(VerificationError):
    """What was signed was not made by a TPM."""


class QuoteTypeError(VerificationError):
    """The TPM signed something other than PCR values."""


class QuoteFormatError(VerificationError):
    """The quote is not of the form that a TPM gives, or not of the SHA-256 bank alone."""


class DisclosureError(VerificationError):
    """The host's or the firmware's log is not shown as it was asked for."""


class PcrSelectionError(VerificationError):
    """The PCRs that were quoted are not those that were asked for."""


class NonceError(VerificationError):
    """The evidence answers an earlier request."""

    verdict = Verdict.STALE


class ContainerError(VerificationError):
    """The evidence is of another container than the one asked about."""


class QualifyingDataError(VerificationError):
    """The quote was not made for this request, or for somebody else's kind of request."""


class RequestError(VerificationError):
    """The request that was answered is not the one that was asked."""


class PcrValuesError(VerificationError):
    """The PCR values are not those that were quoted."""


class ClockUnsafeError(VerificationError):
    """The TPM does not vouch for its clock."""

    verdict = Verdict.UNKNOWN


class ResetCountError(VerificationError):
    """The TPM's count of resets has gone back."""


class RestartCountError(VerificationError):
    """The TPM's count of restarts has gone back."""


class ClockError(VerificationError):
    """The TPM's clock has gone back."""


class StatusError(VerificationError):
    """What the host says of this boot's troubles has gone back."""


class RebootedError(VerificationError):
    """The TPM has started again since the remembered evidence: the whole must be shown anew."""

    verdict = Verdict.STALE


class TreePathError(VerificationError):
    """The path does not lead from the leaf to the root."""


class QuoteBeforeBindingError(VerificationError):
    """The quote is older than the binding that the evidence shows."""

    verdict = Verdict.STALE


class BindingError(VerificationError):
    """The binding PCR is not the history extended with this bind."""


class OwnerKeyError(VerificationError):
    """The owner's part cannot be decrypted: no key, or another's."""

    verdict = Verdict.UNKNOWN


class OwnerPartError(VerificationError):
    """The owner's part is not of the form that it has, not padded as it must be, or there twice."""


class NotRememberedError(VerificationError):
    """The evidence begins at a record up to which nothing is remembered."""

    verdict = Verdict.UNKNOWN


class RecordFormatError(VerificationError):
    """A record is not of the form that records have."""


class RecordTypeError(VerificationError):
    """A record is of a type that this program does not know."""


class RecordShapeError(VerificationError):
    """A record's content is not of the shape that its type has."""


class ForeignRecordError(VerificationError):
    """A record is of another container."""


class RecordRepeatedError(VerificationError):
    """A record stands there twice."""


class RecordMissingError(VerificationError):
    """A record was dropped."""


class RecordOrderError(VerificationError):
    """The records are out of order."""


class RecordCountError(VerificationError):
    """There are fewer or more records than were bound."""


class RegisterError(VerificationError):
    """The records do not add up to the register."""


class LeafError(VerificationError):
    """Secret, register and count do not give the leaf that was bound."""


class RecordDigestError(VerificationError):
    """A record's content is not what was measured."""


class RunError(VerificationError):
    """A run is not what its records, or the run after it, say."""


class RollbackError(VerificationError):
    """The container's line has gone back behind what is remembered."""


class DependenciesError(VerificationError):
    """The partition of the host services is not the one that was bound."""


class DependencyLineError(VerificationError):
    """A file of the host services is not in the kernel's log as it is proved."""


class HostLogError(VerificationError):
    """The host's log does not add up to the host's PCR."""


class ForeignLogError(VerificationError):
    """The host's log is empty, or does not begin as a kernel's own log does."""


class BootLogError(VerificationError):
    """The firmware's event log does not add up to the boot PCRs."""


class UnexpectedError(VerificationError):
    """Verification failed in a way that nobody thought of: nothing is said of the container."""

    verdict = Verdict.UNKNOWN
