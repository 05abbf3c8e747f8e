"""Signed reference values: an in-toto Statement in a DSSE envelope.

Sources: https://github.com/secure-systems-lab/dsse (protocol.md, envelope.md),
https://github.com/in-toto/attestation (spec/v1/statement.md). The statement's subject is the image
(its manifest's digest, or its id where it has no manifest) and its predicate the reference file.
Signatures are ECDSA on P-256 with SHA-256 (DER) or Ed25519; a key's id is the SHA-256 of its
SubjectPublicKeyInfo, in hex, and only a hint.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.verifier.reference.file import (
    HostReference,
    ImageReference,
    format_reference,
    parse_reference,
)
from cima_runc.verifier.reference.null_is_absent import NullIsAbsent

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:cima-runc:reference-values:v1"

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | Ed25519PublicKey


class DsseError(CimaError):
    """An envelope is not signed by a key that is trusted, or is not of reference values."""


class _Signature(NullIsAbsent):
    keyid: str = ""
    sig: str


class _Envelope(NullIsAbsent):
    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: tuple[_Signature, ...] = Field(min_length=1, max_length=64)


def pae(payload_type: bytes, payload: bytes) -> bytes:
    """Return what is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type, len(payload), payload)


def load_private_key(pem: bytes) -> PrivateKey:
    """Return a signing key from an unencrypted PEM file. Raises :class:`DsseError`."""
    try:
        key = serialization.load_pem_private_key(pem[: limits.KEY_FILE], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DsseError("not an unencrypted private key in PEM form", hint=_KEY_HINT) from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise DsseError("a signing key must be of P-256 or Ed25519", hint=_KEY_HINT)


def load_public_key(pem: bytes, curves: Sequence[type[ec.EllipticCurve]] = ()) -> PublicKey:
    """Return a key to check signatures with, from a PEM file. Raises :class:`DsseError`.

    ``curves`` are taken beside P-256.
    """
    try:
        key = serialization.load_pem_public_key(pem[: limits.KEY_FILE])
    except (ValueError, UnsupportedAlgorithm):
        raise DsseError("not a public key in PEM form", hint=_KEY_HINT) from None
    if isinstance(key, Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey)
        and isinstance(key.curve, (ec.SECP256R1, *curves))
    ):
        return key
    raise DsseError("a key must be of P-256 or Ed25519", hint=_KEY_HINT)


_KEY_HINT = (
    "make one with `openssl genpkey -algorithm ed25519 -out key.pem`,"
    " and its public half with `openssl pkey -in key.pem -pubout`"
)


def key_id(key: PublicKey) -> str:
    """Return a key's id: hex SHA-256 of its SubjectPublicKeyInfo (DER)."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def sign(reference: ImageReference | HostReference, key: PrivateKey) -> bytes:
    """Return the envelope of reference values, signed with ``key``: JSON, ASCII."""
    payload = json.dumps(_statement(reference), sort_keys=True, separators=(",", ":")).encode()
    data = pae(PAYLOAD_TYPE.encode(), payload)
    if isinstance(key, Ed25519PrivateKey):
        signature = key.sign(data)
    else:
        signature = key.sign(data, ec.ECDSA(hashes.SHA256()))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}
        ],
    }
    return json.dumps(envelope, sort_keys=True, indent=1).encode() + b"\n"


def verify(envelope: bytes, keys: Sequence[PublicKey]) -> ImageReference | HostReference:
    """Return the reference values in an envelope that one of ``keys`` signed.

    Nothing of the payload is looked at before its signature is good.
    Raises :class:`DsseError`, or :class:`ReferenceFileError` for the predicate.
    """
    payload = open_envelope(envelope, keys, PAYLOAD_TYPE)
    if not keys:
        raise DsseError("no signature of the envelope is by a key that was given", hint="give one")
    return _read_statement(payload)


def is_envelope(data: bytes) -> bool:
    """Whether a file is meant to be a DSSE envelope."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"payload", "payloadType", "signatures"} <= value.keys()


def open_envelope(envelope: bytes, keys: Sequence[PublicKey], payload_type: str) -> bytes:
    """Return an envelope's payload, once one of ``keys`` is found to have signed it.

    Without keys it is nobody's word. Raises :class:`DsseError`.
    """
    if len(envelope) > 2 * limits.REFERENCE:
        raise DsseError(f"an envelope of more than {2 * limits.REFERENCE} bytes")
    try:
        outer = _Envelope.model_validate_json(envelope)
        payload = _base64(outer.payload)
        signatures = [_base64(each.sig) for each in outer.signatures]
    except (ValidationError, ValueError):
        raise DsseError(
            "not a DSSE envelope", hint="sign reference values with `cima reference image`"
        ) from None
    if outer.payload_type != payload_type:
        raise DsseError(
            f"the envelope does not hold {payload_type} but {printable(outer.payload_type[:200])}"
        )
    data = pae(payload_type.encode(), payload)
    if keys and not any(_is_signed(data, one, key) for one in signatures for key in keys):
        raise DsseError(
            "no signature of the envelope is by a key that was given",
            hint="check with the public key of the one who made the reference values",
        )
    return payload


def _base64(text: str) -> bytes:
    """Decode standard or URL-safe base64, as DSSE has a verifier do."""
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)


def _is_signed(data: bytes, signature: bytes, key: PublicKey) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _statement(reference: ImageReference | HostReference) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [_subject(reference)],
        "predicateType": PREDICATE_TYPE,
        "predicate": json.loads(format_reference(reference)),
    }


def _subject(reference: ImageReference | HostReference) -> dict[str, Any]:
    if isinstance(reference, ImageReference):
        algorithm, _, value = (reference.manifest or reference.image_id).partition(":")
        return {"name": reference.name or reference.image_id, "digest": {algorithm: value}}
    value = hashlib.sha256(format_reference(reference)).hexdigest()
    return {"name": "host", "digest": {"sha256": value}}


def _read_statement(payload: bytes) -> ImageReference | HostReference:
    try:
        statement = json.loads(payload)
        kinds = statement["_type"], statement["predicateType"]
        subject, predicate = statement["subject"], json.dumps(statement["predicate"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DsseError("the envelope's payload is not an in-toto statement") from None
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise DsseError("the envelope holds a statement of something else than reference values")
    reference = parse_reference(predicate.encode())
    if subject != [_subject(reference)]:
        raise DsseError("the statement's subject is not the image that its values are of")
    return reference
