"""A request for evidence, and what a quote says of it.

A quote is qualified with the root over leaves SHA256(T || SHA256(JCS bytes of the request)), so
that it proves all that was asked, and by whom: T tells who asks. Source: design, section 7.
"""

import enum
import hashlib
from typing import Annotated, Literal

import rfc8785
from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.base.text import printable
from cima_runc.evidence.errors import EvidenceFormatError, first_of
from cima_runc.evidence.fields import Count, Digest, Hex, Model

Disclosure = Literal["none", "redacted", "full"]
"""How much of the host's log: nothing; the hash of each line, which is all that replaying needs;
all of it."""

ContainerId = Annotated[str, Field(min_length=1, max_length=limits.CONTAINER_ID)]
Nonce = Annotated[Hex, Field(min_length=limits.NONCE_MIN, max_length=limits.NONCE_MAX)]


class Asker(enum.Enum):
    """Who asks (T): evidence for one is never taken for another's."""

    OUTSIDE = b"\x00"
    """A verifier, over the agent's socket or HTTPS."""
    HOST = b"\x02"
    """The host's own report to the fleet's service."""
    WORKLOAD = b"\x03"
    """A program in the container, over its socket."""


def leaf(asker: Asker, digest: bytes) -> bytes:
    """Return SHA256(T || digest), 32 bytes; ``digest`` is that of the request."""
    return hashlib.sha256(asker.value + digest).digest()


class Since(Model):
    """From where on the asker wants records: what he has seen of the container's line."""

    run: Annotated[Count, Field(ge=1)]
    count: Count
    """Records of that run that he has."""
    inner: Digest
    """The register, masked, as it was after so many: proves that he has seen it."""


class Request(Model):
    """What a verifier asks for; every field is always there."""

    boot_log: bool
    """Whether the firmware's event log is wanted."""
    container: ContainerId
    """The container's id, in full."""
    host: Disclosure
    """How much of the host's log is shown."""
    nonce: Nonce
    """16 to 64 random bytes of the verifier's."""
    since: Since | None
    """None: all that is kept of the container's line."""

    def to_json(self) -> bytes:
        """Return the request as it is sent: its RFC 8785 bytes."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    def digest(self) -> bytes:
        """Return SHA-256 of the request's RFC 8785 bytes, 32 bytes."""
        return hashlib.sha256(self.to_json()).digest()


def parse_request(raw: bytes) -> Request:
    """Read a request.

    Raises:
        EvidenceFormatError: not one, or one without all of its fields.
    """
    try:
        value = load_object(raw, what="the request", limit=limits.REQUEST)
        return Request.model_validate(value)
    except JsonError as error:
        raise EvidenceFormatError(error.what) from error
    except ValidationError as error:
        what = printable(first_of(error))
        raise EvidenceFormatError(f"the request is not well formed: {what}") from error
