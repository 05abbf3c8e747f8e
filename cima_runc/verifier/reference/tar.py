"""Read a tar archive member by member, as the engines' reader (Go's archive/tar) does.

Python's own tarfile is not used, since what it makes of an archive differs: it obeys global
extended headers, where engines ignore them; takes a damaged header for the end; and reads
extended headers of any size into memory. Two readings of one archive are how an image could show
the verifier one file and the engine another.

Formats: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), and GNU tar's long names, base-256 numbers
and sparse files (old GNU, pax 0.0, 0.1 and 1.0).
Source: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html; the GNU tar manual.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

BLOCK = 512
_XATTR = b"SCHILY.xattr."
_PIECE = 1 * limits.MIB


class TarError(CimaError):
    """An archive is damaged, or has something that no engine unpacks."""


class Reader(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""


@dataclass(slots=True)
class Member:
    """One member of an archive."""

    name: bytes
    """As it is in the archive: perhaps absolute, perhaps with `..`."""
    type: bytes
    """The type flag, one byte: 0 file, 1 hard link, 2 symbolic link, 3 char, 4 block, 5 directory,
    6 FIFO."""
    size: int
    """Bytes of the content, holes of a sparse file counted."""
    mode: int
    uid: int
    gid: int
    link: bytes
    """The target of a hard or symbolic link."""
    major: int
    minor: int
    xattrs: dict[str, bytes] = field(default_factory=dict)
    content: Callable[[], Iterator[bytes]] = lambda: iter(())
    """Yields the content in pieces; to be called before the next member is asked for, or not."""


@runtime_checkable
class Skipping(Protocol):
    """A reader that can leave out what nobody wants to read."""

    def skip(self, size: int, /) -> None:
        """Go ``size`` bytes on. Raises :class:`TarError` if there are not as many."""


def read_tar(stream: Reader) -> Iterator[Member]:
    """Yield the members of an archive; the stream is then behind its end-of-archive blocks.

    Contents that are not asked for are skipped, where the stream is :class:`Skipping`.
    Raises :class:`TarError`.
    """
    return _Archive(stream).members()


class _Archive:
    """The reading of one archive."""

    def __init__(self, stream: Reader) -> None:
        self._stream = stream
        self._skip_by: Callable[[int], None] | None = None
        if isinstance(stream, Skipping):
            self._skip_by = stream.skip
        self._unread = 0
        """Bytes of the present member's content, with its padding, that are still to come."""
        self._padding = 0
        """How many of them are padding."""

    def members(self) -> Iterator[Member]:
        pax: dict[bytes, bytes] = {}
        long: dict[bytes, bytes] = {}
        while (header := self._header()) is not None:
            kind = header[156:157]
            if kind in {b"x", b"g", b"L", b"K"}:
                body = self._small_body(header)
                if kind == b"x":
                    pax = parse_pax(body)
                elif kind == b"g":
                    pax, long = {}, {}  # engines skip a global header, as if it were a member
                else:
                    long[kind] = body.partition(b"\0")[0]
                continue
            yield self._member(header, pax, long)
            pax, long = {}, {}
        if pax or long:
            raise TarError("an archive ends between an extended header and its member")

    def _header(self) -> bytes | None:
        """Return the next header block, or None at the end of the archive."""
        self._skip()
        header = self._block(may_end=True)
        if not header:
            return None
        if header == bytes(BLOCK):
            if (after := self._block(may_end=True)) and after != bytes(BLOCK):
                raise TarError("an archive goes on after a block of zeros")
            return None
        if not _is_checksum_good(header):
            raise TarError("the checksum of a tar header is wrong", hint="the archive is damaged")
        return header

    def _block(self, may_end: bool = False) -> bytes:
        block = self._read(BLOCK)
        if len(block) < BLOCK and (block or not may_end):
            raise TarError("an archive ends in the middle")
        return block

    def _read(self, size: int) -> bytes:
        parts = []
        while size and (part := self._stream.read(min(size, _PIECE))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _skip(self) -> None:
        """Go to the end of the present member's content.

        Engines take an archive that ends before the last member's padding, as umoci writes it.
        """
        if self._skip_by and self._unread > self._padding:
            self._skip_by(self._unread - self._padding)
            self._unread = self._padding
        while self._unread:
            part = self._stream.read(min(self._unread, _PIECE))
            if not part and self._unread > self._padding:
                raise TarError("an archive ends in the middle of a member")
            self._unread -= len(part) or self._unread

    def _small_body(self, header: bytes) -> bytes:
        size = _number(header[124:136])
        if size > limits.TAR_HEADER:
            raise TarError(f"an extended header of {size} bytes; at most {limits.TAR_HEADER}")
        body = self._read(size + -size % BLOCK)
        if len(body) < size:
            raise TarError("an archive ends in the middle of an extended header")
        return body[:size]

    def _member(self, header: bytes, pax: dict[bytes, bytes], long: dict[bytes, bytes]) -> Member:
        kind = header[156:157]
        is_gnu = header[257:265] == b"ustar  \0"
        is_posix = header[257:263] == b"ustar\0"
        name = header[:100].partition(b"\0")[0]
        if is_posix or (is_gnu and _has_go_prefix(header)):
            end = 476 if header[508:512] == b"tar\0" else 500  # star's header has times there
            prefix = header[345:end].partition(b"\0")[0]
            name = prefix + b"/" + name if prefix else name
        stored = _number(header[124:136])
        member = Member(
            name=name,
            type=kind,
            size=stored,
            mode=_number(header[100:108]),
            uid=_number(header[108:116]),
            gid=_number(header[116:124]),
            link=header[157:257].partition(b"\0")[0],
            major=_number(header[329:337]) if is_posix or is_gnu else 0,
            minor=_number(header[337:345]) if is_posix or is_gnu else 0,
        )
        self._merge(member, pax, long)
        stored = member.size
        if kind == b"\0":  # before POSIX.1-1988, a directory was a file with a slash at its end
            member.type = b"5" if member.name.endswith(b"/") else b"0"
        if member.type in b"123456":
            member.size = stored = 0  # whatever it says, no content follows
        self._padding = -stored % BLOCK
        self._unread = stored + self._padding
        if member.type == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax):
            self._sparse(member, header, pax)
        else:
            member.content = lambda: self._content(stored)
        return member

    def _merge(self, member: Member, pax: dict[bytes, bytes], long: dict[bytes, bytes]) -> None:
        """Put what extended headers say in the place of the header's own fields."""
        for key, value in pax.items():
            if key.startswith(_XATTR):
                member.xattrs[key[len(_XATTR) :].decode("utf-8", "surrogateescape")] = value
            elif not value:
                continue  # an empty value undoes an earlier one
            elif key == b"path":
                member.name = value
            elif key == b"linkpath":
                member.link = value
            elif key == b"size":
                member.size = _decimal(value)
            elif key == b"uid":
                member.uid = _decimal(value)
            elif key == b"gid":
                member.gid = _decimal(value)
        member.name = long.get(b"L") or member.name
        member.link = long.get(b"K") or member.link

    def _content(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes of the present member."""
        while size:
            part = self._stream.read(min(size, _PIECE))
            if not part:
                raise TarError("an archive ends in the middle of a file")
            size -= len(part)
            self._unread -= len(part)
            yield part

    # Sparse files: a map of the pieces that are there, (offset, size) each; the rest is zeros.

    def _sparse(self, member: Member, header: bytes, pax: dict[bytes, bytes]) -> None:
        stored = member.size
        if member.type == b"S":
            pieces = self._old_gnu_map(header)
            real = _number(header[483:495])
        elif member.type != b"0":
            raise TarError("a sparse file that is not a regular file")
        else:
            version = pax.get(b"GNU.sparse.major", b"0"), pax.get(b"GNU.sparse.minor", b"0")
            name = pax.get(b"GNU.sparse.name")
            if name:
                member.name = name
            size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
            if size is None:
                raise TarError("a sparse file without its size")
            real = _decimal(size)
            if version == (b"1", b"0"):
                before = self._unread
                pieces = self._pax_1_map()
                stored -= before - self._unread
            elif version[0] == b"0" and pax.get(b"GNU.sparse.map"):
                numbers = [_decimal(each) for each in pax[b"GNU.sparse.map"].split(b",")]
                pieces = _pairs(numbers)
            else:
                raise TarError("a sparse file of an unknown form")
        _check_map(pieces, real)
        if sum(size for _, size in pieces) != stored:
            raise TarError("the map of a sparse file is of another length than its content")
        member.type, member.size = b"0", real
        member.content = lambda: self._sparse_content(pieces, real)

    def _old_gnu_map(self, header: bytes) -> list[tuple[int, int]]:
        pieces = _old_gnu_pieces(header[386:482], 4)
        extended = header[482]
        while extended:
            if len(pieces) > limits.TAR_HEADER // 24:
                raise TarError("the map of a sparse file is too long")
            block = self._block()
            pieces += _old_gnu_pieces(block[:504], 21)
            extended = block[504]
        return pieces

    def _pax_1_map(self) -> list[tuple[int, int]]:
        """Read the map at the beginning of the content: decimal numbers, one a line."""
        data = b""

        def line() -> int:
            nonlocal data
            while b"\n" not in data:
                if self._unread < BLOCK:
                    raise TarError("the map of a sparse file is cut off")
                data += self._block()
                self._unread -= BLOCK
            number, _, data = data.partition(b"\n")
            return _decimal(number)

        count = line()
        if count > limits.TAR_HEADER // 24:
            raise TarError("the map of a sparse file is too long")
        return _pairs([line() for _ in range(2 * count)])

    def _sparse_content(self, pieces: list[tuple[int, int]], real: int) -> Iterator[bytes]:
        at = 0
        for offset, size in [*pieces, (real, 0)]:
            yield from _zeros(offset - at)
            yield from self._content(size)
            at = offset + size


def _is_checksum_good(header: bytes) -> bool:
    """Whether the bytes add up, each taken as unsigned (POSIX) or signed (some old writers)."""
    said = _octal(header[148:156])
    total = sum(header) - sum(header[148:156]) + 8 * 0x20
    if said == total:
        return True
    return said == total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield bytes(min(size, _PIECE))
        size -= _PIECE


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise TarError("the map of a sparse file is not of pairs")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _old_gnu_pieces(data: bytes, count: int) -> list[tuple[int, int]]:
    pieces = []
    for at in range(0, 24 * count, 24):
        if data[at] == 0:
            break
        pieces.append((_number(data[at : at + 12]), _number(data[at + 12 : at + 24])))
    return pieces


def _check_map(pieces: list[tuple[int, int]], real: int) -> None:
    at = 0
    for offset, size in pieces:
        if offset < at:
            raise TarError("the map of a sparse file is out of order")
        at = offset + size
    if at > real:
        raise TarError("the map of a sparse file goes beyond its size")


def parse_pax(body: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header, each `LENGTH KEY=VALUE` and a newline.

    Raises :class:`TarError`.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    while body:
        digits, found, _ = body[:20].partition(b" ")
        length = _decimal(digits) if found else 0
        record, body = body[:length], body[length:]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if len(record) < max(length, 5) or not equals or not key or not value.endswith(b"\n"):
            raise TarError("an extended header is not of the form LENGTH KEY=VALUE")
        value = value[:-1]
        if key in {b"path", b"linkpath"} and b"\0" in value:
            raise TarError(f"a zero byte in the {key.decode()} of an extended header")
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            sparse.append(value)  # pax 0.0 has them over and over
            records[b"GNU.sparse.map"] = b",".join(sparse)
        else:
            records[key] = value
    return records


def _has_go_prefix(header: bytes) -> bool:
    """Whether a GNU header has a ustar prefix, as Go wrote before 1.8 (so, Docker before 17.04)."""
    times, prefix = (header[345:357], header[357:369]), header[345:500].partition(b"\0")[0]
    try:
        for time in times:
            _number(time)
    except TarError:
        return prefix.isascii()
    return False


def _number(raw: bytes) -> int:
    """Return a number field: octal text, or base 256 where its first bit is set."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        if raw[0] & 0x40 or value >= 2**63:
            raise TarError("it is no tar archive: a number is negative or too large")
        return value
    return _octal(raw)


def _octal(raw: bytes) -> int:
    digits = raw.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    if not set(digits) <= set(b"01234567"):
        raise TarError(f"it is no tar archive, or a damaged one: not a number: {printable(raw)}")
    return int(digits, 8)


def _decimal(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 19:
        raise TarError(f"not a number in an extended header: {printable(raw[:40])}")
    if (value := int(raw)) >= 2**63:
        raise TarError("a number in an extended header is too large")
    return value
