"""The client of a fleet's service: where it is, who asks, and what it answers."""

import json
import os
import urllib.parse
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.base.peer import AnswerTooLargeError, fetch
from cima_runc.base.text import printable
from cima_runc.cli import context
from cima_runc.cli.remote import reason_of, tls_context

URL, CA = "CIMA_FLEET_URL", "CIMA_FLEET_CA"
TOKEN, TOKEN_FILE = "CIMA_FLEET_TOKEN", "CIMA_FLEET_TOKEN_FILE"
_SECONDS = 60.0
_OTHER = "is this the address of a fleet's service, and of this version?"
_PAGE = 1_000
"""Rows that the service gives at a time."""


class Row(dict[str, Any]):
    """An object that the service answers; a key that is wanted and not there is its error."""

    def __missing__(self, key: str) -> Any:
        raise FleetUnavailableError(f"the service does not tell {key}", hint=_OTHER)


class FleetUnknownError(CimaError):
    """It is not known where the service is, or who asks."""


class FleetUnavailableError(CimaError):
    """The service does not answer, or not as a fleet's service does."""


class FleetRefusedError(CimaError):
    """The service refuses what was asked for."""


class _Chosen:
    url: str | None = None
    ca: Path | None = None
    token_file: Path | None = None


def choose(url: str | None, ca: Path | None, token_file: Path | None) -> None:
    """Remember what the options say; one process runs one command."""
    _Chosen.url, _Chosen.ca, _Chosen.token_file = url, ca, token_file


class Client:
    """Asks the service that options, environment or settings name, in this order."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        """Find out where the service is, and read the token.

        Raises:
            FleetUnknownError, UrlError: what is wanted is not there.
        """
        self._url, ca = _address()
        self._token = _token()
        self._seconds = seconds
        self._context = tls_context(self._url, ca)

    def get(self, *path: str, **query: str | int | bool | None) -> Row:
        """Return the object at a path of ``/v1``; ``None`` in a query is left out.

        Raises:
            FleetUnavailableError, FleetRefusedError: there is no answer.
        """
        return _object(self._call("GET", path, query))

    def listed(self, *path: str, **query: str | int | bool | None) -> list[Row]:
        """Return the objects at a path of ``/v1``.

        Raises:
            FleetUnavailableError, FleetRefusedError: there is no answer.
        """
        found = self._call("GET", path, query)
        if not isinstance(found, list):
            raise FleetUnavailableError("the service does not answer with a list", hint=_OTHER)
        return [_object(one) for one in found]

    def rows(
        self, path: str, limit: int, go_on: tuple[str, str], **query: str | int | bool | None
    ) -> list[Row]:
        """Return at most ``limit`` rows of a list that comes in pages.

        ``go_on``: the query's key for the place after a row, and the row's key that names it.
        """
        found: list[Row] = []
        parameter, key = go_on
        while len(found) < limit:
            size = min(_PAGE, limit - len(found))
            rows = self.listed(path, limit=size, **query)
            found += rows
            if len(rows) < size:
                break
            query[parameter] = rows[-1][key]
        return found

    def send(self, method: str, *path: str, body: Any = None) -> Row:
        """Change something; ``body`` is bytes, or an object for JSON. No answer is an empty one."""
        return _object(self._call(method, path, {}, body))

    def _call(
        self, method: str, path: tuple[str, ...], query: Mapping[str, Any], body: Any = None
    ) -> Any:
        route = "/".join(urllib.parse.quote(part, safe="") for part in path)
        said = {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in query.items()
            if value is not None
        }
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        elif body is not None:
            headers["Content-Type"] = "application/octet-stream"
        url = f"{self._url}/v1/{route}" + (f"?{urllib.parse.urlencode(said)}" if said else "")
        try:
            status, _, raw = fetch(
                url,
                context=self._context,
                limit=limits.EVIDENCE,
                seconds=self._seconds,
                method=method,
                body=body,
                headers=headers,
                by_proxy=True,
            )
        except AnswerTooLargeError as error:
            what = "the service answers too much"
            raise FleetUnavailableError(what, hint="ask with a --limit") from error
        except (OSError, HTTPException, ValueError) as error:
            raise FleetUnavailableError(
                f"{printable(self._url)} does not answer: {reason_of(error)}",
                hint="check the address, and --ca for its certificate",
            ) from error
        if not 200 <= status < 300:
            raise _refusal(status, raw)
        return _parsed(raw)


def _parsed(raw: bytes) -> Any:
    if not raw:
        return Row()
    try:
        return json.loads(raw, object_hook=Row)
    except (ValueError, RecursionError) as error:
        raise FleetUnavailableError("the answer is not JSON", hint=_OTHER) from error


def _object(found: Any) -> Row:
    if not isinstance(found, Row):
        raise FleetUnavailableError("the service does not answer with an object", hint=_OTHER)
    return found


def _refusal(status: int, raw: bytes) -> CimaError:
    try:
        said = json.loads(raw)
        what, hint = printable(str(said["error"])), printable(str(said.get("hint") or ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return FleetUnavailableError(
            f"the service answers with status {status}",
            hint=_OTHER,
        )
    return FleetRefusedError(what, hint=hint)


def _address() -> tuple[str, Path | None]:
    url, ca = _Chosen.url or os.environ.get(URL) or None, _Chosen.ca
    if ca is None and os.environ.get(CA):
        ca = Path(os.environ[CA])
    if url is None:
        fleet = context.settings().fleet
        url = fleet.url
        if ca is None and fleet.ca is not None:
            ca = Path(fleet.ca)
    if url is None:
        raise FleetUnknownError(
            "it is not known where the fleet's service is",
            hint=f"give --url, or {URL} in the environment, or [fleet] url in the settings",
        )
    return url.rstrip("/"), ca


def _token() -> str:
    """Return the token; never from the command line, where all of the machine's users see it."""
    text = os.environ.get(TOKEN, "")
    path: Path | None = _Chosen.token_file
    if path is None and not text:
        path = Path(os.environ.get(TOKEN_FILE) or Path.home() / ".config/cima/fleet-token")
    if path is not None:
        try:
            text = read_bounded(path, 4096).decode("ascii")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it holds no token"
            raise FleetUnknownError(
                f"{printable(str(path))}: {why}",
                hint=f"give --token-file, or {TOKEN_FILE} in the environment",
            ) from error
    text = text.strip()
    if not text.isascii() or not text.isprintable() or not text or " " in text:
        raise FleetUnknownError("the token is not one", hint="one line: cima_…")
    return text
