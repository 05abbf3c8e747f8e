"""Why a report was refused, where :mod:`cima_runc.verifier.errors` has no name for it.

A refused report changes nothing: neither a verdict nor what is confirmed.
"""

from cima_runc.verifier.errors import Verdict, VerificationError


class AkNameError(VerificationError):
    """The report is of another attestation key than the one that it was sent for."""


class OldReportError(VerificationError):
    """The report is not newer than the last one that was accepted."""

    verdict = Verdict.STALE


class BootIdError(VerificationError):
    """Another boot, and the TPM has not been reset: two hosts with one attestation key, or one that
    makes boots up."""


class SlotsError(VerificationError):
    """The table has fewer slots than it had in this boot."""


class SlotError(VerificationError):
    """A slot is not that of one listed registration, or not the registration's own."""


class SecretError(VerificationError):
    """The records of a registration were for the service to read, and are not any more; or they
    come though they are not."""


class ListedError(VerificationError):
    """What is listed of a registration is not what its records say."""
