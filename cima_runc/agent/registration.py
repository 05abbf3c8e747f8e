"""Registration: a container that was looked at gets its partition, or does not start."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cima_runc.agent.candidate import Candidate
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.enforcement import Allowlist, Enforcement
from cima_runc.agent.events import Events
from cima_runc.agent.fresh import Fresh
from cima_runc.agent.host_services import HostServices, Look, failed
from cima_runc.agent.index import Container, lives
from cima_runc.agent.journald import about
from cima_runc.agent.lifecycle import Lifecycle
from cima_runc.agent.rights import rights_of
from cima_runc.agent.runs import LineInUseError, NextRun
from cima_runc.agent.writer import Writer
from cima_runc.base import clock, limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.evidence.owner import (
    ANNOTATION,
    VARIABLE,
    WHOSE,
    annotated_owner,
    owner_keys,
    variable_owner,
)
from cima_runc.measure.oci_config import measured_config
from cima_runc.ml import contents
from cima_runc.ml.lines import line_name, line_of
from cima_runc.ml.store import ContainerNote
from cima_runc.runtime import oci_hooks
from cima_runc.runtime.hook_state import HookState, qualified
from cima_runc.sensor.loader import Sensor
from cima_runc.tpm.device import TpmError

_log = logging.getLogger(__name__)

FIRST_RECORDS = 3
"""Records that a registration writes at least: register, config, rootfs."""


class RegistrationError(CimaError):
    """The container cannot be registered."""


class LateError(RegistrationError):
    """Nobody waits for the container to be registered any more."""

    def __init__(self, container_id: str) -> None:
        super().__init__(
            f"the hook of container {container_id} waits no more: what runs now began unmeasured",
            hint="hook_timeout_seconds gives it more time",
        )


class Registration:
    """Registers containers; for the writer's thread."""

    def __init__(
        self,
        *,
        settings: CurrentSettings,
        boot_id: str,
        hooks_dir: str,
        writer: Writer,
        events: Events,
        lifecycle: Lifecycle,
        services: HostServices,
        enforcement: Enforcement | None,
        sensor: Sensor | None,
        fresh: Fresh,
    ) -> None:
        self._settings = settings
        self._boot_id = boot_id
        self._hooks_dir = hooks_dir
        self._writer = writer
        self._events = events
        self._lifecycle = lifecycle
        self._services = services
        self._enforcement = enforcement
        self._sensor = sensor
        self._fresh = fresh
        self._rootfs: dict[int, dict[str, Any]] = {}
        """What was measured of containers whose start others' hooks may still change."""

    def register(self, candidate: Candidate) -> None:
        """Register a container; when this returns it may start.

        Raises:
            CimaError, OSError: it must not start; nothing of it is registered, or its end is.
        """
        (error,) = self.register_all([candidate])
        if error is not None:
            raise error

    def register_all(self, candidates: Sequence[Candidate]) -> list[BaseException | None]:
        """Register containers, which share a bind; those without an error may then start."""
        errors: list[BaseException | None] = [None] * len(candidates)
        waiting = list(range(len(candidates)))
        while waiting:
            waiting = self._register_some(candidates, waiting, errors)
        return errors

    def _register_some(
        self,
        candidates: Sequence[Candidate],
        waiting: list[int],
        errors: list[BaseException | None],
    ) -> list[int]:
        """Register those that wait, but none that may come in another's place; return those.

        Until a container is bound its process is not held: another of its line, its mount namespace
        or its id would be taken for the one that follows it.
        """
        begun: dict[int, tuple[ContainerNote, ExitStack]] = {}
        places: set[object] = set()
        later = []
        for at in waiting:
            with ExitStack() as undo:
                undo.callback(candidates[at].close)
                try:
                    owners, line = self._line_of(candidates[at])
                    own = _places_of(candidates[at], line)
                    if not own.isdisjoint(places):
                        undo.pop_all()
                        later.append(at)
                        continue
                    note = self._begin_one(candidates[at], owners, line, undo)
                except BaseException as error:
                    errors[at] = error
                    continue
                places |= own
                begun[at] = note, undo.pop_all()
        try:
            if begun:
                self._bind_first()
        except BaseException as error:
            for at, (_, undo) in begun.items():
                errors[at] = error
                undo.close()
            return later
        for at, (note, undo) in begun.items():
            try:
                self._lifecycle.hold(note, candidates[at].process)
            except OSError as error:
                errors[at] = error
                undo.close()
                continue
            undo.pop_all()
            self._remember(note.registration, candidates[at])
            number = note.registration
            _log.info(
                *("container %s registered as %d, mnt:[%d]", note.id, number, note.mntns),
                extra=about("container-registered", container=note.id, registration=number),
            )
        return later

    def _begin_one(
        self, candidate: Candidate, owners: tuple[str, ...], line: bytes, undo: ExitStack
    ) -> ContainerNote:
        """Return a container's note, its first records durable; ``undo`` takes it all back."""
        if not candidate.waits():
            raise LateError(candidate.state.id)
        self._check_share(candidate.uid)
        self._check_lineage(candidate)
        self._lifecycle.take_notices()
        self._end_predecessors(candidate, line)
        note = self._begin(candidate, owners, line, undo)
        self._writer.write()
        return note

    def measured_again(self, state: HookState, rootfs: dict[str, Any], uid: int = 0) -> None:
        """Record a container's root filesystem again, where others' hooks have changed it.

        Raises:
            RegistrationError, OSError, TpmError: it must not start.
        """
        container = self._writer.live(qualified(state.id, uid), state.bundle)
        if container is None or container.note.state != "created":
            # Its own hook let it start without the agent, and has noted that.
            _log.warning("container %s is not registered, and was to be looked at again", state.id)
            return
        number = container.note.registration
        if self._rootfs.pop(number, None) == rootfs:
            return
        # As often as its user likes, who says when it begins to run.
        self._check_bytes(uid)
        self._writer.add(number, contents.parse_rootfs(rootfs))
        self._writer.write()
        self._bind_first()

    def _remember(self, number: int, candidate: Candidate) -> None:
        for old in [each for each in self._rootfs if self._writer.get(each) is None]:
            del self._rootfs[old]
        if oci_hooks.has_others(candidate.config):
            self._rootfs[number] = candidate.rootfs

    # -- before -------------------------------------------------------------------------------

    def _check_share(self, uid: int) -> None:
        """No user but root may have more than so many containers, or so large ones."""
        if uid == 0:
            return
        count = self._writer.count_of(uid)
        if count >= limits.USER_CONTAINERS:
            raise RegistrationError(
                f"user {uid} has {count} containers, those that ended lately counted"
            )
        self._check_bytes(uid)

    def _check_lineage(self, candidate: Candidate) -> None:
        """What a process of somebody else's container makes is no user's, whoever it is there.

        Without a user namespace of its own such a container has the host's users.
        """
        if candidate.uid == 0 or self._sensor is None:
            return
        mark = self._sensor.mark_of(candidate.process.pidfd)
        maker = None if mark is None else self._writer.get(mark)
        if maker is not None and maker.note.uid != candidate.uid:
            raise RegistrationError(
                f"process {candidate.process.pid} is of the container {maker.note.id}, "
                f"and not user {candidate.uid}'s"
            )

    def _check_bytes(self, uid: int) -> None:
        if uid and self._writer.bytes_of(uid) > limits.USER_BYTES:
            raise RegistrationError(
                f"the records of user {uid}'s containers, those that ended lately counted, have "
                f"more than {limits.USER_BYTES} bytes"
            )

    def _line_of(self, candidate: Candidate) -> tuple[tuple[str, ...], bytes]:
        """Return the container's owners' keys, and what it is a run of."""
        found = candidate.config.get("annotations")
        annotations = own_annotations(candidate, found if isinstance(found, dict) else {})
        owners = self._owners_of(candidate)
        name = line_name(candidate.state.id, annotations, candidate.engine)
        return owners, line_of(candidate.uid, owners, name)

    def _end_predecessors(self, candidate: Candidate, line: bytes) -> None:
        """Record the ends of containers in whose place this one comes, if they have ended.

        Raises:
            RegistrationError, LineInUseError: one of them lives; nothing is closed then.
        """
        state = candidate.state
        run = self._writer.run_of(line.hex())
        if run is not None and lives(run.note) and not self._is_replaced(run, state):
            raise LineInUseError(run.note.id)
        old = self._writer.live(state.id, state.bundle)
        if old is not None:
            self._end_previous(old, state)
        other = self._writer.in_namespace(candidate.process.mntns)
        # A container's namespace is let go of before its end is recorded, and the kernel gives
        # the number to the next. One that is held is the namespace itself.
        if other is not None and self._lifecycle.is_empty(other):
            self._lifecycle.end(other, "its first process ended", bind=False, is_empty=True)
        if run is not None and lives(run.note):
            self._lifecycle.end(run, "its first process ended", bind=False)

    def _is_replaced(self, run: Container, state: HookState) -> bool:
        """Whether nothing of a run lives, or it is this very container, whose hook asks again."""
        same = (run.note.id, run.note.bundle) == (state.id, state.bundle)
        return self._lifecycle.is_empty(run) or same

    def _end_previous(self, old: Container, state: HookState) -> None:
        if not self._lifecycle.lives(old):
            self._lifecycle.end(old, "its first process had ended", bind=False)
        elif old.note.state == "created" and old.note.pid == state.pid:
            # Its hook asks again: the agent that it asked first was killed before it could answer.
            self._lifecycle.end(old, "registered again", bind=False)
        else:
            raise RegistrationError(f"container {state.id} is registered and alive")

    # -- the partition ------------------------------------------------------------------------

    def _begin(
        self, candidate: Candidate, owners: tuple[str, ...], line: bytes, undo: ExitStack
    ) -> ContainerNote:
        """Begin the container's partition and watch it; ``undo`` then records its end."""
        state, process = candidate.state, candidate.process
        allowlist = self._enforcement.allowlist(candidate.rootfs) if self._enforcement else None
        dependencies, reason = self._services_of(candidate.look)
        missing = (*self._writer.missing, *candidate.missing)
        try:
            secret = self._fresh.secret()
        except TpmError as error:
            secret = self._admitted(error)
            missing = (*missing, "tpm")
        run = self._writer.next_run(line, candidate.uid)
        note = ContainerNote(
            registration=self._fresh.number(),
            id=state.id,
            boot_id=self._boot_id,
            mntns=process.mntns,
            cgroup=process.cgroup,
            pid=process.pid,
            start_ticks=process.start_ticks,
            bundle=state.bundle,
            started=clock.now(),
            state="created",
            owners=owners,
            dependencies=dependencies,
            uid=candidate.uid,
            line=line.hex(),
            run=run.run,
        )
        config = measured_config(candidate.config, secret=secret, hooks_dir=self._hooks_dir)
        first: list[contents.Content] = [
            _register_content(note, candidate, missing, allowlist, run),
            contents.Config(config=config),
            contents.parse_rootfs(candidate.rootfs),
        ]
        if reason:
            first.append(failed(reason))
        number = note.registration
        with ExitStack() as unmake:
            unmake.callback(self._writer.refused, run)
            note = self._writer.begin(note, secret, first)
            unmake.callback(self._writer.undo, number)
            if self._sensor is not None:
                unmake.callback(self._events.unwatch, number)
                handle = allowlist.handle if allowlist else None
                rights = rights_of(
                    candidate.config,
                    process.pid,
                    candidate.root_device,
                    deny_memory=self._settings.value.enforcement.memory == "deny",
                )
                self._sensor.watch(process.mntns, number, process.cgroup_id, handle, rights)
            # Watched from here on; whoever waited until now has not let it start before.
            if not candidate.waits():
                raise LateError(state.id)
            unmake.pop_all()
        undo.callback(self._writer.end, number, "refused")
        undo.callback(self._events.unwatch, number)
        return note

    def _owners_of(self, candidate: Candidate) -> tuple[str, ...]:
        settings = self._settings.value.attestation
        config = candidate.config
        if not settings.owner_variable and variable_owner(config) and not annotated_owner(config):
            _log.warning(
                "container %s: %s is not heeded, since an image may have set it: "
                "use the annotation %s, or attestation.owner_variable = true",
                *(candidate.state.id, VARIABLE, ANNOTATION),
            )
        return owner_keys(config, Path(settings.owners_dir), variable=settings.owner_variable)

    def _services_of(self, look: Look) -> tuple[int | None, str]:
        """Return the registration of the partition of host services, or why there is none."""
        try:
            return self._services.register(look), look.error
        except (CimaError, OSError) as error:
            # What is missing here is in the record, for the verifier to judge.
            _log.error("no host services: %s", printable(str(error)))
            return None, str(error)

    # -- a TPM that fails ---------------------------------------------------------------------

    def _admitted(self, error: TpmError) -> bytes:
        """Return a secret of our own for a container that may start though the TPM fails."""
        if self._settings.value.binding.on_tpm_failure != "admit":
            raise error
        _log.error("a container is admitted without the TPM: %s", error, extra=about("tpm-failed"))
        return self._fresh.own_secret()

    def _bind_first(self) -> None:
        try:
            self._writer.bind()
        except TpmError as error:
            if self._settings.value.binding.on_tpm_failure != "admit":
                raise
            _log.error("a container is admitted, and bound when the TPM works again: %s", error)


def _places_of(candidate: Candidate, line: bytes) -> set[object]:
    """Return all by which a container that has ended is found when this one comes in its place."""
    state = candidate.state
    return {line, candidate.process.mntns, (state.id, state.bundle)}


def own_annotations(candidate: Candidate, annotations: dict[str, Any]) -> dict[str, Any]:
    """Return a container's annotations without a name that its image's author gave it.

    Raises:
        RegistrationError: the image's author would be its owner, or may be.
    """
    kept = dict(annotations)
    for key in WHOSE:
        value = annotations.get(key)
        if not isinstance(value, str):
            continue
        if candidate.of_image is None:
            raise RegistrationError(
                f"whether the annotation {key} is the image's own cannot be seen: Podman before "
                "4.5.1 hands those on, and the image's manifest is not found or cannot be read",
                hint="pull the image into Podman's own store, or start it without the annotation",
            )
        # Go writes U+FFFD for what is no character, in a way of its own.
        if (key, value) not in candidate.of_image and "\ufffd" not in value:
            continue
        if key == ANNOTATION:
            raise RegistrationError(
                f"the annotation {key} is the image's own: its author would be the owner",
                hint=f"--annotation {key}= with another key, or the name of a file of keys",
            )
        _log.warning(
            "container %s: the annotation %s is not heeded, since it is the image's own",
            *(candidate.state.id, key),
        )
        del kept[key]
    return kept


def _register_content(
    note: ContainerNote,
    candidate: Candidate,
    missing: tuple[str, ...],
    allowlist: Allowlist | None,
    run: NextRun,
) -> contents.Register:
    """Return the content of a container's first record."""
    return contents.Register(
        line=run.line,
        run=run.run,
        previous=run.previous,
        id=note.id,
        boot_id=note.boot_id,
        registration=note.registration,
        cgroup=note.cgroup,
        namespaces=candidate.process.namespaces,
        dependencies=note.dependencies,
        missing=missing,
        engine=candidate.engine,
        uid=note.uid or None,
        enforced=allowlist.image if allowlist is not None else None,
    )
