"""``cima configure fleet`` writes what the agent reads, or nothing."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cima_runc.base.errors import CimaError
from cima_runc.cli.configure_fleet import fleet_change, write_fleet
from cima_runc.cli.main import app
from cima_runc.config import load_settings
from cima_runc.evidence.owner import generate, public_text

URL = "https://fleet.example:8443"


def run(file: Path, *, dry_run: bool = False, remove: bool = False, **given: str) -> None:
    change = fleet_change(given, remove=remove, file=file)
    if not dry_run:
        write_fleet(change)


def test_what_is_given_is_added_and_the_rest_stays(tmp_path: Path) -> None:
    file = tmp_path / "etc/config.toml"
    key = public_text(generate()[1])
    run(file, url=URL, service_key=key)
    assert load_settings(str(file)).fleet.url == URL
    file.write_text('# ours\nruntimes = ["crun"]  # fast\n' + file.read_text())
    run(file, url=URL + "/other")
    settings = load_settings(str(file))
    assert settings.fleet.url == URL + "/other"
    assert settings.fleet.service_key == key
    assert "# fast" in file.read_text()
    run(file, remove=True)
    assert load_settings(str(file)).fleet.url is None
    assert load_settings(str(file)).shim.runtimes == ("crun",)


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.touch()
    command = ["--config", str(file), "configure", "fleet", "--url", URL]
    shown = CliRunner().invoke(app, [*command, "--dry-run"])
    assert f'+url = "{URL}"' in shown.stdout
    assert not file.read_text()
    written = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(written.stdout)["written"] is True
    assert "configured so already" in CliRunner().invoke(app, command).stderr
    for wrong in (
        ["configure", "fleet", "--set-as-default"],
        ["configure", "docker", "--url", URL],
    ):
        assert isinstance(CliRunner().invoke(app, wrong).exception, CimaError)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"url": "http://fleet.example"},
        {"url": "https://user@fleet.example"},
        {"url": "fleet.example"},
        {"url": URL, "ca": "/nowhere.pem"},
        {"url": URL, "ca": os.devnull},
        {"url": URL, "service_key": "x25519:AAAA"},
        {"url": URL, "service_key": "x25519:" + "A" * 43 + "="},
    ],
)
def test_what_is_not_good_is_not_written(tmp_path: Path, given: dict[str, str]) -> None:
    file = tmp_path / "config.toml"
    with pytest.raises(CimaError):
        run(file, **given)
    assert not file.exists()


def test_a_token_is_its_owner_s(tmp_path: Path) -> None:
    file, token = tmp_path / "config.toml", tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o644)
    with pytest.raises(CimaError, match="others"):
        run(file, url=URL, join_token_file=str(token))
    token.chmod(0o600)
    run(file, url=URL, join_token_file=str(token))
    assert load_settings(str(file)).fleet.join_token_file == str(token)
