"""What the options before a command's name say, and what this run of it has done."""

from typing import TYPE_CHECKING, ClassVar

from cima_runc.base.errors import CimaError
from cima_runc.runtime.shim_settings import SETTINGS_FILE, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from cima_runc.config import Settings


class NoSettingsError(CimaError):
    """The settings file that was asked for is not there."""


class _Chosen:
    settings_file: str | None = None
    done: ClassVar[set[str]] = set()


def choose(settings_file: str | None) -> None:
    """Remember which settings file was asked for, None: the usual; one process runs one command."""
    _Chosen.settings_file = settings_file
    _Chosen.done.clear()


def first_time(what: str) -> bool:
    """Whether this command asks so for the first time: for what is done or said once."""
    known = what in _Chosen.done
    _Chosen.done.add(what)
    return not known


def settings_file() -> "Path":
    """Return where the settings file is, or shall be."""
    from pathlib import Path

    return Path(_Chosen.settings_file or SETTINGS_FILE)


def settings() -> "Settings":
    """Read the settings file.

    Raises:
        SettingsError: it holds what is not allowed.
        NoSettingsError: it was asked for by name, and is not there.
    """
    from pathlib import Path

    from cima_runc.config import load_settings

    chosen = _Chosen.settings_file
    if chosen is not None and not Path(chosen).is_file():
        raise NoSettingsError(f"{chosen} is no settings file", hint="--config names one")
    try:
        return load_settings(chosen or SETTINGS_FILE)
    except SettingsError as error:
        error.hint = f"mend {chosen or SETTINGS_FILE}"
        raise
