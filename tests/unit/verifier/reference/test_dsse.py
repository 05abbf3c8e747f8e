import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cima_runc.verifier.reference.dsse import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    DsseError,
    PrivateKey,
    key_id,
    load_private_key,
    load_public_key,
    pae,
    sign,
    verify,
)
from cima_runc.verifier.reference.file import (
    HostReference,
    ImageReference,
    ReferenceConfig,
    ReferenceFileError,
)

KEYS: list[PrivateKey] = [Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())]
ID = "sha256:" + "a" * 64
IMAGE = ImageReference(
    name="x", platform="linux/amd64", image_id=ID, config=ReferenceConfig(), layers=(), files={}
)
HOST = HostReference(files={"/x": ("0" * 64,)})


def private_pem(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: object) -> bytes:
    return key.public_key().public_bytes(  # type: ignore[attr-defined, no-any-return]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_pae_as_in_the_specification() -> None:
    """The test vector of DSSE's protocol.md."""
    assert pae(b"http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é".encode(), b"") == b"DSSEv1 2 \xc3\xa9 0 "


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("reference", [IMAGE, HOST])
def test_signed_and_checked(key: PrivateKey, reference: ImageReference | HostReference) -> None:
    key = load_private_key(private_pem(key))
    public = load_public_key(public_pem(key))
    assert verify(sign(reference, key), [public]) == reference
    other = [each.public_key() for each in KEYS if key_id(each.public_key()) != key_id(public)]
    assert verify(sign(reference, key), [*other, public]) == reference
    for keys in (other, []):
        with pytest.raises(DsseError, match="by a key that was given"):
            verify(sign(reference, key), keys)


def test_the_statement() -> None:
    envelope = json.loads(sign(IMAGE, KEYS[0]))
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == STATEMENT_TYPE
    assert statement["subject"] == [{"name": "x", "digest": {"sha256": "a" * 64}}]
    assert statement["predicate"]["image_id"] == ID
    assert envelope["signatures"][0]["keyid"] == key_id(KEYS[0].public_key())


def test_a_signature_that_others_check() -> None:
    """By hand, without this module's own encoding."""
    envelope = json.loads(sign(IMAGE, KEYS[1]))
    payload = base64.b64decode(envelope["payload"])
    signed = f"DSSEv1 28 application/vnd.in-toto+json {len(payload)} ".encode() + payload
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    key = KEYS[1].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))


def signed(statement: object, payload_type: str = PAYLOAD_TYPE) -> bytes:
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    key = KEYS[0]
    assert isinstance(key, Ed25519PrivateKey)
    signature = key.sign(pae(payload_type.encode(), payload))
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        }
    ).encode()


def good() -> dict:
    return json.loads(base64.b64decode(json.loads(sign(IMAGE, KEYS[0]))["payload"]))  # type: ignore[no-any-return]


def test_no_key_id_is_needed_and_one_that_is_wrong_does_no_harm() -> None:
    key = KEYS[0].public_key()
    assert verify(signed(good()), [key]) == IMAGE
    envelope = json.loads(signed(good()))
    rubbish = {"keyid": key_id(key), "sig": base64.b64encode(b"x" * 64).decode()}
    envelope["signatures"] = [rubbish, *envelope["signatures"]]
    assert verify(json.dumps(envelope).encode(), [key]) == IMAGE
    envelope["payload"] = envelope["payload"].replace("+", "-").replace("/", "_")
    assert verify(json.dumps(envelope).encode(), [key]) == IMAGE


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (good() | {"_type": "https://in-toto.io/Statement/v0.1"}, DsseError),
        (good() | {"predicateType": "https://slsa.dev/provenance/v1"}, DsseError),
        (good() | {"subject": [{"name": "x", "digest": {"sha256": "b" * 64}}]}, DsseError),
        (good() | {"subject": []}, DsseError),
        (good() | {"predicate": {}}, ReferenceFileError),
        ({"_type": STATEMENT_TYPE, "predicateType": PREDICATE_TYPE}, DsseError),
        ([], DsseError),
        (b"", DsseError),
        (b"[" * 100_000, DsseError),
    ],
)
def test_a_signed_statement_of_something_else(statement: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        verify(signed(statement), [KEYS[0].public_key()])


def test_the_payload_type_is_signed() -> None:
    with pytest.raises(DsseError, match="does not hold"):
        verify(signed(good(), "text/plain"), [KEYS[0].public_key()])
    envelope = json.loads(signed(good(), "text/plain")) | {"payloadType": PAYLOAD_TYPE}
    with pytest.raises(DsseError, match="by a key"):
        verify(json.dumps(envelope).encode(), [KEYS[0].public_key()])


@pytest.mark.parametrize("key", KEYS)
def test_any_changed_payload_is_seen(key: PrivateKey) -> None:
    envelope = json.loads(sign(IMAGE, key))
    payload = base64.b64decode(envelope["payload"])
    for at in range(0, len(payload), 7):
        changed = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
        data = json.dumps(envelope | {"payload": base64.b64encode(changed).decode()}).encode()
        with pytest.raises(DsseError, match="by a key"):
            verify(data, [key.public_key()])


@pytest.mark.parametrize(
    "change",
    [
        {"signatures": []},
        {"signatures": [{"sig": "!"}]},
        {"payload": "a"},
        {"payload": 1},
        {"payloadType": ""},
    ],
)
def test_damaged_envelopes(change: dict) -> None:
    with pytest.raises(DsseError):
        verify(
            json.dumps(json.loads(sign(IMAGE, KEYS[0])) | change).encode(), [KEYS[0].public_key()]
        )


def test_not_even_json() -> None:
    for data in (b"", b"x", b"[]", b"\xff"):
        with pytest.raises(DsseError, match="not a DSSE envelope"):
            verify(data, [KEYS[0].public_key()])


def test_keys_of_other_kinds() -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with pytest.raises(DsseError, match="P-256 or Ed25519"):
            load_private_key(private_pem(key))
        with pytest.raises(DsseError, match="P-256 or Ed25519"):
            load_public_key(public_pem(key))
    for data in (b"", b"rubbish", public_pem(KEYS[0])):
        with pytest.raises(DsseError, match="private key"):
            load_private_key(data)
    with pytest.raises(DsseError, match="public key"):
        load_public_key(private_pem(KEYS[0]))
