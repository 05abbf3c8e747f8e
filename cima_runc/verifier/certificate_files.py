"""Certificates in the files that manufacturers publish and tools write, one by one.

PEM with any number of them and text between; DER, one behind another; PKCS #7 (``.p7b``, ``.p7c``)
in both; bare Base64, as Windows and Intel's service have it. Nothing is judged here, and what is no
certificate is handed on as it is: who reads it then names it.
Sources: RFC 7468; RFC 2315 and RFC 5652 (signedData without signers); Intel on-die CA and EK
provisioning service (``{"certificate": BASE64URL}``).
"""

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from asn1crypto import cms
from asn1crypto import pem as pem_armor

from cima_runc.tpm.stored_certificate import elements

_BEGIN = re.compile(
    rb"-----BEGIN (?P<kind>(?:X509 |TRUSTED )?CERTIFICATE(?: CHAIN)?|PKCS7|CMS)-----"
)
_ANY_BEGIN = b"-----BEGIN "
_FILLING = b"\0\xff \t\r\n"
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
"""What asn1crypto raises for bytes that are not what they should be."""


def certificates_in(data: bytes) -> list[bytes]:
    """Return what stands in a file for a certificate each: DER, or what cannot be read as such."""
    data = _as_bytes(data)
    if _BEGIN.search(data):
        return [one for block in _blocks(data) for one in _in_block(block)]
    return list(_in_der(_decoded(data)))


def _as_bytes(data: bytes) -> bytes:
    """Return the text of a file that Windows wrote in UTF-16, as ASCII."""
    if data.startswith(_UTF_16):
        with suppress(ValueError):
            return data.decode("utf-16").encode("ascii")
    return data.removeprefix(codecs.BOM_UTF8)


def _blocks(data: bytes) -> Iterator[bytes]:
    """Yield each armoured block, one without its end up to the next one's beginning."""
    for found in _BEGIN.finditer(data):
        following = data.find(_ANY_BEGIN, found.end())
        block = data[found.start() : following if following >= 0 else len(data)]
        end = b"-----END " + found["kind"] + b"-----"
        body, is_ended, _ = block.partition(end)
        yield body + is_ended


def _in_block(block: bytes) -> Iterable[bytes]:
    try:
        der = pem_armor.unarmor(block)[2]
    except _UNREADABLE:
        return (block,)
    return _in_der(der)


def _in_der(data: bytes) -> Iterator[bytes]:
    found, rest = elements(data)
    for one in found:
        yield from _in_pkcs7(one)
    # Whatever is not there to fill the file up; a file of one that is wrapped is all such.
    if rest.strip(_FILLING) or not found:
        yield rest


def _in_pkcs7(der: bytes) -> Iterable[bytes]:
    with suppress(*_UNREADABLE):
        content = cms.ContentInfo.load(der, strict=True)
        if content["content_type"].native == "signed_data":
            found = [one.chosen.dump() for one in content["content"]["certificates"]]
            return found or (der,)
    return (der,)


def _decoded(data: bytes) -> bytes:
    """Return what bare Base64 stands for, in either alphabet; other bytes as they are."""
    with suppress(ValueError, RecursionError):
        told = json.loads(data)
        if isinstance(told, dict) and isinstance(told.get("certificate"), str):
            data = told["certificate"].encode("ascii")
    if not _BASE64.fullmatch(data):
        return data
    text = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    with suppress(binascii.Error):
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    return data
