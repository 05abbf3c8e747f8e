"""What a verifier knows without the evidence: what was asked, of whom, and what is insisted on."""

from dataclasses import dataclass, field
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cima_runc.evidence.request import Disclosure, Since
from cima_runc.verifier.ak_certificate import AkAuthority
from cima_runc.verifier.enrolled import EnrolledAk
from cima_runc.verifier.policy import Policy


@dataclass(frozen=True)
class Expectation:
    """What was asked is what is required: evidence that answers another request is refused."""

    nonce: bytes
    """The nonce that was sent, 16 to 64 bytes."""
    ak: EnrolledAk | AkAuthority
    """The key that is enrolled, or who enrols keys for us."""
    container: str | None = None
    """The container that was asked for; None takes the evidence's word, and the result says so."""
    owner_key: X25519PrivateKey | None = None
    host: Disclosure = "none"
    """How much of the host's log was asked for."""
    boot_log: bool = False
    """Whether the firmware's event log was asked for."""
    since: Since | Literal["remembered"] | None = "remembered"
    """From where on records were asked for; ``remembered``: from what is remembered, or all."""
    policy: Policy = field(default_factory=Policy)
