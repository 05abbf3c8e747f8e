"""Events: what the sensor saw becomes records, with the line that the kernel's log has of it."""

import logging
import time
from collections.abc import Callable

from cima_runc.agent.core import CoreError
from cima_runc.agent.writer import Writer
from cima_runc.base import clock, limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.ima.kernel_log import KernelLog, LogBusyError
from cima_runc.ima.log_copy import LogCopyError
from cima_runc.sensor.events import Event
from cima_runc.sensor.loader import Sensor

_log = logging.getLogger(__name__)

_LOG_LAG_SECONDS = 0.01
"""The sensor sees a file just before IMA logs it: how long a record waits for its line, once."""


class Events:
    """Takes the sensor's events; for the writer's thread."""

    def __init__(
        self,
        *,
        writer: Writer,
        sensor: Sensor | None,
        kernel_log: KernelLog | None,
        on_progress: Callable[[], None],
    ) -> None:
        """``on_progress()`` is called in the midst of long work."""
        self._writer = writer
        self._sensor = sensor
        self._kernel_log = kernel_log
        self._on_progress = on_progress
        self.log_error: str | None = None
        """Why the kernel's log is read no further."""
        self._given_up = False
        self._is_behind = False
        """Whether the last look at the kernel's log failed."""
        self.orphans = 0
        """Events of registrations that have ended, which should not be."""

    def take(self) -> None:
        """Turn what the sensor has into durable records; only then its buffer is given back.

        Until then the buffer is what keeps them, should the agent be killed: the next one reads
        them again.

        Raises:
            OSError: nothing is lost, the next call tries again.
        """
        # What an earlier call could not write comes first: no more is taken while the disk is full.
        self._writer.write()
        if self._sensor is None:
            return
        for events in self._sensor.events(limits.EVENT_BATCH):
            self._measure(events)
            self._writer.write()
            self._sensor.release()
            self._on_progress()
        self._sensor.release()

    def count_lost(self) -> None:
        """Record how many events the sensor lost of each container."""
        if self._sensor is None:
            return
        for registration, count in self._sensor.lost().items():
            self._writer.dropped(registration, count, self._sensor.lost_in(registration))

    def unwatch(self, registration: int) -> None:
        """Watch a container no more that came to nothing."""
        if self._sensor is not None and registration in self._sensor.registrations():
            self._sensor.unwatch(registration)
            self._sensor.forget(registration)

    def read_kernel_log(self) -> None:
        """Read on in the kernel's log; where that fails records are made without it, and say so."""
        if self._kernel_log is None or self._given_up:
            return
        self._is_behind = True
        try:
            self._kernel_log.read_new()
            self._is_behind = False
            self.log_error = None
        except LogCopyError as error:
            # The disk is full: the next look reads the same lines.
            _log.error("%s", error)
        except (LogBusyError, OSError) as error:
            # It passes, and so does the next look.
            self._note(error)
        except CimaError as error:
            self._given_up = True
            self._note(error)

    def _note(self, error: Exception) -> None:
        text = printable(str(error))
        if text != self.log_error:
            self.log_error = text
            _log.error("the kernel's log is read no further: %s", text)

    def keep_up(self) -> None:
        """Read on where others may remove lines, before they do."""
        log = self._kernel_log
        if log is None or not log.trimmable:
            return
        # Asked each time: what it answers is what has changed since.
        if log.has_changed() or self._is_behind:
            self.read_kernel_log()

    def _measure(self, events: list[Event]) -> None:
        now = clock.now()
        lines = self._lines_of(events)
        for event, line in zip(events, lines, strict=True):
            try:
                self._writer.measure(event, line, now)
            except CoreError as error:
                self.orphans += 1
                _log.error("%s", error)

    def _lines_of(self, events: list[Event]) -> list[int | None]:
        log = self._kernel_log
        if log is None:
            return [None] * len(events)

        def line_of(event: Event) -> int | None:
            if event.digest is None or event.path is None:
                return None
            return log.line_of(event.digest, event.path)

        self.read_kernel_log()
        lines = [line_of(event) for event in events]
        if None in lines:
            time.sleep(_LOG_LAG_SECONDS)
            self.read_kernel_log()
            lines = [line_of(event) for event in events]
        return lines
