"""Credential activation: how a verifier learns that an AK is in the TPM of a certain EK.

He encrypts a secret so that only the TPM with that EK gives it back, and only if it holds a key
with that name. Source: TPM 2.0 Library Part 1, section 24 (credential protection); Part 3,
TPM2_MakeCredential and TPM2_ActivateCredential.
"""

from dataclasses import dataclass

from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_SE,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_NAME,
    TPM2B_PUBLIC,
    TPMT_PUBLIC,
    TSS2_Exception,
    utils,
)

from cima_runc.base.errors import CimaError
from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.keys import AttestationKey, EndorsementKey


class CredentialError(CimaError):
    """A credential cannot be made for this endorsement key, or not be read."""


@dataclass(frozen=True)
class Credential:
    """What TPM2_MakeCredential gives."""

    blob: bytes
    """TPM2B_ID_OBJECT, without its size."""
    secret: bytes
    """TPM2B_ENCRYPTED_SECRET, without its size."""


def ek_public_pem(public: bytes) -> bytes:
    """Return an endorsement key's TPMT_PUBLIC as PEM (SubjectPublicKeyInfo).

    Raises:
        CredentialError: not the public area of an RSA or ECC key.
    """
    pem: bytes = _ek_public(public).to_pem()
    return pem


def make_credential(ek_public: bytes, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt ``secret`` (at most 32 bytes) to the EK, for a TPM that holds a key ``ak_name``.

    In software: the verifier needs no TPM. ``ek_public`` is a TPMT_PUBLIC.

    Raises:
        CredentialError: not the public area of a key that can be encrypted to.
    """
    public = _ek_public(ek_public)
    try:
        blob, encrypted = utils.make_credential(public, secret, TPM2B_NAME(ak_name))
    except (ValueError, TypeError, AttributeError) as error:
        raise CredentialError(f"the endorsement key takes no credential: {error}") from error
    return Credential(bytes(blob), bytes(encrypted))


def activate_credential(
    tpm: Tpm, ek: EndorsementKey, ak: AttestationKey, credential: Credential
) -> bytes:
    """Have the TPM decrypt a credential that was made for its EK and the name of ``ak``.

    Raises:
        TpmError: the TPM refuses; so it does where EK or name are others.
    """
    esapi = tpm.esapi
    try:
        session = esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256
        )
        try:
            # PolicyA of the EK templates L-1 and L-2.
            esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
            secret = esapi.activate_credential(
                ak.handle,
                ek.handle,
                TPM2B_ID_OBJECT(credential.blob),
                TPM2B_ENCRYPTED_SECRET(credential.secret),
                session2=session,
            )
        finally:
            esapi.flush_context(session)
    except TSS2_Exception as error:
        raise TpmError(
            f"the TPM does not activate the credential: {error}",
            hint="it was made for another endorsement key or another attestation key",
        ) from error
    return bytes(secret)


def _ek_public(public: bytes) -> TPM2B_PUBLIC:
    try:
        area, length = TPMT_PUBLIC.unmarshal(public)
    except (TSS2_Exception, ValueError) as error:
        raise CredentialError("the endorsement key's public area cannot be read") from error
    if length != len(public) or area.type not in (TPM2_ALG.RSA, TPM2_ALG.ECC):
        raise CredentialError("the endorsement key's public area is not that of an RSA or ECC key")
    return TPM2B_PUBLIC(publicArea=area)
