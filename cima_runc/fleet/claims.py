"""What a token says of a container that was found TRUSTED: an EAT, or an EAR. Pure.

EAT: RFC 9711; EAR: draft-ietf-rats-ear-04, with the trustworthiness claims of AR4SI. Both are JWTs
(RFC 7519) with ``iss``, ``sub``, ``aud``, ``iat``, ``nbf``, ``exp`` and ``jti``; who takes them
checks ``typ`` and ``eat_profile``. Source: fleet, section 6.
"""

import base64
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cima_runc import __version__
from cima_runc.verifier.errors import Verdict

EAT_PROFILE = "urn:cima-runc:token:eat:v1"
EAR_PROFILE = "tag:ietf.org,2026:rats/ear#04"
_SUBMODULE = "container"
_UEID_RAND = b"\x01"
_AFFIRMING, _WARNING, _CONTRAINDICATED, _NONE = 2, 32, 96, 0
_TIERS = {
    _AFFIRMING: "affirming",
    _WARNING: "warning",
    _CONTRAINDICATED: "contraindicated",
    _NONE: "none",
}
_CLAIMS = {
    "executables": ("file", "memory", "lost", "violation", "unstable", "enforcement"),
    "configuration": ("config",),
    "file-system": ("rootfs",),
}
"""By the first word of the rules that a warning of theirs is by."""


class Profile(StrEnum):
    """The form of a token."""

    EAT = "eat"
    EAR = "ear"

    @property
    def type(self) -> str:
        """``typ`` of the token's head."""
        return {"eat": "eat+jwt", "ear": "ear+jwt"}[self.value]


@dataclass(frozen=True)
class Subject:
    """What a token is of."""

    tenant: str
    policy: str
    """``name@version``."""
    reference: str
    image: str
    """Digest of the image's configuration."""
    container: str
    """Its id."""
    registration: int
    line: str | None
    run: int | None
    records: int
    cpcr: bytes
    ak_name: bytes
    """Of its host."""
    hardware: bool
    """Whether a manufacturer vouches for the TPM."""
    quoted: int
    """Milliseconds since 1970."""

    @property
    def name(self) -> str:
        """``sub``: nothing in it is what a container or a host calls itself."""
        return f"cima:{self.tenant}:{self.policy.partition('@')[0]}:{self.image}"


@dataclass(frozen=True)
class Times:
    """When a token is issued, and when it ends: seconds since 1970."""

    issued: int
    ends: int


def status(verdict: Verdict, *, warns: bool) -> int:
    """Return the trustworthiness tier of a verdict."""
    if verdict is Verdict.TRUSTED:
        return _WARNING if warns else _AFFIRMING
    return _CONTRAINDICATED if verdict is Verdict.UNTRUSTED else _NONE


def vector(warned: Collection[str], *, hardware: bool) -> dict[str, int]:
    """Return the trustworthiness vector of a TRUSTED container: of what was appraised alone.

    ``warned`` are the rules of its warnings.
    """
    first = {rule.partition(".")[0] for rule in warned}
    made = {
        claim: _WARNING if first & set(words) else _AFFIRMING for claim, words in _CLAIMS.items()
    }
    made["instance-identity"] = _AFFIRMING
    if hardware:
        made["hardware"] = _AFFIRMING
    return made


def claims(
    profile: Profile,
    subject: Subject,
    times: Times,
    *,
    issuer: str,
    audience: str,
    token_id: str,
    nonces: Collection[str],
    warned: Collection[str],
) -> dict[str, Any]:
    """Return the claims of a token; ``nonces`` are as who will take it gave them, base64url."""
    given = list(nonces)
    made: dict[str, Any] = {
        "iss": issuer,
        "sub": subject.name,
        "aud": audience,
        "iat": times.issued,
        "nbf": times.issued,
        "exp": times.ends,
        "jti": token_id,
    }
    if given:
        made["eat_nonce"] = given[0] if len(given) == 1 else given
    of_container = {
        "id": subject.container,
        "registration": str(subject.registration),
        "line": subject.line,
        "run": subject.run,
        "records": subject.records,
        "cpcr": subject.cpcr.hex(),
        "host": subject.ak_name.hex(),
        "policy": subject.policy,
        "reference": subject.reference,
        "quoted": subject.quoted // 1000,
    }
    if profile is Profile.EAT:
        measured = [["own", "success"], ["services", "success"], ["host", "success"]]
        return made | {
            "eat_profile": EAT_PROFILE,
            "ueid": _base64url(_UEID_RAND + hashlib.sha256(subject.ak_name).digest()),
            "submods": {
                _SUBMODULE: {
                    "measres": [["cima", measured]],
                    "cima": {**of_container, "verdict": Verdict.TRUSTED.value},
                }
            },
        }
    tier = _TIERS[status(Verdict.TRUSTED, warns=bool(warned))]
    return made | {
        "eat_profile": EAR_PROFILE,
        "ear_status": tier,
        "ear_verifier_id": {"developer": "cima-runc", "build": f"cima-verifier {__version__}"},
        "submods": {
            _SUBMODULE: {
                "ear_status": tier,
                "ear_trustworthiness_vector": vector(warned, hardware=subject.hardware),
                "ear_appraisal_policy_ids": [f"urn:cima-runc:policy:{subject.policy}"],
                "ear_verifier_claims": of_container,
            }
        },
    }


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
