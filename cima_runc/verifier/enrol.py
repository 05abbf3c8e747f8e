"""The verifier's side of an enrolment; see :mod:`cima_runc.evidence.enrolment` for the exchange."""

import hmac
import secrets

from cima_runc.base.errors import CimaError
from cima_runc.evidence.enrolment import Challenge, EnrolmentAnswer, EnrolmentRequest, Pending
from cima_runc.tpm.activation import ek_public_pem, make_credential
from cima_runc.tpm.structures import PublicArea, StructureError, parse_public
from cima_runc.verifier.ek_certificate import check_ek_certificate


class EnrolmentError(CimaError):
    """The attestation key cannot be enrolled."""


def challenge(request: EnrolmentRequest, trusted: bytes | None) -> tuple[Challenge, Pending]:
    """Check the endorsement key and make a credential for it and the attestation key.

    ``trusted``: PEM certificates of TPM manufacturers; None takes any endorsement key, which then
    may be that of a software TPM.

    Raises:
        EnrolmentError, EkCertificateError, CredentialError: the host does not get one.
    """
    try:
        ak = parse_public(request.ak_public)
    except StructureError as error:
        raise EnrolmentError(error.what, hint=error.hint) from error
    missing = ak.missing_attributes()
    if missing:
        raise EnrolmentError(
            f"the attestation key is not a restricted key of the TPM: lacking {', '.join(missing)}"
        )
    if trusted is not None:
        if request.ek_certificate is None:
            raise EnrolmentError(
                "the TPM holds no certificate of its endorsement key",
                hint="get it from the manufacturer, or trust this TPM with --any-ek",
            )
        pem = ek_public_pem(request.ek_public)
        check_ek_certificate(request.ek_certificate, request.ek_chain, pem, trusted)
    secret = secrets.token_bytes(32)
    credential = make_credential(request.ek_public, ak.name, secret)
    return (
        Challenge(credential=credential.blob, encrypted_secret=credential.secret),
        Pending(ak_public=request.ak_public, secret=secret),
    )


def accept(answer: EnrolmentAnswer, pending: Pending) -> PublicArea:
    """Return the key that is enrolled now, if the TPM opened the credential.

    Raises:
        EnrolmentError: it did not.
    """
    if not hmac.compare_digest(answer.secret, pending.secret):
        raise EnrolmentError(
            "the answer is not what was in the credential",
            hint="the attestation key is not in the TPM of that endorsement key",
        )
    return parse_public(pending.ak_public)
