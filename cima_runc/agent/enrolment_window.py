"""When others than root may enrol this host: only while root has opened a window for it.

Closed, requests cost the TPM nothing. Open, there are a few of them and no more: each makes the
TPM load two keys, and one of them opens a credential.
"""

import time
from collections.abc import Callable

from cima_runc.base.errors import CimaError

MINUTES_MAX = 60
"""Minutes that a window may be open. Enrolling takes seconds; a person, some minutes."""
REQUESTS = 20
"""Requests in one window: two for each try."""


class WindowError(CimaError):
    """A window cannot be opened so."""


class EnrolmentClosedError(CimaError):
    """The host is not open for enrolment."""


class EnrolmentWindow:
    """The window, shut at first. Not for several threads at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells seconds that never go back."""
        self._clock = clock
        self._until = 0.0
        self._left = 0

    def open(self, minutes: float) -> None:
        """Let others enrol for so many minutes from now.

        Raises:
            WindowError: not more than 0 and at most :data:`MINUTES_MAX`.
        """
        if not 0 < minutes <= MINUTES_MAX:
            raise WindowError(f"a window is open for more than 0 and at most {MINUTES_MAX} minutes")
        self._until = self._clock() + 60 * minutes
        self._left = REQUESTS

    def close(self) -> None:
        """Let nobody in any more."""
        self._left = 0

    def admit(self) -> None:
        """Take one request.

        Raises:
            EnrolmentClosedError: the window is shut, or has had its share.
        """
        if self._left <= 0 or self._clock() >= self._until:
            raise EnrolmentClosedError(
                "this host is not open for enrolment",
                hint="its root opens it: cima enroll open --minutes 10",
            )
        self._left -= 1
