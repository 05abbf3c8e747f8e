"""Which records the fleet's service has not confirmed yet: these are kept where there is room.

Without a service nobody wants any.
"""

from typing import Any, Protocol

from cima_runc.ml.store import ContainerNote


class Service(Protocol):
    """Who reports; any thread may ask."""

    def wants(self, note: ContainerNote, count: int) -> bool:
        """Whether the service has not all ``count`` records of a registration that it may read."""

    def confirmed(self, registration: int) -> int:
        """Return how many records of a registration the service has proved."""

    def describe(self) -> dict[str, Any]:
        """Return what ``cima status`` shows of it."""


class Confirmations:
    """Asks who reports, once there is one."""

    def __init__(self) -> None:
        self.service: Service | None = None

    def wants(self, note: ContainerNote, count: int) -> bool:
        """Whether somebody waits for a registration's records."""
        return self.service is not None and self.service.wants(note, count)

    def confirmed(self, registration: int) -> int:
        """Return how many of its records somebody has."""
        return 0 if self.service is None else self.service.confirmed(registration)

    def describe(self) -> dict[str, Any] | None:
        """Return what ``cima status`` shows of who reports; None where nobody does."""
        return None if self.service is None else self.service.describe()
