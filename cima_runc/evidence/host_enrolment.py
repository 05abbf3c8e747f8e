"""How a host joins a fleet: by a token that is good once, or by a person's approval.

1. host to service: :class:`HostEnrolment`, who the TPM says that it is, and the token;
2. service to host: :class:`EnrolmentChallenge`, a credential for that TPM and attestation key;
3. host to service: :class:`~cima_runc.evidence.enrolment.EnrolmentAnswer`, what was in it;
4. service to host: :class:`EnrolmentState`, asked for again while a person has to approve.

Source: fleet, section 4.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.evidence.enrolment import Challenge, EnrolmentFormatError, EnrolmentRequest
from cima_runc.evidence.errors import first_of
from cima_runc.evidence.fields import Model
from cima_runc.evidence.report_answer import RequestId

_Label = Annotated[str, Field(max_length=limits.LABEL)]
Labels = Annotated[dict[_Label, _Label], Field(max_length=limits.LABELS)]
"""What a token or an approval says of a host; never what it says of itself."""


class HostEnrolment(Model):
    """A host asks to join."""

    type: Literal["cima-host-enrolment"] = "cima-host-enrolment"
    version: Literal[1] = 1
    name: Annotated[str, Field(max_length=limits.HOST_NAME, pattern=r"^[A-Za-z0-9_.-]+$")]
    """What the host calls itself: it proves nothing."""
    token: Annotated[str, Field(max_length=limits.JOIN_TOKEN)] | None
    """None: a person has to approve."""
    tpm: EnrolmentRequest


class EnrolmentChallenge(Model):
    """A credential to open."""

    type: Literal["enrolment-challenge"] = "enrolment-challenge"
    id: RequestId
    """Names this enrolment, and nobody can guess it."""
    challenge: Challenge


class EnrolmentState(Model):
    """How an enrolment stands."""

    type: Literal["enrolment-state"] = "enrolment-state"
    state: Literal["enrolled", "waiting", "refused"]
    """``waiting``: for a person's approval."""
    labels: Labels = Field(default_factory=dict)
    what: Annotated[str, Field(max_length=limits.PATH)] = ""
    """Why, for a person."""


_Any = TypeVar("_Any", bound=Model)


def parse(kind: type[_Any], raw: bytes, what: str) -> _Any:
    """Read one of the above, or an :class:`EnrolmentAnswer`; ``what`` names it in errors.

    Raises:
        EnrolmentFormatError: not one.
    """
    try:
        return kind.model_validate(load_object(raw, what=what, limit=limits.VERIFIER_INPUT))
    except JsonError as error:
        raise EnrolmentFormatError(error.what) from error
    except ValidationError as error:
        raise EnrolmentFormatError(f"{what} is not well formed: {first_of(error)}") from error
