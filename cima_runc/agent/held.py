"""Which containers the agent holds, for hooks to see.

A file in a directory beside the agent's socket bears the id of each. A ``poststop`` hook that
finds the directory, and no file of its container's id in it, has nothing to wait for
(hooks/hook.c). Where a file cannot be made there is no directory either, and every hook waits.
"""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from cima_runc.base.text import printable
from cima_runc.runtime.hook_state import parse_hook_state

_log = logging.getLogger(__name__)

SUFFIX = ".held"
"""Added to the agent's socket path."""
_NAME_MAX = 255
"""Bytes of a longer id are no file's name: its hook waits."""


class Held:
    """Ids and bundles. Changed by the writer alone; may be looked at in any thread."""

    def __init__(self, directory: Path | None) -> None:
        """``directory``: where the files are; None: hooks see nothing, and wait."""
        self._directory = directory
        self._held: set[tuple[str, str]] = set()
        if directory is not None:
            self._forget()

    def __contains__(self, container: tuple[str, str]) -> bool:
        return container in self._held

    def names(self, hook_state: bytes) -> bool:
        """Whether the container that a hook names is held.

        Raises:
            CimaError: it is not a hook's state.
        """
        state = parse_hook_state(hook_state)
        return (state.id, state.bundle) in self._held

    def begin(self) -> None:
        """Show hooks from now on what is held."""
        if self._directory is None:
            return
        building = self._directory.with_name(self._directory.name + ".new")
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            building.mkdir(mode=0o700)
            for container_id, _ in self._held:
                self._mark(building, container_id)
            building.rename(self._directory)
        except OSError as error:
            _log.warning("every deletion waits for the agent: %s", printable(str(error)))

    def add(self, container_id: str, bundle: str) -> None:
        """Hold a container."""
        self._held.add((container_id, bundle))
        if self._directory is None or not self._directory.exists():
            return
        try:
            self._mark(self._directory, container_id)
        except OSError as error:
            _log.warning("every deletion waits for the agent: %s", printable(str(error)))
            self._forget()

    def remove(self, container_id: str, bundle: str) -> None:
        """Hold a container no more."""
        self._held.discard((container_id, bundle))
        if self._directory is None or any(other == container_id for other, _ in self._held):
            return
        if _has_file(container_id):
            # One that stays only makes a hook wait.
            with suppress(OSError):
                (self._directory / container_id).unlink()

    def _forget(self) -> None:
        assert self._directory is not None
        shutil.rmtree(self._directory, ignore_errors=True)

    @staticmethod
    def _mark(directory: Path, container_id: str) -> None:
        if _has_file(container_id):
            (directory / container_id).touch(0o600)


def _has_file(container_id: str) -> bool:
    """Whether the id is a file's name; a user's (``UID/ID``) is none, and his hooks do not look."""
    return len(container_id) <= _NAME_MAX and "/" not in container_id
