"""What the options before a command's name say."""

from typing import TYPE_CHECKING

from cima_runc.runtime.shim_settings import SETTINGS_FILE

if TYPE_CHECKING:
    from cima_runc.config import Settings


class _Chosen:
    settings_file = SETTINGS_FILE


def choose(settings_file: str) -> None:
    """Remember which settings file was asked for; one process runs one command."""
    _Chosen.settings_file = settings_file


def settings() -> "Settings":
    """Read the settings file.

    Raises:
        SettingsError: it holds what is not allowed.
    """
    from cima_runc.config import load_settings

    return load_settings(_Chosen.settings_file)
