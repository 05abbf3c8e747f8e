"""What the options before a command's name say."""

from typing import TYPE_CHECKING

from cima_runc.base.errors import CimaError
from cima_runc.runtime.shim_settings import SETTINGS_FILE

if TYPE_CHECKING:
    from cima_runc.config import Settings


class NoSettingsError(CimaError):
    """The settings file that was asked for is not there."""


class _Chosen:
    settings_file: str | None = None


def choose(settings_file: str | None) -> None:
    """Remember which settings file was asked for, None: the usual; one process runs one command."""
    _Chosen.settings_file = settings_file


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
    return load_settings(chosen or SETTINGS_FILE)
