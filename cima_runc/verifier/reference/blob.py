"""Blobs of an image: read once, decompressed as they come, with their digests checked.

A layer is compressed with gzip or zstd, or not at all; an archive of images also with xz or bzip2.
Which one is told by the first bytes, as engines do. Nothing is trusted until the end:
:class:`LayerStream` yields the archive, and :meth:`LayerStream.finish` says whether it was the one
that the image names.
"""

import bz2
import hashlib
import lzma
import re
import zlib
from collections.abc import Callable
from typing import IO, Protocol, cast

import zstandard

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.verifier.reference.tar import Reader

_PIECE = 256 * limits.KIB
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


class BlobError(CimaError):
    """A blob is not what the image says it is, or does not fit the limits."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def check_digest(digest: str) -> str:
    """Return a digest of a form that OCI registers: sha256 or sha512, and hex. Raises BlobError."""
    if not _DIGEST.fullmatch(digest):
        raise BlobError(f"not a sha256 or sha512 digest: {printable(digest[:200])}")
    return digest


class BlobReader:
    """A blob, hashed as it is read."""

    def __init__(self, stream: Reader, digest: str | None, size: int | None) -> None:
        self._stream = stream
        self._digest = None if digest is None else check_digest(digest)
        self._size = size
        self._hash: _Hash | None = hashlib.new(digest.partition(":")[0]) if digest else None
        self.count = 0
        """Bytes read so far."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        data = self._stream.read(size)
        self.count += len(data)
        if self._size is not None and self.count > self._size:
            raise BlobError(f"the blob {self._digest} has more than its {self._size} bytes")
        if self._hash:
            self._hash.update(data)
        return data

    def finish(self) -> None:
        """Read the rest; raise :class:`BlobError` unless it all was the blob of that digest."""
        while self.read(limits.MIB):
            pass
        if self._size is not None and self.count != self._size:
            raise BlobError(
                f"the blob {self._digest} has {self.count} bytes, not {self._size}",
                hint="the image is damaged or was changed",
            )
        if self._hash and self._digest:
            found = f"{self._digest.partition(':')[0]}:{self._hash.hexdigest()}"
            if found != self._digest:
                raise BlobError(
                    f"a blob has the digest {found}, not {self._digest}",
                    hint="the image is damaged or was changed",
                )


def read_blob(stream: Reader, digest: str | None, size: int | None, most: int) -> bytes:
    """Return a whole small blob of at most ``most`` bytes. Raises :class:`BlobError`."""
    blob = BlobReader(stream, digest, size)
    parts = []
    while part := blob.read(min(limits.MIB, most + 1)):
        parts.append(part)
        if blob.count > most:
            raise BlobError(f"{digest or 'a file of the image'} has more than {most} bytes")
    blob.finish()
    return b"".join(parts)


class Decompressed:
    """What a blob becomes that may be compressed, as it comes, with a limit on how it grows."""

    def __init__(self, blob: BlobReader, what: str = "a layer", *, whole: bool = False) -> None:
        """``whole``: it is an archive of images, which people pack in more ways than layers."""
        self._blob = blob
        self._what = what
        self._count = 0
        self._archive = _decompress(blob, what, whole)
        self._piece, self._at = b"", 0

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the end. Raises BlobError."""
        if self._at == len(self._piece):
            self._piece, self._at = self._next_piece(), 0
        data = self._piece[self._at : self._at + size]
        self._at += len(data)
        return data

    def _next_piece(self) -> bytes:
        try:
            piece = self._archive.read(_PIECE)
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, _NotBzip2Error) as error:
            raise BlobError(
                f"{self._what} cannot be decompressed: {printable(str(error))}",
                hint="the image is damaged",
            ) from None
        self._count += len(piece)
        self.check_size(self._count)
        return piece

    def check_size(self, size: int) -> None:
        """Raise :class:`BlobError` where it becomes much larger than what was read of it."""
        if size > limits.LAYER_BYTES:
            raise BlobError(f"{self._what} of more than {limits.LAYER_BYTES} bytes")
        if size > limits.IMAGE_RATIO_FROM and size > self._blob.count * limits.IMAGE_RATIO:
            raise BlobError(
                f"{self._blob.count} bytes of {self._what} become more than {size}",
                hint=f"above {limits.IMAGE_RATIO_FROM} bytes it may grow {limits.IMAGE_RATIO}"
                " times: this is a decompression bomb, or zeros, which are better not in an image",
            )


class LayerStream(Decompressed):
    """A layer's archive, decompressed from its blob."""

    def __init__(self, blob: BlobReader, diff_id: str) -> None:
        super().__init__(blob)
        self._diff_id = check_digest(diff_id)
        self._hash: _Hash = hashlib.new(diff_id.partition(":")[0])

    def _next_piece(self) -> bytes:
        piece = super()._next_piece()
        self._hash.update(piece)
        return piece

    def finish(self) -> None:
        """Read the rest; raise :class:`BlobError` unless the digests are those of the image."""
        while self.read(limits.MIB):
            pass
        self._blob.finish()
        found = f"{self._diff_id.partition(':')[0]}:{self._hash.hexdigest()}"
        if found != self._diff_id:
            raise BlobError(
                f"a layer's archive has the digest {found}, not {self._diff_id}",
                hint="the image is damaged or was changed",
            )


def is_compressed(start: bytes) -> bool:
    """Return whether a file that begins so (6 bytes) is compressed, in any way that is common."""
    return start.startswith((*_UNUSABLE, _GZIP, _ZSTD)) or _is_skippable(start)


_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_BZIP2 = b"BZh"
_XZ = b"\xfd7zXZ\0"
_UNUSABLE = (_BZIP2, _XZ)
"""What OCI does not allow of a layer."""


def _is_skippable(start: bytes) -> bool:
    """Whether it is a skippable frame of zstd, which may come before others (RFC 8878)."""
    return start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50


def _decompress(blob: Reader, what: str, whole: bool) -> Reader:
    stream = _Peeked(blob)
    if whole and stream.first.startswith(_XZ):
        return _Streams(
            stream, what, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, limits.ZSTD_WINDOW)
        )
    if whole and stream.first.startswith(_BZIP2):
        return _Streams(stream, what, _Bzip2)
    if stream.first.startswith(_GZIP):
        return _Gzip(stream, what)
    if stream.first.startswith(_ZSTD) or _is_skippable(stream.first):
        reader = zstandard.ZstdDecompressor(max_window_size=limits.ZSTD_WINDOW)
        return reader.stream_reader(cast("IO[bytes]", stream), read_across_frames=True)
    if stream.first.startswith(_UNUSABLE):
        raise BlobError(
            f"{what} is compressed with bzip2 or xz, which OCI does not allow",
            hint="copy the image with skopeo, which compresses it again",
        )
    return stream


class _Peeked:
    """A stream whose first bytes are known."""

    def __init__(self, stream: Reader) -> None:
        self._stream = stream
        self.first = b""
        while len(self.first) < 6 and (data := stream.read(6 - len(self.first))):
            self.first += data
        self._kept = self.first

    def read(self, size: int = -1, /) -> bytes:
        if self._kept:
            data, self._kept = self._kept[:size], self._kept[size:] if size >= 0 else b""
            return data
        return self._stream.read(size)


class _Decompressor(Protocol):
    """What Python's modules for bzip2 and xz have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _NotBzip2Error(Exception):
    """What bzip2 cannot read, told from a file that cannot be."""


class _Bzip2:
    """One stream of bzip2."""

    def __init__(self) -> None:
        self._stream = bz2.BZ2Decompressor()

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return self._stream.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        try:
            return self._stream.decompress(data, max_length)
        except (OSError, ValueError) as error:
            raise _NotBzip2Error(str(error)) from None


class _Streams:
    """The content of a file of one or more streams of bzip2 or xz, one after the other."""

    def __init__(self, stream: Reader, what: str, new: Callable[[], _Decompressor]) -> None:
        self._stream = stream
        self._what = what
        self._new = new
        self._now = new()

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._now.eof:
                # Streams are filled up to four bytes with zeros (xz), which no stream begins with.
                data = self._now.unused_data.lstrip(b"\0") or self._stream.read(_PIECE).lstrip(
                    b"\0"
                )
                if not data:
                    return b""
                self._now = self._new()
            elif self._now.needs_input and not (data := self._stream.read(_PIECE)):
                raise BlobError(
                    f"the compressed stream of {self._what} is cut off",
                    hint="the image is damaged",
                )
            if found := self._now.decompress(data, size):
                return found


class _Gzip:
    """The content of a gzip file of one or more members (RFC 1952)."""

    def __init__(self, stream: Reader, what: str) -> None:
        self._stream = stream
        self._what = what
        self._member = zlib.decompressobj(wbits=31)
        self._input = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._member.eof:
                self._input = self._input.lstrip(b"\0")  # padding, as tapes have it
            if not self._input:
                self._input = self._stream.read(_PIECE)
                if not self._input and self._member.eof:
                    return b""
                if not self._input:
                    raise BlobError(
                        f"the gzip stream of {self._what} is cut off", hint="the image is damaged"
                    )
                continue
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            data = self._member.decompress(self._input, size)
            self._input = self._member.unused_data or self._member.unconsumed_tail
            if data:
                return data
