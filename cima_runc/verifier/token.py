"""An attestation result as a signed JWT in the form of an Entity Attestation Token.

Claims of RFC 9711 where it has one: ``eat_nonce``, ``eat_profile``, ``ueid`` (of the attestation
key), ``measres`` in the submodule that is the container. The verdict and what else there is stand
in the claim ``cima``. Signed with ES256 (RFC 7518, 3.4); media type application/eat+jwt (RFC 9782).
"""

import base64
import hashlib
import secrets
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cima_runc.base.errors import CimaError
from cima_runc.verifier.result import Result

PROFILE = "urn:cima-runc:attestation-result:v1"
"""``eat_profile``."""

_UEID_RAND = b"\x01"


class TokenKeyError(CimaError):
    """The key that results are signed with cannot be used."""


LONGEST = 3600
"""Seconds that a token lives at most."""


def claims(result: Result, issued_at: int, *, audience: str, seconds: int) -> dict[str, Any]:
    """Return the claims of a result, for ``audience`` alone.

    ``issued_at`` is in seconds since 1970, and it ends ``seconds`` later, :data:`LONGEST` at most.
    """
    cima = result.model_dump(mode="json", exclude={"checks", "nonce"}, exclude_none=True)
    made: dict[str, Any] = {
        "eat_profile": PROFILE,
        "eat_nonce": _base64url(result.nonce),
        "aud": audience,
        "iat": issued_at,
        "nbf": issued_at,
        "exp": issued_at + min(seconds, LONGEST),
        "jti": secrets.token_urlsafe(16),
        "cima": cima,
    }
    if result.facts is not None:
        made["ueid"] = _base64url(_UEID_RAND + hashlib.sha256(result.facts.ak_name).digest())
    measured = [[check.step, "success" if check.done else "not-run"] for check in result.checks]
    if result.refusal is not None:
        measured.append([result.refusal.error, "fail"])
    measured += [
        [finding.what, "fail"] for finding in result.findings if finding.severity == "fail"
    ]
    made["submods"] = {result.container or "unknown": {"measres": [["cima", measured]]}}
    return made


def sign(
    result: Result, key_pem: bytes, issued_at: int, *, audience: str, seconds: int = 300
) -> str:
    """Return the token, signed with an EC P-256 private key (PEM); it is issued in that key's name.

    Raises:
        TokenKeyError: not such a key.
    """
    from joserfc import jwt
    from joserfc.jwk import ECKey

    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TokenKeyError("the key for results is not a PEM file without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise TokenKeyError(
            "the key for results is not an EC key of P-256",
            hint="make one with: openssl ecparam -name prime256v1 -genkey -noout",
        )
    signer = ECKey.import_key(key_pem)
    kid = signer.thumbprint()
    made = {"iss": f"urn:cima-runc:verify:{kid}"}
    made |= claims(result, issued_at, audience=audience, seconds=seconds)
    return jwt.encode({"alg": "ES256", "typ": "eat+jwt", "kid": kid}, made, signer)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
