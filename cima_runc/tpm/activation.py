"""Credential activation: the host's TPM gives back what was encrypted to its EK for its AK.

:mod:`cima_runc.tpm.credential` is the verifier's side. Source: TPM 2.0 Library Part 1, section 24
(credential protection); Part 3, TPM2_ActivateCredential.
"""

import hashlib

from tpm2_pytss import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_SE,
    TPM2B_DIGEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPML_DIGEST,
    TPMT_PUBLIC,
    TSS2_Exception,
)

from cima_runc.tpm.credential import Credential
from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.keys import AttestationKey, EndorsementKey
from cima_runc.tpm.state import read_state
from cima_runc.tpm.trouble import refused, require


def activate_credential(
    tpm: Tpm, ek: EndorsementKey, ak: AttestationKey, credential: Credential
) -> bytes:
    """Have the TPM decrypt a credential that was made for its EK and the name of ``ak``.

    Raises:
        TpmError: the TPM refuses; so it does where EK or name are others.
    """
    esapi = tpm.esapi
    area, _ = TPMT_PUBLIC.unmarshal(ek.public)
    try:
        session = esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, area.nameAlg
        )
        try:
            _satisfy(tpm, session, area)
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
        raise refused(
            "the TPM does not activate the credential",
            error,
            hint="it was made for another endorsement key or another attestation key",
        ) from error
    return bytes(secret)


def _satisfy(tpm: Tpm, session: ESYS_TR, area: TPMT_PUBLIC) -> None:
    """Have the session satisfy the key's policy: PolicyA of the low templates, or PolicyB.

    By policy, never by the key's own password: that would fail while the TPM is locked out.
    """
    require("the TPM does not activate the credential", read_state(tpm).endorsement())
    tpm.esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
    name = _HASHES.get(int(area.nameAlg))
    policy = bytes(area.authPolicy)
    if name is None or policy not in (policy_a(name), policy_b(name)):
        raise TpmError(
            "the endorsement key has a policy that is not the TCG's",
            hint="its template is not one of the EK Credential Profile",
        )
    if policy == policy_b(name):
        branches = [TPM2B_DIGEST(policy_a(name)), TPM2B_DIGEST(_POLICY_C[name])]
        tpm.esapi.policy_or(session, TPML_DIGEST(branches))


_HASHES = {
    int(TPM2_ALG.SHA256): "sha256",
    int(TPM2_ALG.SHA384): "sha384",
    int(TPM2_ALG.SHA512): "sha512",
}
_POLICY_C = {
    "sha256": bytes.fromhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde"),
    "sha384": bytes.fromhex(
        "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5"
        "b4947c2d73e63005eed2dc2b3593d165"
    ),
    "sha512": bytes.fromhex(
        "589ee1e146544716e8deafe6db247b01b81e9f9c7dd16b814aa159138749105f"
        "ba5388dd1dea702f35240c184933121e2c61b8f50d3ef91393a49a38c3f73fc8"
    ),
}
"""PolicyC of the profile, B.6.5: whoever an NV index of the TPM's names may use the key."""
_CC_POLICY_SECRET = bytes.fromhex("00000151")
_CC_POLICY_OR = bytes.fromhex("00000171")
_RH_ENDORSEMENT = bytes.fromhex("4000000b")


def policy_a(name: str) -> bytes:
    """Return PolicyA of the profile in the hash ``name``: the endorsement hierarchy's password."""
    start = bytes(hashlib.new(name).digest_size)
    first = hashlib.new(name, start + _CC_POLICY_SECRET + _RH_ENDORSEMENT).digest()
    return hashlib.new(name, first).digest()


def policy_b(name: str) -> bytes:
    """Return PolicyB of the profile: PolicyA or PolicyC."""
    start = bytes(hashlib.new(name).digest_size)
    branches = policy_a(name) + _POLICY_C[name]
    return hashlib.new(name, start + _CC_POLICY_OR + branches).digest()
