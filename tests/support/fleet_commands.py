"""``cima fleet`` against a service in this process."""

import io
import urllib.error
from collections.abc import Callable
from email.message import Message
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cima_runc.cli import fleet_client, shapes
from cima_runc.cli.main import app
from tests.support.served_fleet import ServedFleet

URL = "https://fleet.example"


def commands(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch, token: str | None = None
) -> Callable[..., Result]:
    """Return what runs ``cima fleet WORDS``; what ``--json`` prints is checked by its shape.

    The connection alone is another: requests go to the service's HTTP in this process.
    """
    monkeypatch.setenv(fleet_client.URL, URL)
    monkeypatch.setenv(fleet_client.TOKEN, token or fleet.admin)

    class Opener:
        def open(self, request: Any, timeout: float) -> Any:
            answer = fleet.client.request(
                request.get_method(),
                request.full_url.removeprefix(URL),
                headers=dict(request.header_items()),
                content=request.data,
            )
            body = io.BytesIO(answer.content)
            if answer.status_code >= 300:
                raise urllib.error.HTTPError(
                    request.full_url, answer.status_code, "", Message(), body
                )
            return body

    monkeypatch.setattr(fleet_client.urllib.request, "build_opener", lambda *_: Opener())

    def run(*words: str) -> Result:
        done = CliRunner().invoke(app, ["fleet", *words])
        if "--json" in words and done.exit_code == 0:
            shapes.check(("fleet", *words), done.stdout)
        return done

    return run
