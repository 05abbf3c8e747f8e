"""Keylime's runtime policies, to and from reference values.

A runtime policy (version 1) is a JSON object: `meta` {version, generator, timestamp}, `release`,
`digests` {path: [hex digest, ...]}, `excludes` [regular expression, ...], `keyrings`, `ima`
{ignored_keyrings, log_hash_alg, dm_policy}, `ima-buf`, `verification-keys`. Only `digests` of
SHA-256 say what reference values say; what else a policy allows is named, never taken over.

Source: https://github.com/keylime/keylime (keylime/ima/ima.py, RUNTIME_POLICY_SCHEMA).
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.measure.mtree import escape, unescape
from cima_runc.validation import first_of
from cima_runc.verifier.reference.dsse import (
    DsseError,
    PublicKey,
    is_envelope,
    load_public_key,
    open_envelope,
)
from cima_runc.verifier.reference.file import HostReference, ImageReference
from cima_runc.verifier.reference.null_is_absent import NullIsAbsent


class KeylimeError(CimaError):
    """A file is not a runtime policy of Keylime's."""


class _Meta(NullIsAbsent):
    version: int


class _Ima(NullIsAbsent):
    log_hash_alg: str = "sha1"


class _Policy(NullIsAbsent):
    meta: _Meta
    digests: dict[str, tuple[str, ...]]
    excludes: tuple[str, ...] = ()
    keyrings: dict[str, Any] = Field(default_factory=dict)
    ima: _Ima = _Ima()
    ima_buf: dict[str, Any] = Field(alias="ima-buf", default={})
    verification_keys: str = Field(alias="verification-keys", default="")


@dataclass(frozen=True, slots=True)
class Converted:
    """Reference values from a policy."""

    reference: HostReference
    left_out: tuple[str, ...]
    """What the policy also says and reference values cannot, one line each."""


_PAYLOAD_TYPE = "application/vnd.keylime+json"
"""Of a signed runtime policy, a DSSE envelope (keylime/dsse/dsse.py)."""

_LOG_HASHES = frozenset({"md5", "sha1", "sha224", "sha256", "sha384", "sha512"})
"""Hashes of logs whose digests of 32 bytes are SHA-256: no other of them is as long."""


def from_keylime(policy: bytes, keys: Sequence[PublicKey] = ()) -> Converted:
    """Return the reference values in a runtime policy, signed or not.

    Of a signed one the signature is checked where ``keys`` are given, and needed then.
    Raises :class:`KeylimeError` and :class:`DsseError`.
    """
    if len(policy) > 2 * limits.REFERENCE:
        raise KeylimeError(f"a policy of more than {2 * limits.REFERENCE} bytes")
    notes: list[str] = []
    if is_envelope(policy):
        if not keys:
            notes.append("the policy's signature, which is not checked: give its key with --key")
        policy = open_envelope(policy, keys, _PAYLOAD_TYPE)
    elif keys:
        raise KeylimeError("the policy is not signed", hint="leave --key out to take it as it is")
    converted = _convert(policy)
    return replace(converted, left_out=(*notes, *converted.left_out))


def load_key(pem: bytes) -> PublicKey:
    """Return a key that signs policies: Keylime makes them of P-521, or names them by a certificate
    (``--backend x509``). Raises :class:`DsseError`."""
    if b"-----BEGIN CERTIFICATE-----" in pem[: limits.KEY_FILE]:
        try:
            key = x509.load_pem_x509_certificate(pem[: limits.KEY_FILE]).public_key()
        except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            raise DsseError("not a certificate in PEM form") from error
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return load_public_key(pem, (ec.SECP384R1, ec.SECP521R1))


def _convert(policy: bytes) -> Converted:
    try:
        read = _Policy.model_validate_json(policy)
    except ValidationError as error:
        raise KeylimeError(
            f"not a Keylime runtime policy: {first_of(error)}",
            hint="convert an older allowlist with `keylime-policy` first",
        ) from None
    if read.meta.version != 1:
        raise KeylimeError(f"a runtime policy of version {read.meta.version}; this reads version 1")
    files: dict[str, tuple[str, ...]] = {}
    algorithm = read.ima.log_hash_alg.lower()
    if re.sub("[-_]", "", algorithm) not in _LOG_HASHES:
        raise KeylimeError(
            f"the policy's digests are of {printable(algorithm)}, not of SHA-256",
            hint="make a policy with the algorithm sha256",
        )
    left_out = [f"excluded paths: {printable(each)}" for each in read.excludes]
    for name in ("keyrings", "ima_buf", "verification_keys"):
        if getattr(read, name):
            left_out.append(f"what it says under {name.replace('_', '-')}")
    for path, digests in read.digests.items():
        sha256 = sorted({each for each in digests if re.fullmatch(r"[0-9a-f]{64}", each)})
        if path.startswith("/") and sha256:
            files[escape(os.fsencode(path))] = tuple(sha256)
        else:
            why = "no SHA-256 digest" if path.startswith("/") else "not a path"
            left_out.append(f"{printable(path)}: {why}")
    return Converted(HostReference(files=files), tuple(left_out))


def to_keylime(reference: ImageReference | HostReference) -> bytes:
    """Return a runtime policy that allows what the reference values have: every regular file.

    Raises :class:`KeylimeError` for a path that JSON text cannot hold.
    """
    digests: dict[str, list[str]] = {}
    for path, known in reference.files.items():
        name = _text(path)
        if isinstance(known, tuple):
            digests[name] = list(known)
        elif known.sha256 is not None:
            digests[name] = [known.sha256]
    policy = {
        "meta": {"version": 1, "generator": 0},
        "release": 0,
        "digests": digests,
        "excludes": [],
        "keyrings": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
        "ima-buf": {},
        "verification-keys": "",
    }
    return json.dumps(policy, sort_keys=True, indent=1).encode() + b"\n"


def _text(path: str) -> str:
    try:
        return unescape(path).decode("utf-8")
    except UnicodeDecodeError:
        raise KeylimeError(
            f"the path {path} is not UTF-8, which Keylime's JSON must be",
            hint="rename the file in the image",
        ) from None
