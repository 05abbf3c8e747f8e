"""``cima-verifier``'s commands that change the database, as an operator types them."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cima_runc.fleet import changes, main, migrate
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.fleet_process import write_settings
from tests.support.served_fleet import ServedFleet, eventually


def cima_verifier(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cima_runc.fleet.main", *words, "--config", str(config)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_after_a_restore_tokens_are_void_and_verdicts_unknown(
    start_service: Callable[..., ServedFleet], database_url: str, tmp_path: Path
) -> None:
    fleet = start_service()
    reference = image(tmp_path)
    fleet.write(changes.add_policy, "default", POLICY)
    fleet.write(changes.add_reference, "app", reference_file(reference))
    host = FleetHost()
    fleet.enrol(host)
    start(host, "web", reference)
    fleet.sync(host)
    eventually(lambda: fleet.container("web")["verdict"] == "TRUSTED")
    config = write_settings(tmp_path / "state", database_url)
    ran = cima_verifier(config, "restore")
    assert (ran.returncode, ran.stderr) == (0, "")
    expected = "0 join tokens are void, 1 verdicts are UNKNOWN until their hosts report\n"
    assert ran.stdout == expected
    assert fleet.container("web")["verdict"] == "UNKNOWN"
    assert fleet.get("/v1/audit")[0]["action"] == "database.restored"
    fleet.sync(host)
    eventually(lambda: fleet.container("web")["verdict"] == "TRUSTED")


def test_keys_are_rotated_and_the_one_before_is_still_published(
    start_service: Callable[..., ServedFleet], database_url: str, tmp_path: Path
) -> None:
    fleet = start_service()
    config = write_settings(tmp_path / "state", database_url)
    names = []
    for _ in range(2):
        ran = cima_verifier(config, "rotate-keys")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith("tokens are signed with the key ")
        names.append(ran.stdout.split()[-1])
    discovery = fleet.client.get("/.well-known/openid-configuration").json()
    keys = fleet.client.get(discovery["jwks_uri"]).json()["keys"]
    assert len(set(names)) == 2
    assert set(names) <= {key["kid"] for key in keys}


def test_a_database_without_tables_is_said_to_be_one(tmp_path: Path) -> None:
    config = write_settings(tmp_path / "state", f"sqlite:///{tmp_path / 'empty.db'}")
    for words in (["restore"], ["rotate-keys"]):
        ran = cima_verifier(config, *words)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.startswith("cima-verifier: ")
        assert "migrate" in ran.stderr
        assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["serve"], {"certificate": "none.pem", "key": "none.key"}, "No such file"),
        (["serve"], {"certificate": __file__, "key": __file__}, "no certificate (PEM)"),
        (["rotate-keys", "--json"], {"database": "sqlite:////none/fleet.db"}, "does not answer"),
        (["migrate", "--json"], {"database": "sqlite:////none/fleet.db"}, "No such file"),
        (["migrate", "--json", "--nothing"], {}, "--nothing"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    settings: dict[str, str],
    said: str,
) -> None:
    """Kind: what nobody caught ends with 1, which says UNTRUSTED, and with a traceback."""
    given = {"state_dir": str(tmp_path), "port": 0, **settings}
    config = tmp_path / "verifier.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
    monkeypatch.setattr(sys, "argv", ["cima-verifier", *words, "--config", str(config)])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cima-verifier: ") and said in shown.err
    assert shown.err.count("\n") == 1
    assert ("--json" in words) == (shown.out != "")
    if shown.out:
        assert said in json.loads(shown.out)["error"]["what"]


def test_what_is_printed_is_json_where_that_is_wanted(tmp_path: Path) -> None:
    def run(*words: str) -> dict[str, Any]:
        command = [*words, "--state-dir", str(tmp_path), "--json"]
        ran = CliRunner().invoke(main.app, command, catch_exceptions=False)
        assert ran.exit_code == 0
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    assert run("migrate") == {"form": migrate.wanted(), "migrated": True}
    assert set(run("join-token")) == {"uid", "token"}
    assert run("rotate-keys").keys() == {"kid"}
    assert run("restore") == {"join_tokens": 1, "verdicts": 0}
