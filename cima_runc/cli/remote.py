"""The client of an agent on another machine."""

import json
import ssl
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.peer import fetch
from cima_runc.base.text import printable
from cima_runc.runtime.agent_socket import AgentRefusedError, AgentUnavailableError


class UrlError(CimaError):
    """The address or a certificate for it cannot be used."""


def call_url(
    url: str,
    route: str,
    body: bytes | None,
    *,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    timeout: float,
) -> bytes:
    """Send a request to the agent at ``url`` (https), return its answer.

    ``ca`` replaces the system's authorities; ``certificate`` and ``key`` are our own, where the
    agent wants one. ``body`` None asks with GET. ``timeout`` is of the
    whole exchange, in seconds.

    Raises:
        UrlError, AgentUnavailableError, AgentRefusedError: there is no answer.
    """
    context = tls_context(url, ca, certificate, key)
    try:
        status, _, raw = fetch(
            f"{url.rstrip('/')}/v1/{route}",
            context=context,
            limit=limits.EVIDENCE,
            seconds=timeout,
            method="GET" if body is None else "POST",
            body=body,
            headers={"Content-Type": "application/json"},
            by_proxy=True,
        )
    except (OSError, HTTPException, ValueError) as error:
        unavailable = AgentUnavailableError(f"{url} does not answer: {reason_of(error)}")
        unavailable.hint = "check the address, and --ca for its certificate"
        raise unavailable from error
    # A redirection would take what is asked, and who asks, along to wherever it says.
    if status != HTTPStatus.OK:
        raise AgentRefusedError(_reason(raw, status))
    return raw


def reason_of(error: Exception) -> str:
    """Return why there is no answer, for people."""
    told = getattr(error, "verify_message", "") or getattr(error, "strerror", None) or error
    return printable(str(told) or type(error).__name__)


def tls_context(
    url: str, ca: Path | None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return how to reach ``url``: over TLS, or not at all.

    Raises:
        UrlError: it is no such address, or a file cannot be used.
    """
    if not url.startswith("https://"):
        raise UrlError(f"{url} does not begin with https://")
    if certificate is None and key is not None:
        raise UrlError("--key goes with --cert: it is that certificate's")
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        named = " or ".join(str(one) for one in (ca, certificate, key) if one is not None)
        why = "" if isinstance(error, ssl.SSLError) else f": {error.strerror}"
        raise UrlError(f"{named} cannot be used{why}", hint="PEM files are wanted") from error
    return context


def _reason(raw: bytes, status: int) -> str:
    try:
        return printable(str(json.loads(raw)["error"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"the agent answers with status {status}"
