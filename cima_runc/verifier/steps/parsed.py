"""The first step: the text has the form of evidence."""

from dataclasses import dataclass

from cima_runc.evidence.errors import (
    EvidenceError,
    EvidenceTooDeepError,
    EvidenceTooLargeError,
    EvidenceVersionError,
)
from cima_runc.evidence.models import Evidence, parse_evidence
from cima_runc.verifier import errors

_UNREADABLE: dict[type[EvidenceError], type[errors.UnreadableError]] = {
    EvidenceTooLargeError: errors.TooLargeError,
    EvidenceTooDeepError: errors.TooDeepError,
    EvidenceVersionError: errors.VersionError,
}


@dataclass(frozen=True)
class Parsed:
    """Evidence of which nothing is proved."""

    evidence: Evidence


def parse(raw: bytes) -> Parsed:
    """Read evidence, from anybody."""
    try:
        return Parsed(parse_evidence(raw))
    except EvidenceError as error:
        unreadable = _UNREADABLE.get(type(error), errors.UnreadableError)
        raise unreadable(error.what, hint=error.hint) from error
