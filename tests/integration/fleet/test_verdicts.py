"""Verdicts of a service: from what hosts report, by policies and references, and by the time."""

import hashlib
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from cima_runc.base import limits
from cima_runc.evidence.owner import generate, public_text
from cima_runc.fleet import audit, changes, queries, work
from cima_runc.fleet.schema import Policy, Verdict, table_of
from cima_runc.ml import contents
from cima_runc.verifier.reference.file import ImageReference
from tests.support.fleet_host import FleetHost, replayed
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually

Start = Callable[..., ServedFleet]
_TIME, _TIME_NS = time.time, time.time_ns


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


def ready(fleet: ServedFleet, reference: ImageReference | None = None, policy: str = "") -> None:
    fleet.write(changes.add_policy, "default", POLICY + policy)
    if reference is not None:
        fleet.write(changes.add_reference, "app", reference_file(reference))
    settle(fleet)


def settle(fleet: ServedFleet) -> None:
    """Wait until nothing is to be appraised anew; do it here, in place of waiting for a turn."""
    while fleet.service.worker.jobs():
        pass
    eventually(lambda: fleet.query(queries.backlog)["jobs"] == 0)


def one_host(fleet: ServedFleet) -> FleetHost:
    host = FleetHost()
    fleet.enrol(host)
    return host


def pass_by(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the service's clock be so much later than the real one; nobody waits for it."""
    monkeypatch.setattr(time, "time", lambda: _TIME() + seconds)
    monkeypatch.setattr(time, "time_ns", lambda: _TIME_NS() + round(seconds * 1e9))


def told(fleet: ServedFleet, kind: str) -> list[dict[str, object]]:
    return fleet.query(queries.events, kind=kind)  # type: ignore[no-any-return]


def test_a_container_of_a_known_image_is_trusted(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    start(host, "web", reference)
    fleet.sync(host)
    found = fleet.container("web")
    assert (found["verdict"], found["policy"], found["reference"]) == (
        "TRUSTED",
        "default@2",
        "app@1",
    ), found
    assert found["proved"] == found["records"] == 4
    assert "hardware not proved" in found["not_proved"]
    assert found["host"] == host.tpm.ak_name.hex()
    assert [one["data"]["verdict"] for one in told(fleet, "container.verdict")] == ["TRUSTED"]


def test_an_unknown_program_makes_it_untrusted_and_that_does_not_heal(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    number = start(host, "web", reference)
    fleet.sync(host)
    host.run(number, b"/tmp/miner", b"drift")
    fleet.sync(host)
    found = fleet.container("web")
    assert found["verdict"] == "UNTRUSTED"
    first = found["findings"][0]
    assert (first["rule"], first["path"], first["record"]) == ("file.added", "/tmp/miner", 4)
    for _ in range(3):
        host.run(number, b"/lib/lib.so", b"library")
        fleet.sync(host)
    found = fleet.container("web")
    assert found["verdict"] == "UNTRUSTED"
    assert [one["verdict"] for one in found["verdicts"]] == ["UNTRUSTED", "TRUSTED"]
    assert "/tmp/miner" in found["why"]
    # A person allows it, by name: then, and only then, it is another.
    policy = POLICY + '[[files]]\npath = "/tmp/miner"\n'
    fleet.write(changes.add_policy, "default", policy)
    settle(fleet)
    found = fleet.container("web")
    assert (found["verdict"], found["policy"]) == ("TRUSTED", "default@3"), found
    assert any(entry["action"] == "policy.add" for entry in fleet.query(queries.audit))


def test_only_new_records_are_appraised(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cima_runc.fleet import appraisal

    seen: list[int] = []
    real = appraisal.own

    def own(head, new, values, secret):  # type: ignore[no-untyped-def]
        seen.append(len(head) + len(new))
        return real(head, new, values, secret)

    ready(fleet, reference, '[[files]]\npath = "/x/*"\n')
    host = one_host(fleet)
    number = start(host, "web", reference)
    for at in range(200):
        host.run(number, b"/x/%d" % at)
    fleet.sync(host)
    monkeypatch.setattr(appraisal, "own", own)
    host.run(number, b"/x/new")
    fleet.sync(host)
    assert sum(seen) <= appraisal.HEAD + 1
    assert fleet.container("web")["verdict"] == "TRUSTED"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_database_is_asked_as_often_however_many_containers_change(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    asked: list[int] = []

    @event.listens_for(fleet.service.database.engine, "before_cursor_execute")
    def _(*_: object) -> None:
        asked[-1] += threading.current_thread() is threading.main_thread()

    def report() -> None:
        host.bind()
        body = host.report(fleet.nonce(host))
        asked.append(0)
        host.heed(fleet.service.reports.take(host.tpm.ak_name.hex(), body).answer)

    def change(count: int) -> None:
        numbers = [start(host, f"c{len(asked)}-{at}", reference) for at in range(count)]
        report()
        for number in numbers:
            host.run(number, b"/lib/lib.so", b"library")
        report()
        for number in numbers:
            host.end(number)
        report()
        for number in numbers:
            host.forget(number)
            del host.containers[number]
            host.changed.discard(number)
        report()

    asked.append(0)
    report()
    change(2)
    change(40)
    few, many = asked[2:6], asked[6:]
    assert max(many) < 50
    assert all(more <= less + 4 for less, more in zip(few, many, strict=True)), asked
    # Each of the forty has a verdict and an event, as if it had come alone.
    assert len(told(fleet, "container.verdict")) == 42


def test_records_that_come_in_pieces_are_held_and_nothing_is_trusted_before(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    host.piece = 3
    number = start(host, "web", reference)
    host.run(number, b"/bin/tool", b"tool")
    host.run(number, b"/lib/lib.so", b"library")
    host.bind()
    seen = []
    for _ in range(3):
        fleet.report(host)
        seen.append((fleet.container("web")["verdict"], fleet.container("web")["proved"]))
    assert seen[0] == ("UNKNOWN", 0)
    assert seen[1] == ("TRUSTED", 6), seen
    # The last piece is missing for ever: not trusted on what came before.
    host.run(number, b"/tmp/miner")
    host.bind()
    host.piece = 0
    fleet.report(host)
    assert fleet.container("web")["verdict"] == "UNKNOWN"


def test_without_policy_or_reference_nothing_is_trusted(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    host = one_host(fleet)
    ready(fleet)
    start(host, "web", reference)
    fleet.sync(host)
    found = fleet.container("web")
    assert (found["verdict"], found["why"]) == (
        "UNKNOWN",
        "there are no reference values of its image",
    )
    fleet.write(changes.add_reference, "app", reference_file(reference))
    settle(fleet)
    assert fleet.container("web")["verdict"] == "TRUSTED"
    for one in fleet.get("/v1/assignments"):
        fleet.write(changes.unassign, one["uid"])
    settle(fleet)
    found = fleet.container("web")
    assert (found["verdict"], found["policy"]) == ("UNKNOWN", None)
    assert found["findings"] == []


def test_stale_comes_by_itself_and_goes_with_a_report(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    good, bad = start(host, "good", reference), start(host, "bad", reference)
    host.run(bad, b"/tmp/miner")
    fleet.sync(host)
    assert fleet.container("good")["verdict"] == "TRUSTED"
    pass_by(monkeypatch, 2 * 60.0 - 30)
    assert fleet.container("good")["verdict"] == "TRUSTED"
    pass_by(monkeypatch, 2 * 60.0 + 1)
    assert fleet.container("good")["verdict"] == "STALE"
    assert fleet.container("bad")["verdict"] == "UNTRUSTED"
    assert fleet.get("/v1/overview")["hosts"]["stale"] == 1
    eventually(lambda: told(fleet, "host.stale"))
    assert len(told(fleet, "host.stale")) == 1
    fleet.report(host)
    assert fleet.container("good")["verdict"] == "TRUSTED"
    assert len(told(fleet, "host.fresh")) == 1
    assert good


def test_the_time_of_a_quote_is_when_its_nonce_was_made(
    start_service: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = start_service(interval=0.5, overdue=2.0)
    host = one_host(fleet)
    before = time.time()
    nonce = fleet.nonce(host)
    after = time.time()
    pass_by(monkeypatch, 20.0)
    assert fleet.send(host, host.report(nonce)).status_code == 200
    deadline = fleet.get(f"/v1/hosts/{host.tpm.ak_name.hex()}")["deadline"]
    quoted = datetime.fromisoformat(deadline).timestamp() - 1.0
    assert before - 0.01 <= quoted <= after + 0.01


def test_a_sealed_container_has_its_place_proved_and_nothing_of_it_is_kept(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    _, public = generate()
    key = public_text(public)
    number = start(host, "private", reference, (key,))
    host.run(number, b"/planted-path", b"planted content")
    fleet.sync(host)
    found = fleet.container("private")
    assert (found["verdict"], found["place"]) == ("UNKNOWN", "proved")
    assert found["why"] == "place proved: its records are for its owner"
    assert found["owners"] == [key]
    secret = host.containers[number].secret
    for planted in (b"planted-path", secret, secret.hex().encode()):
        assert not holds(fleet, planted)
    # What is looked for is found where it is in the clear.
    other = start(host, "public", reference)
    host.run(other, b"/planted-path", b"planted content")
    fleet.sync(host)
    assert holds(fleet, b"planted-path")


def holds(fleet: ServedFleet, planted: bytes) -> bool:
    """Whether any column of any table holds these bytes."""
    with fleet.service.database.read() as connection:
        from cima_runc.fleet.schema import Base

        for table in Base.metadata.sorted_tables:
            for row in connection.execute(select(table)):
                for value in row:
                    raw = value if isinstance(value, bytes) else str(value).encode()
                    if planted in raw or planted.hex().encode() in raw:
                        return True
    return False


def test_a_register_that_goes_before_its_end_is_told_and_improves_nothing(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    ended, gone = start(host, "ended", reference), start(host, "gone", reference)
    fleet.sync(host)
    host.end(ended)
    fleet.sync(host)
    host.forget(ended)
    host.forget(gone)
    host.bind()
    fleet.report(host)
    assert [one["data"]["what"] for one in told(fleet, "container.vanished")] == [
        "its register was given up before its end was proved"
    ]
    found = fleet.container("gone")
    assert (found["verdict"], found["vanished"], found["state"]) == ("UNKNOWN", True, "gone")
    found = fleet.container("ended")
    assert (found["verdict"], found["ended"], found["vanished"]) == ("TRUSTED", "deleted", False)


def test_a_run_after_an_untrusted_one_is_not_trusted(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    line = bytes(31) + b"\1"
    first = host.start("web", line=line)
    host.run(first, b"/tmp/miner")
    fleet.sync(host)
    host.end(first)
    second = host.start("web-2", line=line)
    fleet.sync(host)
    found = fleet.container("web-2")
    assert found["run"] == 2
    assert second
    rules = {one["rule"] for one in found["findings"] if one["severity"] == "fail"}
    assert found["verdict"] != "TRUSTED"
    assert "runs.untrusted" in rules or fleet.get("/v1/containers", name="web", everything=True)


def test_a_restart_of_a_trusted_container_is_trusted_once_its_end_is_seen(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    first = start(host, "web", reference)
    fleet.sync(host)
    host.end(first)
    fleet.sync(host)
    second = start_again(host, first, "web-2", reference)
    fleet.sync(host)
    found = fleet.container("web-2")
    assert found["verdict"] == "TRUSTED", found["findings"]
    host.run(second, b"/tmp/miner")
    fleet.sync(host)
    third = start_again(host, second, "web-3", reference)
    assert third
    fleet.sync(host)
    found = fleet.container("web-3")
    assert found["verdict"] == "UNTRUSTED"
    assert "runs.untrusted" in {one["rule"] for one in found["findings"]}
    # What a person does about the earlier one goes for the later one too.
    fleet.write(changes.add_policy, "default", POLICY + '[[files]]\npath = "/tmp/miner"\n')
    settle(fleet)
    assert fleet.container("web-3")["verdict"] == "TRUSTED"


def start_again(host: FleetHost, before: int, name: str, reference: ImageReference) -> int:
    """Start the next run of a container's line."""
    line, real = host.containers[before].line, host.start

    def with_line(name: str, owners: tuple[str, ...] = (), **more: Any) -> int:
        return real(name, owners, line=line, **more)

    host.start = with_line  # type: ignore[method-assign]
    try:
        return start(host, name, reference)
    finally:
        del host.start  # type: ignore[method-assign]


def test_a_host_that_forgets_a_line_is_not_believed(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    line = host.containers[start(host, "web", reference)].line
    fleet.sync(host)
    host.reboot()
    host.containers.clear()
    number = start(host, "web-again", reference)
    one = host.containers[number]
    # Its register says that it is the first run of the line that was seen before.
    one.line = line
    one.records[0]["content"]["line"] = line.hex()
    replayed(one)
    fleet.sync(host)
    found = fleet.container("web-again")
    assert "runs.forgotten" in {each["rule"] for each in found["findings"]}
    assert found["verdict"] == "UNTRUSTED"


@pytest.mark.parametrize("shown_after", [(0,), (1, 0), (0, 1), (2, 0, 1), (2, 1, 0)])
def test_runs_that_are_shown_after_those_that_followed_them_are_not_forgotten(
    fleet: ServedFleet, reference: ImageReference, shown_after: tuple[int, ...]
) -> None:
    """As of a host that joins, or whose service was away, after restarts: the run that lives comes
    first, and those before it as later runs prove them."""
    ready(fleet, reference)
    host = one_host(fleet)
    numbers = [start(host, "run0", reference)]
    for at in range(1, len(shown_after) + 1):
        host.end(numbers[-1])
        numbers.append(start_again(host, numbers[-1], f"run{at}", reference))
        host.forget(numbers[-2])
    earlier = {number: host.containers.pop(number) for number in numbers[:-1]}
    host.changed -= earlier.keys()
    fleet.sync(host)
    for at in shown_after:
        number = numbers[at]
        host.containers[number] = earlier[number]
        host.changed.add(number)
        if all(each in host.containers for each in numbers[at:]):
            fleet.sync(host)
    for at in range(len(numbers)):
        found = fleet.container(f"run{at}")
        assert found["verdict"] == "TRUSTED", (at, found["findings"])


@pytest.mark.parametrize("skipped", [0, 1, 4])
def test_a_host_that_was_put_back_hides_no_run(
    fleet: ServedFleet, reference: ImageReference, skipped: int
) -> None:
    """Its line goes on from the run before the one that was UNTRUSTED; other starts were refused
    meanwhile."""
    ready(fleet, reference)
    host = one_host(fleet)
    first = start(host, "first", reference)
    host.end(first)
    fleet.sync(host)
    bad = start_again(host, first, "bad", reference)
    host.run(bad, b"/tmp/miner")
    host.end(bad)
    fleet.sync(host)
    host.forget(bad)
    fleet.sync(host)
    del host.containers[bad]
    host.containers[first].run += skipped  # type: ignore[operator]
    again = host.containers[start_again(host, first, "again", reference)]
    host.containers[first].run = 1
    again.records[0]["content"]["previous"]["run"] = 1
    replayed(again)
    fleet.sync(host)
    found = fleet.container("again")
    assert (found["run"], found["verdict"]) == (2 + skipped, "UNTRUSTED")
    assert "runs.forgotten" in {each["rule"] for each in found["findings"]}


def test_what_came_before_an_adopted_run_is_lost(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    """As a verifier of evidence says it too."""
    ready(fleet, reference)
    host = one_host(fleet)
    number = start(host, "old", reference)
    one = host.containers[number]
    for name in ("line", "run", "previous"):
        del one.records[0]["content"][name]
    replayed(one)
    assert one.line is not None
    host.add(number, contents.Adopted(line=one.line, run=1, previous="lost"))
    fleet.sync(host)
    found = fleet.container("old")
    assert found["verdict"] == "UNTRUSTED"
    assert {each["rule"] for each in found["findings"] if each["severity"] == "fail"} == {
        "runs.lost"
    }
    fleet.write(changes.add_policy, "default", "allow_restarts = true\n" + POLICY)
    settle(fleet)
    assert fleet.container("old")["verdict"] == "TRUSTED"


def test_a_reboot_makes_old_containers_stale_and_not_trusted(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    start(host, "web", reference)
    fleet.sync(host)
    host.reboot()
    fleet.sync(host)
    found = fleet.container("web")
    assert (found["verdict"], found["state"]) == ("STALE", "gone")
    assert told(fleet, "host.booted")
    assert fleet.get("/v1/overview")["containers"]["TRUSTED"] == 0


def test_observe_shows_what_enforce_would_say(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = FleetHost()
    fleet.enrol(host, stage="production")
    start(host, "web", reference)
    fleet.sync(host)
    fleet.write(changes.add_policy, "strict", "")
    uid = fleet.write(changes.assign, "strict", {"label": {"stage": "production"}}, mode="observe")
    settle(fleet)
    found = fleet.container("web")
    assert (found["verdict"], found["observed"], found["observed_policy"]) == (
        "TRUSTED",
        "UNTRUSTED",
        "strict@1",
    )
    assert found["observed_findings"]
    fleet.write(changes.unassign, uid)
    fleet.write(changes.assign, "strict", {"label": {"stage": "production"}})
    settle(fleet)
    found = fleet.container("web")
    assert (found["verdict"], found["policy"], found["observed"]) == ("UNTRUSTED", "strict@1", None)


@pytest.mark.parametrize("match", ["image", "namespace", "owner", "label"])
def test_a_policy_is_assigned_by(fleet: ServedFleet, reference: ImageReference, match: str) -> None:
    ready(fleet, reference)
    host = FleetHost()
    fleet.enrol(host, zone="a")
    start(host, "web", reference)
    fleet.sync(host)
    fits = {"image": reference.image_id, "label": {"zone": "a"}}.get(match)
    misses = {
        "image": "sha256:" + "0" * 64,
        "namespace": "prod",
        "owner": public_text(generate()[1]),
        "label": {"zone": "b"},
    }[match]
    fleet.write(changes.add_policy, "other", POLICY)
    fleet.write(changes.assign, "other", {match: misses})
    settle(fleet)
    assert fleet.container("web")["policy"] == "default@2"
    if fits is not None:
        fleet.write(changes.assign, "other", {match: fits})
        settle(fleet)
        assert fleet.container("web")["policy"] == "other@1"


def test_a_namespace_that_a_tenant_writes_himself_chooses_nothing(fleet: ServedFleet) -> None:
    host = one_host(fleet)
    ready(fleet)
    number = host.start("mine")
    one = host.containers[number]
    annotations = {"io.kubernetes.pod.namespace": "production"}
    one.records[1]["content"]["config"]["annotations"] = annotations
    replayed(one)
    fleet.sync(host)
    assert fleet.container("mine")["namespace"] is None


def test_of_images_with_the_same_layers_the_one_is_taken_that_it_is_as(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet)
    config = reference.config.model_copy(update={"cmd": ("/bin/other",)})
    digest = "sha256:" + "1" * 64
    other = reference.model_copy(update={"config": config, "image_id": digest})
    fleet.write(changes.add_reference, "a-other", reference_file(other))
    fleet.write(changes.add_reference, "b-app", reference_file(reference))
    host = one_host(fleet)
    start(host, "web", reference)
    fleet.sync(host)
    found = fleet.container("web")
    assert (found["verdict"], found["reference"]) == ("TRUSTED", "b-app@1")


def test_a_layer_that_was_changed_is_of_no_known_image(
    fleet: ServedFleet, reference: ImageReference, tmp_path: Path
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    start(host, "web", image(tmp_path, layer=b"another"))
    fleet.sync(host)
    assert fleet.container("web")["verdict"] == "UNKNOWN"
    # Where it must be the known one, it is not.
    fleet.write(changes.assign, "default", {"label": {}}, image_reference="app")
    settle(fleet)
    assert fleet.container("web")["verdict"] == "UNTRUSTED"


def test_lost_events_fail(fleet: ServedFleet, reference: ImageReference) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    number = start(host, "web", reference)
    fleet.sync(host)
    host.add(number, contents.Lost(count=3, reason="the buffer was full"))
    fleet.sync(host)
    found = fleet.container("web")
    assert (found["verdict"], found["findings"][0]["rule"]) == ("UNTRUSTED", "records.lost")


def test_a_retired_container_is_not_judged_by_what_is_left_of_it(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    number = start(host, "web", reference)
    host.run(number, b"/tmp/miner")
    fleet.sync(host)
    host.end(number)
    fleet.sync(host)
    host.forget(number)
    host.bind()
    fleet.report(host)
    with fleet.service.database.write() as connection:
        connection.execute(text("UPDATE container SET last_change = 0"))
    fleet.service.worker.retention()
    assert fleet.container("web")["verdict"] == "UNTRUSTED"
    fleet.write(changes.add_policy, "default", POLICY + '[[files]]\npath = "/tmp/miner"\n')
    settle(fleet)
    assert fleet.container("web")["verdict"] == "UNTRUSTED"
    with fleet.service.database.read() as connection:
        assert connection.execute(select(table_of(Verdict).c.verdict)).scalars().all()


def test_containers_are_appraised_anew_some_at_a_time_and_reports_come_between(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    for name in ("web", "batch"):
        host.run(start(host, name, reference), b"/tmp/miner")
        for _ in range(3):
            start(host, name, reference)
    for number in range(4):
        start(host, f"other-{number}", reference)
    fleet.sync(host)

    def verdicts() -> dict[tuple[str, int], str]:
        rows = fleet.get("/v1/containers", None, everything=True)
        return {(row["container"], row["run"]): row["verdict"] for row in rows}

    strict = verdicts()
    assert sorted(strict.values()).count("UNTRUSTED") == 8, strict
    fleet.service.worker.stop()
    monkeypatch.setattr(work, "CONTAINERS", 3)
    some = fleet.service.worker._reappraise_some
    turns: list[Any] = []

    def counted(connection: Any, *arguments: Any) -> Any:
        turns.append(arguments)
        return some(connection, *arguments)

    monkeypatch.setattr(fleet.service.worker, "_reappraise_some", counted)
    allows = '[[files]]\npath = "/tmp/miner"\n'
    for policy, wanted in ((allows, dict.fromkeys(strict, "TRUSTED")), ("", strict)):
        turns.clear()
        fleet.write(changes.add_policy, "default", POLICY + policy)
        while fleet.service.worker.jobs():
            fleet.report(host)
        assert verdicts() == wanted
        assert len(turns) == 12 // 3 + 1


def test_what_is_asked_for_again_meanwhile_is_done_from_its_beginning(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    for number in range(6):
        host.run(start(host, f"web-{number}", reference), b"/tmp/miner")
    fleet.sync(host)
    fleet.service.worker.stop()
    monkeypatch.setattr(work, "CONTAINERS", 2)
    some = fleet.service.worker._reappraise_some
    allows = POLICY + '[[files]]\npath = "/tmp/miner"\n'
    changed: list[str] = []

    def changed_after_the_first(connection: Any, *arguments: Any) -> Any:
        found = some(connection, *arguments)
        if not changed:
            changed.append(changes.add_policy(connection, "tester", "default", allows))
            number = connection.execute(text("SELECT id FROM host")).scalar()
            work.later(connection, work.REAPPRAISE, str(number))
        return found

    monkeypatch.setattr(fleet.service.worker, "_reappraise_some", changed_after_the_first)
    fleet.write(changes.add_policy, "default", POLICY)
    settle(fleet)
    for row in fleet.get("/v1/containers"):
        assert (row["verdict"], row["policy"]) == ("TRUSTED", "default@4")


def test_what_a_process_remembers_of_a_policy_goes_by_what_the_policy_says(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    """A database that was put back under a process gives the same numbers to other rows."""
    ready(fleet, reference, '[[files]]\npath = "/tmp/miner"\n')
    host = one_host(fleet)
    host.run(start(host, "web", reference), b"/tmp/miner")
    fleet.sync(host)
    assert fleet.container("web")["verdict"] == "TRUSTED"
    with fleet.service.database.write() as connection:
        row = {"content": POLICY, "sha256": hashlib.sha256(POLICY.encode()).hexdigest()}
        last = select(func.max(table_of(Policy).c.id)).scalar_subquery()
        is_last = table_of(Policy).c.id == last
        connection.execute(table_of(Policy).update().where(is_last).values(**row))
        audit.note(connection, "tester", "database.restored", "", {})
        connection.execute(text("DELETE FROM appraisal"))
    host.run(start(host, "web-2", reference), b"/tmp/miner")
    fleet.sync(host)
    assert fleet.container("web-2")["verdict"] == "UNTRUSTED"


def test_nothing_becomes_trusted_by_an_old_database(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    good, bad = start(host, "good", reference), start(host, "bad", reference)
    host.run(bad, b"/tmp/miner")
    fleet.sync(host)
    _, token = fleet.write(changes.make_join_token)
    assert fleet.write(changes.restored) == {"join_tokens": 1, "verdicts": 1}
    assert token
    assert fleet.container("good")["verdict"] == "UNKNOWN"
    assert fleet.container("bad")["verdict"] == "UNTRUSTED"
    assert all(row["void"] for row in fleet.get("/v1/join-tokens"))
    fleet.report(host)
    assert fleet.container("good")["verdict"] == "TRUSTED"
    assert fleet.container("bad")["verdict"] == "UNTRUSTED"
    assert good


def test_a_service_that_has_gone_back_resynchronises_its_hosts(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    ready(fleet, reference)
    host = one_host(fleet)
    number = start(host, "web", reference)
    fleet.sync(host)
    with fleet.service.database.write() as connection:
        # As it was before the report: the table is another, and half of the records are not there.
        connection.execute(text('UPDATE host SET "table" = log_value'))
    host.run(number, b"/lib/lib.so", b"library")
    fleet.sync(host)
    found = fleet.container("web")
    assert (found["verdict"], found["proved"]) == ("TRUSTED", 5)


def test_a_boot_of_many_starts_is_resynchronised_by_what_is_there_still(
    fleet: ServedFleet, reference: ImageReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer names so many registrations at most."""
    ready(fleet, reference)
    host = one_host(fleet)
    kept = start(host, "kept", reference)
    for at in range(5):
        number = start(host, f"gone{at}", reference)
        host.end(number)
        fleet.sync(host)
        host.forget(number)
        fleet.sync(host)
        del host.containers[number]
    newest = start(host, "newest", reference)
    fleet.sync(host)
    monkeypatch.setattr(limits, "REPORT_CONTAINERS", 3)
    host.confirmed = host.confirmed.model_copy(update={"base": bytes(32)})
    host.run(kept, b"/lib/lib.so", b"library")
    host.bind()
    named = fleet.report(host).confirmed.records.keys()  # type: ignore[union-attr]
    assert len(named) == 3 and {str(kept), str(newest)} <= named
    fleet.sync(host)
    assert fleet.container("kept")["verdict"] == "TRUSTED"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_verdicts_are_the_same_however_reports_cut_what_happens(
    fleet: ServedFleet, reference: ImageReference
) -> None:
    """Many changes in one report, in pieces, or each in a report of its own."""
    ready(fleet, reference)
    for seed in range(2):
        found = [
            what_came(fleet, reference, seed, every=every, piece=piece)
            for every, piece in ((1, 1_000), (1_000, 1_000), (7, 3))
        ]
        assert found[0] == found[1] == found[2], seed
        verdicts = {verdict for verdict, *_ in found[0].values()}
        assert verdicts == {"TRUSTED", "UNTRUSTED"}, (seed, verdicts)


def what_came(
    fleet: ServedFleet, reference: ImageReference, seed: int, *, every: int, piece: int
) -> dict[object, tuple[object, ...]]:
    """What is found of a host's containers, by name and run, after something has happened."""
    chance, host = random.Random(seed), one_host(fleet)
    host.piece = piece
    for step in range(1, 31):
        running = [number for number, one in host.containers.items() if one.state != "stopped"]
        what = chance.choices(("start", "good", "bad", "end"), (4, 8, 1, 2))[0]
        if what == "start" or not running:
            start(host, chance.choice("abcd"), reference)
        elif what == "good":
            host.run(chance.choice(running), b"/lib/lib.so", b"library")
        elif what == "bad":
            host.run(chance.choice(running), b"/tmp/%d" % step, b"drift")
        else:
            host.end(chance.choice(running))
        if step % every == 0:
            fleet.sync(host)
    fleet.sync(host)
    found: dict[object, tuple[object, ...]] = {}
    for row in fleet.get("/v1/containers", host=host.tpm.ak_name.hex(), everything=True):
        one = fleet.get(f"/v1/containers/{row['uid']}")
        findings = {(f["rule"], f["severity"], f["path"], f["record"]) for f in one["findings"]}
        found[one["container"], one["run"]] = (one["verdict"], one["proved"], findings)
    assert len(found) == len(host.containers)
    return found
