"""Tokens: who is given one, what it says, when it ends, and what makes it inactive at once."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from sqlalchemy import text, update

from cima_runc.evidence.owner import generate, public_text
from cima_runc.fleet import changes, clock, issuer, issuing, verdicts
from cima_runc.fleet.access import Role
from cima_runc.fleet.claims import EAR_PROFILE, EAT_PROFILE, Profile, status, vector
from cima_runc.fleet.schema import Host, table_of
from cima_runc.verifier.errors import Verdict
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.served_fleet import ServedFleet, eventually

STRICT = f"{POLICY}\nargs = []\nmounts = []\nenv = []\n"
AUDIENCE = "https://vault.example"
NONCE = "abcdefghijklmnop"


class Issuing:
    """A fleet with a container of the tenant ``ares`` that may have tokens, and one of nobody's."""

    def __init__(self, fleet: ServedFleet, root: Path) -> None:
        self.fleet = fleet
        self.key = public_text(generate()[1])
        fleet.write(changes.add_tenant, "ares", [self.key])
        fleet.write(changes.add_tenant, "boreas", [public_text(generate()[1])])
        self.ares = fleet.token(Role.TENANT, "ares")
        self.boreas = fleet.token(Role.TENANT, "boreas")
        self.reference = image(root)
        fleet.write(changes.add_reference, "app", reference_file(self.reference))
        fleet.write(changes.add_policy, "web", STRICT)
        match = {"label": {"zone": "a"}, "image": self.reference.image_id}
        self.assignment = fleet.write(changes.assign, "web", match)
        self.grants = [
            fleet.write(issuing.grant, tenant, "web", AUDIENCE) for tenant in ("ares", None)
        ]
        self.host = FleetHost()
        fleet.enrol(self.host, zone="a")
        self.number = start(
            self.host, "web", self.reference, owners=(self.key, public_text(generate()[1]))
        )
        self.host.containers[self.number].shown = True
        self.free = start(self.host, "free", self.reference)
        fleet.sync(self.host)
        eventually(lambda: fleet.container("web")["verdict"] == "TRUSTED")
        eventually(lambda: fleet.container("free")["verdict"] == "TRUSTED")

    def ask(self, token: str | None = None, name: str = "web", **named: Any) -> httpx.Response:
        uid = self.fleet.container(name)["uid"]
        body = {"audience": AUDIENCE, **named}
        return self.fleet.ask("POST", f"/v1/containers/{uid}/tokens", token or self.ares, json=body)

    def given(self, **named: Any) -> str:
        answer = self.ask(**named)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def read(self, token: str) -> jwt.Token:
        """As those who take it do: by what is published."""
        keys = KeySet.import_key_set(self.fleet.client.get("/.well-known/jwks.json").json())
        found = jwt.decode(token, keys, algorithms=["ES256"])
        registry = jwt.JWTClaimsRegistry(
            now=clock.now() // 1000,
            aud={"essential": True, "value": AUDIENCE},
            exp={"essential": True},
        )
        registry.validate(found.claims)
        return found

    def introspect(self, token: str, who: str | None = None) -> dict[str, Any]:
        answer = self.fleet.ask("POST", "/v1/introspect", who, data={"token": token})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
def issuing_(fleet: ServedFleet, tmp_path: Path) -> Issuing:
    return Issuing(fleet, tmp_path)


def test_what_a_token_says(issuing_: Issuing) -> None:
    fleet = issuing_.fleet
    about = fleet.client.get("/.well-known/openid-configuration").json()
    found = issuing_.read(issuing_.given(seconds=60))
    claims = found.claims
    assert (found.header["typ"], claims["eat_profile"]) == ("eat+jwt", EAT_PROFILE)
    assert claims["iss"] == about["issuer"]
    assert about["jwks_uri"] == f"{claims['iss']}/.well-known/jwks.json"
    assert claims["sub"] == f"cima:ares:web:{issuing_.reference.image_id}"
    assert claims["exp"] - claims["iat"] <= 60 and claims["nbf"] == claims["iat"]
    of_container = claims["submods"]["container"]["cima"]
    assert of_container["id"] == "web"
    assert of_container["cpcr"] == issuing_.host.containers[issuing_.number].partition.cpcr.hex()
    found = issuing_.read(issuing_.given(profile="ear"))
    claims = found.claims
    assert (found.header["typ"], claims["eat_profile"]) == ("ear+jwt", EAR_PROFILE)
    appraised = claims["submods"]["container"]
    # Its configuration is allowed to be privileged, and that is said.
    assert appraised["ear_status"] == claims["ear_status"] == "warning"
    assert appraised["ear_trustworthiness_vector"] == {
        "executables": 2,
        "configuration": 32,
        "file-system": 2,
        "instance-identity": 2,
    }
    # The operator's own container, and each is an event.
    free = issuing_.read(issuing_.given(token=fleet.admin, name="free"))
    assert free.claims["sub"] == f"cima:operator:web:{issuing_.reference.image_id}"
    events = fleet.get("/v1/events", kind="token.issued")
    assert {one["data"]["jti"] for one in events} >= {claims["jti"], free.claims["jti"]}


def test_it_ends_with_the_quote(issuing_: Issuing, monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = int(issuing_.read(issuing_.given()).claims["submods"]["container"]["cima"]["quoted"])
    at = quoted * 1000
    monkeypatch.setattr(clock, "now", lambda: at + 90_000)
    claims = issuing_.read(issuing_.given(seconds=3600)).claims
    assert claims["exp"] == quoted + 300
    monkeypatch.setattr(clock, "now", lambda: at + 121_000)
    assert issuing_.ask().json()["error"] == "the container is STALE"
    monkeypatch.setattr(clock, "now", lambda: at - 90_000)
    assert issuing_.ask().json()["error"] == "the container is STALE"


def test_with_a_nonce_a_later_quote_is_wanted(
    issuing_: Issuing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cima_runc.fleet.issuer_api.WAIT", 0.5)
    assert issuing_.ask(nonces=[NONCE]).status_code == 504
    hosts = table_of(Host)
    with issuing_.fleet.service.database.write() as connection:
        later = clock.now() + verdicts.SKEW // 2
        connection.execute(update(hosts).values(quoted=later))
    assert issuing_.ask(nonces=[NONCE]).status_code == 504, "other processes' clocks may differ"
    with issuing_.fleet.service.database.write() as connection:
        asked = issuing.Asked(
            issuing_.fleet.container("web")["uid"],
            AUDIENCE,
            Profile.EAT,
            60,
            (NONCE,),
            clock.now() - 60_000,
        )
        tenant = changes.tenant_number(connection, "ares")
        token, _ = issuing.issue(connection, asked, tenant, url="https://a", limit=300)
    assert issuing_.read(token).claims["eat_nonce"] == NONCE
    for nonces in (["short"], ["a b" * 8], [NONCE] * 7, ["=" * 16]):
        assert issuing_.ask(nonces=nonces).status_code == 422


def test_it_comes_with_the_next_report(issuing_: Issuing, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of those that wait there are not too many."""
    monkeypatch.setattr(verdicts, "SKEW", 0)
    uid = issuing_.fleet.container("web")["uid"]
    body = {"audience": AUDIENCE, "nonces": [NONCE]}
    found: list[httpx.Response] = []

    def ask() -> None:
        path = f"/v1/containers/{uid}/tokens"
        found.append(issuing_.fleet.ask("POST", path, issuing_.ares, json=body))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(found) == 4)
    assert {answer.status_code for answer in found} == {429}
    issuing_.fleet.sync(issuing_.host)
    for thread in threads:
        thread.join(30)
    given = [answer for answer in found if answer.status_code == 201]
    assert len(given) == 16
    for answer in given:
        assert issuing_.read(answer.json()["token"]).claims["eat_nonce"] == NONCE


def _ends(one: Issuing) -> None:
    one.host.end(one.number)
    one.fleet.sync(one.host)


def _runs_a_stranger(one: Issuing) -> None:
    one.host.run(one.number, b"/tmp/miner")
    one.fleet.sync(one.host)


def _reboots(one: Issuing) -> None:
    one.host.reboot()
    one.fleet.sync(one.host)


def _gives_up_its_register(one: Issuing) -> None:
    one.host.forget(one.number)
    one.fleet.sync(one.host)


def _is_removed(one: Issuing) -> None:
    one.fleet.write(changes.remove_host, one.host.tpm.ak_name.hex())


def _is_labelled(one: Issuing) -> None:
    one.fleet.write(changes.label_host, one.host.tpm.ak_name.hex(), {"zone": "b"})


def _is_not_allowed(one: Issuing) -> None:
    one.fleet.write(issuing.withdraw, one.grants[0])


def _has_another_policy(one: Issuing) -> None:
    """Not even before it is appraised by it."""
    one.fleet.service.worker.stop()
    one.fleet.write(changes.add_policy, "web", STRICT + "# again\n")


def _has_a_policy_that_names_less(one: Issuing) -> None:
    one.fleet.write(changes.add_policy, "web", POLICY)
    eventually(lambda: one.fleet.container("web")["policy"] == "web@2")


def _has_no_reference(one: Issuing) -> None:
    one.fleet.write(changes.retire_reference, "app")


def _is_assigned_without_label(one: Issuing) -> None:
    one.fleet.write(changes.unassign, one.assignment)
    one.fleet.write(changes.assign, "web", {"image": one.reference.image_id})


def _is_put_back(one: Issuing) -> None:
    one.fleet.write(changes.restored)


@pytest.mark.parametrize(
    "happens",
    [
        _ends,
        _runs_a_stranger,
        _reboots,
        _gives_up_its_register,
        _is_removed,
        _is_labelled,
        _is_not_allowed,
        _has_another_policy,
        _has_a_policy_that_names_less,
        _has_no_reference,
        _is_assigned_without_label,
        _is_put_back,
    ],
    ids=lambda one: one.__name__.strip("_"),
)
def test_what_ends_issuance_and_makes_inactive(
    issuing_: Issuing, happens: Callable[[Issuing], None]
) -> None:
    token = issuing_.given()
    assert issuing_.introspect(token)["active"] is True
    happens(issuing_)
    answer = issuing_.ask()
    assert answer.status_code == 409, answer.text
    assert issuing_.introspect(token) == {"active": False}


def test_others_are_given_none(issuing_: Issuing) -> None:
    fleet = issuing_.fleet
    assert issuing_.ask(issuing_.boreas).status_code == 404
    uid = fleet.container("free")["uid"]
    body = {"audience": AUDIENCE}
    answer = fleet.ask("POST", f"/v1/containers/{uid}/tokens", issuing_.ares, json=body)
    assert answer.status_code == 404
    viewer = fleet.token(Role.VIEWER)
    assert issuing_.ask(viewer).status_code == 403
    assert issuing_.ask(audience="https://other.example").status_code == 409
    # The operator does not speak for a tenant.
    assert issuing_.ask(fleet.admin).status_code == 409
    token = issuing_.given()
    assert issuing_.introspect(token, issuing_.boreas) == {"active": False}
    assert issuing_.introspect(token, issuing_.ares)["active"] is True
    for who in (issuing_.ares, viewer, fleet.token(Role.OPERATOR)):
        body = {"policy": "web", "audience": "https://mine", "tenant": "ares"}
        assert fleet.ask("POST", "/v1/token-grants", who, json=body).status_code == 403


def test_tokens_that_are_not_ours(issuing_: Issuing) -> None:
    token = issuing_.given()
    head, body, signature = token.split(".")
    other = issuing_.given().split(".")
    for one in (
        "",
        "x",
        "a.b.c",
        f"{head}.{body}.",
        f"{head}.{other[1]}.{signature}",
        f"{head}.{body}.{signature[:-4]}AAAA",
        "e30." + "A" * 60_000 + ".",
        "\0é",
    ):
        assert issuing_.introspect(one) == {"active": False}, one[:80]


def test_a_policy_names_what_a_stranger_could_choose(issuing_: Issuing) -> None:
    fleet = issuing_.fleet
    fleet.write(changes.add_policy, "loose", POLICY)
    fleet.write(changes.add_policy, "any", STRICT + "allow_any_args = true\n")
    for policy in ("loose", "any"):
        with pytest.raises(changes.ChangeError, match="args"):
            fleet.write(issuing.grant, "ares", policy, AUDIENCE)
    with pytest.raises(changes.ChangeError, match="operator"):
        fleet.write(changes.add_tenant, "operator", [])


def test_keys_are_rotated(issuing_: Issuing, monkeypatch: pytest.MonkeyPatch) -> None:
    before = issuing_.given()
    kid = issuing_.fleet.write(issuer.rotate)
    after = issuing_.given()
    assert issuing_.read(after).header["kid"] == kid
    assert issuing_.read(before).header["kid"] != kid
    assert issuing_.introspect(before)["active"] is True
    keys = issuing_.fleet.client.get("/.well-known/jwks.json").json()["keys"]
    assert len(keys) == 2 and not any("d" in key for key in keys)
    real = clock.now()
    monkeypatch.setattr(clock, "now", lambda: real + issuer.LONGEST * 1000 + 1)
    assert len(issuing_.fleet.client.get("/.well-known/jwks.json").json()["keys"]) == 1


def test_what_has_ended_is_not_kept(issuing_: Issuing, monkeypatch: pytest.MonkeyPatch) -> None:
    token = issuing_.given(seconds=1)
    real = clock.now()
    monkeypatch.setattr(clock, "now", lambda: real + 2_000)
    assert issuing_.introspect(token) == {"active": False}
    issuing_.fleet.service.worker.retention()
    with issuing_.fleet.service.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM issued_token")).scalar() == 0


def test_tiers() -> None:
    assert [status(verdict, warns=False) for verdict in Verdict] == [
        {Verdict.TRUSTED: 2, Verdict.UNTRUSTED: 96}.get(verdict, 0) for verdict in Verdict
    ]
    assert status(Verdict.TRUSTED, warns=True) == 32
    assert vector({"file.unknown"}, hardware=True) == {
        "executables": 32,
        "configuration": 2,
        "file-system": 2,
        "instance-identity": 2,
        "hardware": 2,
    }
