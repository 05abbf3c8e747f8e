"""What a host and a verifier send each other when the host's attestation key is enrolled.

1. host to verifier: :class:`EnrolmentRequest`, who the TPM says that it is;
2. verifier to host: :class:`Challenge`, a credential that only this TPM can open, and only if it
   holds this attestation key;
3. host to verifier: :class:`EnrolmentAnswer`, what was in it.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.evidence.errors import first_of
from cima_runc.evidence.fields import Base64, Digest, Model

_TpmBytes = Annotated[Base64, Field(max_length=limits.TPM_STRUCTURE)]
_Certificate = Annotated[Base64, Field(max_length=64 * limits.KIB)]


class EnrolmentFormatError(CimaError):
    """A file of an enrolment cannot be read."""


class EnrolmentRequest(Model):
    """Who the TPM says that it is."""

    type: Literal["cima-enrolment"] = "cima-enrolment"
    version: Literal[1] = 1
    ak_public: _TpmBytes
    """TPMT_PUBLIC of the attestation key."""
    ek_public: _TpmBytes
    """TPMT_PUBLIC of the endorsement key."""
    ek_certificate: _Certificate | None = None
    """The endorsement key's certificate (DER) by the TPM's manufacturer."""
    ek_chain: list[_Certificate] = Field(default_factory=list, max_length=limits.EK_CHAIN)
    """Certificates (DER) of its issuers that the TPM holds."""


class Challenge(Model):
    """A credential for one TPM and one attestation key."""

    type: Literal["cima-enrolment-challenge"] = "cima-enrolment-challenge"
    version: Literal[1] = 1
    credential: _TpmBytes
    """TPM2B_ID_OBJECT, without its size."""
    encrypted_secret: _TpmBytes
    """TPM2B_ENCRYPTED_SECRET, without its size."""


class EnrolmentAnswer(Model):
    """What was in the credential."""

    type: Literal["cima-enrolment-answer"] = "cima-enrolment-answer"
    version: Literal[1] = 1
    secret: Digest


class Pending(Model):
    """What the verifier keeps until the answer comes."""

    type: Literal["cima-enrolment-pending"] = "cima-enrolment-pending"
    version: Literal[1] = 1
    ak_public: _TpmBytes
    secret: Digest


_Any = TypeVar("_Any", bound=Model)


def parse(kind: type[_Any], raw: bytes, what: str) -> _Any:
    """Read one of the above; ``what`` names it in errors.

    Raises:
        EnrolmentFormatError, JsonError: not one.
    """
    value = load_object(raw, what=what, limit=limits.VERIFIER_INPUT)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise EnrolmentFormatError(f"{what} is not well formed: {first_of(error)}") from error
