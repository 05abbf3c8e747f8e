"""The state directory: each container's partition, secret and note, and each boot's journal.

::

    /var/lib/cima/
      boots/<boot id>/journal.jsonl        the binding journal
      boots/<boot id>/seen                 empty; its time is when an agent ran last in that boot
      containers/<registration>/           one directory a registration, 8 digits
        records.jsonl                      the partition, one record a line
        container.json                     what the container is, and how it is
        registered.json                    the same as it was when it was registered
        secret                             32 bytes, for the container's owner only
        verdict.json                       what ``cima appraise`` found last
      rootfs/                              layers' manifests, by digest, and what is known of layers
      digests.json                       digests of services' files that were hashed in this boot
      unmeasured/<time>-<pid>.json         containers that started without the agent
      removed.jsonl                        containers removed before all of them was attested
      lines/<line>.json                    each line's runs, however little of them is kept; users'
                                           are in lines/<uid>/
      clock.json                           what is known of the time
      probe                                written now and then, to see whether that can be done

Nothing that a container or an engine chose is part of a path.
"""

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.durable import AppendFile, end_of_last_line, replace_file, sync_directory
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import JsonError
from cima_runc.ml.records import Record, parse_line
from cima_runc.runtime.hook import UNMEASURED_DIR
from cima_runc.runtime.hook_state import HookState, HookStateError, parse_hook_state

_NUMBER = re.compile(r"[0-9]{8,}")

_PROBE_SIZE = 16 * 1024
"""Enough for what is written before something is removed: a line of its own, and its run's."""

State = Literal["created", "running", "stopped"]
Kind = Literal["container", "dependencies"]


class StoreError(CimaError):
    """The state directory does not hold what it should."""


class ContainerNote(BaseModel):
    """What is known of one registered container."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    registration: int
    """Number of the registration, never used twice on a host."""
    id: str
    boot_id: str
    mntns: int
    """Inode number of the mount namespace."""
    cgroup: str
    pid: int
    """The container's first process."""
    start_ticks: int
    """When that process started, in clock ticks since boot (proc(5), stat field 22)."""
    bundle: str
    slot: int = -1
    """The slot of the container's leaf in the tree; -1 before it is given one."""
    started: str
    """When it was registered, RFC 3339."""
    state: State
    ended: str | None = None
    """When its end was recorded, RFC 3339."""
    ended_ns: int | None = None
    """The same in nanoseconds since that boot."""
    attested: int = 0
    """How many of its records were in the last evidence that was given after its end."""
    owners: tuple[str, ...] = ()
    """Public keys of its owner, which its evidence is encrypted to."""
    kind: Kind = "container"
    """What the partition is of: a container, or the host services that containers rely on."""
    uid: int = 0
    """The user whose container it is; the id of one that is not root's begins with ``UID/``."""
    dependencies: int | None = None
    """The registration whose partition holds what this container relies on."""
    line: str | None = None
    """What it is a run of, hexadecimal; None: registered by an agent that knew no lines, or not a
    container."""
    run: int | None = None
    """Which run of its line it is, from 1."""


class Store:
    """The files below the state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = -1
        self._open: dict[int, AppendFile] = {}
        self._written: set[int] = set()

    def lock(self) -> None:
        """Keep other agents out of the state directory for as long as this process lives.

        Raises:
            StoreError: another agent has it, or others than its owner could have been in it.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(self._lock)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise StoreError(
                f"{self.root} can be written by others", hint=f"chown root {self.root}; chmod 700"
            )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"another agent uses {self.root}", hint="stop it first") from error

    def prepare(self) -> None:
        """Make the directories, for root only, and remove what an agent did not live to finish."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("boots", "containers", UNMEASURED_DIR):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        for registration in self.registrations():
            # Of one that cannot be looked at whoever reads its note is told.
            with suppress(OSError):
                names = os.listdir(self._directory(registration))
                if "container.json" not in names:
                    # Its records come after that, and go after it.
                    self.discard(registration)
                elif "container.json.new" in names:
                    (self._directory(registration) / "container.json.new").unlink()
        sync_directory(self.root)

    def journal_path(self, boot_id: str) -> Path:
        """Return where this boot's journal is; its directory is made with it."""
        return self.root / "boots" / boot_id / "journal.jsonl"

    def registrations(self) -> list[int]:
        """Return the numbers of all registrations; they are random, and say nothing of time."""
        directory = self.root / "containers"
        # Where no agent ever ran, a hook may have made the directory above.
        names = os.listdir(directory) if directory.is_dir() else []
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def holds(self, registration: int) -> bool:
        """Whether there is a partition of this number, of whatever boot."""
        return self._directory(registration).exists()

    def create(self, note: ContainerNote, secret: bytes, *, along: Iterable[Path] = ()) -> None:
        """Make the directory of a new registration; it becomes durable with its first records.

        So does what is ``along``.
        """
        directory = self._directory(note.registration)
        directory.mkdir(mode=0o700)
        replace_file(directory / "secret", secret, durable=False)
        self.write_note(note)
        # The same file, which becomes durable: the note is replaced without a flush.
        os.link(directory / "container.json", directory / "registered.json")
        own = (directory / "secret", directory / "container.json", directory, directory.parent)
        along = (*own, *along)
        self._open[note.registration] = AppendFile(directory / "records.jsonl", along=along)

    def discard(self, registration: int) -> None:
        """Remove a registration, whole or, where the agent is killed meanwhile, as :meth:`prepare`
        finds it: a note without its records would be a run that recorded nothing."""
        with suppress(OSError):
            self.close_partition(registration)
        directory = self._directory(registration)
        with suppress(OSError):
            (directory / "container.json").unlink()
        shutil.rmtree(directory, ignore_errors=True)

    def write_note(self, note: ContainerNote) -> None:
        """Put a container's note in place.

        Not durably: its containers do not outlive a crash of the machine. Such a one may leave it
        empty; then it is as it was first.
        """
        path = self._directory(note.registration) / "container.json"
        replace_file(path, note.model_dump_json().encode("utf-8") + b"\n", durable=False)

    def read_note(self, registration: int) -> ContainerNote:
        """Return a container's note.

        Raises:
            StoreError: it is missing or not one that we wrote.
        """
        path = self._directory(registration) / "container.json"
        try:
            raw = read_bounded(path, limits.CONTAINER_NOTE)
            first = path.with_name("registered.json")
            if not raw.strip(b"\0") and first.exists():
                raw = read_bounded(first, limits.CONTAINER_NOTE)
            return ContainerNote.model_validate_json(raw)
        except (OSError, ValidationError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error

    def read_secret(self, registration: int) -> bytes:
        """Return a container's secret, 32 bytes.

        Raises:
            StoreError: it is missing or has another size.
        """
        path = self._directory(registration) / "secret"
        try:
            secret = read_bounded(path, 33)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        if len(secret) != 32:
            raise StoreError(f"{path} does not hold 32 bytes")
        return secret

    def verdict_path(self, registration: int) -> Path:
        """Return where the last verdict on a container is kept, if there is one."""
        return self._directory(registration) / "verdict.json"

    def append(self, registration: int, records: list[Record]) -> None:
        """Append records to a container's partition; :meth:`sync` makes them durable.

        Raises:
            OSError: none of them is appended.
        """
        file = self._open.get(registration)
        if file is None:
            file = AppendFile(self._directory(registration) / "records.jsonl")
            self._open[registration] = file
        file.append(b"".join(record.to_line() + b"\n" for record in records))
        self._written.add(registration)

    def sync(self) -> dict[int, OSError]:
        """Make everything appended since the last call durable.

        Returns the partitions of which it could not be: their records are to be appended again.
        """
        failed: dict[int, OSError] = {}
        for registration in self._written:
            try:
                self._open[registration].sync()
            except OSError as error:
                failed[registration] = error
        self._written.clear()
        return failed

    def close_partition(self, registration: int) -> None:
        """Let go of a partition's file; it can be appended to again."""
        file = self._open.get(registration)
        if file is not None:
            file.close()
            del self._open[registration]
        self._written.discard(registration)

    def lines(self, registration: int) -> Iterator[bytes]:
        """Yield a partition's records as stored, without newlines; not a cut-off last one."""
        path = self._directory(registration) / "records.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]

    def lines_from(self, registration: int, at: int) -> Iterator[tuple[bytes, int]]:
        """Yield a partition's records from the byte ``at`` on, each with the byte after it.

        Raises:
            OSError: there is none.
        """
        path = self._directory(registration) / "records.jsonl"
        with path.open("rb") as file:
            file.seek(at)
            for line in file:
                if line.endswith(b"\n"):
                    at += len(line)
                    yield line[:-1], at

    def open_lines(self, registration: int) -> tuple[int, int]:
        """Open a partition's file: a descriptor, and the bytes of its whole lines.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        path = self._directory(registration) / "records.jsonl"
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return handle, end_of_last_line(handle, os.fstat(handle).st_size)
        except BaseException:
            os.close(handle)
            raise

    def records(self, registration: int) -> Iterator[Record]:
        """Yield a partition's records.

        Raises:
            RecordError: a record is not what its digest says.
        """
        return (parse_line(line) for line in self.lines(registration))

    def size(self, registration: int) -> int:
        """Return the bytes of a registration's files, of which some may be replaced meanwhile.

        Raises:
            OSError: they cannot be looked at.
        """
        size = 0
        for path in self._directory(registration).iterdir():
            with suppress(FileNotFoundError):
                size += path.lstat().st_size
        return size

    def probe(self) -> None:
        """Find out whether the disk takes what is written.

        Raises:
            OSError: it does not.
        """
        replace_file(self.root / "probe", bytes(_PROBE_SIZE))

    def give_room(self) -> bool:
        """Let go of the room that the probe takes, for what must be written before more is removed.

        Returns whether there was one.
        """
        try:
            (self.root / "probe").unlink()
        except FileNotFoundError:
            return False
        return True

    def boots(self) -> set[str]:
        """Return the ids of the boots of which a journal is kept, or when they were seen."""
        return set(os.listdir(self.root / "boots"))

    def see(self, boot_id: str) -> None:
        """Note that an agent runs in this boot, as far as the disk takes it."""
        with suppress(OSError):
            (self.root / "boots" / boot_id).mkdir(mode=0o700, exist_ok=True)
            (self.root / "boots" / boot_id / "seen").touch(mode=0o600)

    def seen(self, boot_id: str, registration: int) -> int:
        """Return when an agent ran last in that boot, or wrote of this registration: ns since 1970.

        Raises:
            OSError: it cannot be looked at.
        """
        found = 0
        for directory in (self.root / "boots" / boot_id, self._directory(registration)):
            for name in ("seen", "journal.jsonl", "records.jsonl"):
                with suppress(FileNotFoundError):
                    found = max(found, (directory / name).stat().st_mtime_ns)
        return found

    def remove_boot(self, boot_id: str) -> None:
        """Remove the journal of an earlier boot, of which no container is left."""
        shutil.rmtree(self.root / "boots" / boot_id, ignore_errors=True)

    def unmeasured(self) -> list[tuple[int, HookState]]:
        """Return the containers that started unmeasured: (when, in ns since 1970; state)."""
        found = []
        for when, path in self._unmeasured_notes():
            try:
                state = parse_hook_state(read_bounded(path, limits.HOOK_STATE))
            except (OSError, JsonError, HookStateError):
                state = HookState(id="unreadable", bundle="/")
            found.append((when, state))
        return found

    def forget_unmeasured(self, before: int, kept: int) -> int:
        """Remove notes of unmeasured starts from ``before`` (ns since 1970), and the oldest of more
        than ``kept``; return how many.

        Raises:
            OSError: one could not be removed.
        """
        notes = self._unmeasured_notes()
        gone = [path for when, path in notes[-kept:] if when < before]
        gone += [path for _, path in notes[:-kept]]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def _unmeasured_notes(self) -> list[tuple[int, Path]]:
        """Return when they were written (ns since 1970), and where they are; oldest first."""
        directory = self.root / UNMEASURED_DIR
        paths = directory.iterdir() if directory.is_dir() else ()
        found = ((path.name.partition("-")[0], path) for path in paths)
        return sorted((int(when), path) for when, path in found if when.isdigit())

    def _directory(self, registration: int) -> Path:
        return self.root / "containers" / f"{registration:08d}"
