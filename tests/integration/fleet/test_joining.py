"""Which TPM a host has: by its endorsement key alone."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text, update

from cima_runc.evidence.enrolment import EnrolmentAnswer, EnrolmentRequest
from cima_runc.evidence.host_enrolment import EnrolmentState, HostEnrolment
from cima_runc.fleet import changes, enrolments, migrate
from cima_runc.fleet.schema import Enrolment, Host, table_of
from cima_runc.tpm.credential import ek_key_digest
from cima_runc.tpm.structures import parse_public
from tests.support.endorsement_key import ATTRIBUTES, endorsement_key, new_point
from tests.support.fleet_host import FleetHost
from tests.support.served_fleet import ServedFleet, new_host


def join(
    fleet: ServedFleet, ek: bytes, *, token: str | None = None, ak: bytes | None = None
) -> EnrolmentState:
    """An attestation key, another one unless it is given, of the TPM with this endorsement key
    joins, with a token of its own unless one is given."""
    token = token or fleet.write(changes.make_join_token, without_ek_certificate=True)[1]
    return ask(fleet, ek, ak or FleetHost().tpm.ak_public, token)[1]


def ask(
    fleet: ServedFleet, ek: bytes, ak: bytes, token: str | None = None
) -> tuple[str, EnrolmentState]:
    """The same, or without a token; returns the enrolment's name too."""
    tpm = EnrolmentRequest(ak_public=ak, ek_public=ek)
    with fleet.service.database.write() as connection:
        asked = HostEnrolment(name="host", token=token, tpm=tpm)
        begun = enrolments.begin(connection, asked, enrolments.Hardware())
        table = table_of(Enrolment)
        secret = connection.execute(
            select(table.c.secret).where(table.c.uid == begun.id)
        ).scalar_one()
        given = EnrolmentAnswer(secret=secret)
        return begun.id, enrolments.answer(connection, begun.id, given)


def wait(fleet: ServedFleet) -> str:
    """A host waits for approval; return its enrolment's name."""
    point = new_point()
    join(fleet, endorsement_key(point, ATTRIBUTES, bytes(32)))
    assert join(fleet, endorsement_key(point, ATTRIBUTES, bytes(32))).state == "waiting"
    found: str = fleet.get("/v1/enrolments")[0]["uid"]
    return found


def by_approval(fleet: ServedFleet, labels: dict[str, str]) -> httpx.Response:
    given = {"labels": labels, "without_ek_certificate": True, "replace": True}
    return fleet.ask("POST", f"/v1/enrolments/{wait(fleet)}/approve", json=given)


def by_token(fleet: ServedFleet, labels: dict[str, str]) -> httpx.Response:
    return fleet.ask("POST", "/v1/join-tokens", json={"labels": labels})


def by_change(fleet: ServedFleet, labels: dict[str, str]) -> httpx.Response:
    host = FleetHost()
    fleet.enrol(host)
    path = f"/v1/hosts/{host.tpm.ak_name.hex()}/labels"
    return fleet.ask("PUT", path, json={"labels": labels})


BAD = [{"a": "\0"}, {"a": "b\n"}, {"a": "\u00e9"}, {"\x1b[1m": "b"}]


@pytest.mark.parametrize("give", [by_approval, by_token, by_change])
def test_labels_are_the_same_whoever_gives_them(
    fleet: ServedFleet, give: Callable[[ServedFleet, dict[str, str]], httpx.Response]
) -> None:
    """Kind: what is checked on one way in, and not on the others."""
    for labels in BAD:
        answer = give(fleet, labels)
        assert answer.status_code == 400 and "253 ASCII" in answer.text, (labels, answer.text)
    labels = [row["labels"] for row in fleet.get("/v1/hosts")]
    assert not any(labels)
    assert give(fleet, {"zone": "a b~"}).status_code in {200, 201, 204}


@pytest.mark.parametrize(
    ("attributes", "policy"),
    [
        (ATTRIBUTES, bytes(32)),
        (ATTRIBUTES ^ 0x40, bytes(32)),
        (ATTRIBUTES, b""),
        (0, b"\x5a" * 32),
    ],
)
def test_a_tpm_is_known_whatever_is_said_beside_its_key(
    fleet: ServedFleet, attributes: int, policy: bytes
) -> None:
    """Kind: an identity over bytes that whoever sends them chooses."""
    point = new_point()
    assert join(fleet, endorsement_key(point, ATTRIBUTES, bytes(32))).state == "enrolled"
    again = join(fleet, endorsement_key(point, attributes, policy))
    assert again.state == "waiting"
    assert "its TPM was enrolled before" in (again.what or "")
    assert join(fleet, endorsement_key(new_point(), attributes, policy)).state == "enrolled"


def test_a_host_that_has_forgotten_that_it_joined_joins_by_the_same_token(
    fleet: ServedFleet,
) -> None:
    """Its settings still name the token, which is good once: for this host, and no other."""
    ek = endorsement_key(new_point(), ATTRIBUTES, bytes(32))
    ak = FleetHost().tpm.ak_public
    _, token = fleet.write(changes.make_join_token, without_ek_certificate=True)
    assert join(fleet, ek, token=token, ak=ak).state == "enrolled"
    again = join(fleet, ek, token=token, ak=ak)
    assert again.state == "enrolled"
    with pytest.raises(enrolments.TokenRefusedError, match="was used"):
        join(fleet, ek, token=token)
    with pytest.raises(enrolments.TokenRefusedError, match="was used"):
        join(fleet, endorsement_key(new_point(), ATTRIBUTES, bytes(32)), token=token)
    # Who makes up an endorsement key for the same attestation key is not that host.
    other = join(fleet, endorsement_key(new_point(), ATTRIBUTES, bytes(32)), token=token, ak=ak)
    assert other.state == "refused"
    fleet.write(changes.remove_host, parse_public(ak).name.hex())
    with pytest.raises(enrolments.TokenRefusedError, match="was used"):
        join(fleet, ek, token=token, ak=ak)


def test_one_tpm_does_not_join_twice_at_the_same_time(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: a row that nobody can hold, since it is not there yet."""
    ek = endorsement_key(new_point(), ATTRIBUTES, bytes(32))
    both, looked = threading.Barrier(2), enrolments._of_tpm

    def looks_together(*arguments: Any) -> Any:
        found = looked(*arguments)
        with suppress(threading.BrokenBarrierError):
            both.wait(2)  # as it should be, the other does not come as far as this
        return found

    monkeypatch.setattr(enrolments, "_of_tpm", looks_together)
    with ThreadPoolExecutor(2) as threads:
        states = list(threads.map(lambda _: join(fleet, ek).state, range(2)))
    assert sorted(states) == ["enrolled", "waiting"]


def test_digests_of_before_are_computed_anew(fleet: ServedFleet) -> None:
    ek = endorsement_key(new_point(), ATTRIBUTES, bytes(32))
    simulated = FleetHost()
    tpm = EnrolmentRequest(ak_public=simulated.tpm.ak_public, ek_public=ek)
    row: dict[str, Any] = new_host(simulated) | {
        "tpm": tpm.model_dump_json(exclude_none=True).encode("ascii"),
        "ek_digest": hashlib.sha256(ek).hexdigest(),
    }
    host = table_of(Host)
    with fleet.service.database.write() as connection:
        connection.execute(insert(host).values(row))
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    assert migrate.migrate(fleet.service.database)
    with fleet.service.database.read() as connection:
        found = connection.execute(
            select(host.c.ek_digest).where(host.c.ak_name == row["ak_name"])
        ).scalar_one()
    assert found == ek_key_digest(ek).hex()


def test_of_those_that_wait_with_one_attestation_key_one_joins(fleet: ServedFleet) -> None:
    """Who makes up an endorsement key opens every credential for it. Kind: what is looked at where
    a host asks, and not where it is let in."""
    ak = FleetHost().tpm.ak_public
    honest, made_up = (endorsement_key(new_point(), ATTRIBUTES, bytes(32)) for _ in range(2))
    names = [ask(fleet, ek, ak)[0] for ek in (made_up, honest, honest)]
    given = {"labels": {"zone": "a"}, "without_ek_certificate": True, "replace": True}

    def approve(name: str) -> int:
        return fleet.ask("POST", f"/v1/enrolments/{name[:24]}/approve", json=given).status_code

    assert approve(names[2]) == 200
    assert fleet.get("/v1/enrolments") == []
    with fleet.service.database.read() as connection:
        states = [enrolments.state_of(connection, name) for name in names]
    assert [one.state for one in states] == ["refused", "enrolled", "enrolled"]
    assert [approve(name) for name in names] == [404] * 3
    # One that was waiting when its key joined in another way, as before there was this rule.
    with fleet.service.database.write() as connection:
        table = table_of(Enrolment)
        connection.execute(update(table).where(table.c.uid == names[0]).values(state="waiting"))
    assert approve(names[0]) == 400
    (host,) = fleet.get("/v1/hosts")
    assert host["labels"] == {"zone": "a"}
