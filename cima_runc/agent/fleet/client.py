"""The fleet's service over HTTPS: one connection that is kept, with limits on all that comes back.

Source: RFC 9110 (HTTP), RFC 6750 (Bearer), RFC 9110, 10.2.3 (Retry-After).
"""

import http.client
import socket
import ssl
from contextlib import suppress
from urllib.parse import urlsplit

from pydantic import ValidationError

from cima_runc import __version__
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.base.peer import PeerConnection, body_of, whole_within
from cima_runc.base.text import printable
from cima_runc.config import FleetSettings
from cima_runc.evidence.compressed import ENCODING, compressed
from cima_runc.evidence.errors import EvidenceError
from cima_runc.evidence.report_answer import Answer, Refused, parse_answer

TIMEOUT = 30.0
"""Seconds that the service may take to answer, beyond what it was asked to wait."""
WHOLE = 300.0
"""Seconds that a whole exchange may take beyond that: a report has up to 32 MiB."""


_BUSY = frozenset({429, 502, 503, 504})
_SHOWN = 300
"""Characters that are shown of what a service says."""


class ServiceError(CimaError):
    """The service cannot be reached, or does not answer as one."""


class ServiceRefusedError(ServiceError):
    """The service refuses, and says why."""

    def __init__(self, error: str, what: str, hint: str, retry_after: float | None) -> None:
        super().__init__(f"the fleet's service refuses: {what} ({error})", hint=hint)
        self.error = error
        """Name of the reason."""
        self.retry_after = retry_after
        """Seconds to wait, where the service says so."""


class Client:
    """Asks the service. For one thread, but for :meth:`close`."""

    def __init__(self, settings: FleetSettings) -> None:
        """Prepare; nothing is read or connected yet."""
        assert settings.url is not None
        self.url = settings.url.rstrip("/")
        parts = urlsplit(self.url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path
        self._ca = settings.ca
        self._connection: PeerConnection | None = None
        self._closed = False

    def ask(self, method: str, route: str, body: bytes | None = None, **more: object) -> Answer:
        """Return the service's answer; ``more`` is as for :meth:`raw`.

        Raises:
            ServiceRefusedError: it refuses.
            ServiceError: there is no answer.
        """
        status, raw, retry_after = self.raw(method, route, body, **more)  # type: ignore[arg-type]
        try:
            answer = parse_answer(raw)
        except EvidenceError as error:
            raise refusal_of(status, raw, retry_after) from error
        if isinstance(answer, Refused):
            raise refusal_of(status, raw, retry_after)
        return answer

    def raw(
        self,
        method: str,
        route: str,
        body: bytes | None = None,
        *,
        session: str | None = None,
        wait: float = 0.0,
        media_type: str = "application/json",
        packed: bool = False,
    ) -> tuple[int, bytes, float | None]:
        """Return status, body and Retry-After (seconds) of an answer.

        ``wait`` is how many seconds the service may wait on purpose; ``packed``: the body is worth
        compressing.

        Raises:
            ServiceError: there is none.
        """
        headers = {"Accept": "application/json", "User-Agent": f"cima-agent/{__version__}"}
        if session is not None:
            headers["Authorization"] = f"Bearer {session}"
        if body is not None:
            headers["Content-Type"] = media_type
            if packed:
                body = compressed(body)
                headers["Content-Encoding"] = ENCODING
        is_kept = self._connection is not None
        try:
            return self._exchange(method, route, body, headers, wait)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop()
            # The service may have closed a connection that was kept; a report that comes twice is
            # refused by its counters, and nothing else here does harm when done twice.
            if not is_kept or self._closed or isinstance(error, TimeoutError):
                raise self._unreachable(error) from error
        try:
            return self._exchange(method, route, body, headers, wait)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop()
            raise self._unreachable(error) from error

    def _exchange(
        self, method: str, route: str, body: bytes | None, headers: dict[str, str], wait: float
    ) -> tuple[int, bytes, float | None]:
        connection = self._connection
        if connection is None:
            connection = PeerConnection(self._host, self._port, TIMEOUT, self._authorities())
        with whole_within(connection, WHOLE + wait):
            if connection.sock is None:
                connection.connect()
                self._connection = connection
            connection.sock.settimeout(TIMEOUT + wait)
            connection.request(method, f"{self._path}/v1/{route}", body, headers)
            answer = connection.getresponse()
            raw = body_of(answer, limits.REPORT_ANSWER)
        if answer.will_close:
            self._drop()
        return answer.status, raw, _seconds(answer.getheader("Retry-After"))

    def _authorities(self) -> ssl.SSLContext:
        """Read who may vouch for the service: anew for each connection, as files are renewed."""
        try:
            return ssl.create_default_context(cafile=self._ca)
        except (OSError, ssl.SSLError) as error:
            raise ServiceError(
                f"{self._ca} cannot be used: {error.strerror or type(error).__name__}",
                hint="fleet.ca names a PEM file of certificates",
            ) from error

    def _unreachable(self, error: Exception) -> ServiceError:
        why = printable(str(error) or type(error).__name__)
        return ServiceError(
            f"{printable(self.url)} does not answer: {why}", hint="see fleet.url and fleet.ca"
        )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End what goes on, from any thread; nothing may be asked after that."""
        self._closed = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)


def refusal_of(status: int, raw: bytes, retry_after: float | None) -> ServiceError:
    """Return as an error what an answer says that is not what was asked for."""
    kind, what, hint = f"status {status}", "", ""
    try:
        said = load_object(raw, what="the answer", limit=limits.VERIFIER_INPUT)
        if said.get("type") == "refused":
            refused = Refused.model_validate(said)
            kind, what, hint = refused.error, refused.what, refused.hint
        elif isinstance(said.get("error"), str):
            # As all but reports are refused.
            what, hint = said["error"], str(said.get("hint", ""))
            kind = str(said.get("kind", kind))
    except (JsonError, ValidationError):
        pass
    if what:
        return ServiceRefusedError(
            printable(kind[:_SHOWN]),
            printable(what[:_SHOWN]),
            printable(hint[:_SHOWN]),
            retry_after,
        )
    if status in _BUSY:
        return ServiceRefusedError(kind, "it has too much to do", "", retry_after)
    return ServiceError(
        f"what answers, with status {status}, is no fleet's service", hint="see fleet.url"
    )


def _seconds(value: str | None) -> float | None:
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 5:
        return None
    return float(value)
