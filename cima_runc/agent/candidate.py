"""A container that wants to start: what there is to know of it before it is registered.

Reads processes and files and touches no register, so that several can be looked at side by side.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.dependencies import Dependencies, Look
from cima_runc.agent.process import PROC, ContainerProcess, examine
from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.config import RootfsSettings, Settings
from cima_runc.measure.bundle import (
    BundleError,
    cgroups_path,
    parse_config,
    read_config,
    root_of,
)
from cima_runc.measure.engine import EngineFinder
from cima_runc.measure.idmap import parse_id_maps
from cima_runc.measure.overlay import RootFilesystem, fuse_overlayfs_commands, read_rootfs
from cima_runc.measure.rootfs import Store as RootfsStore
from cima_runc.measure.rootfs import deadline, measure
from cima_runc.ml.contents import NO_ENGINE, Engine
from cima_runc.runtime.hook_state import HookState, parse_hook_state

_REGISTER_SECONDS = 5
"""Of a hook's time, what is kept for the rest when a root filesystem is measured."""


@dataclass(frozen=True)
class Candidate:
    """A container that was looked at; its process's descriptors are held."""

    state: HookState
    config: dict[str, Any]
    """The bundle's config.json, our hooks in it."""
    process: ContainerProcess
    rootfs: dict[str, Any]
    """Content of the ``rootfs`` record."""
    look: Look
    """What it relies on."""
    engine: Engine = NO_ENGINE
    """What called the runtime."""
    uid: int = 0
    """Whose container it is."""

    def close(self) -> None:
        """Let go of the process and of files."""
        self.process.close()
        self.look.close()


class Looker:
    """Looks at containers that want to start; for any thread."""

    def __init__(
        self, settings: CurrentSettings, store: RootfsStore, dependencies: Dependencies
    ) -> None:
        self._settings = settings
        self._store = store
        self._dependencies = dependencies
        self._engines = EngineFinder()

    @property
    def seconds(self) -> float:
        """How long a container may be looked at before it is registered."""
        return look_seconds(self._settings.value)

    def look_at(self, hook_state: bytes) -> Candidate:
        """Look at the container of this hook state.

        Raises:
            CimaError: it is not what the hook says, or cannot be measured; it must not start.
        """
        return look_at(
            hook_state,
            self._settings.value.rootfs,
            store=self._store,
            dependencies=self._dependencies,
            engines=self._engines,
            seconds=self.seconds,
        )


def look_seconds(settings: Settings) -> float:
    """Return how long a container may be looked at before it is registered."""
    return max(settings.shim.hook_timeout_seconds - _REGISTER_SECONDS, 1)


def look_at(
    hook_state: bytes,
    settings: RootfsSettings,
    *,
    store: RootfsStore,
    dependencies: Dependencies,
    engines: EngineFinder,
    seconds: float,
) -> Candidate:
    """Check the container's process and measure its root filesystem, in at most ``seconds``.

    Raises:
        CimaError: it is not what the hook says, or cannot be measured; it must not start.
    """
    started = time.monotonic()
    with store.work.turn():
        state = parse_hook_state(hook_state)
        config = parse_config(read_config(state.bundle))
        process = examine(state.pid, state.id, cgroups_path(config))
        try:
            rest = seconds - (time.monotonic() - started)
            rootfs = _measure_rootfs(
                root_of(config, state.bundle), process, settings=settings, store=store, seconds=rest
            )
        except BaseException:
            process.close()
            raise
        engine = engines.find(process.pid, state.bundle, config)
        return Candidate(state, config, process, rootfs, dependencies.look_at(process.pid), engine)


def _measure_rootfs(
    root: Path,
    process: ContainerProcess,
    *,
    settings: RootfsSettings,
    store: RootfsStore,
    seconds: float,
) -> dict[str, Any]:
    directory = PROC / str(process.pid)
    try:
        mountinfo = read_bounded(directory / "mountinfo", limits.MOUNTINFO)
        ids = parse_id_maps(
            read_bounded(directory / "uid_map", limits.MIB),
            read_bounded(directory / "gid_map", limits.MIB),
        )
        return measure(
            _as_seen(read_rootfs(root, mountinfo, fuse_overlayfs_commands), directory / "root"),
            store,
            ids=ids,
            mode=settings.mode,
            use_cache=settings.cache == "on",
            check=deadline(seconds),
        ).content()
    except OSError as error:
        raise BundleError(f"the root filesystem cannot be measured: {error}") from error


def _as_seen(rootfs: RootFilesystem, root: Path) -> RootFilesystem:
    """Return the root filesystem where the container's process, whose root that is, has it.

    Podman mounts it for the runtime only where others could not reach it (user namespaces).

    Raises:
        BundleError: what we would measure at the same path is another directory.
    """
    seen = root / rootfs.path.relative_to("/")
    if rootfs.kind == "tree" and not seen.samefile(rootfs.path):
        raise BundleError("the root filesystem is mounted where only the container sees it")
    return replace(rootfs, path=seen)
