"""Puts evidence together from an answer and from stored records; in any thread.

What is under the seal is streamed as the store has it: a record is JSON already.
Source: design, section 7.
"""

import base64
import json
import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cima_runc.agent.attester import Answer, AttestError, BoundRegister, Quoted
from cima_runc.agent.host_log import HostLog
from cima_runc.base import limits
from cima_runc.config import Settings
from cima_runc.cpcr import register
from cima_runc.cpcr.inner import inner
from cima_runc.evidence.disclosure import disclosed_line, kernel_log_index, with_kernel_line
from cima_runc.evidence.models import (
    AggregationPart,
    AkPart,
    BindingPart,
    HostLine,
    Outside,
    QuotePart,
)
from cima_runc.evidence.models import HostLog as HostLogPart
from cima_runc.evidence.owner import parse_public
from cima_runc.evidence.padding import padded
from cima_runc.evidence.report import ReportedLog
from cima_runc.evidence.request import Since
from cima_runc.evidence.seal import seal_to
from cima_runc.ima.entry import Entry
from cima_runc.ima.kernel_log import KernelLog
from cima_runc.ml.contents import Adopted, File, Previous, Register, read
from cima_runc.ml.records import RecordError, parse_line
from cima_runc.ml.store import ContainerNote, Store, StoreError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """One run of a line as it is shown."""

    note: ContainerNote
    secret: bytes
    since: int
    records: list[bytes]
    previous: Previous | None
    """The run before, where its first records say which that was."""

    def goes_on_from(self, registration: int) -> bool:
        """Whether this run's first records say that one of that registration was before it."""
        return self.previous is not None and self.previous.registration == registration

    @property
    def size(self) -> int:
        """Bytes of its records."""
        return sum(map(len, self.records))

    def to_json(self) -> bytes:
        """Return what evidence holds of it."""
        head = {
            "run": self.note.run,
            "id": self.note.id,
            "registration": self.note.registration,
            "secret": self.secret.hex(),
            "since": self.since,
        }
        return _with(_json(head), records=_array(self.records))


class Assembly:
    """Makes evidence."""

    def __init__(
        self,
        *,
        settings: Settings,
        boot_id: str,
        store: Store,
        kernel_log: KernelLog | None,
        host_log: Callable[[], HostLog],
    ) -> None:
        """``kernel_log`` is asked only for what it has read already; ``host_log`` gives the host's
        log where it is needed, or raises AttestError."""
        self._settings = settings
        self._boot_id = boot_id
        self._store = store
        self._kernel_log = kernel_log
        self._host_log = host_log

    def evidence(self, answer: Answer) -> bytes:
        """Return evidence as JSON.

        Raises:
            AttestError: it would be too large, or a file is not what it was.
            StoreError, KernelLogError, OSError: a file cannot be read.
        """
        request, quoted, own = answer.request, answer.quoted, answer.container
        bound = quoted.bound
        owner = padded(self._owner_part(answer))
        digest = request.digest()
        sealed = [
            seal_to(parse_public(text), owner, answer.asker, digest) for text in own.note.owners
        ]
        secrets.SystemRandom().shuffle(sealed)
        outside = Outside(
            type="cima-evidence",
            version=2,
            container=own.note.id,
            nonce=request.nonce,
            request=digest,
            quote=QuotePart(
                attest=quoted.quote.attest,
                signature=quoted.quote.signature,
                pcrs={str(pcr): value for pcr, value in quoted.values.items()},
            ),
            aggregation=AggregationPart(index=answer.place.index, path=answer.place.path),
            ak=self.ak_part(answer.ak_public),
            binding=BindingPart(
                pcr=self._settings.tpm.pcr,
                status=bound.status,
                host=bound.host,
                root=bound.root,
                history=bound.bind.history,
                slot=own.note.slot,
                leaf=own.leaf,
                path=own.path,
            ),
            sealed=tuple(sealed) or None,
            host_log=self._host_log_part(answer),
            boot_log=self._boot_log() if request.boot_log else None,
        )
        raw = outside.to_json(None if sealed else owner)
        if len(raw) > limits.EVIDENCE:
            raise AttestError(
                f"the evidence has more than {limits.EVIDENCE} bytes", hint="ask with --since"
            )
        return raw

    # -- under the seal -----------------------------------------------------------------------

    def _owner_part(self, answer: Answer) -> bytes:
        own = answer.container
        if own.note.line is None:
            raise AttestError(
                "the container ended under an agent that knew no lines",
                hint="its records are shown by: cima log",
            )
        runs, missing = self._runs(answer)
        head = {
            "request": answer.request.model_dump(mode="json"),
            "line": own.note.line,
            "blind": own.blind.hex(),
            "cpcr": own.cpcr.hex(),
            "count": own.count,
            "missing": missing,
        }
        services = b"null" if answer.services is None else self._services(answer.services)
        return _with(_json(head), runs=_array(run.to_json() for run in runs), services=services)

    def _runs(self, answer: Answer) -> tuple[list[_Run], list[dict[str, int]]]:
        """Return the runs that are shown, oldest first, and what is missing of those before."""
        own, since = answer.container, answer.request.since
        if since is not None and not self._fits(since, answer):
            since = None
        shown: list[_Run] = []
        reached = False
        room = limits.SHOWN_RECORDS
        for number in reversed(answer.runs):
            if shown and not shown[0].goes_on_from(number):
                # Nothing vouches for it: what came after it is not kept.
                continue
            try:
                run = self._shown_run(number, own, since)
            except (StoreError, RecordError) as error:
                if not shown:
                    raise
                _log.error("registration %d is damaged and not shown: %s", number, error)
                break
            room -= run.size
            if shown and room < 0:
                break
            shown.insert(0, run)
            if since is not None and run.note.run == since.run:
                reached = True
                break
        return shown, _missing(shown, whole=not reached)

    def _shown_run(self, number: int, own: BoundRegister, since: Since | None) -> _Run:
        is_own = number == own.note.registration
        note = own.note if is_own else self._store.read_note(number)
        start = since.count if since is not None and note.run == since.run else 0
        return self._run(note, start, own.count if is_own else None)

    def _run(self, note: ContainerNote, since: int, count: int | None) -> _Run:
        lines = list(islice(self._store.lines(note.registration), count))
        if (count is not None and len(lines) != count) or len(lines) < since:
            raise AttestError("the container's stored records are not all there")
        this_boot = note.boot_id == self._boot_id
        has_line = self._has_line if this_boot else lambda _: False
        return _Run(
            note=note,
            secret=self._store.read_secret(note.registration),
            since=since,
            records=[disclosed_line(line, has_line=has_line) for line in lines[since:]],
            previous=_previous(lines),
        )

    def _fits(self, since: Since, answer: Answer) -> bool:
        """Whether the asker has seen the register as it was; what does not fit gets the whole."""
        for number in answer.runs:
            own = number == answer.container.note.registration
            with suppress(StoreError, RecordError):  # of what is damaged nothing fits
                note = answer.container.note if own else self._store.read_note(number)
                if note.run != since.run:
                    continue
                value, count = register.ZERO, 0
                bound = answer.container.count if own else None
                for line in islice(self._store.lines(number), bound):
                    if count == since.count:
                        break
                    value = register.extend(value, parse_line(line).digest)
                    count += 1
                secret = self._store.read_secret(number)
                return count == since.count and inner(secret, value, count) == since.inner
        return False

    def _has_line(self, line: bytes) -> bool:
        """Whether the kernel's log has by now the file that a stored record is of."""
        if self._kernel_log is None:
            return False
        try:
            content = read(parse_line(line))
        except (RecordError, ValueError):
            return False
        if not isinstance(content, File):
            return False
        return self._kernel_log.line_of(content.digest, content.path) is not None

    def _services(self, services: BoundRegister) -> bytes:
        number = services.note.registration
        lines = list(islice(self._store.lines(number), services.count))
        if len(lines) != services.count:
            raise AttestError("the stored records of the host's services are not all there")
        records = self.records(lines, services=True)
        head = {
            "registration": number,
            "slot": services.note.slot,
            "leaf": services.leaf.hex(),
            "path": [node.hex() for node in services.path],
            "blind": services.blind.hex(),
            "secret": services.secret.hex(),
            "cpcr": services.cpcr.hex(),
            "count": services.count,
        }
        return _with(_json(head), records=_array(records))

    def records(self, lines: list[bytes], *, services: bool) -> list[bytes]:
        """Return stored records of this boot as evidence shows them, those of host ``services``
        with their lines of the kernel's log.

        Raises:
            AttestError, KernelLogError: the kernel's log cannot be read.
        """
        if not services:
            return [disclosed_line(line, has_line=self._has_line) for line in lines]
        indices = [kernel_log_index(line) for line in lines]
        known = [index for index in indices if index is not None]
        entries = self._host_log().at(known) if known else {}
        shown = []
        for line, index in zip(lines, indices, strict=True):
            record = disclosed_line(line, shared=True)
            entry = None if index is None else entries.get(index)
            shown.append(record if entry is None else _with_entry(record, entry))
        return shown

    # -- the host's own -----------------------------------------------------------------------

    def _host_log_part(self, answer: Answer) -> HostLogPart:
        pcr, prefix = self._settings.ima.host_pcr, answer.quoted.host
        entries: tuple[bytes | HostLine, ...] = ()
        if prefix is not None:
            if prefix.lines == 0:
                raise AttestError(f"the kernel's log has nothing for PCR {pcr}")
            log = self._host_log()
            if answer.request.host == "redacted":
                entries = (_host_line(log.first()), *log.redacted(prefix.lines)[1:])
            else:
                entries = tuple(map(_host_line, log.entries(prefix.lines)))
        return HostLogPart(disclosure=answer.request.host, pcr=pcr, entries=entries)

    def report_log(self, quoted: Quoted, since: int) -> ReportedLog | None:
        """Return what a report shows of the host's log: the entries from number ``since`` on.

        Raises:
            AttestError, KernelLogError: the log cannot be read.
        """
        if quoted.host is None:
            return None
        log, lines = self._host_log(), quoted.host.lines
        entries: tuple[bytes | HostLine, ...] = ()
        if since < lines and self._settings.fleet.host_log == "full":
            entries = tuple(map(_host_line, log.entries(lines)[since:]))
        elif since < lines:
            entries = tuple(log.redacted(lines, since))
            if since == 0:
                entries = (_host_line(log.first()), *entries[1:])
        return ReportedLog.model_validate({"from": since, "entries": entries})

    def ak_part(self, public: bytes) -> AkPart:
        """Return the attestation key as evidence shows it.

        Raises:
            AttestError: its certificate cannot be read.
        """
        return AkPart(public=public, certificate=self._ak_certificate())

    def boot_log(self) -> bytes:
        """Return the firmware's event log.

        Raises:
            AttestError: it cannot be read.
        """
        return self._boot_log()

    def _ak_certificate(self) -> bytes | None:
        path = self._settings.attestation.ak_certificate
        if path is None:
            return None
        pem = _read(path, limits.KEY_FILE, "see attestation.ak_certificate in the settings")
        try:
            return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        except ValueError as error:
            raise AttestError(f"{path} is not a PEM certificate") from error

    def _boot_log(self) -> bytes:
        return _read(
            self._settings.attestation.event_log, limits.EVENT_LOG, "ask without --boot-log"
        )


def _previous(lines: Iterable[bytes]) -> Previous | None:
    """Return the run before, as a partition's own records tell."""
    for number, line in enumerate(lines):
        if number == 0 or b'"type":"adopted"' in line:
            content = read(parse_line(line))
            if isinstance(content, Register | Adopted):
                return content.previous if isinstance(content.previous, Previous) else None
    return None


def _missing(shown: list[_Run], *, whole: bool) -> list[dict[str, int]]:
    """Return which runs are not shown though those that are shown go on from them."""
    missing: list[dict[str, int]] = []
    runs = {run.note.run for run in shown}
    for at, run in enumerate(shown):
        before = run.previous
        first = at == 0
        if before is None or before.run in runs or (first and not whole):
            continue
        missing.append({"run": before.run, "from": 0, "to": before.count})
    return missing


def _with_entry(record: bytes, entry: Entry) -> bytes:
    data = base64.b64encode(entry.data).decode("ascii")
    return with_kernel_line(record, entry.template.decode("ascii", "replace"), data)


def _host_line(entry: Entry) -> HostLine:
    return HostLine(
        template=entry.template.decode("ascii", "replace"),
        data=entry.data,
        violation=entry.violation,
    )


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _array(items: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _with(head: bytes, **more: bytes) -> bytes:
    """Return a JSON object, of one key at least, with more keys, whose values are JSON already."""
    added = b"".join(b',"%s":%s' % (key.encode("ascii"), value) for key, value in more.items())
    return head[:-1] + added + b"}"


def _read(path: str, limit: int, hint: str) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise AttestError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if len(raw) > limit:
        raise AttestError(f"{path} has more than {limit} bytes", hint=hint)
    return raw
