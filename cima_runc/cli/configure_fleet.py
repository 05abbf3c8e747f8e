"""``cima configure fleet``: has this host report to its fleet's service."""

import ssl
from pathlib import Path

from cima_runc.cli import context
from cima_runc.cli.output import note
from cima_runc.config import parse_settings
from cima_runc.engines import toml_text
from cima_runc.engines.change import Change, read_settings, replace_settings
from cima_runc.engines.engine import EngineError
from cima_runc.evidence.owner import parse_public


def fleet_change(given: dict[str, str], *, remove: bool, file: Path | None = None) -> Change:
    """Work out the change that puts ``given`` into the section ``fleet`` of the settings, or takes
    the section out.

    Raises:
        EngineError, SettingsError, OwnerError: the settings would not be good.
    """
    file = file or context.settings_file()
    now = read_settings(file)
    try:
        text = "" if now is None else now.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EngineError(f"{file} is not UTF-8", hint="mend it by hand") from error
    if remove:
        then = toml_text.drop(text, ["fleet"], str(file))
    else:
        then = text
        for key, value in given.items():
            then = toml_text.put(then, ["fleet", key], value, str(file))
        _check(then, str(file))
    return Change(file, now, now if then == text else then.encode("utf-8"), now)


def write_fleet(change: Change) -> None:
    """Make the change.

    Raises:
        EngineError: the settings file cannot be written.
    """
    assert change.then is not None
    try:
        change.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_settings(change.path, change.then, 0o644)
    except OSError as error:
        raise EngineError(
            f"{error.filename or change.path}: {error.strerror}", hint="run it as root"
        ) from error


def _check(text: str, what: str) -> None:
    """The settings are good, and the files that they name are what they should be."""
    settings = parse_settings(toml_text.parse(text, what)).fleet
    if settings.url is None:
        raise EngineError(
            "where is the fleet's service?", hint="cima configure fleet --url https://..."
        )
    if settings.ca is not None:
        try:
            ssl.create_default_context(cafile=settings.ca)
        except OSError as error:
            unread = not isinstance(error, ssl.SSLError)
            why = error.strerror if unread else "it holds no certificates"
            raise EngineError(
                f"{settings.ca} cannot be used: {why}", hint="a PEM file of certificates is wanted"
            ) from error
    if settings.service_key is not None:
        parse_public(settings.service_key)
    token = Path(settings.join_token_file)
    if not token.exists():
        note(f"{token} is not there: somebody has to approve of this host (cima fleet approve)")
    elif token.stat().st_mode & 0o077:
        raise EngineError(
            f"{token} can be read by others than its owner", hint=f"chmod 600 {token}"
        )
