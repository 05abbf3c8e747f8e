"""HTTP with a peer who may answer too much, too slowly, or with the address of somebody else.

A time limit of a socket is one of each read: who sends a byte now and then keeps a reader for as
long as he likes. Here the whole exchange has an end. Source: RFC 9110 and 9112; the standard
library's ``http.client`` follows no redirects.
"""

import http.client
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass


class AnswerTooLargeError(ValueError):
    """The peer answers with more bytes than are taken."""


class PeerConnection(http.client.HTTPConnection):
    """A connection, over TLS where there is a context; while it greets, it can be ended too."""

    def __init__(
        self, host: str, port: int | None, seconds: float, context: ssl.SSLContext | None
    ) -> None:
        """``seconds`` is how long each read may take; ``context`` None: no TLS."""
        self.default_port = 443 if context is not None else 80
        super().__init__(host, port or self.default_port, timeout=seconds)
        self._context = context
        self._behind: str | None = None
        self.channel: socket.socket | None = None
        """The last socket; ``sock`` is forgotten as soon as the last answer's head is there."""

    def go_through(self, proxy: SplitResult) -> None:
        """Have a proxy connect to the peer, whom TLS is with (RFC 9110, 9.3.6)."""
        assert proxy.hostname is not None
        headers = {}
        if proxy.username is not None:
            who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            headers["Proxy-Authorization"] = "Basic " + b64encode(who.encode()).decode("ascii")
        self._behind = self.host
        self.set_tunnel(self.host, self.port, headers)
        self.host, self.port = proxy.hostname, proxy.port or 80

    def address(self) -> tuple[str, int]:
        """Return what is connected to."""
        return self.host, self.port

    def connect(self) -> None:
        """Connect, and greet; :func:`whole_within` may end it meanwhile."""
        self.sock = self.channel = socket.create_connection(self.address(), self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._behind is not None:
            self._tunnel()  # type: ignore[attr-defined]
        if self._context is not None:
            self.sock = self.channel = self._context.wrap_socket(
                self.sock, server_hostname=self._behind or self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()


@contextmanager
def whole_within(connection: PeerConnection, seconds: float) -> Iterator[None]:
    """Have all that goes on over a connection end after ``seconds``, whatever the peer sends.

    Raises:
        TimeoutError: it did not come to its own end.
    """
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        if (found := connection.channel) is not None:
            with suppress(OSError):
                socket.socket.shutdown(found, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    late = f"no whole answer within {seconds:g} seconds"
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        if is_over.is_set():
            raise TimeoutError(late) from error
        raise
    finally:
        timer.cancel()
    # Where no length was said, an answer that was cut off looks like a whole one.
    if is_over.is_set():
        raise TimeoutError(late)


def body_of(answer: http.client.HTTPResponse, limit: int) -> bytes:
    """Return an answer's body, of ``limit`` bytes at most.

    Raises:
        AnswerTooLargeError: it has more.
        OSError, HTTPException: it does not come.
    """
    if answer.length is not None and answer.length > limit:
        raise AnswerTooLargeError(f"the answer has more than {limit} bytes")
    raw = answer.read(limit + 1)
    if len(raw) > limit:
        raise AnswerTooLargeError(f"the answer has more than {limit} bytes")
    return raw


def fetch(
    url: str,
    *,
    context: ssl.SSLContext,
    limit: int,
    seconds: float,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    by_proxy: bool = False,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Ask ``url`` (https) once; return status, headers and body. A redirect is an answer.

    ``by_proxy``: through the proxy that the environment names (``https_proxy``, ``no_proxy``).

    Raises:
        ValueError: no such address, or an answer of more than ``limit`` bytes.
        OSError, HTTPException: there is no whole answer within ``seconds``.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ValueError("not an address of https")
    connection = PeerConnection(parts.hostname, parts.port, seconds, context)
    proxy = getproxies().get("https") if by_proxy and not proxy_bypass(parts.hostname) else None
    if proxy is not None:
        connection.go_through(_proxy(proxy))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with whole_within(connection, seconds):
            connection.request(method, target, body, {"Connection": "close", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, body_of(answer, limit)
    finally:
        connection.close()


def _proxy(named: str) -> SplitResult:
    parts = urlsplit(named if "://" in named else f"http://{named}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("the environment names a proxy that is no address of http")
    return parts
