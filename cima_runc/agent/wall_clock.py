"""Whether the wall clock may be believed, where records are to go because of their age.

Someone sets it, by mistake or because the host begins without its right time, and all that is
stored is old at once. Source: docs/adr/0073-age-by-a-clock-that-somebody-sets.md.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cima_runc.base import clock, limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.durable import replace_file

_log = logging.getLogger(__name__)

FILE = "clock.json"
"""File in the state directory: what is known of the time."""
_HOUR_NS = 3600 * 10**9
LEAP_NS = 24 * _HOUR_NS
"""How far the clock may be from what is known, as where a host was off for a night."""
WAIT_NS = 24 * _HOUR_NS
"""How long an agent must have run, in all, until a clock that is further off is believed."""


class _Known(BaseModel):
    """What is known of the time, in nanoseconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    time: Annotated[int, Field(ge=0)]
    """The time that was believed last, and what agents have run since."""
    waited: Annotated[int, Field(ge=0)] = 0
    """For how long agents have run since the clock is not believed."""


class WallClock:
    """The wall clock, compared with what was known before and the clock since boot. For one thread
    at a time."""

    def __init__(
        self,
        path: Path,
        now: Callable[[], int] = clock.since_1970,
        since_boot: Callable[[], int] = clock.since_boot,
    ) -> None:
        self._path = path
        self._now = now
        self._since_boot = since_boot
        self._looked: int | None = None
        self._known: _Known | None = None
        self._said = False

    def believed(self, newest: int) -> int | None:
        """Return the time, in ns since 1970; None while the clock is too far from what is known.

        ``newest`` is when something was stored last, for an agent that knows no more.
        """
        known = self._known or self._read() or _Known(time=newest)
        now, looked = self._now(), self._since_boot()
        ran = 0 if self._looked is None else looked - self._looked
        self._looked = looked
        known = _Known(time=known.time + ran, waited=known.waited + ran)
        is_believed = abs(now - known.time) <= LEAP_NS or known.waited >= WAIT_NS
        if is_believed:
            known = _Known(time=now)
        elif not self._said:
            _log.warning(
                "the clock says %s, where about %s is known: nothing is removed for its age until "
                "the agent has run for %d hours more, or the clock is right",
                *(clock.at(now), clock.at(known.time), -((known.waited - WAIT_NS) // _HOUR_NS)),
            )
        self._said = not is_believed
        self._known = known
        with suppress(OSError):  # on a full disk it is what frees some; known is what is in memory
            replace_file(self._path, known.model_dump_json().encode("ascii"), durable=False)
        return now if is_believed else None

    def _read(self) -> _Known | None:
        with suppress(OSError, ValidationError):  # damaged, by a crash: as if it was not there
            return _Known.model_validate_json(read_bounded(self._path, limits.READ_SOON))
        return None
