"""The client of an agent on another machine."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
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
    agent wants one. ``body`` None asks with GET. ``timeout`` is in seconds.

    Raises:
        UrlError, AgentUnavailableError, AgentRefusedError: there is no answer.
    """
    context = tls_context(url, ca, certificate, key)
    request = urllib.request.Request(  # noqa: S310 - https only, see above
        f"{url.rstrip('/')}/v1/{route}", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with opener(context)(request, timeout=timeout) as answer:
            raw: bytes = answer.read(limits.EVIDENCE + 1)
            return raw
    except urllib.error.HTTPError as error:
        raise AgentRefusedError(_reason(error.read(limits.KIB * 64), error.code)) from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        told = getattr(cause, "verify_message", "") or getattr(cause, "strerror", None) or cause
        reason = printable(str(told))
        unavailable = AgentUnavailableError(f"{url} does not answer: {reason}")
        unavailable.hint = "check the address, and --ca for its certificate"
        raise unavailable from error


class _Stay(urllib.request.HTTPRedirectHandler):
    # A redirection would take what is asked, and who asks, along to wherever it says.
    def redirect_request(self, *_: Any) -> None:
        return None


def opener(context: ssl.SSLContext) -> Callable[..., Any]:
    """Return what opens addresses by this context; redirects are answers, and not followed."""
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Stay()).open


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
    except (ValueError, KeyError, TypeError):
        return f"the agent answers with status {status}"
