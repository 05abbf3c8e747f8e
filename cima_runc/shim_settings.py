"""The settings that the shim needs, with the standard library alone.

The same file, with every setting checked, is read by :mod:`cima_runc.config`.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

from cima_runc import limits
from cima_runc.errors import CimaError

SETTINGS_FILE = "/etc/cima/config.toml"


class SettingsError(CimaError):
    """The settings file has a key or a value that is not allowed."""

    def __init__(self, what: str) -> None:
        super().__init__(what, hint=f"mend {SETTINGS_FILE}")


@dataclass(frozen=True)
class ShimSettings:
    """How the shim and the hooks behave."""

    runtimes: tuple[str, ...] = ("runc", "crun")
    """The low-level runtimes, absolute paths or names; the first that is there is used."""
    hook_stage: str = "createRuntime"
    """``createRuntime`` or ``prestart``: the stage in which a container is registered."""
    hook_timeout_seconds: int = 60
    """How long a hook may take, 1 to 3600."""
    on_agent_unavailable: Literal["refuse", "allow"] = "refuse"
    """Whether a container starts when the agent cannot be reached: unmeasured, and noted so."""
    socket: str = "/run/cima/agent.sock"
    """Absolute path of the agent's unix socket."""
    state_dir: str = "/var/lib/cima"
    """Absolute path of the directory that holds partitions, journal and notes."""

    def __post_init__(self) -> None:
        _allow(
            "runtimes",
            self.runtimes,
            isinstance(self.runtimes, tuple)
            and bool(self.runtimes)
            and all(_is_runtime(item) for item in self.runtimes),
            "a list of absolute paths or plain names",
        )
        _allow(
            "hook_stage",
            self.hook_stage,
            self.hook_stage in ("createRuntime", "prestart"),
            '"createRuntime" or "prestart"',
        )
        _allow(
            "hook_timeout_seconds",
            self.hook_timeout_seconds,
            type(self.hook_timeout_seconds) is int and 1 <= self.hook_timeout_seconds <= 3600,
            "a whole number from 1 to 3600",
        )
        _allow(
            "on_agent_unavailable",
            self.on_agent_unavailable,
            self.on_agent_unavailable in ("refuse", "allow"),
            '"refuse" or "allow"',
        )
        for name in ("socket", "state_dir"):
            path = getattr(self, name)
            _allow(
                name,
                path,
                isinstance(path, str) and path.startswith("/") and "\0" not in path,
                "an absolute path",
            )


def _is_runtime(item: object) -> bool:
    if not isinstance(item, str) or not item or "\0" in item:
        return False
    return item.startswith("/") or "/" not in item


def _allow(key: str, value: object, allowed: bool, what: str) -> None:
    if not allowed:
        raise SettingsError(f"{key} = {value!r} is not allowed: it is {what}")


def shim_settings_of(values: dict[str, Any]) -> ShimSettings:
    """Return the shim's part of a settings file's top-level ``values``.

    Raises:
        SettingsError: one of them is not allowed.
    """
    known = {field.name for field in fields(ShimSettings)}
    chosen = {key: value for key, value in values.items() if key in known}
    if isinstance(chosen.get("runtimes"), list):
        chosen["runtimes"] = tuple(chosen["runtimes"])
    return ShimSettings(**chosen)


def read_settings_file(path: str = SETTINGS_FILE) -> dict[str, Any]:
    """Return the settings file as TOML gives it; no file means no settings.

    Raises:
        SettingsError: it cannot be read, is too large or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(limits.SETTINGS + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > limits.SETTINGS:
        raise SettingsError(f"{path} has more than {limits.SETTINGS} bytes")
    import tomllib

    try:
        return tomllib.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
