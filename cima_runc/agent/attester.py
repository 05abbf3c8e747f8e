"""The attester: answers requests for evidence.

A request waits until the agent's one writer serves all that wait together: it binds for them, and
quotes once for each selection of PCRs. What each answer is made of is noted then; it is put
together elsewhere (:mod:`.assembly`), from files that only grow. So the quote comes first, and the
logs are read after it. Source: design, section 7.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from cima_runc.agent.host_log import HostLog, HostPrefix
from cima_runc.agent.index import Container
from cima_runc.agent.ledger import Bound
from cima_runc.agent.sources import log_copy
from cima_runc.agent.waiting import Waiting, WaitingRoom
from cima_runc.agent.writer import Writer
from cima_runc.base.errors import CimaError
from cima_runc.config import Settings
from cima_runc.evidence.aggregation import Place, aggregate
from cima_runc.evidence.request import Asker, Request, leaf
from cima_runc.ml.listing import NoSuchContainerError
from cima_runc.ml.store import ContainerNote
from cima_runc.tpm.device import Tpm, TpmError
from cima_runc.tpm.keys import AttestationKey, load_ak
from cima_runc.tpm.quote import Quote, quote

_log = logging.getLogger(__name__)

_ATTEMPTS = 8
"""Quotes in which a PCR changed while it was being quoted, before we give up."""


class AttestError(CimaError):
    """There is no evidence for this request."""


class MovedError(AttestError):
    """What was to be quoted is not what the PCR shows any more."""


class NotForYouError(AttestError):
    """The request is one that only root may make, over the unix socket."""

    def __init__(self) -> None:
        # The same words whether there is such a container or not.
        super().__init__(
            "no container of that id gives evidence to everybody",
            hint="give the whole id; the container needs an owner's key (io.cima.owner)",
        )


class NoEvidenceError(AttestError):
    """There is no evidence, and whoever asks is not told why."""

    def __init__(self) -> None:
        super().__init__("no evidence can be given now", hint="ask again later")


@dataclass(frozen=True)
class Quoted:
    """A quote and the values that it stands for."""

    quote: Quote
    values: dict[int, bytes]
    bound: Bound
    host: HostPrefix | None
    """The host's log at the quote; None where its PCR was not quoted."""


@dataclass(frozen=True)
class BoundRegister:
    """A register as it was bound, with its place in the blinded tree; nothing changes it."""

    note: ContainerNote
    secret: bytes
    cpcr: bytes
    count: int
    blind: bytes
    leaf: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True)
class Answer:
    """All that evidence is made of; nothing in it changes any more."""

    request: Request
    asker: Asker
    container: BoundRegister
    services: BoundRegister | None
    """The host services that the container relies on, where these could be found."""
    runs: tuple[int, ...]
    """Registrations of the line's runs that are kept, oldest first; the last is the container's."""
    quoted: Quoted
    place: Place
    ak_public: bytes


@dataclass(frozen=True)
class _Chosen:
    """A request, and the container whose evidence it gets."""

    waiting: Waiting[Answer]
    container: Container
    services: Container | None


class Attester:
    """Answers requests; :meth:`serve` belongs to the writer thread, :meth:`ask` to any."""

    def __init__(
        self,
        *,
        settings: Settings,
        writer: Writer,
        tpm: Tpm | None,
        commit: Callable[[], object],
    ) -> None:
        """``commit`` makes records of all that has happened and makes them durable."""
        self._settings = settings
        self._writer = writer
        self._tpm = tpm
        self._commit = commit
        self._ak: AttestationKey | None = None
        self._host_log: HostLog | None = None
        self._waiting = WaitingRoom[Answer]()

    # -- anywhere -----------------------------------------------------------------------------

    def ask(
        self, request: Request, *, source: str | None, asker: Asker = Asker.OUTSIDE
    ) -> "Future[Answer]":
        """Queue a request; :meth:`serve` must be called afterwards.

        ``source``: who asks, where that is not root of this host: then there is nothing but
        evidence that is encrypted to the container's owner, of a container that is named in full.

        Raises:
            TooManyError: too many wait.
        """
        return self._waiting.add(request, asker, source)

    def host_log(self) -> HostLog:
        """Return the host's log.

        Raises:
            AttestError: it cannot be read.
        """
        if self._host_log is None:
            ima = self._settings.ima
            try:
                copy = log_copy(self._settings, keep=False)
                self._host_log = HostLog(Path(ima.directory), ima.host_pcr, copy)
            except OSError as error:
                raise AttestError(
                    f"the host's log cannot be shown: {error.strerror}", hint="ask with --host none"
                ) from error
        return self._host_log

    # -- in the writer thread -----------------------------------------------------------------

    def attestation_key(self) -> AttestationKey:
        """Return the AK, loaded when it is first wanted.

        Raises:
            TpmError: there is no TPM, or it refuses.
        """
        if self._ak is None:
            self._ak = load_ak(self.tpm, self._settings.attestation.ak_handle)
        return self._ak

    @property
    def tpm(self) -> Tpm:
        """The TPM.

        Raises:
            TpmError: there is none.
        """
        if self._tpm is None:
            raise TpmError("there is no TPM", hint="see cima status")
        return self._tpm

    def serve(self) -> None:
        """Answer all that wait: over one bind, one quote for each selection. Never raises."""
        waiting = self._waiting.take()
        if not waiting:
            return
        try:
            self._commit()
            chosen = [one for each in waiting if (one := self._choose(each)) is not None]
            bound: Bound | None = None
            for with_host in (False, True):
                some = [one for one in chosen if _quotes_host(one) == with_host]
                if some:
                    bound = self._answer(some, with_host, bound)
        except Exception as error:
            if not isinstance(error, CimaError | OSError):
                _log.exception("a request for evidence failed")
            for each in waiting:
                if not each.answer.done():
                    each.answer.set_exception(error)

    def _choose(self, waiting: Waiting[Answer]) -> _Chosen | None:
        """Return what the request gets; None where it gets an error, which is set."""
        try:
            container = self._container(waiting)
        except CimaError as error:
            waiting.answer.set_exception(error)
            return None
        number = container.note.dependencies
        services = None if number is None else self._writer.get(number)
        return _Chosen(waiting, container, services)

    def _container(self, waiting: Waiting[Answer]) -> Container:
        request = waiting.request
        container = self._writer.latest(request.container)
        if waiting.source is not None:
            shown = "none", *(["redacted"] if self._settings.attestation.https.redacted else [])
            if container is None or not container.note.owners or request.host not in shown:
                raise NotForYouError
        elif container is None:
            raise NoSuchContainerError(
                f"no container {request.container} is registered in this boot", hint="see cima ps"
            )
        return container

    def _answer(self, chosen: Sequence[_Chosen], with_host: bool, bound: Bound | None) -> Bound:
        """Answer those of one selection, over ``bound`` where the PCR shows it still."""
        leaves = [leaf(one.waiting.asker, one.waiting.request.digest()) for one in chosen]
        root, places = aggregate(leaves)
        lines = max(map(self._lines_needed, chosen)) if with_host else 0
        quoted = self._quote(root, with_host, bound, lines, self._writer.bind_for_quote)
        public = self.attestation_key().public
        for one, place in zip(chosen, places, strict=True):
            one.waiting.answer.set_result(
                Answer(
                    request=one.waiting.request,
                    asker=one.waiting.asker,
                    container=_register(one.container, quoted.bound),
                    services=None
                    if one.services is None
                    else _register(one.services, quoted.bound),
                    runs=self._writer.runs_of(one.container.note),
                    quoted=quoted,
                    place=place,
                    ak_public=public,
                )
            )
        return quoted.bound

    def _lines_needed(self, one: _Chosen) -> int:
        """Return how many entries of the host's log the records of the services speak of."""
        if one.services is None or one.services.last_line is None:
            return 0
        return self.host_log().entries_to(one.services.last_line)

    def report(self, claim: bytes, bound: Bound, *, with_host: bool) -> "tuple[Quoted, Place]":
        """Quote for a report of the host, ``claim`` (32 bytes), over ``bound``.

        Raises:
            MovedError: the binding PCR shows another bind by now.
            AttestError, TpmError: there is no quote.
        """

        def moved() -> Bound:
            raise MovedError("the binding PCR shows another bind by now")

        root, (place,) = aggregate([leaf(Asker.HOST, claim)])
        return self._quote(root, with_host, bound, 0, moved), place

    def _quote(
        self,
        qualifying: bytes,
        with_host: bool,
        bound: Bound | None,
        lines: int,
        bind: Callable[[], Bound],
    ) -> Quoted:
        """Quote over ``bound``, or over what ``bind`` gives where there is none or the PCR was
        changed.

        The host's log is as long as ``lines`` at least.
        """
        settings = self._settings
        pcrs = {*settings.attestation.boot_pcrs, settings.tpm.pcr}
        if with_host:
            pcrs.add(settings.ima.host_pcr)
        for _ in range(_ATTEMPTS):
            if bound is None:
                bound = bind()
            made = self._signed(sorted(pcrs), qualifying)
            values = self.tpm.read_pcrs(sorted(pcrs))
            # Whatever was extended between bind, quote and reading shows here.
            if values[settings.tpm.pcr] != bound.bind.expected:
                bound = None
                continue
            recent = self.host_log().recent() if with_host else [None]
            for prefix in recent:
                if prefix is not None:
                    if prefix.lines < lines:
                        break  # logged and not extended yet
                    values[settings.ima.host_pcr] = prefix.value
                joined = b"".join(values[pcr] for pcr in sorted(pcrs))
                if hashlib.sha256(joined).digest() == made.body.pcr_digest:
                    ordered = {pcr: values[pcr] for pcr in sorted(pcrs)}
                    return Quoted(made, ordered, bound, prefix)
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


def _quotes_host(one: _Chosen) -> bool:
    return one.waiting.request.host != "none"


def _register(container: Container, bound: Bound) -> BoundRegister:
    """Return a copy: what goes on in the container must not change the answer."""
    assert bound.tree is not None
    slot, partition = container.note.slot, container.partition
    return BoundRegister(
        note=container.note,
        secret=container.secret,
        cpcr=partition.cpcr,
        count=partition.count,
        blind=bound.tree.blind(slot),
        leaf=bound.tree.leaf(slot),
        path=bound.tree.path(slot),
    )
