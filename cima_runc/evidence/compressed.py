"""Bodies of HTTP messages, compressed: taken apart piece by piece, with an end.

Source: RFC 9110, 8.4 (Content-Encoding); RFC 1952 (gzip); RFC 8878 (zstd).
"""

import zlib
from collections.abc import Iterator

import zstandard

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.evidence.errors import EvidenceFormatError, EvidenceTooLargeError

ENCODING = "zstd"
"""What :func:`compressed` gives, as Content-Encoding names it."""

_GZIP = 16 + zlib.MAX_WBITS


class EncodingError(EvidenceFormatError):
    """The body is not compressed as it says, or in a way that we do not know."""


class BombError(EvidenceTooLargeError):
    """The body becomes larger than any that we take."""


def compressed(raw: bytes) -> bytes:
    """Return ``raw`` as one zstd frame."""
    return zstandard.ZstdCompressor(level=3).compress(raw)


def decompressed(body: bytes, encoding: str | None, limit: int = limits.REPORT) -> bytes:
    """Return what ``body`` was before it was compressed; never more than ``limit`` bytes are made.

    ``encoding`` is the value of Content-Encoding: ``zstd``, ``gzip``, ``identity``, or None.

    Raises:
        BombError: it is, or becomes, larger than ``limit``.
        EncodingError: another encoding, not one whole frame, or more than one.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        pieces: Iterator[bytes] = iter((body,))
    elif name == "gzip":
        pieces = _gunzip(body)
    elif name == "zstd":
        pieces = _unzstd(body)
    else:
        raise EncodingError(
            f"the content encoding {printable(name[:40])} is not known", hint="use zstd or gzip"
        )
    found, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise BombError(f"the body has more than {limit} bytes")
        found.append(piece)
    return b"".join(found)


def _gunzip(body: bytes) -> Iterator[bytes]:
    reader = zlib.decompressobj(_GZIP)
    rest = body
    try:
        while not reader.eof:
            piece = reader.decompress(rest, limits.READ_SOON)
            rest = reader.unconsumed_tail
            if not piece and not rest:
                break
            yield piece
    except zlib.error as error:
        raise EncodingError("the body is not gzip") from error
    if not reader.eof or reader.unused_data:
        raise EncodingError("the body is not one whole gzip member")


def _unzstd(body: bytes) -> Iterator[bytes]:
    window = limits.REPORT_WINDOW
    reader = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
    # What one call gives has no limit but the frame's own blocks: 128 KiB for every four bytes.
    at = 0
    try:
        while at < len(body) and not reader.eof:
            yield reader.decompress(body[at : at + _ZSTD_STEP])
            at += _ZSTD_STEP
    except zstandard.ZstdError as error:
        raise EncodingError("the body is not zstd") from error
    if not reader.eof or reader.unused_data or at < len(body):
        raise EncodingError("the body is not one whole zstd frame")


_ZSTD_STEP = 256
"""Bytes that are decompressed at a time: at most 64 blocks, 8 MiB."""
