"""The verifier's side of an enrolment; see :mod:`cima_runc.evidence.enrolment` for the exchange."""

import hmac
import secrets
from dataclasses import replace

from cima_runc.base.errors import CimaError
from cima_runc.evidence.enrolment import Challenge, EnrolmentAnswer, EnrolmentRequest, Pending
from cima_runc.tpm.credential import ek_public_pem, make_credential
from cima_runc.tpm.structures import PublicArea, StructureError, parse_public
from cima_runc.verifier.certificate import read_bundle
from cima_runc.verifier.certificate_files import certificates_in
from cima_runc.verifier.ek_certificate import VouchedTpm, check_ek_certificate


class EnrolmentError(CimaError):
    """The attestation key cannot be enrolled."""


def vouched(
    request: EnrolmentRequest,
    trusted: bytes,
    *,
    between: bytes = b"",
    certificate: bytes | None = None,
) -> VouchedTpm:
    """Return the TPM that a manufacturer vouches for.

    ``trusted``: certificates of TPM manufacturers, in a file of any form that these have.
    ``between``: certificates that lead to them, beside those of the host. ``certificate``: the
    endorsement key's, where the TPM holds none itself.

    Raises:
        EnrolmentError, EkCertificateError, CredentialError: nobody does.
    """
    found = request.ek_certificate
    if certificate is not None:
        found = certificates_in(certificate)[0]
    if found is None:
        raise EnrolmentError(
            "the TPM holds no certificate of its endorsement key",
            hint="get it from the manufacturer and give it with --ek-certificate, or trust this"
            " TPM with --any-ek",
        )
    more = read_bundle(between, "--ek-chain") if between else None
    chain = [*request.ek_chain, *(one.der for one in (more.readable if more else ()))]
    made = check_ek_certificate(found, chain, ek_public_pem(request.ek_public), trusted)
    if more is None or not more.unreadable:
        return made
    return replace(made, passed_over=made.passed_over + more.unreadable)


def challenge(
    request: EnrolmentRequest,
    trusted: bytes | None,
    *,
    between: bytes = b"",
    certificate: bytes | None = None,
) -> tuple[Challenge, Pending]:
    """Check the endorsement key and make a credential for it and the attestation key.

    ``trusted`` None takes any endorsement key, which then may be that of a software TPM; else it
    and the others are as for :func:`vouched`.

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
        vouched(request, trusted, between=between, certificate=certificate)
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
