"""Certificates as a TPM's NV memory holds them: filled up, wrapped, one behind another, cut.

Pure, and without a TPM library. Numbers in DER are big-endian.
Source: TCG EK Credential Profile 2.5, 2.2.1 (NV indices; a chain may go on in the next index);
TCG PC Client Specific Implementation Specification for Conventional BIOS 1.21, 7.4.4
(TCG_PCCLIENT_STORED_CERT, which some TPM 2.0 still have); ITU-T X.690, 8.1.3 (lengths).
"""

import itertools
from collections.abc import Iterable, Iterator

_SEQUENCE = 0x30
_BIT_STRING = 0x03
_OCTET_STRING = 0x04
_PARTS = (_SEQUENCE, _SEQUENCE, _BIT_STRING)
"""What is signed, with which algorithm, and the signature."""
_STORED_CERT = b"\x10\x01"
_FULL_CERT = b"\x10\x02"
_STORED_HEAD = 5
"""Bytes of TCG_PCCLIENT_STORED_CERT: tag, type of the certificate (u8), size (u16)."""
_DEPTH = 4
_HEAD_MAX = 5
"""Bytes of a DER element's tag and length, at most, that a certificate has."""


def unwrap(data: bytes) -> bytes:
    """Return the certificate (DER) at the beginning of ``data``, without what is around it.

    Where there is none, ``data`` as it is: who reads it as a certificate then says so.
    """
    for _ in range(_DEPTH):
        if data[:2] == _STORED_CERT:
            size = int.from_bytes(data[3:_STORED_HEAD], "big")
            data = data[_STORED_HEAD : _STORED_HEAD + size]
        elif data[:2] == _FULL_CERT:
            data = data[2:]
        elif data[:1] == bytes([_OCTET_STRING]) and (element := _element(data)):
            head, size = element
            data = data[head : head + size]
        else:
            break
    element = _element(data)
    if data[:1] == bytes([_SEQUENCE]) and element and sum(element) <= len(data):
        return data[: sum(element)]
    return data


def is_certificate(data: bytes) -> bool:
    """Whether ``data`` is one whole DER SEQUENCE of what a certificate is made of.

    By less than all three parts the beginning of something else, and the certificate in the next
    index, can be taken for one. Source: RFC 5280, 4.1.
    """
    element = _element(data)
    if data[:1] != bytes([_SEQUENCE]) or element is None or sum(element) != len(data):
        return False
    data = data[element[0] :]
    for tag in _PARTS:
        part = _element(data)
        if data[:1] != bytes([tag]) or part is None or sum(part) > len(data):
            return False
        data = data[sum(part) :]
    return not data


def elements(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole DER SEQUENCEs that ``data`` begins with, and what comes behind them."""
    found = []
    while data[:1] == bytes([_SEQUENCE]):
        element = _element(data)
        if element is None or sum(element) > len(data):
            break
        found.append(data[: sum(element)])
        data = data[sum(element) :]
    return found, data


def join_chain(indices: Iterable[tuple[int, bytes]]) -> tuple[list[bytes], list[int]]:
    """Return the certificates of the chain that NV indices hold, and the indices that hold none.

    ``indices`` are (number, content), ascending. An index may hold several certificates, and one
    may go on in the next index.
    """
    found: list[bytes] = []
    foreign: list[int] = []
    rest, begun = b"", 0
    for number, content in indices:
        data, first = rest + content, begun if rest else number
        some = list(_certificates(data))
        if rest and not some and (alone := list(_certificates(content))):
            # What looked like a beginning was another program's.
            foreign.append(begun)
            data, first, some = content, number, alone
        found += some
        plain = data[:1] == bytes([_SEQUENCE])
        rest = data[sum(len(one) for one in some) :] if plain else b""
        if _goes_on(rest):
            begun = number if some else first
            continue
        rest = b""
        if not some:
            foreign.append(first)
    if rest:
        foreign.append(begun)
    return found, foreign


def _goes_on(tail: bytes) -> bool:
    """Whether a certificate may begin here and end in the next index."""
    if tail[:1] != bytes([_SEQUENCE]):
        return False
    element = _element(tail)
    return len(tail) < _HEAD_MAX if element is None else sum(element) > len(tail)


def _certificates(data: bytes) -> Iterator[bytes]:
    if data[:1] != bytes([_SEQUENCE]):
        one = unwrap(data)
        if is_certificate(one):
            yield one
        return
    yield from itertools.takewhile(is_certificate, elements(data)[0])


def _element(data: bytes) -> tuple[int, int] | None:
    """Return how long head and content of a DER element are, None where it has no length."""
    if len(data) < 2:
        return None
    first = data[1]
    if first < 0x80:
        return 2, first
    octets = first & 0x7F
    if not 1 <= octets <= 3 or len(data) < 2 + octets:
        return None
    return 2 + octets, int.from_bytes(data[2 : 2 + octets], "big")
