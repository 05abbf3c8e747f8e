"""``cima fleet`` against a service in this process."""

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

    def fetch(url: str, *, method: str, body: bytes | None, headers: Any, **_: Any) -> Any:
        path = url.removeprefix(URL)
        answer = fleet.client.request(method, path, headers=headers, content=body)
        return answer.status_code, Message(), answer.content

    monkeypatch.setattr(fleet_client, "fetch", fetch)

    def run(*words: str) -> Result:
        done = CliRunner().invoke(app, ["fleet", *words])
        if "--json" in words and done.exit_code == 0:
            shapes.check(("fleet", *words), done.stdout)
        return done

    return run
