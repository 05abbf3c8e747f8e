"""What a fleet's service answers a host. Source: fleet, section 3."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, TypeAdapter, ValidationError

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.evidence.errors import EvidenceFormatError, first_of
from cima_runc.evidence.fields import Base64, Count, Digest, Model, as_tuples
from cima_runc.evidence.request import Nonce, Request

LONG_POLL = 25
"""Seconds that an idle host's question for a nonce may wait for something to do."""

RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_TpmBytes = Annotated[Base64, Field(max_length=limits.TPM_STRUCTURE)]
_Seconds = Annotated[float, Field(ge=0.1, le=86_400)]
_Number = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,15})$")]
_Counts = Annotated[dict[_Number, Count], Field(max_length=limits.REPORT_CONTAINERS)]


class TenantRequest(Model):
    """A tenant's request for evidence, which the host answers as if it had come from outside."""

    id: RequestId
    request: Request


class TenantChallenge(Model):
    """A tenant's challenge to the attestation key, who enrols it himself."""

    id: RequestId
    credential: _TpmBytes
    encrypted_secret: _TpmBytes


class Invitation(Model):
    """What the next report is made with, and what else the host is asked."""

    type: Literal["invitation"] = "invitation"
    nonce: Nonce
    interval: _Seconds
    """Seconds until the next report, where nothing changes."""
    min_interval: _Seconds
    """Seconds between reports at least."""
    requests: Annotated[tuple[TenantRequest, ...], Field(max_length=limits.TENANTS_REQUESTS)] = ()
    challenges: Annotated[
        tuple[TenantChallenge, ...], Field(max_length=limits.TENANTS_REQUESTS)
    ] = ()


class Confirmed(Model):
    """What the service holds durably, and the host need not send again."""

    base: Digest | None
    """The table; None: nothing in this boot."""
    host_log: Count
    """Entries of the host's log."""
    boot_log: bool
    """Whether it has the firmware's event log of this boot."""
    records: _Counts
    """Records, by registration: those proved."""
    held: _Counts
    """Records that are there, by registration, and wait for the rest to be proved: those after the
    proved ones."""


class Accepted(Model):
    """The report is proved, and what is new of it is durable. Of registrations that it does not
    name, nothing has changed."""

    type: Literal["accepted"] = "accepted"
    confirmed: Confirmed
    session: Annotated[str, Field(max_length=limits.JOIN_TOKEN)] | None
    """What the host shows to be given tenants' requests (``Authorization: Bearer``)."""
    invitation: Invitation


class Resync(Model):
    """The report is the host's, but goes on from something that the service does not have.
    ``confirmed`` names all that it has of this boot, and for registrations not named, nothing."""

    type: Literal["resync"] = "resync"
    confirmed: Confirmed
    invitation: Invitation


class Refused(Model):
    """The report is not proved; nothing of it was heeded."""

    type: Literal["refused"] = "refused"
    error: Annotated[str, Field(max_length=limits.NAME)]
    """Name of the reason, as of a class."""
    what: Annotated[str, Field(max_length=limits.PATH)]
    hint: Annotated[str, Field(max_length=limits.PATH)] = ""


Answer = Accepted | Resync | Refused | Invitation
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Discriminator("type")])


def parse_answer(raw: bytes) -> Answer:
    """Read an answer of the service.

    Raises:
        EvidenceFormatError: it is none.
    """
    try:
        value = load_object(raw, what="the service's answer", limit=limits.REPORT_ANSWER)
        return _ANSWER.validate_python(as_tuples(value))
    except JsonError as error:
        raise EvidenceFormatError(error.what) from error
    except ValidationError as error:
        what = f"the service's answer is not well formed: {first_of(error)}"
        raise EvidenceFormatError(what) from error
