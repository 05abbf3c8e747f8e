"""The host's side of an enrolment, in the agent's writer thread."""

from cima_runc.agent.attester import Attester
from cima_runc.evidence.enrolment import Challenge, EnrolmentAnswer, EnrolmentRequest
from cima_runc.tpm.activation import activate_credential
from cima_runc.tpm.credential import Credential
from cima_runc.tpm.device import TpmError
from cima_runc.tpm.keys import endorsement_key


def request(attester: Attester) -> EnrolmentRequest:
    """Return who the TPM says that it is.

    Raises:
        TpmError: there is no TPM, or it refuses.
    """
    ak = attester.attestation_key()
    with endorsement_key(attester.tpm) as ek:
        return EnrolmentRequest(
            ak_public=ak.public,
            ek_public=ek.public,
            ek_certificate=ek.certificate,
            ek_chain=list(ek.chain),
        )


def answer(attester: Attester, challenge: Challenge) -> EnrolmentAnswer:
    """Have the TPM open a credential.

    Raises:
        TpmError: it is not for this TPM and its attestation key.
    """
    ak = attester.attestation_key()
    credential = Credential(challenge.credential, challenge.encrypted_secret)
    with endorsement_key(attester.tpm) as ek:
        secret = activate_credential(attester.tpm, ek, ak, credential)
    if len(secret) != 32:
        raise TpmError(f"the credential holds {len(secret)} bytes, expected 32")
    return EnrolmentAnswer(secret=secret)
