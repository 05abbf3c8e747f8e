"""What is wrong with evidence that cannot be read."""

from pydantic import ValidationError

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable


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


def first_of(error: ValidationError) -> str:
    """Return the first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return printable(f"{place}: {first['msg']}"[:400])
