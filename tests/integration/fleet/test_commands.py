"""``cima fleet``: what people see and change, on either database."""

import json
from pathlib import Path

import pytest

from cima_runc.cli import shapes
from cima_runc.cli.fleet import FleetArgumentError
from cima_runc.cli.fleet_client import FleetRefusedError
from cima_runc.fleet.access import Role
from cima_runc.verifier.reference.file import ImageReference
from tests.support.fleet_commands import commands
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually

HOSTILE = "<script>alert(1)</script>\x1b[2J'; DROP TABLE host; --"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


def test_what_people_do_in_a_day(
    fleet: ServedFleet,
    reference: ImageReference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = commands(fleet, monkeypatch)

    def ask(*words: str) -> object:
        done = run(*words, "--json")
        assert done.exit_code == 0, (words, done.stdout, done.exception)
        for table in (run(*words),) if not set(words) & CHANGES else ():
            assert table.exit_code == 0, (words, table.exception)
            assert "\x1b" not in table.stdout
        return json.loads(done.stdout)

    policy, values = tmp_path / "policy.toml", tmp_path / "app.json"
    policy.write_text(POLICY)
    values.write_bytes(reference_file(reference))
    assert ask("policies", "add", "default", str(policy)) == {"made": "default@2"}
    assert ask("references", "add", "app", str(values)) == {"made": "app@1"}
    made = ask("policies", "assign", "default", "--label", "zone=a", "--mode", "observe")
    assert isinstance(made, dict)
    rows = ask("policies", "assignments")
    assert isinstance(rows, list)
    assert rows[0]["uid"] == made["made"] and rows[0]["match"] == {"label": {"zone": "a"}}

    host = FleetHost()
    fleet.enrol(host, HOSTILE, zone="a")
    number = start(host, "web", reference)
    fleet.sync(host)
    eventually(lambda: fleet.container("web")["verdict"] == "TRUSTED")
    ak = host.tpm.ak_name.hex()
    assert [row["ak_name"] for row in ask("hosts")] == [ak]  # type: ignore[attr-defined]
    assert ask("show", ak)["containers"] == {"TRUSTED": 1}  # type: ignore[index]
    shown = ask("show", "web")
    assert isinstance(shown, dict)
    assert (shown["verdict"], shown["observed"]) == ("TRUSTED", "TRUSTED")
    assert ask("show", shown["uid"]) == shown
    assert len(ask("records", shown["uid"])) == shown["records"]  # type: ignore[arg-type]

    # A token of it: its policy names what a stranger could choose.
    policy.write_text(f"{POLICY}args = []\nmounts = []\nenv = []\n")
    ask("policies", "add", "web", str(policy))
    image_id = str(shown["image"])
    ask("policies", "assign", "web", "--label", "zone=a", "--image", image_id)
    granted = ask("grants", "add", "web", "https://vault.example")
    assert isinstance(granted, dict)
    assert [row["uid"] for row in ask("grants")] == [granted["uid"]]  # type: ignore[attr-defined]
    eventually(lambda: fleet.container("web")["policy"] == "web@1")
    token = ask("token", shown["uid"], "--audience", "https://vault.example")
    assert isinstance(token, dict)
    assert token["token"].count(".") == 2
    assert ask("grants", "remove", granted["uid"])

    # A policy under which it would not be: nothing changes until it is added.
    policy.write_text("rootfs_required = true\n")
    host.run(number, HOSTILE.encode())
    fleet.sync(host)
    eventually(lambda: fleet.container("web")["verdict"] == "UNTRUSTED")
    found = ask("find", HOSTILE)
    assert isinstance(found, list) and len(found) == 1
    assert ask("find", f"sha256:{found[0]['digest']}") == found
    assert [row["uid"] for row in ask("containers", "--verdict", "UNTRUSTED")] == [  # type: ignore[attr-defined]
        shown["uid"]
    ]
    assert ask("overview")["containers"]["UNTRUSTED"] == 1  # type: ignore[index]
    kinds = {row["kind"] for row in ask("events")}  # type: ignore[attr-defined]
    assert "container.verdict" in kinds

    assert ask("label", ak, "--label", "zone=b")
    assert ask("hosts")[0]["labels"] == {"zone": "b"}  # type: ignore[index]
    assert ask("policies", "unassign", made["made"])
    assert ask("references", "retire", "app")
    secret = ask("tokens", "add", "bob", "--role", "viewer", "--days", "1")
    assert isinstance(secret, dict)
    assert secret["uid"] in {row["uid"] for row in ask("tokens")}  # type: ignore[attr-defined]
    assert ask("tokens", "revoke", secret["uid"])
    joins = ask("join-tokens", "add", "--label", "zone=a")
    assert isinstance(joins, dict)
    assert ask("join-tokens", "void", joins["uid"])
    assert ask("join-tokens")[0]["void"] is True  # type: ignore[index]
    assert ask("tenants", "add", "shop") and ask("tenants")[0]["name"] == "shop"  # type: ignore[index]
    hook = ask("webhooks", "add", "https://127.0.0.1:1/hook")
    assert isinstance(hook, dict)
    assert [row["uid"] for row in ask("webhooks")] == [hook["uid"]]  # type: ignore[attr-defined]
    ask("webhooks", "failed")
    assert ask("webhooks", "remove", hook["uid"])
    ask("references"), ask("policies"), ask("enrolments")
    assert ask("remove", ak)

    entries = ask("audit")
    assert isinstance(entries, list)
    verified = ask("audit", "verify")
    assert isinstance(verified, dict)
    assert verified == {
        "entries": len(entries),
        "head": entries[0]["digest"],
        "broken": None,
    }
    assert run("audit", "verify", "--head", entries[3]["digest"]).exit_code == 0
    assert run("audit", "verify", "--head", "0" * 64).exit_code == 2


CHANGES = {"add", "assign", "unassign", "retire", "revoke", "void", "remove", "label"}


def test_a_policy_is_compared_before_it_is_added(
    fleet: ServedFleet,
    reference: ImageReference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = commands(fleet, monkeypatch)
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(POLICY)
    bad.write_text("")
    run("policies", "add", "default", str(good))
    values = tmp_path / "app.json"
    values.write_bytes(reference_file(reference))
    run("references", "add", "app", str(values))
    host = FleetHost()
    fleet.enrol(host)
    start(host, "web", reference)
    fleet.sync(host)
    eventually(lambda: fleet.container("web")["verdict"] == "TRUSTED")
    before = fleet.get("/v1/audit"), fleet.get("/v1/policies"), fleet.get("/v1/events")
    same = json.loads(run("policies", "diff", "default", str(good), "--json").stdout)
    assert (same["containers"], same["changes"]) == (1, [])
    other = json.loads(run("policies", "diff", "default", str(bad), "--json").stdout)
    assert fleet.container("web")["verdict"] == "TRUSTED"
    assert (fleet.get("/v1/audit"), fleet.get("/v1/policies"), fleet.get("/v1/events")) == before
    monkeypatch.setattr("cima_runc.fleet.difference._SECONDS", -1.0)
    late = json.loads(run("policies", "diff", "default", str(bad), "--json").stdout)
    assert (late["containers"], late["left_out"], late["changes"]) == (0, 1, [])
    # What was foretold is what comes.
    run("policies", "add", "default", str(bad))
    eventually(lambda: fleet.container("web")["policy"] == "default@3")
    now = fleet.container("web")
    assert [(one["before"], one["after"]) for one in other["changes"]] == (
        [("TRUSTED", now["verdict"])] if now["verdict"] != "TRUSTED" else []
    )
    assert now["verdict"] != "TRUSTED", "the example must make a difference"


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_a_role_that_is_not_enough_is_told_so(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    run = commands(fleet, monkeypatch, fleet.token(role))
    assert run("hosts").exit_code == 0
    done = run("tokens", "--json")
    assert isinstance(done.exception, FleetRefusedError), done
    assert "admin" in done.exception.hint
    assert isinstance(run("show", "nothing").exception, FleetArgumentError)


def test_all_shapes_of_the_fleet_were_seen() -> None:
    source = Path(__file__).read_text()
    for output in shapes.OUTPUTS:
        words = output.command.split()
        if words[0] == "fleet" and words[-1] not in {"approve", "reject"}:
            assert f'"{words[1]}"' in source, output.command
