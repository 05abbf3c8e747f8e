"""Tenants are kept apart: by trying, through every view, and in the database itself."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.event import listen
from starlette.testclient import TestClient

from cima_runc.evidence.owner import generate, public_text
from cima_runc.fleet import changes, migrate, queries
from cima_runc.fleet.access import Role
from cima_runc.fleet.database import Database
from cima_runc.fleet.findings import OPERATORS
from cima_runc.fleet.schema import Base, Event, Verdict, new_uid, table_of
from cima_runc.verifier.kernel_line import HostFile
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.reference.file import HostReference, format_reference
from cima_runc.verifier.rules.host_log import check_files
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import image, reference_file
from tests.support.served_fleet import ServedFleet

Start = Callable[..., ServedFleet]
NAMES = ("ares", "boreas", "chaos")


class Tenants:
    def __init__(self, fleet: ServedFleet) -> None:
        self.fleet = fleet
        self.keys = {name: public_text(generate()[1]) for name in NAMES}
        self.host = FleetHost()
        fleet.enrol(self.host, name="host-of-the-operator", zone="secret-zone")
        for name in NAMES:
            fleet.write(changes.add_tenant, name, [self.keys[name]])
        self.tokens = {name: fleet.token(Role.TENANT, name) for name in NAMES}
        for at, name in enumerate(NAMES):
            for number in range(at + 1):
                one = self.host.start(f"{name}-container-{number}", (self.keys[name],))
                self.host.run(one, f"/{name}-path".encode())
        self.host.start("operators-own")
        fleet.sync(self.host)
        self.uids = {
            row["container"]: row["uid"] for row in fleet.get("/v1/containers", limit=1000)
        }


@pytest.fixture
def tenants(fleet: ServedFleet) -> Tenants:
    return Tenants(fleet)


def paths(fleet: ServedFleet) -> list[str]:
    """Every path of the API that is asked with GET and takes no name."""
    described = fleet.client.get("/v1/openapi.json").json()["paths"]
    return [path for path in described if "get" in described[path] and "{" not in path]


def test_no_view_shows_anything_of_another(tenants: Tenants) -> None:
    fleet = tenants.fleet
    asked = paths(fleet)
    assert len(asked) > 15
    for own in NAMES:
        others = [name for name in (*NAMES, "operators", "secret-zone") if name != own]
        hidden = [*others, *(tenants.keys[name] for name in NAMES if name != own)]
        hidden += [uid for name, uid in tenants.uids.items() if not name.startswith(own)]
        for path in asked:
            for params in ({}, {"everything": "true", "limit": 1000, "path": "/ares-path"}):
                answer = fleet.ask("GET", path, tenants.tokens[own], params=params)
                for what in hidden:
                    if what not in str(params):
                        assert what not in answer.text, (path, what)
        counts = fleet.get("/v1/overview", tenants.tokens[own])["containers"]
        assert sum(counts.values()) == NAMES.index(own) + 1
        assert "hosts" not in fleet.get("/v1/overview", tenants.tokens[own])
        rows = fleet.get("/v1/containers", tenants.tokens[own])
        assert {row["container"].split("-")[0] for row in rows} == {own}


def test_what_a_host_s_log_shows_in_full_is_for_its_operator(
    fleet: ServedFleet, tmp_path: Path
) -> None:
    """That log has what every container of the host ran, and each container is judged by it."""
    reference = image(tmp_path)
    fleet.write(changes.add_reference, "app", reference_file(reference))
    known = HostReference(files={"/usr/bin/dockerd": ("11" * 32,)})
    fleet.write(changes.add_reference, "hosts", format_reference(known))
    fleet.write(changes.add_policy, "strict", "[host]\nallow_violations = false\n")
    for mode in ("enforce", "observe"):
        named = {"mode": mode, "image_reference": "app", "host_reference": "hosts"}
        fleet.write(changes.assign, "strict", {"label": {"zone": "a"}}, **named)
    keys = {name: public_text(generate()[1]) for name in NAMES}
    for name, key in keys.items():
        fleet.write(changes.add_tenant, name, [key])
    host = FleetHost(in_full=True)
    fleet.enrol(host, zone="a")
    for name, key in keys.items():
        host.start(f"{name}-container", (key,))
        host.host_runs(f"/bin/planted-by-{name}".encode())
        host.host_runs(f"/data/planted-by-{name}".encode(), violation=True)
    fleet.sync(host)
    digests = [hashlib.sha256(f"/bin/planted-by-{name}".encode()).hexdigest() for name in NAMES]
    (uid,) = (row["uid"] for row in fleet.get("/v1/containers", name="ares"))
    operators = fleet.ask("GET", f"/v1/containers/{uid}").text
    assert all(f"planted-by-{name}" in operators for name in NAMES), operators
    token = fleet.token(Role.TENANT, "ares")
    found = fleet.get(f"/v1/containers/{uid}", token)
    for kind in ("findings", "observed_findings"):
        told = [(one["severity"], one["rule"]) for one in found[kind] if one["part"] == "host"]
        # How many there are would count what others run.
        assert told.count(("fail", "host.added")) == 1 == told.count(("warn", "host.violation"))
    assert (found["verdict"], found["why"]) == ("UNTRUSTED", OPERATORS)
    page = TestClient(fleet.client.app, "https://fleet.example", follow_redirects=True)
    page.post("/sign-in", data={"token": token, "next": "/"})
    shown = [page.get(path).text for path in ("/", "/events", "/hosts", f"/containers/{uid}")]
    assert all("ares" in text or "Hosts" in text for text in shown)
    for path in (*paths(fleet), f"/v1/containers/{uid}", f"/v1/hosts/{host.tpm.ak_name.hex()}"):
        shown.append(fleet.ask("GET", path, token, params={"path": "/bin/planted-by-boreas"}).text)
    for text_ in shown:
        assert "planted-by" not in text_
        assert not any(digest in text_ for digest in digests)


def test_reasons_of_before_name_nothing_of_others_either(fleet: ServedFleet) -> None:
    key = public_text(generate()[1])
    fleet.write(changes.add_tenant, "ares", [key])
    host = FleetHost()
    fleet.enrol(host)
    host.start("web", (key,))
    fleet.sync(host)
    strange = HostFile("sha256", bytes(32), b"/bin/planted-new")
    (found,) = check_files([None, strange], HostReference(files={}), Policy())
    mine = "/bin/planted-mine is not in the image"
    with fleet.service.database.write() as connection:
        row = connection.execute(select(table_of(Event))).mappings().all()[-1]
        for why in (found.what, mine):
            data = {**row["data"], "why": why}
            values = {"kind": row["kind"], "container": row["container"], "time": row["time"]}
            connection.execute(
                insert(table_of(Event)).values(uid=new_uid(), host=row["host"], data=data, **values)
            )
            connection.execute(
                insert(table_of(Verdict)).values(
                    container=row["container"], time=row["time"], verdict="UNTRUSTED", why=why
                )
            )
        connection.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    assert migrate.migrate(fleet.service.database)
    token = fleet.token(Role.TENANT, "ares")
    shown = json.dumps([fleet.get("/v1/events", token), fleet.container("web", token)])
    assert "planted-new" not in shown
    assert shown.count(OPERATORS) == 2
    assert shown.count(mine) == 3  # and as what is so now


def test_what_is_another_s_is_not_there_by_name(tenants: Tenants) -> None:
    fleet, token = tenants.fleet, tenants.tokens["ares"]
    theirs = tenants.uids["boreas-container-0"]
    nobodys = "0" * 24
    for route in ("/v1/containers/{}", "/v1/containers/{}/records"):
        one = fleet.ask("GET", route.format(theirs), token)
        other = fleet.ask("GET", route.format(nobodys), token)
        assert (one.status_code, one.text) == (404, other.text)
    assert fleet.get("/v1/events", token, container=theirs) == []
    assert fleet.get("/v1/containers", token, name="boreas") == []


def test_a_tenant_changes_nothing_but_webhooks_of_his_own(tenants: Tenants) -> None:
    fleet, token = tenants.fleet, tenants.tokens["ares"]
    described = fleet.client.get("/v1/openapi.json").json()["paths"]
    operators = fleet.ask("POST", "/v1/webhooks", json={"url": "http://127.0.0.1:9/op"}).json()
    for path, methods in described.items():
        if not path.startswith("/v1/") or path.startswith(("/v1/evidence", "/v1/health")):
            continue
        for method in methods.keys() - {"get"}:
            if method not in {"post", "put", "delete"} or "people" not in methods[method]["tags"]:
                continue
            filled = path.replace("{uid}", operators["uid"]).replace("{name}", "x")
            filled = filled.replace("{ak}", tenants.host.tpm.ak_name.hex())
            body: dict[str, Any] = {
                "/v1/webhooks": {"url": "http://127.0.0.1:9/mine"},
                "/v1/assignments": {"policy": "default"},
                "/v1/tokens": {"name": "x", "role": "admin"},
            }.get(path, {})
            if path.endswith("/labels"):
                body = {"labels": {}}
            answer = fleet.ask(method.upper(), filled, token, json=body)
            if path == "/v1/webhooks":
                assert answer.status_code == 201
            elif path == "/v1/webhooks/{uid}":
                assert answer.status_code == 404
            else:
                assert answer.status_code == 403, (method, path, answer.text)
    assert [one["url"] for one in fleet.get("/v1/webhooks", token)] == ["http://127.0.0.1:9/mine"]
    assert len(fleet.get("/v1/webhooks")) == 2


def test_one_tenant_leaves_room_for_others(tenants: Tenants) -> None:
    fleet = tenants.fleet
    rates = fleet.service.rates
    rates.people._per_minute = rates.changes._per_minute = 2
    ares, boreas = tenants.tokens["ares"], tenants.tokens["boreas"]
    hook = {"url": "http://127.0.0.1:9/mine"}
    for rate, (method, path, first) in (
        ("changes", ("POST", "/v1/webhooks", 201)),
        ("people", ("GET", "/v1/containers", 200)),
    ):
        rates.people._buckets.clear()
        rates.people._per_minute = 2 if rate == "people" else 10_000
        statuses = [fleet.ask(method, path, ares, json=hook).status_code for _ in range(2)]
        assert statuses == [first] * 2
        for _ in range(1_000):
            if fleet.ask(method, path, ares, json=hook).status_code == 429:
                break
        else:
            raise AssertionError("nothing is too often")
        assert fleet.ask(method, path, boreas, json=hook).status_code == first
        assert fleet.ask(method, path, json=hook).status_code == first


def test_roles(tenants: Tenants) -> None:
    fleet = tenants.fleet
    viewer, operator = fleet.token(Role.VIEWER), fleet.token(Role.OPERATOR)
    assert fleet.ask("GET", "/v1/audit", viewer).status_code == 200
    assert fleet.ask("POST", "/v1/join-tokens", viewer, json={}).status_code == 403
    assert fleet.ask("POST", "/v1/join-tokens", operator, json={}).status_code == 201
    assert fleet.ask("GET", "/v1/tokens", operator).status_code == 403
    assert fleet.ask("GET", "/v1/tokens").status_code == 200
    assert fleet.ask("GET", "/v1/audit", "cima_nobody").status_code == 401
    assert fleet.client.get("/v1/audit").status_code == 401
    made = fleet.ask("POST", "/v1/tokens", json={"name": "gone", "role": "viewer"}).json()
    assert fleet.ask("DELETE", f"/v1/tokens/{made['uid']}").status_code == 204
    assert fleet.ask("GET", "/v1/audit", made["token"]).status_code == 401
    assert made["token"] not in json.dumps(fleet.get("/v1/tokens"))


def test_the_database_itself_keeps_them_apart(tenants: Tenants) -> None:
    database = tenants.fleet.service.database
    if not database.is_postgresql:
        pytest.skip("SQLite has no row-level security")
    numbers = {}
    with database.read() as connection:
        for row in connection.execute(text("SELECT id, name FROM tenant")):
            numbers[row.name] = row.id
    for own in NAMES:
        with database.read(numbers[own]) as connection:
            seen = b""
            for table in Base.metadata.sorted_tables:
                for row in connection.execute(select(table)):
                    if table.name != "host":
                        seen += repr(tuple(row)).encode()
        assert own.encode() in seen
        for other in NAMES:
            if other != own:
                assert other.encode() not in seen
                assert tenants.keys[other].encode() not in seen
        with database.read(numbers[own]) as connection:
            rows = connection.execute(text("SELECT count(*) FROM container")).scalar()
            assert rows == NAMES.index(own) + 1
            changed = connection.execute(text("UPDATE container SET verdict = 'TRUSTED'"))
            assert changed.rowcount == 0
    # Without a scope nothing is seen at all.
    with database.engine.connect() as connection:
        connection.execute(text("SELECT set_config('cima.scope', '', true)"))
        for table in Base.metadata.sorted_tables:
            assert connection.execute(select(table)).all() == []


def test_a_container_of_two_owners_is_seen_by_both(tenants: Tenants) -> None:
    fleet = tenants.fleet
    keys = (tenants.keys["ares"], tenants.keys["boreas"])
    tenants.host.start("shared", keys)
    fleet.sync(tenants.host)
    for name in ("ares", "boreas"):
        found = fleet.container("shared", tenants.tokens[name])
        assert found["owners"] == [tenants.keys[name]]
    assert fleet.get("/v1/containers", tenants.tokens["chaos"], name="shared") == []


@pytest.mark.parametrize(("view", "table"), [(queries.events, "event"), (queries.hosts, "host")])
def test_a_tenants_views_do_not_go_through_what_is_others(
    tmp_path: Path, view: Callable[..., Any], table: str
) -> None:
    """Kind: what one tenant looks at costs all that there is, of all hosts."""
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    migrate.migrate(database)
    asked: list[tuple[str, Any]] = []
    listen(database.engine, "before_cursor_execute", lambda *given: asked.append(given[2:4]))
    with database.read() as connection:
        view(connection, 1)
        statement, values = asked[-1]
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    database.close()
    assert not any(row[3].startswith(f"SCAN {table}") for row in plan), plan
