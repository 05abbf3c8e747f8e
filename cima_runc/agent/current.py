"""The settings in force, and which of them a running agent can take up (``cima reload``).

One value that is replaced as a whole: who reads it sees the old settings or the new, never a
mixture.
"""

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from pydantic import BaseModel

from cima_runc.config import Settings, parse_settings

TAKEN_UP = (
    "attestation.owner_variable",
    "attestation.owners_dir",
    "attestation.retention_seconds",
    "binding.group_ms",
    "binding.mode",
    "binding.on_tpm_failure",
    "enforcement.memory",
    "foreign_bundles",
    "hook_stage",
    "hook_timeout_seconds",
    "limits.bytes",
    "limits.records",
    "on_agent_unavailable",
    "rootfs.cache",
    "rootfs.mode",
    "runtimes",
    "storage.keep_days",
    "storage.quota_mib",
    "users.group",
)
"""Settings that a running agent takes up. All others are about what is opened, loaded into the
kernel or named in records when the agent starts."""


@dataclass(frozen=True)
class Reload:
    """What a settings file that was read again changes."""

    settings: Settings
    """What is in force from now on."""
    taken_up: tuple[str, ...]
    """The settings that have changed and are in force."""
    waiting: tuple[str, ...]
    """Those that have changed in the file and take a restart."""

    def shown(self) -> dict[str, list[str]]:
        """Return what ``cima reload --json`` prints."""
        return {"in_force": list(self.taken_up), "take_a_restart": list(self.waiting)}


class CurrentSettings:
    """The settings in force."""

    def __init__(self, settings: Settings) -> None:
        self._value = settings

    @property
    def value(self) -> Settings:
        """The settings as they are now; ask again instead of keeping them."""
        return self._value

    def replace(self, settings: Settings) -> None:
        """Put other settings in force."""
        self._value = settings


def compare(now: Settings, read: Settings) -> Reload:
    """Return what becomes of the settings ``now`` with a file that was ``read``.

    Raises:
        SettingsError: what can be taken up is not allowed together with what cannot be yet.
    """
    old, new = _flat(now), _flat(read)
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    taken_up = [key for key in changed if key in TAKEN_UP]
    merged = parse_settings(_nested(old | {key: new[key] for key in taken_up}))
    waiting = [key for key in changed if key not in TAKEN_UP]
    return Reload(merged, tuple(taken_up), tuple(waiting))


def _flat(settings: Any, above: str = "") -> dict[str, Any]:
    """Return each setting by its name in the file; the sections of a section are names, too."""
    values = asdict(settings) if is_dataclass(settings) else dict(settings)  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, BaseModel) or is_dataclass(value):
            # The top-level keys of the file are a section of ours only.
            found |= _flat(value, "" if name == "shim" else f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = list(value) if isinstance(value, tuple) else value
    return values
