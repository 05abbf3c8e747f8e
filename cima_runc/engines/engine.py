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


@dataclass(frozen=True)
class Engine:
    """How to configure one engine. ``add`` and ``remove`` are pure."""

    name: str
    find_file: Callable[[Path], Path]
    """Given the root directory, the file to edit, which need not be there."""
    add: Callable[[str | None, Wish, Path], str]
    """(the file's text or None, what is wished, the root directory) -> the text with cima-runc."""
    remove: Callable[[str, str | None], str | None]
    """(the text, what it was before cima-runc if known) -> the text without cima-runc, or None
    where no file is needed."""
    apply_hint: str
    """What to run so that the engine reads the file."""
    try_hint: str
    """How to start a container with cima-runc."""
