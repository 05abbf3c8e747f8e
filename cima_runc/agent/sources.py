"""The sources of measurement: what is there, and how to turn on what is not."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cima_runc.base.errors import CimaError
from cima_runc.config import Settings
from cima_runc.ima.kernel_log import KernelLog, usable
from cima_runc.ima.log_copy import LogCopy
from cima_runc.ml.listing import boot_id
from cima_runc.sensor.loader import Sensor
from cima_runc.sensor.options import Options
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.state import read_state
from cima_runc.tpm.trouble import require

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_POLICY_HINT = "copy examples/ima-policy to /etc/ima/ima-policy and reboot"


class SourceMissingError(CimaError):
    """A source of measurement is missing."""


class SourcesMissingError(CimaError):
    """Sources of measurement that are required are missing; one line each."""

    exit_code = 3

    def __init__(self, lines: list[str]) -> None:
        super().__init__("cima-agent cannot measure containers on this host")
        self.lines = lines


@dataclass(frozen=True)
class Sources:
    """The sources that were found; None stands for one that is missing and not required."""

    kernel_log: KernelLog | None
    sensor: Sensor | None
    tpm: Tpm | None

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the missing ones: ``ima``, ``sensor``, ``tpm``.

        ``sensor.`` and a name is a function that this kernel does not have, and the sensor wants.
        """
        found = (("ima", self.kernel_log), ("sensor", self.sensor), ("tpm", self.tpm))
        hooks = self.sensor.missing_hooks if self.sensor is not None else ()
        return (
            *(name for name, source in found if source is None),
            *(f"sensor.{name}" for name in hooks),
        )


def open_sources(settings: Settings) -> Sources:
    """Open every source.

    Raises:
        SourcesMissingError: holds one line for each required source that is missing.
    """
    lines: list[str] = []

    def attempt(required: bool, name: str, open_source: Callable[[], _T]) -> _T | None:
        try:
            return open_source()
        except CimaError as error:
            line = f"{name}: {error}"
        if required:
            lines.append(f"{line} (or set {name}.required = false)")
        else:
            _log.warning("running without %s", line)
        return None

    tpm = attempt(settings.tpm.required, "tpm", lambda: _open_tpm(settings))
    kernel_log = attempt(
        settings.ima.required,
        "ima",
        lambda: open_kernel_log(Path(settings.ima.directory), log_copy(settings, keep=True)),
    )
    sensor = attempt(
        settings.sensor.required,
        "sensor",
        lambda: Sensor.open(options=_sensor_options(settings, late=kernel_log is not None)),
    )
    if lines:
        raise SourcesMissingError(lines)
    return Sources(kernel_log, sensor, tpm)


def _sensor_options(settings: Settings, *, late: bool) -> Options:
    return Options(
        ring_bytes=settings.sensor.ring_mib << 20,
        bytes_per_second=settings.limits.mib_per_second << 20,
        reads=tuple(settings.sensor.measure_reads),
        largest_file=settings.sensor.largest_file_mib << 20,
        late=late,
    )


def _open_tpm(settings: Settings) -> Tpm:
    tpm = Tpm.open(settings.tpm.tcti)
    require("records cannot be bound", read_state(tpm).binding(settings.tpm.pcr))
    return tpm


def log_copy(settings: Settings, *, keep: bool) -> LogCopy:
    """Return what is kept of this boot's log; one process keeps it, others read it."""
    return LogCopy(Path(settings.shim.state_dir) / "ima-log", boot_id(), keep=keep)


def open_kernel_log(directory: Path, copy: LogCopy | None = None) -> KernelLog:
    """Open the kernel's log and see that the policy measures what is executed.

    Raises:
        KernelLogError: the log is of no use; it says why, and what mends it.
        SourceMissingError: no IMA, or no policy that measures executed files.
    """
    try:
        log = KernelLog.open(directory, copy)
    except FileNotFoundError as error:
        raise SourceMissingError(
            f"no IMA: {directory} is not there",
            hint="mount securityfs on /sys/kernel/security, and run a kernel with CONFIG_IMA",
        ) from error
    except OSError as error:
        raise SourceMissingError(f"IMA's log cannot be read: {error.strerror}") from error
    entries = log.read_new()
    usable(entries)
    if len(entries) <= 1:
        log.close()
        raise SourceMissingError(
            "no IMA policy: the kernel's log holds nothing but boot_aggregate", hint=_POLICY_HINT
        )
    # We are executed ourselves: a policy that measures what is executed has measured us.
    own = os.path.realpath(sys.executable).encode()
    if not any((entry.file or (b"", b""))[1] == own for entry in entries):
        log.close()
        raise SourceMissingError(
            "the IMA policy does not measure executed files: our own interpreter is not in the log",
            hint=_POLICY_HINT,
        )
    return log
