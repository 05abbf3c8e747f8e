"""A container that wants to start: what there is to know of it before it is registered.

Reads processes and files and touches no register, so that several can be looked at side by side.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.host_services import HostServices, Look
from cima_runc.agent.process import PROC, ContainerProcess, examine
from cima_runc.agent.rights import device_of_root
from cima_runc.agent.runtime_call import is_restored, is_without_cgroups
from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.text import printable
from cima_runc.config import RootfsSettings, Settings
from cima_runc.evidence.owner import names_us
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
from cima_runc.measure.podman_image import BUNDLE, Pairs, image_pairs
from cima_runc.measure.rootfs import Store as RootfsStore
from cima_runc.measure.rootfs import deadline, measure
from cima_runc.ml.contents import NO_ENGINE, Engine
from cima_runc.runtime import installation, oci_hooks
from cima_runc.runtime.bundle_guard import foreign_part
from cima_runc.runtime.hook_state import HookState, parse_hook_state

_REGISTER_SECONDS = 5
"""Of a hook's time, what is kept for the rest when a root filesystem is measured."""


@dataclass(frozen=True)
class Candidate:
    """A container that was looked at; its process's descriptors are held."""

    state: HookState
    config: dict[str, Any]
    """The bundle's configuration, without our hooks."""
    process: ContainerProcess
    rootfs: dict[str, Any]
    """Content of the ``rootfs`` record."""
    look: Look
    """What it relies on."""
    engine: Engine = NO_ENGINE
    """What called the runtime."""
    uid: int = 0
    """Whose container it is."""
    missing: tuple[str, ...] = ()
    """What cannot be relied on: ``bundle``, where others may write that; ``memory``, where it came
    from a checkpoint."""
    of_image: Pairs | None = frozenset()
    """Annotations that may be its image's, where its engine hands them on; None: not known."""
    root_device: int | None = None
    """The device of its root's overlay, where it is known."""
    waits: Callable[[], bool] = lambda: True
    """Whether it waits still: who is told nothing in time may start it, or has ended it."""

    def close(self) -> None:
        """Let go of the process and of files."""
        self.process.close()
        self.look.close()


class Looker:
    """Looks at containers that want to start; for any thread."""

    def __init__(
        self, settings: CurrentSettings, store: RootfsStore, services: HostServices
    ) -> None:
        self._settings = settings
        self._store = store
        self._services = services
        self._engines = EngineFinder()

    @property
    def seconds(self) -> float:
        """How long a container may be looked at before it is registered."""
        return look_seconds(self._settings.value)

    def tidy(self) -> None:
        """Remove what is known of layers and kept no longer.

        Raises:
            OSError: something could not be removed.
        """
        self._store.tidy()

    def look_at(self, hook_state: bytes) -> Candidate:
        """Look at the container of this hook state.

        Raises:
            CimaError: it is not what the hook says, or cannot be measured; it must not start.
        """
        return look_at(
            hook_state,
            self._settings.value,
            store=self._store,
            services=self._services,
            engines=self._engines,
            seconds=self.seconds,
        )

    def look_again(self, hook_state: bytes) -> tuple[HookState, dict[str, Any]]:
        """Return whose hook state it is, and the content of a ``rootfs`` record as it is now.

        Raises:
            CimaError: as for :meth:`look_at`.
        """
        started = time.monotonic()
        with self._store.work.turn():
            state = parse_hook_state(hook_state)
            config = configuration_of(state, read_config(state.config))
            process = examine(state.pid, state.id, cgroups_path(config), needs_cgroup=False)
            try:
                rootfs = _measure_rootfs(
                    root_of(config, state.bundle),
                    process,
                    settings=self._settings.value.rootfs,
                    store=self._store,
                    seconds=self.seconds - (time.monotonic() - started),
                )
            finally:
                process.close()
        return state, rootfs


def configuration_of(state: HookState, raw: bytes) -> dict[str, Any]:
    """Return a configuration without our hooks, if it is the one that these were put into.

    Raises:
        CimaError: it cannot be read, or is another one.
    """
    config = parse_config(raw)
    oci_hooks.remove(config, hooks_dir=str(installation.hooks_dir()))
    if state.config_sha256 is not None and oci_hooks.digest(config) != state.config_sha256:
        raise BundleError(
            f"{printable(state.config)} is not the configuration that the launcher put our hooks "
            "into: it was changed since",
            hint="start it with cima-runc again",
        )
    return config


def _foreign(state: HookState, settings: Settings) -> tuple[str, ...]:
    for path in (state.bundle, state.config):
        try:
            foreign = foreign_part(path, os.geteuid())
        except OSError as error:
            raise BundleError(f"{printable(path)} cannot be looked at: {error.strerror}") from error
        if foreign is not None and settings.shim.foreign_bundles != "allow":
            raise foreign.refusal()
        if foreign is not None:
            return ("bundle",)
    return ()


def unmeasured_memory(pid: int) -> tuple[str, ...]:
    """Return what is missing where a process's memory is of no program that was executed."""
    return ("memory",) if is_restored(pid) else ()


def look_seconds(settings: Settings) -> float:
    """Return how long a container may be looked at before it is registered."""
    return max(settings.shim.hook_timeout_seconds - _REGISTER_SECONDS, 1)


def look_at(
    hook_state: bytes,
    settings: Settings,
    *,
    store: RootfsStore,
    services: HostServices,
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
        missing = (*_foreign(state, settings), *unmeasured_memory(state.pid))
        config = configuration_of(state, read_config(state.config))
        needs_cgroup = not is_without_cgroups(state.pid)
        process = examine(state.pid, state.id, cgroups_path(config), needs_cgroup=needs_cgroup)
        try:
            rest = seconds - (time.monotonic() - started)
            rootfs = _measure_rootfs(
                root_of(config, state.bundle),
                process,
                settings=settings.rootfs,
                store=store,
                seconds=rest,
            )
            engine = engines.find(process.pid, state.bundle, config)
            of_image = handed_on(
                config,
                engine,
                state.bundle,
                lambda: image_pairs(state.bundle, engines.image_stores(process.pid)),
            )
            root_device = device_of_root(config, state.bundle, process.pid)
            look = services.look_at(process.pid)
        except BaseException:
            # Who holds its mount namespace keeps its file systems busy.
            process.close()
            raise
        return Candidate(
            *(state, config, process, rootfs, look, engine),
            missing=missing,
            of_image=of_image,
            root_device=root_device,
        )


def handed_on(
    config: Mapping[str, Any], engine: Engine, bundle: str, pairs: Callable[[], Pairs | None]
) -> Pairs | None:
    """Return what of a container's annotations may be its image's: ``pairs`` where that matters."""
    return pairs() if names_us(config) and hands_on(engine, bundle) else frozenset()


def hands_on(engine: Engine, bundle: str) -> bool:
    """Whether an engine may have handed an image's annotations on: Podman, by its process or, where
    that was not found, by its bundle."""
    return engine.name == "podman" or (engine.name is None and bool(BUNDLE.fullmatch(bundle)))


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
