"""A bundle's config.json, as far as measuring needs it. Source: OCI runtime specification."""

import os
import stat
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.base.text import printable
from cima_runc.measure.oci_names import refuse_other_spellings
from cima_runc.measure.oci_values import refuse_unlike_values


class BundleError(CimaError):
    """The container's bundle cannot be measured."""


def read_config(config: str) -> bytes:
    """Return the bytes of the configuration at this path, at most ``limits.CONFIG_JSON`` and one.

    Raises:
        BundleError: it cannot be read, or is no regular file.
    """
    path = Path(config)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BundleError(f"{printable(str(path))} is not a regular file")
            return file.read(limits.CONFIG_JSON + 1)
    except OSError as error:
        raise BundleError(f"{printable(str(path))} cannot be read: {error.strerror}") from error


def parse_config(raw: bytes) -> dict[str, Any]:
    """Return the configuration.

    Raises:
        JsonError: not a JSON object, too large, or nested too deep.
        SpellingError, UnlikeValueError: runtimes would differ in what it says.
    """
    config = load_object(
        raw, what="config.json", limit=limits.CONFIG_JSON, depth=limits.CONFIG_DEPTH
    )
    refuse_other_spellings(config)
    refuse_unlike_values(config)
    return config


def root_of(config: dict[str, Any], bundle: str) -> Path:
    """Return the path of the root filesystem.

    Raises:
        BundleError: the configuration names none.
    """
    path = _text(config.get("root"), "path")
    if path is None:
        raise BundleError("config.json names no root.path")
    return Path(bundle) / path


def cgroups_path(config: dict[str, Any]) -> str | None:
    """Return ``linux.cgroupsPath``, None without one."""
    return _text(config.get("linux"), "cgroupsPath")


def _text(holder: object, key: str) -> str | None:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if isinstance(value, str) else None
