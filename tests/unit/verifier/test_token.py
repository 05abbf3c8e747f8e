import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey

from cima_runc.verifier.errors import NonceError, Verdict
from cima_runc.verifier.result import Check, Facts, Finding, Refusal, Result
from cima_runc.verifier.token import PROFILE, TokenKeyError, sign


def pem(curve: ec.EllipticCurve) -> bytes:
    return ec.generate_private_key(curve).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


KEY = pem(ec.SECP256R1())
FACTS = Facts(
    container="some-id",
    ak_name=b"\0\x0b" + bytes(32),
    reset_count=1,
    restart_count=0,
    clock=2,
    line=b"l" * 32,
    run=1,
    registration=9,
    first_seen=True,
    count=4,
    cpcr=b"c" * 32,
    since=0,
)
RESULT = Result(
    verdict=Verdict.UNTRUSTED,
    container="some-id",
    nonce=b"n" * 16,
    checks=(Check(step="ak", done=True, detail=""), Check(step="host-log", done=False, detail="")),
    findings=(Finding(severity="fail", what="drift"), Finding(severity="warn", what="no")),
    appraised=True,
    facts=FACTS,
)


def test_claims() -> None:
    token = jwt.decode(
        sign(RESULT, KEY, 1_700_000_000, audience="https://a"), ECKey.import_key(KEY)
    )
    assert token.header["typ"] == "eat+jwt"
    claims = token.claims
    assert claims["eat_profile"] == PROFILE
    assert base64.urlsafe_b64decode(claims["eat_nonce"] + "==") == b"n" * 16
    assert claims["iat"] == 1_700_000_000
    assert (claims["aud"], claims["nbf"], claims["exp"]) == (
        "https://a",
        1_700_000_000,
        1_700_000_300,
    )
    assert claims["iss"] == f"urn:cima-runc:verify:{token.header['kid']}"
    assert claims["jti"]
    assert len(base64.urlsafe_b64decode(claims["ueid"] + "===")) == 33
    assert claims["cima"]["verdict"] == "UNTRUSTED"
    assert claims["submods"]["some-id"]["measres"] == [
        ["cima", [["ak", "success"], ["host-log", "not-run"], ["drift", "fail"]]]
    ]


def test_refusal() -> None:
    refused = Result(
        verdict=Verdict.STALE,
        container=None,
        nonce=b"n" * 16,
        refusal=Refusal.of(NonceError("old", expected="a", found="b")),
    )
    claims = jwt.decode(sign(refused, KEY, 0, audience="https://a"), ECKey.import_key(KEY)).claims
    assert claims["cima"]["refusal"]["error"] == "NonceError"
    assert claims["submods"]["unknown"]["measres"] == [["cima", [["NonceError", "fail"]]]]


def test_another_key() -> None:
    with pytest.raises(BadSignatureError):
        jwt.decode(
            sign(RESULT, KEY, 0, audience="https://a"), ECKey.import_key(pem(ec.SECP256R1()))
        )


@pytest.mark.parametrize("key", [b"", b"x", pem(ec.SECP384R1())])
def test_key_refused(key: bytes) -> None:
    with pytest.raises(TokenKeyError):
        sign(RESULT, key, 0, audience="https://a")


def test_it_ends_within_the_hour() -> None:
    token = sign(RESULT, KEY, 0, audience="https://a", seconds=1_000_000)
    assert jwt.decode(token, ECKey.import_key(KEY)).claims["exp"] == 3600
