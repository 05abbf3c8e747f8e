"""What is wrong with evidence that cannot be read."""

from cima_runc.base.errors import CimaError
from cima_runc.validation import first_of

__all__ = [
    "EvidenceError",
    "EvidenceFormatError",
    "EvidenceTooDeepError",
    "EvidenceTooLargeError",
    "EvidenceVersionError",
    "first_of",
]


class EvidenceError(CimaError):
    """The text is not evidence that can be read."""


class EvidenceTooLargeError(EvidenceError):
    """The evidence is larger than any that we take."""


class EvidenceTooDeepError(EvidenceError):
    """The evidence is nested deeper than any that we take."""


class EvidenceFormatError(EvidenceError):
    """The evidence is not JSON, or not of the form that evidence has."""


class EvidenceVersionError(EvidenceError):
    """The evidence is of a version that this program does not know."""
