"""What a bind says of the host beside its registers: whether all was in order in this boot.

``status`` in a bind is SHA-256 of the RFC 8785 bytes of this object. It holds no numbers of binds,
no PCR values but the first, and times cut to the hour: more would tell of the neighbours.
Source: design, section 6.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Literal, Self

import rfc8785
from pydantic import AfterValidator, Field, model_validator

from cima_runc.base import limits
from cima_runc.evidence.fields import Count, Digest, Model

ForeignKind = Literal["changed", "zero", "journal"]
"""``changed``: somebody else extended or reset the binding PCR; ``zero``: the TPM began anew;
``journal``: the host's own journal of this boot was lost."""

GapKind = Literal["disk", "tpm"]
"""``disk``: records could not be written down; ``tpm``: they could not be bound."""

_HOUR = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:00:00Z$"


def _on_the_calendar(text: str) -> str:
    datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    return text


Hour = Annotated[str, Field(pattern=_HOUR), AfterValidator(_on_the_calendar)]
"""A time, UTC, cut to the hour: ``2025-01-31T13:00:00Z``."""


class _Counted(Model):
    count: Count
    last: tuple[Model, ...]

    @model_validator(mode="after")
    def _named_are_counted(self) -> Self:
        if len(self.last) > self.count:
            raise ValueError("more are named than are counted")
        return self


class Foreign(Model):
    """The binding PCR was not what the agent had made it."""

    kind: ForeignKind
    time: Hour
    """When it was noticed."""


class ForeignPart(_Counted):
    """All such changes of this boot."""

    last: Annotated[tuple[Foreign, ...], Field(max_length=limits.STATUS_SHOWN)]
    """The latest of them, oldest first."""


class Gap(Model):
    """For a time, the host could not write records down or bind them; it did so afterwards."""

    kind: GapKind
    since: Hour
    until: Hour


class GapsPart(_Counted):
    """All such times of this boot."""

    last: Annotated[tuple[Gap, ...], Field(max_length=limits.STATUS_SHOWN)]
    """The latest of them, oldest first."""


class Status(Model):
    """The status object as it is at a bind, and kept with it."""

    foreign: ForeignPart
    gaps: GapsPart
    initial: Digest | None
    """The binding PCR before the agent's first extend of this boot; None after a lost journal."""

    @classmethod
    def begin(cls, initial: bytes | None = None) -> Self:
        """Return the status of a boot in which all is well so far."""
        foreign, gaps = ForeignPart(count=0, last=()), GapsPart(count=0, last=())
        return cls(foreign=foreign, gaps=gaps, initial=initial)

    def with_foreign(self, change: Foreign) -> "Status":
        """Return the status after one more change by somebody else."""
        last = (*self.foreign.last, change)[-limits.STATUS_SHOWN :]
        foreign = ForeignPart(count=self.foreign.count + 1, last=last)
        return self.model_copy(update={"foreign": foreign})

    def with_gap(self, gap: Gap) -> "Status":
        """Return the status after one more gap."""
        last = (*self.gaps.last, gap)[-limits.STATUS_SHOWN :]
        gaps = GapsPart(count=self.gaps.count + 1, last=last)
        return self.model_copy(update={"gaps": gaps})

    def digest(self) -> bytes:
        """Return SHA-256 of the object's RFC 8785 bytes, 32 bytes."""
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json"))).digest()
