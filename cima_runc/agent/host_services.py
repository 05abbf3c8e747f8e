"""Partitions of the host services: one for each set of services, shared by all containers on it.

A container's own partition so shows nothing of others, and the second container on the same
services costs no record. A partition only grows: services that are restarted or upgraded, and
libraries that they map later, are added to it.

Finding and hashing are done beside the agent's one writer, by :meth:`HostServices.look_at` and in a
thread; all else belongs to the writer.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cima_runc.agent.index import Container
from cima_runc.agent.writer import Writer
from cima_runc.base import clock
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.ima.kernel_log import KernelLog
from cima_runc.ima.template import Func
from cima_runc.measure.file_digest import Identity, open_regular, sha256
from cima_runc.measure.host_services import Chain, Finder, Service, ServiceFile, standard_library
from cima_runc.measure.known_digests import KnownDigests
from cima_runc.ml import contents
from cima_runc.ml.contents import Content, ServicePath, ServicesRegister, Unmeasured
from cima_runc.ml.records import CIMA, Record, RecordError, digest_of
from cima_runc.ml.store import ContainerNote

_log = logging.getLogger(__name__)

_MEMFD = b"/memfd:"
"""How /proc shows a file without a name; IMA leaves out the slash."""

_Seen = tuple[bytes, Func, Identity | None]
_Known = frozenset[tuple[str, bytes]]


@dataclass
class Look:
    """What a container relies on, as it was seen; files that need hashing are held open."""

    chain: Chain = field(default_factory=Chain)
    error: str = ""
    """Why nothing was seen."""
    handles: dict[Identity, int] = field(default_factory=dict)
    unreadable: dict[bytes, str] = field(default_factory=dict)
    """Why a file cannot be opened, by the path that would have."""

    def close(self) -> None:
        """Let go of the files."""
        for handle in self.handles.values():
            os.close(handle)
        self.handles.clear()


@dataclass
class _Kept:
    """One partition of host services."""

    number: int
    seen: set[_Seen] = field(default_factory=set)
    """Files that are recorded, or being hashed."""
    contents: set[bytes] = field(default_factory=set)
    """Digests of the records that are no file measurements."""
    unmeasured: dict[tuple[bytes, bytes], Func] = field(default_factory=dict)
    """(digest, path) of files that the kernel's log did not have."""


@dataclass(frozen=True)
class _Hashed:
    """A service's new files with their digests, or why one has none."""

    kept: _Kept
    service: Service
    digests: list[tuple[ServiceFile, bytes | str]]
    executable: bytes | str


class HostServices:
    """The partitions of the host services of this boot."""

    def __init__(
        self,
        *,
        boot_id: str,
        host_pcr: int,
        writer: Writer,
        digests: Path,
        kernel_log: KernelLog | None,
        new_number: Callable[[], int],
        new_secret: Callable[[], bytes],
    ) -> None:
        self._boot_id = boot_id
        self._host_pcr = host_pcr
        self._writer = writer
        self._kernel_log = kernel_log
        self._new_number = new_number
        self._new_secret = new_secret
        self._finder = Finder()
        self._by_key: dict[_Known, _Kept] = {}
        self._digests = KnownDigests(digests, boot_id)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="services")
        self._hashed: deque[_Hashed] = deque()
        self._running = 0
        self._idle = threading.Condition()

    # -- in any thread ------------------------------------------------------------------------

    def look_at(self, pid: int) -> Look:
        """Find what the container with this first process, which is being made, relies on.

        Never raises: what went wrong is in the answer.
        """
        return self._look(lambda: self._finder.find(pid))

    def look_again(self, pids: Mapping[int, int]) -> dict[int, Look]:
        """Find what has changed, for each registration here and one container's first process.

        Long-lived services are looked for and walked again, once for all.
        """
        self._finder.forget()

        def find(pid: int) -> Callable[[], Chain]:
            return lambda: self._finder.find(pid, runs=True)

        return {number: self._look(find(pid)) for number, pid in pids.items()}

    def _look(self, find: Callable[[], Chain]) -> Look:
        look = Look()
        try:
            look.chain = find()
            for service in look.chain.services:
                self._hold(look, service.files)
        except Exception as error:
            # Not to know a service is recorded, and stops no container.
            look.close()
            look = Look(error=printable(str(error)) or type(error).__name__)
        return look

    def _hold(self, look: Look, files: Iterable[ServiceFile]) -> None:
        for file in files:
            identity = file.identity
            if identity is None or identity in self._digests or identity in look.handles:
                continue
            try:
                look.handles[identity] = open_regular(file.open_as)
            except OSError as error:
                look.unreadable[file.open_as] = error.strerror or "it cannot be opened"
            except CimaError as error:
                look.unreadable[file.open_as] = error.what

    def wait_until_hashed(self, seconds: float) -> bool:
        """Wait until everything that was seen is hashed; whether that was so in time.

        What was hashed becomes records with the next :meth:`collect`.
        """
        with self._idle:
            return self._idle.wait_for(lambda: self._running == 0, seconds)

    # -- in the writer ------------------------------------------------------------------------

    def register(self, look: Look) -> int | None:
        """Return the registration of the partition for what was seen, begun if need be.

        None where nothing was seen.

        Raises:
            CimaError, OSError: the partition cannot be begun.
        """
        if look.error:
            return None
        try:
            kept = self._by_key.get(look.chain.key) or self._begin(look.chain)
            for missing in look.chain.not_found:
                self._add(kept, _not_found(missing.role, missing.reason))
        except BaseException:
            look.close()
            raise
        self._take(kept, look)
        return kept.number

    def take_again(self, looks: Mapping[int, Look]) -> None:
        """Add to the partitions what was seen of their services later.

        A service that is not there at this moment runs nothing that could be added.
        """
        for kept in self._by_key.values():
            look = looks.get(kept.number)
            if look is not None:
                self._take(kept, look)
            self._look_up_again(kept)

    def collect(self) -> None:
        """Make records of what was hashed meanwhile; :meth:`Writer.write` makes them durable."""
        if self._hashed and self._kernel_log is not None:
            # The service reports a log that cannot be read; for us it has no line then.
            with suppress(CimaError, OSError):
                self._kernel_log.read_new()
        while self._hashed:
            self._record(self._hashed.popleft())

    def restore(self, container: Container, records: Iterable[Record]) -> None:
        """Go on with a partition that an earlier agent began."""
        kept = _Kept(container.note.registration)
        key: _Known = frozenset()
        for record in records:
            if record.content_type == CIMA:
                kept.contents.add(record.digest)
                # What a newer agent wrote need not be known here.
                with suppress(RecordError):
                    content = contents.read(record)
                    if isinstance(content, ServicesRegister):
                        key = frozenset((one.role, one.path_hex) for one in content.services)
        self._by_key[key] = kept

    def _begin(self, chain: Chain) -> _Kept:
        number = self._new_number()
        now = clock.now()
        note = ContainerNote(
            registration=number,
            id=f"dependencies:{number}",  # no container is called so: runtimes allow no colon
            boot_id=self._boot_id,
            mntns=_host_mount_namespace(),
            cgroup="",
            pid=0,
            start_ticks=0,
            bundle="",
            started=now,
            state="running",
            kind="dependencies",
        )
        register = ServicesRegister(
            id=note.id,
            kind="dependencies",
            boot_id=note.boot_id,
            registration=number,
            services=tuple(
                ServicePath(role=role, path_hex=path, path=printable(path))
                for role, path in sorted(chain.key)
            ),
            missing=self._writer.missing,
        )
        self._writer.begin(note, self._new_secret(), [register])
        kept = self._by_key[chain.key] = _Kept(number)
        _log.info("%s: %d services", note.id, len(chain.services))
        self._add(kept, _library())
        return kept

    def _take(self, kept: _Kept, look: Look) -> None:
        new: list[tuple[Service, list[ServiceFile]]] = []
        for service in look.chain.services:
            files = [file for file in service.files if _seen(file) not in kept.seen]
            if files:
                kept.seen.update(map(_seen, files))
                new.append((service, files))
        if not new:
            look.close()
            return
        with self._idle:
            self._running += 1
        self._worker.submit(self._hash, kept, look, new)

    def _hash(self, kept: _Kept, look: Look, new: list[tuple[Service, list[ServiceFile]]]) -> None:
        try:
            for service, files in new:
                digests = [(file, self._digest(look, file)) for file in files]
                executable = self._digest(look, service.files[0])
                self._hashed.append(_Hashed(kept, service, digests, executable))
            self._digests.keep()
        except Exception:
            # Nobody waits for what this returns. Each file has its digest, or why it has none.
            _log.exception("digests of services' files are not kept")
        finally:
            look.close()
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def _digest(self, look: Look, file: ServiceFile) -> bytes | str:
        if file.identity is None:
            return file.error
        known = self._digests.get(file.identity)
        if known is not None:
            return known
        handle = look.handles.get(file.identity)
        if handle is None:
            return look.unreadable.get(file.open_as, "it was not opened")
        try:
            digest, identity = sha256(handle)
        except OSError as error:
            return error.strerror or "it cannot be read"
        except CimaError as error:
            return error.what
        except Exception as error:
            # It was seen, so it is never looked at again: it must become a record.
            _log.exception("%s is not hashed", printable(file.path))
            return f"it was not hashed: {type(error).__name__}"
        self._digests.add(identity, digest)
        return digest

    def _record(self, hashed: _Hashed) -> None:
        kept, role = hashed.kept, hashed.service.role
        for file, digest in hashed.digests:
            if isinstance(digest, bytes) and self._measured(kept, digest, file.path, file.func):
                continue
            reason = digest if isinstance(digest, str) else self._why_unmeasured()
            shown = digest if isinstance(digest, bytes) else None
            if isinstance(digest, bytes):
                kept.unmeasured[digest, file.path] = file.func
            self._add(kept, _unmeasured(role, file.path, shown, file.func, reason))
        path, executable = hashed.service.path, hashed.executable
        content = contents.Service(
            role=role,
            path_hex=path,
            path=printable(path),
            digest=executable if isinstance(executable, bytes) else None,
        )
        self._add(kept, content)

    def _measured(self, kept: _Kept, digest: bytes, path: bytes, func: Func) -> bool:
        """Record a file that the kernel's log has for the host's PCR; False where it has not."""
        log = self._kernel_log
        if log is None:
            return False
        line = log.line_of(digest, path, self._host_pcr)
        if line is None and path.startswith(_MEMFD):
            # The record says what the kernel's line says.
            path = path[1:]
            line = log.line_of(digest, path, self._host_pcr)
        if line is None:
            return False
        self._writer.add_file(kept.number, digest, path, func=func, line=line)
        return True

    def _look_up_again(self, kept: _Kept) -> None:
        """Record files that the kernel has measured since they were found unmeasured."""
        if kept.unmeasured and self._kernel_log is not None:
            self._kernel_log.read_new()
        for (digest, path), func in list(kept.unmeasured.items()):
            if self._measured(kept, digest, path, func):
                del kept.unmeasured[digest, path]

    def _why_unmeasured(self) -> str:
        if self._kernel_log is None:
            return "the kernel's log is missing"
        return f"the kernel's log for PCR {self._host_pcr} does not have it"

    def _add(self, kept: _Kept, content: Content) -> None:
        digest = digest_of(CIMA, content.to_json())
        if digest not in kept.contents:
            kept.contents.add(digest)
            self._writer.add(kept.number, content)


def failed(reason: str) -> Unmeasured:
    """Return the content that a container's partition holds in place of its host services."""
    return _not_found("dependencies", reason)


def _not_found(role: str, reason: str) -> Unmeasured:
    return Unmeasured(
        role=role, path_hex=None, path=None, digest=None, func=None, reason=printable(reason)
    )


def _unmeasured(
    role: str, path: bytes, digest: bytes | None, func: Func, reason: str
) -> Unmeasured:
    return Unmeasured(
        role=role,
        path_hex=path,
        path=printable(path),
        digest=digest,
        func=func.value,
        reason=printable(reason),
    )


def _library() -> Unmeasured:
    reason = "Python's own library is read and not executed, and not owned by the user cima"
    return _unmeasured("agent", standard_library(), None, Func.FILE_CHECK, reason)


def _seen(file: ServiceFile) -> _Seen:
    return file.path, file.func, file.identity


def _host_mount_namespace() -> int:
    try:
        return os.stat("/proc/1/ns/mnt").st_ino
    except PermissionError:
        return os.stat("/proc/self/ns/mnt").st_ino
