"""The report is the host's, and goes on from something that the service does not have."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NeedsResync:
    """Nothing is applied; the host is told what the service has."""

    of: Literal["base", "host_log", "records"]
    """What does not fit."""
