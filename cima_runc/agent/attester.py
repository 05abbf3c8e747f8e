"""The attester: answers requests for evidence.

A request waits in a queue until the agent's one writer thread serves all that wait together: it
binds, quotes once, and notes each container's place under that quote. The evidence is then put
together elsewhere, from files that only grow. So the quote comes first, and the logs are read
after it. Source: design, section 7.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cima_runc.agent.core import BoundRegister
from cima_runc.agent.host_log import HostLog, HostPrefix
from cima_runc.agent.index import Container
from cima_runc.agent.sources import log_copy
from cima_runc.agent.writer import Writer
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.config import Settings
from cima_runc.cpcr.binding import Bind
from cima_runc.cpcr.journal import JournalState
from cima_runc.evidence.disclosure import disclosed_line
from cima_runc.evidence.models import (
    AggregationPart,
    AkPart,
    BindingPart,
    Evidence,
    ForeignChange,
    ForeignPart,
    GapsPart,
    GapTime,
    HostLine,
    LeafPart,
    QuotePart,
    Request,
    Sealed,
)
from cima_runc.evidence.models import (
    HostLog as HostLogPart,
)
from cima_runc.evidence.owner import parse_public
from cima_runc.evidence.qualify import Inclusion, aggregate_among, request_leaf
from cima_runc.evidence.seal import key_id, seal
from cima_runc.ml.listing import find_note
from cima_runc.ml.store import Store
from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.keys import AttestationKey, load_ak
from cima_runc.tpm.quote import Quote, quote

_log = logging.getLogger(__name__)

_ATTEMPTS = 8
"""Quotes in which a PCR changed while it was being quoted, before we give up."""


class AttestError(CimaError):
    """There is no evidence for this request."""


class NotForYouError(AttestError):
    """The request is one that only root may make, over the unix socket."""

    def __init__(self) -> None:
        # The same words whether there is such a container or not.
        super().__init__(
            "no container of that id gives evidence to everybody",
            hint="give the whole id; the container needs an owner's key (io.cima.owner)",
        )


@dataclass(frozen=True)
class Quoted:
    """A quote and the values that it stands for."""

    quote: Quote
    values: dict[int, bytes]
    bind: Bind
    journal: JournalState
    host: HostPrefix | None
    """The host's log at the quote; None where its PCR was not quoted."""


@dataclass(frozen=True)
class Answer:
    """All that evidence is made of; nothing in it changes any more."""

    request: Request
    container: Container
    register: BoundRegister
    quoted: Quoted
    place: Inclusion
    ak_public: bytes
    dependencies: tuple[Container, BoundRegister] | None = None
    """What the container relies on, where that could be found."""


@dataclass(frozen=True)
class _Waiting:
    request: Request
    anybody: bool
    answer: "Future[Answer]"


class Attester:
    """Answers requests; :meth:`serve` belongs to the writer thread, the rest to any."""

    def __init__(
        self,
        *,
        settings: Settings,
        writer: Writer,
        store: Store,
        tpm: Tpm | None,
        commit: Callable[[], None],
    ) -> None:
        """``commit`` makes records of all that has happened and makes them durable."""
        self._settings = settings
        self._writer = writer
        self._store = store
        self._tpm = tpm
        self._commit = commit
        self._ak: AttestationKey | None = None
        self._host_log: HostLog | None = None
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()

    def ask(self, request: Request, *, anybody: bool) -> "Future[Answer]":
        """Queue a request; :meth:`serve` must be called afterwards.

        ``anybody``: the asker is not known to be root of this host, and gets nothing but evidence
        that is encrypted to the container's owner, of a container that he names in full.

        Raises:
            AttestError: too many wait.
        """
        answer: Future[Answer] = Future()
        with self._lock:
            if len(self._waiting) >= limits.WAITING_REQUESTS:
                raise AttestError("too many requests for evidence wait", hint="ask again later")
            self._waiting.append(_Waiting(request, anybody, answer))
        return answer

    def serve(self) -> None:
        """Answer all that wait: one quote for those that want the same PCRs. Never raises."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for with_host in (False, True):
            some = [one for one in waiting if (one.request.host != "none") == with_host]
            if not some:
                continue
            try:
                self._answer(some, with_host)
            except Exception as error:
                if not isinstance(error, CimaError | OSError):
                    _log.exception("a request for evidence failed")
                for one in some:
                    if not one.answer.done():
                        one.answer.set_exception(error)

    def attestation_key(self) -> AttestationKey:
        """Return the AK, loaded when it is first wanted; in the writer thread.

        Raises:
            TpmError: there is no TPM, or it refuses.
        """
        if self._ak is None:
            self._ak = load_ak(self.tpm, self._settings.attestation.ak_handle)
        return self._ak

    @property
    def tpm(self) -> Tpm:
        """The TPM, for the writer thread.

        Raises:
            TpmError: there is none.
        """
        if self._tpm is None:
            raise TpmError("there is no TPM", hint="see cima status")
        return self._tpm

    def assemble(self, answer: Answer) -> bytes:
        """Put evidence together, as JSON.

        Raises:
            AttestError: it would be too large, or a file is not what it was.
            OSError: a file cannot be read.
        """
        request, container, quoted = answer.request, answer.container, answer.quoted
        owner = self._owner_part(answer)
        keys = [parse_public(text) for text in container.note.owners]
        sealed = tuple(
            Sealed(key=key_id(key), data=seal(owner, key, container.note.id, request.nonce))
            for key in keys
        )
        evidence = Evidence(
            type="cima-evidence",
            version=1,
            container=container.note.id,
            nonce=request.nonce,
            quote=QuotePart(
                attest=quoted.quote.attest,
                signature=quoted.quote.signature,
                pcrs={str(pcr): value for pcr, value in quoted.values.items()},
            ),
            aggregation=AggregationPart(
                index=answer.place.index, size=answer.place.size, path=answer.place.path
            ),
            ak=AkPart(public=answer.ak_public, certificate=self._ak_certificate()),
            binding=self._binding_part(answer),
            sealed=sealed,
            host_log=self._host_log_part(request, quoted),
            boot_log=self._boot_log() if request.boot_log else None,
        )
        raw = evidence.to_json()
        if not sealed:
            raw = raw[:-1] + b',"owner":' + owner + b"}"
        if len(raw) > limits.EVIDENCE:
            raise AttestError(
                f"the evidence has more than {limits.EVIDENCE} bytes", hint="ask with --since"
            )
        return raw

    # -- in the writer thread -----------------------------------------------------------------

    def _answer(self, waiting: list[_Waiting], with_host: bool) -> None:
        self._commit()
        found: list[tuple[_Waiting, Container]] = []
        for one in waiting:
            try:
                found.append((one, self._container(one)))
            except CimaError as error:
                one.answer.set_exception(error)
        if not found:
            return
        leaves = [request_leaf(one.request.nonce, container.note.id) for one, container in found]
        root, places = aggregate_among(leaves, limits.WAITING_REQUESTS)
        quoted = self._quote(root, with_host)
        public = self.attestation_key().public
        for (one, container), place in zip(found, places, strict=True):
            bound = self._writer.bound(container)
            relied_on = self._dependencies_of(container)
            one.answer.set_result(
                Answer(one.request, container, bound, quoted, place, public, relied_on)
            )

    def _container(self, one: _Waiting) -> Container:
        container = self._writer.latest(one.request.container)
        if one.anybody:
            if container is None or not container.note.owners or one.request.host == "full":
                raise NotForYouError
        elif container is None:
            notes = (some.note for some in self._writer.containers)
            number = find_note(notes, one.request.container).registration
            container = self._writer.get(number)
            assert container is not None
        if one.request.since > container.partition.count:
            raise AttestError(f"the container has {container.partition.count} records only")
        # A copy: what goes on in the container must not change the answer.
        return Container(container.note, container.secret, container.partition)

    def _dependencies_of(self, container: Container) -> tuple[Container, BoundRegister] | None:
        number = container.note.dependencies
        found = None if number is None else self._writer.get(number)
        if found is None:
            return None
        copy = Container(found.note, found.secret, found.partition)
        return copy, self._writer.bound(found)

    def _quote(self, qualifying: bytes, with_host: bool) -> Quoted:
        settings = self._settings
        pcrs = {*settings.attestation.boot_pcrs, settings.tpm.pcr}
        if with_host:
            pcrs.add(settings.ima.host_pcr)
        for _ in range(_ATTEMPTS):
            bind = self._writer.bind_now()
            made = self._signed(sorted(pcrs), qualifying)
            values = self.tpm.read_pcrs(sorted(pcrs))
            digest = made.body.pcr_digest
            # Whatever was extended between bind, quote and reading shows here.
            if values[settings.tpm.pcr] != bind.expected:
                continue
            recent = self._host().recent() if with_host else [None]
            for prefix in recent:
                if prefix is not None:
                    values[settings.ima.host_pcr] = prefix.value
                joined = b"".join(values[pcr] for pcr in sorted(pcrs))
                if hashlib.sha256(joined).digest() == digest:
                    ordered = {pcr: values[pcr] for pcr in sorted(pcrs)}
                    return Quoted(made, ordered, bind, self._writer.journal_state, prefix)
        raise AttestError(
            "the PCRs do not stand still for a quote, or the kernel's log does not explain them",
            hint="ask again; see cima status",
        )

    def _signed(self, pcrs: Sequence[int], qualifying: bytes) -> Quote:
        try:
            return quote(self.tpm, self.attestation_key(), pcrs, qualifying)
        except TpmError as error:
            # A TPM that was suspended has forgotten what was loaded.
            _log.warning("the attestation key is loaded again: %s", error)
            self._ak = None
            return quote(self.tpm, self.attestation_key(), pcrs, qualifying)

    def _host(self) -> HostLog:
        if self._host_log is None:
            ima = self._settings.ima
            try:
                self._host_log = HostLog(
                    Path(ima.directory), ima.host_pcr, log_copy(self._settings, keep=False)
                )
            except OSError as error:
                raise AttestError(
                    f"the host's log cannot be shown: {error.strerror}", hint="ask with --host none"
                ) from error
        return self._host_log

    # -- anywhere -----------------------------------------------------------------------------

    def _owner_part(self, answer: Answer) -> bytes:
        note, since = answer.container.note, answer.request.since
        lines = islice(self._store.lines(note.registration), since, answer.register.count)
        records = [disclosed_line(line) for line in lines]
        if since + len(records) != answer.register.count:
            raise AttestError("the container's stored records are not all there")
        own = _records_part(answer.container, answer.register, since, records)
        if answer.dependencies is None:
            return own
        container, bound = answer.dependencies
        lines = islice(self._store.lines(container.note.registration), bound.count)
        records = [disclosed_line(line, shared=True) for line in lines]
        if len(records) != bound.count:
            raise AttestError("the stored records of the dependencies are not all there")
        return own[:-1] + b',"dependencies":' + _records_part(container, bound, 0, records) + b"}"

    def _binding_part(self, answer: Answer) -> BindingPart:
        bound, bind, journal = answer.register, answer.quoted.bind, answer.quoted.journal
        last = tuple(
            ForeignChange(
                seq=change.seq, expected=change.expected, found=change.found, time=change.time
            )
            for change in journal.foreign_last
        )
        relied_on = answer.dependencies
        return BindingPart(
            pcr=self._settings.tpm.pcr,
            seq=bind.seq,
            root=bind.root,
            history=bind.history,
            **_leaf_fields(bound),
            dependencies=LeafPart(**_leaf_fields(relied_on[1])) if relied_on else None,
            foreign=ForeignPart(count=journal.foreign, last=last),
            gaps=GapsPart(
                count=journal.gaps,
                last=tuple(
                    GapTime(source=gap.source, since=gap.since, until=gap.until)
                    for gap in journal.gaps_last
                ),
            ),
        )

    def _host_log_part(self, request: Request, quoted: Quoted) -> HostLogPart:
        pcr, prefix = self._settings.ima.host_pcr, quoted.host
        entries: tuple[bytes | HostLine, ...] = ()
        if prefix is not None and request.host == "redacted":
            entries = tuple(map(bytes.fromhex, self._host().redacted(prefix.lines)))
        elif prefix is not None:
            entries = tuple(HostLine(**line) for line in self._host().full(prefix.lines))
        return HostLogPart(disclosure=request.host, pcr=pcr, entries=entries)

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


def _read(path: str, limit: int, hint: str) -> bytes:
    try:
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise AttestError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if len(raw) > limit:
        raise AttestError(f"{path} has more than {limit} bytes", hint=hint)
    return raw


def _leaf_fields(bound: BoundRegister) -> dict[str, Any]:
    return {
        "slot": bound.slot,
        "path": tuple(bound.path),
        "leaf": bound.leaf,
        "count": bound.count,
    }


def _records_part(
    container: Container, bound: BoundRegister, since: int, records: Iterable[bytes]
) -> bytes:
    """Return a :class:`RecordsPart` as JSON; the records are JSON already."""
    head = {"secret": container.secret.hex(), "cpcr": bound.cpcr.hex(), "since": since}
    text = json.dumps(head, separators=(",", ":")).encode("ascii")
    return text[:-1] + b',"records":[' + b",".join(records) + b"]}"
