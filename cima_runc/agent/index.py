"""The one index of a boot's containers. Pure.

Whatever a container is looked up by is computed from its note, so no second list has to be kept in
step by hand: :meth:`Index.add`, :meth:`Index.update` and :meth:`Index.remove` keep every view.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote

_K = TypeVar("_K", bound=Hashable)


@dataclass
class Container:
    """A registered container. Its note changes by :meth:`Index.update` alone."""

    note: ContainerNote
    secret: bytes
    partition: Partition
    dropped: int = 0
    """Events of it that the sensor dropped, as far as they are recorded."""
    size: int = 0
    """Bytes of its records on disk, about."""
    full: bool = False
    """Whether it has reached a limit of its own, and is measured no further."""
    last_line: int | None = None
    """The last line of the kernel's log, by its number from 0, that a record of host services is
    of."""

    @property
    def number(self) -> int:
        """Its registration."""
        return self.note.registration


class View(Generic[_K]):
    """Containers by a key of their notes; those of which it is None are not in the view."""

    def __init__(self, key: Callable[[ContainerNote], _K | None]) -> None:
        self._key = key
        self._found: dict[_K, dict[int, Container]] = {}

    def all(self, key: _K) -> tuple[Container, ...]:
        """Return the containers with this key, in the order in which they came to have it."""
        return tuple(self._found.get(key, {}).values())

    def latest(self, key: _K) -> Container | None:
        """Return the one that came to have this key last."""
        found = self._found.get(key)
        return next(reversed(found.values())) if found else None

    def count(self, key: _K) -> int:
        """Return how many have this key."""
        return len(self._found.get(key, {}))

    def place(
        self, container: Container, before: ContainerNote | None, after: ContainerNote | None
    ) -> None:
        """Heed that a container's note was ``before`` and is ``after``; for :class:`Index`."""
        old = None if before is None else self._key(before)
        new = None if after is None else self._key(after)
        if old == new:
            return
        if old is not None:
            del self._found[old][container.number]
            if not self._found[old]:
                del self._found[old]
        if new is not None:
            self._found.setdefault(new, {})[container.number] = container


class Index:
    """Containers by registration, in the order of registration, and by what else they are found.

    A new way to find them is one more view.
    """

    def __init__(self) -> None:
        self._all: dict[int, Container] = {}
        self._changed: dict[int, Container] = {}
        self.ids = View(lambda note: note.id)
        """All that were ever called so; the latest registration is the last."""
        self.living = View(lambda note: (note.id, note.bundle) if lives(note) else None)
        """Those that have not ended, by (id, bundle)."""
        self.namespaces = View(
            lambda note: note.mntns if lives(note) and note.kind == "container" else None
        )
        """Containers that have not ended, by the number of their mount namespace."""
        self.lines = View(lambda note: note.line)
        """Runs of a line; the last is the latest, living or ended."""
        self.states = View(lambda note: note.state)
        self.users = View(lambda note: note.uid)
        self._views: tuple[View[Any], ...] = (
            *(self.ids, self.living, self.namespaces, self.lines, self.states, self.users),
        )

    def __iter__(self) -> Iterator[Container]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def get(self, registration: int) -> Container | None:
        """Return a container by its registration."""
        return self._all.get(registration)

    def __getitem__(self, registration: int) -> Container:
        return self._all[registration]

    @property
    def changed(self) -> dict[int, Container]:
        """Containers whose registers have changed since :meth:`unchanged`, by registration."""
        return self._changed

    def touch(self, registration: int) -> Container:
        """Note that a container's register changes, and return the container."""
        container = self._changed[registration] = self._all[registration]
        return container

    def unchanged(self) -> None:
        """Note that all registers are as they were last seen."""
        self._changed.clear()

    def add(self, container: Container) -> None:
        """Take in a container, whose register counts as changed.

        Raises:
            ValueError: there is one of this registration.
        """
        if container.number in self._all:
            raise ValueError(f"registration {container.number} is taken")
        self._all[container.number] = container
        self._changed[container.number] = container
        for view in self._views:
            view.place(container, None, container.note)

    def update(self, registration: int, **changes: Any) -> ContainerNote:
        """Change fields of a container's note, and return the note."""
        container = self._all[registration]
        before = container.note
        container.note = before.model_copy(update=changes)
        for view in self._views:
            view.place(container, before, container.note)
        return container.note

    def remove(self, registration: int) -> Container:
        """Drop a container from everything and return it."""
        container = self._all.pop(registration)
        self._changed.pop(registration, None)
        for view in self._views:
            view.place(container, container.note, None)
        return container


def lives(note: ContainerNote) -> bool:
    """Whether a container's end is not recorded."""
    return note.state != "stopped"
