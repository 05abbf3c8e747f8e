"""User and group ids on the host, as the container sees them."""

from dataclasses import dataclass

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

OVERFLOW_ID = 65534
"""What a process sees of an id that its user namespace does not map
(/proc/sys/kernel/overflowuid, overflowgid)."""

_ALL = 0xFFFFFFFF


class IdMapError(CimaError):
    """A map of user or group ids is not of the kernel's form."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """One line of /proc/PID/uid_map: ``size`` ids from ``inside`` on are ``outside`` on."""

    inside: int
    outside: int
    size: int


@dataclass(frozen=True, slots=True)
class IdMap:
    """The ids of one user namespace; without ranges, nothing is mapped and ids stay as they are."""

    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether every id inside is the same id outside."""
        return all(each.inside == each.outside for each in self.uids + self.gids)

    def has_uid(self, outside: int) -> bool:
        """Whether a user id of the host is one of the namespace's."""
        return any(each.outside <= outside < each.outside + each.size for each in self.uids)

    def uid(self, outside: int) -> int:
        """Return a user id of the host as the namespace has it."""
        return _inside(outside, self.uids)

    def gid(self, outside: int) -> int:
        """Return a group id of the host as the namespace has it."""
        return _inside(outside, self.gids)


IDENTITY = IdMap()
"""No user namespace."""


def _inside(outside: int, ranges: tuple[IdRange, ...]) -> int:
    if not ranges:
        return outside
    for each in ranges:
        if each.outside <= outside < each.outside + each.size:
            return outside - each.outside + each.inside
    return OVERFLOW_ID


def parse_id_maps(uid_map: bytes, gid_map: bytes) -> IdMap:
    """Return the map of a user namespace from /proc/PID/uid_map and gid_map.

    Read them as a process outside the namespace: the kernel shows the outer ids as the reader's
    own namespace has them (user_namespaces(7)). Raises :class:`IdMapError`.
    """
    return IdMap(_parse(uid_map), _parse(gid_map))


def _parse(text: bytes) -> tuple[IdRange, ...]:
    ranges = []
    for line in text.splitlines():
        words = line.split()
        if len(words) != 3 or not all(word.isdigit() and len(word) <= 10 for word in words):
            raise IdMapError(f"not a line of an id map: {printable(line[:200])}")
        each = IdRange(*map(int, words))
        if not each.size or max(each.inside, each.outside) + each.size > _ALL + 1:
            raise IdMapError(f"not a range of ids: {printable(line[:200])}")
        ranges.append(each)
    return tuple(ranges)
