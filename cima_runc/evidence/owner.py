"""A container's owner: the X25519 keys that its evidence is encrypted to.

In text a public key is ``x25519:`` and the base64 of its 32 bytes. A container names one in the
annotation ``io.cima.owner``, or, where the host's settings allow that, in the environment variable
``CIMA_OWNER``; or it names a file in a directory of the host's administrator, with a key a line,
where there are several.
"""

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.evidence.fields import decode_base64
from cima_runc.ml.lines import NAME_ANNOTATION

ANNOTATION = "io.cima.owner"
VARIABLE = "CIMA_OWNER"
WHOSE = (ANNOTATION, NAME_ANNOTATION)
"""Annotations that decide whose a container is, and what it is a run of."""

_PREFIX = "x25519:"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class OwnerError(CimaError):
    """The container names an owner whose key cannot be used."""

    def __init__(self, what: str) -> None:
        super().__init__(what, hint="make a key with: cima keygen")


def parse_public(text: str) -> bytes:
    """Return the 32 bytes of a public key's text.

    Raises:
        OwnerError: not such a text, or a key that no secret can be agreed with.
    """
    if not text.startswith(_PREFIX):
        raise OwnerError("an owner's public key begins with x25519:")
    try:
        public = decode_base64(text.removeprefix(_PREFIX))
    except ValueError as error:
        raise OwnerError("an owner's public key is not base64") from error
    if len(public) != 32:
        raise OwnerError(f"an owner's public key has 32 bytes, found {len(public)}")
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OwnerError("an owner's public key is a point of low order") from error
    return public


def public_text(public: bytes) -> str:
    """Return a public key (32 bytes) as text."""
    return _PREFIX + base64.b64encode(public).decode("ascii")


def generate() -> tuple[bytes, bytes]:
    """Return a new pair: (private key as PKCS #8 PEM, public key's 32 bytes)."""
    private = X25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem, private.public_key().public_bytes_raw()


def parse_private(pem: bytes) -> X25519PrivateKey:
    """Read a private key's PEM.

    Raises:
        OwnerError: not an X25519 private key without a password.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OwnerError("the owner's private key is not a PEM file without a password") from error
    if not isinstance(key, X25519PrivateKey):
        raise OwnerError("the owner's private key is not an X25519 key")
    return key


def annotated_owner(config: dict[str, Any]) -> str | None:
    """Return what an OCI configuration's annotation names as its owner.

    Who starts a container sets annotations; the image, too, under Podman before 4.5.1: the agent
    looks for that (:mod:`cima_runc.measure.podman_image`).
    """
    annotations = config.get("annotations")
    if isinstance(annotations, dict) and isinstance(annotations.get(ANNOTATION), str):
        return str(annotations[ANNOTATION])
    return None


def names_us(config: Mapping[str, Any]) -> bool:
    """Whether an OCI configuration has one of :data:`WHOSE`."""
    annotations = config.get("annotations")
    return isinstance(annotations, dict) and not annotations.keys().isdisjoint(WHOSE)


def variable_owner(config: dict[str, Any]) -> str | None:
    """Return what an OCI configuration's variable names as its owner; an image can set it, too."""
    process = config.get("process")
    env = process.get("env") if isinstance(process, dict) else None
    values = [
        item.partition("=")[2]
        for item in (env if isinstance(env, list) else [])
        if isinstance(item, str) and item.startswith(VARIABLE + "=")
    ]
    return values[-1] if values else None


def owner_keys(
    config: dict[str, Any], directory: Path, *, variable: bool = False
) -> tuple[str, ...]:
    """Return the public keys (as text) of the owner that the configuration names, () without one.

    The annotation does, or else, where ``variable`` allows it, the environment variable. Files are
    looked for in ``directory`` and nowhere else.

    Raises:
        OwnerError: a key or a file cannot be used: such a container must not start unprotected.
    """
    named = annotated_owner(config)
    if named is None and variable:
        named = variable_owner(config)
    if named is None:
        return ()
    lines = [named] if named.startswith(_PREFIX) else _read_file(named, directory)
    if not 0 < len(lines) <= limits.OWNERS:
        raise OwnerError(f"an owner has 1 to {limits.OWNERS} keys, found {len(lines)}")
    return tuple(public_text(parse_public(line)) for line in lines)


def _read_file(name: str, directory: Path) -> list[str]:
    if not _FILE_NAME.fullmatch(name):
        raise OwnerError(
            f"the owner is neither an x25519: key nor the name of a file in {directory}"
        )
    path = directory / name
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            raw = file.read(limits.OWNER_FILE + 1)
        text = raw.decode("ascii")
    except (OSError, ValueError) as error:
        raise OwnerError(f"the owner's keys in {path} cannot be read") from error
    if len(raw) > limits.OWNER_FILE:
        raise OwnerError(f"{path} has more than {limits.OWNER_FILE} bytes")
    return [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
