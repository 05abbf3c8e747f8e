"""What every engine has in common: a file, how cima-runc gets into it, and out again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cima_runc.base.errors import CimaError

RUNTIME_NAME = "cima-runc"
"""What engines call the runtime: ``docker run --runtime cima-runc``."""


class EngineError(CimaError):
    """An engine's settings file cannot be edited as wished."""


@dataclass(frozen=True)
class Wish:
    """What is to stand in the engine's settings."""

    runtime: str
    """Absolute path of the launcher."""
    default: bool
    """Whether containers are to use it without being told to; False leaves that as it is."""
    without_cgroups: bool = False
    """Whether the low-level runtime can do without a cgroup of the container's own: crun can."""
    file: Path | None = None
    """The file to edit, where it is not where the engine has it by default."""


@dataclass(frozen=True)
class Engine:
    """How to configure one engine. ``add`` and ``remove`` are pure."""

    name: str
    find_file: Callable[[Path], Path]
    """Given the root directory, the file to edit, which need not be there."""
    named: Callable[[Path], set[str]]
    """Given the root directory, the programs that the engine takes cima-runc to be now, whichever
    of its files says so."""
    add: Callable[[str | None, Wish, Path, str], str]
    """(the file's text or None, what is wished, the root directory, how errors name the file) ->
    the text with cima-runc."""
    remove: Callable[[str, str | None, str], str | None]
    """(the text, what it was before cima-runc if known, how errors name the file) -> the text
    without cima-runc, or None where no file is needed."""
    apply_hint: str
    """What to run so that the engine reads the file."""
    try_hint: str
    """How to start a container with cima-runc."""
    not_covered: str = ""
    """What stays unmeasured where cima-runc is the default."""
    check: Callable[[Path, Path], tuple[list[str], ...]] = lambda _root, _file: ()
    """(the root directory, a file) -> commands that all succeed where the engine can read that file
    in place of its own; none where it has no such check."""
