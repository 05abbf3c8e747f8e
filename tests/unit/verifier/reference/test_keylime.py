import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import x509_by_hand as by_hand

from cima_runc.verifier.reference.dsse import DsseError, pae
from cima_runc.verifier.reference.file import (
    HostReference,
    ImageReference,
    ReferenceConfig,
    ReferenceFile,
)
from cima_runc.verifier.reference.keylime import KeylimeError, from_keylime, load_key, to_keylime

POLICY = {
    "meta": {"version": 1, "generator": 2, "timestamp": "2024-01-01 00:00:00"},
    "release": 0,
    "digests": {
        "/usr/bin/x": ["a" * 64, "b" * 64, "a" * 64],
        "/with space/é": ["c" * 64, "d" * 40],
        "/only-sha1": ["d" * 40],
        "boot_aggregate": ["e" * 64],
    },
    "excludes": ["/tmp/.*"],
    "keyrings": {".ima": ["f" * 64]},
    "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
    "ima-buf": {},
    "verification-keys": "",
}


def test_from_keylime() -> None:
    converted = from_keylime(json.dumps(POLICY).encode())
    assert converted.reference == HostReference(
        files={
            "/usr/bin/x": ("a" * 64, "b" * 64),
            "/with\\040space/\\303\\251": ("c" * 64,),
        }
    )
    assert converted.left_out == (
        "excluded paths: /tmp/.*",
        "what it says under keyrings",
        "/only-sha1: no SHA-256 digest",
        "boot_aggregate: not a path",
    )


def test_there_and_back() -> None:
    host = from_keylime(json.dumps(POLICY).encode()).reference
    policy = to_keylime(host)
    assert from_keylime(policy).reference == host
    assert from_keylime(policy).left_out == ()
    values = json.loads(policy)
    assert set(values) == set(POLICY)  # all that Keylime's schema requires
    assert values["meta"] == {"version": 1, "generator": 0}
    assert values["digests"]["/with space/é"] == ["c" * 64]


def image(path: str) -> ImageReference:
    def file(kind: str, **more: object) -> ReferenceFile:
        return ReferenceFile(type=kind, mode="0", uid=0, gid=0, layer=0, **more)  # type: ignore[arg-type]

    return ImageReference(
        platform="linux/amd64",
        image_id="sha256:" + "0" * 64,
        config=ReferenceConfig(),
        layers=(),
        files={
            path: file("file", sha256="a" * 64),
            "/d": file("dir"),
            "/l": file("link", link="d"),
        },
    )


def test_an_image_to_keylime() -> None:
    assert json.loads(to_keylime(image("/a\\040b")))["digests"] == {"/a b": ["a" * 64]}


def test_what_json_cannot_hold() -> None:
    with pytest.raises(KeylimeError, match="not UTF-8"):
        to_keylime(image("/\\377"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        json.dumps(POLICY | {"meta": {"version": 2}}).encode(),
        json.dumps(POLICY | {"digests": {"/x": "a" * 64}}).encode(),
        b"a" * 64 + b" /old/allowlist\n",
    ],
)
def test_not_a_policy(data: bytes) -> None:
    with pytest.raises(KeylimeError):
        from_keylime(data)


SIGNED = Path(__file__).parents[5] / "shared/cases/keylime-signed-policy/policy.json"


def test_a_signed_policy() -> None:
    if not SIGNED.exists():
        pytest.skip("no ../shared")
    converted = from_keylime(SIGNED.read_bytes())
    assert converted.reference.files == {"/usr/bin/example": ("1" * 64,)}
    assert "not checked" in converted.left_out[0]
    with pytest.raises(DsseError, match="no signature"):
        from_keylime(SIGNED.read_bytes(), [ec.generate_private_key(ec.SECP521R1()).public_key()])


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_signature_is_checked(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    kind, payload = "application/vnd.keylime+json", policy_of("sha1")
    signature = key.sign(pae(kind.encode(), payload), ec.ECDSA(hashes.SHA256()))
    text = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": "x", "sig": base64.b64encode(signature).decode()}],
    }
    signed = json.dumps(text).encode()
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert len(from_keylime(signed, [load_key(pem)]).reference.files) == 1
    with pytest.raises(DsseError, match="no signature"):
        from_keylime(signed, [ec.generate_private_key(curve).public_key()])
    with pytest.raises(KeylimeError, match="not signed"):
        from_keylime(payload, [load_key(pem)])
    other = json.dumps(text | {"payloadType": "text/plain"}).encode()
    with pytest.raises(DsseError, match="but text/plain"):
        from_keylime(other)


def test_a_policy_that_a_certificate_is_given_for() -> None:
    """`keylime-policy sign --backend x509` writes no key, but a certificate of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca = by_hand.Certificate(
        by_hand.common_name("dsse_lib"), by_hand.common_name("dsse_lib"), key, key
    )
    payload = json.dumps(POLICY).encode()
    signature = key.sign(pae(b"application/vnd.keylime+json", payload), ec.ECDSA(hashes.SHA256()))
    text = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": "application/vnd.keylime+json",
        "signatures": [{"keyid": "certificate", "sig": base64.b64encode(signature).decode()}],
    }
    pem = by_hand.pem(ca.der())
    assert from_keylime(json.dumps(text).encode(), [load_key(pem)]).reference.files
    for damaged in (pem[:90], pem.replace(b"MII", b"AAA"), b"-----BEGIN CERTIFICATE-----"):
        with pytest.raises(DsseError):
            load_key(damaged)


def policy_of(algorithm: str) -> bytes:
    return json.dumps(
        {
            "meta": {"version": 1},
            "digests": {"/bin/a": ["a" * 64]},
            "ima": {"log_hash_alg": algorithm},
        }
    ).encode()


@pytest.mark.parametrize(
    "algorithm",
    [
        *(
            "sm3",
            "sm3_256",
            "SM3_256",
            "sm3-256",
            "sha3-256",
            "sha3_256",
            "streebog256",
            "blake2b-256",
        ),
        *("rmd160", "wp256", "", "sha256 ", "sha512/256"),
    ],
)
def test_digests_of_another_hash_are_not_taken(algorithm: str) -> None:
    with pytest.raises(KeylimeError, match="not of SHA-256"):
        from_keylime(policy_of(algorithm))
    for usual in ("sha1", "sha256", "sha512", "SHA-256", "sha_384"):
        assert from_keylime(policy_of(usual)).reference.files == {"/bin/a": ("a" * 64,)}


def test_null_is_what_is_not_there() -> None:
    values = json.loads(policy_of("sha256")) | {"excludes": None, "keyrings": None, "ima-buf": None}
    values |= {"verification-keys": None, "ima": None}
    converted = from_keylime(json.dumps(values).encode())
    assert converted.reference.files == {"/bin/a": ("a" * 64,)}
    assert converted.left_out == ()
