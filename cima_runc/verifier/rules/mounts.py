"""Which mount a path lies on, and which mounts are allowed."""

from collections.abc import Iterable

from cima_runc.measure.config_summary import Mount
from cima_runc.verifier.pattern import matches
from cima_runc.verifier.policy import AllowedMount
from cima_runc.verifier.rules import engines


def mount_over(mounts: Iterable[Mount], path: str) -> Mount | None:
    """Return the mount that ``path`` lies on; None for the root filesystem."""
    best = None
    for mount in mounts:
        at = mount.destination.rstrip("/")
        inside = path == at or path.startswith(at + "/")
        if inside and (best is None or len(at) >= len(best.destination.rstrip("/"))):
            best = mount
    return best


def kind(mount: Mount) -> str:
    """Return the filesystem's type; ``bind`` for a file or directory of the host."""
    return "bind" if mount.from_host else mount.type


def is_engines(mount: Mount) -> bool:
    """Return whether it is one that engines make by themselves."""
    return any(
        kind(mount) == each.type
        and matches_any(each.destinations, mount.destination)
        and (each.type != "bind" or matches_any(each.sources, mount.source))
        for each in engines.MOUNTS
    )


def is_engines_init(mount: Mount, path: str) -> bool:
    """Return whether ``path`` is an engine's init program, which this mount puts there."""
    return mount.destination == path and mount.source in engines.INIT_PROGRAMS.get(path, ())


def allows(allowed: AllowedMount, mount: Mount) -> bool:
    """Return whether this part of the policy allows the mount."""
    return (
        matches_any((allowed.destination,), mount.destination)
        and (allowed.source is None or matches_any((allowed.source,), mount.source))
        and (mount.read_only or not allowed.read_only)
    )


def matches_any(patterns: Iterable[str], path: str) -> bool:
    """Return whether a pattern is of this path; none is of one that goes up by ``..``."""
    if "/../" in f"{path}/":
        return False
    # A lone surrogate comes from JSON only; such a path is the same as no other.
    raw = path.encode("utf-8", "surrogatepass")
    return any(matches(pattern, raw) for pattern in patterns)
