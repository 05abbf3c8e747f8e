"""The settings that the shim needs, with the standard library alone.

The same file, with every setting checked, is read by :mod:`cima_runc.config`. The launcher
(native/cima-runc.c) reads no TOML: whoever has read the file leaves what the launcher needs in a
companion file, which is good as long as the settings file is that very one.
"""

import os
import time
from dataclasses import dataclass, fields
from typing import Any, Literal

from cima_runc.base import limits
from cima_runc.base.errors import CimaError

SETTINGS_FILE = "/etc/cima/config.toml"
COMPANION_FILE = "/run/cima/launcher"
"""Made by :func:`write_companion`, read by the launcher."""
COMPANION_MAGIC = "cima-runc-launcher-1"
_COMPANION_MAX = 4000
_COMPANION_RUNTIMES = 16
_ALL_IDS = "0 0 4294967295"
"""The map of a user namespace that maps every id to itself, as the first one does."""
_QUIET_NS = 2_000_000_000
"""A file changed less than this ago may change again without a new change time."""


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
    foreign_bundles: Literal["refuse", "allow"] = "refuse"
    """Whether a container starts from a bundle that others than the caller may write; its record
    then says that what was measured need not be what ran."""
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
        _allow(
            "foreign_bundles",
            self.foreign_bundles,
            self.foreign_bundles in ("refuse", "allow"),
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
        why = "it is not UTF-8" if isinstance(error, UnicodeError) else error
        raise SettingsError(f"{path} is not TOML: {why}") from error


def has_own_ids() -> bool:
    """Whether this process is in the first user namespace: its root is the host's."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return " ".join(file.read().split()) == _ALL_IDS
    except FileNotFoundError:
        return True  # a kernel without user namespaces


def socket_of_caller(settings: ShimSettings) -> str:
    """Return the agent's socket for this process: root's, or the one for all other users.

    Who is root in a user namespace only is another user for the agent.
    """
    if os.geteuid() == 0 and has_own_ids():
        return settings.socket
    from cima_runc.runtime.agent_socket import USERS_SUFFIX

    return settings.socket + USERS_SUFFIX


def identity_of(path: str = SETTINGS_FILE) -> str | None:
    """Return what tells this very state of the settings file from any other; None for no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (
        f"{status.st_dev} {status.st_ino} {status.st_size} "
        f"{_seconds(status.st_mtime_ns)} {_seconds(status.st_ctime_ns)}"
    )


def write_companion(
    identity: str | None,
    settings: ShimSettings,
    *,
    path: str = COMPANION_FILE,
    settings_file: str = SETTINGS_FILE,
) -> bool:
    """Leave for the launcher what it needs of ``settings``, read from the file of ``identity``.

    Nothing is written, and False returned, by anybody but root, where there is no settings file or
    it has just changed, and for values that do not fit; the launcher then asks Python.
    """
    lines = [settings.socket, *settings.runtimes]
    if identity is None or os.geteuid() != 0 or any("\n" in line for line in lines):
        return False
    encoded = os.fsencode("\n".join([f"{COMPANION_MAGIC} {identity}", *lines, ""]))
    if len(encoded) > _COMPANION_MAX or len(settings.runtimes) > _COMPANION_RUNTIMES:
        return False
    from cima_runc.base.replaced import replace

    try:
        age = time.time_ns() - os.stat(settings_file).st_ctime_ns
        if age < _QUIET_NS or identity_of(settings_file) != identity:
            return False
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        replace(path, encoded, mode=0o644, sync=False)
    except OSError:
        # Only speed is lost: the launcher asks Python again.
        return False
    return True


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 1_000_000_000}.{nanoseconds % 1_000_000_000:09d}"
