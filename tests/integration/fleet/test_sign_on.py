"""Signing on by an OpenID provider, and providers and browsers that do not say what is so."""

import base64
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import ECKey

from cima_runc.base import limits
from cima_runc.fleet import changes, oidc
from cima_runc.fleet.check import check
from cima_runc.fleet.page.sessions import COOKIE
from cima_runc.fleet.settings import Oidc
from tests.support.openid_provider import CLIENT, SECRET, OpenIdProvider, openid_provider
from tests.support.served_fleet import ServedFleet

# Tokens are rows as all others are; the provider knows nothing of the database.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
PAGE = "https://testserver"


class SignOn:
    """A browser, the service and the provider."""

    def __init__(self, fleet: ServedFleet, provider: OpenIdProvider, ca: Path) -> None:
        self.fleet, self.provider, self._ca = fleet, provider, ca

    def begin(self, where: str = "/") -> tuple[str, str]:
        """Go to the provider: the address, and the cookie that goes along."""
        answer = self.get("/sign-in/provider", params={"next": where})
        assert answer.status_code == 303, answer.text
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "Secure" in cookie and "SameSite=lax" in cookie
        return answer.headers["location"], cookie.partition(";")[0].partition("=")[2]

    def come_back(self, url: str) -> str:
        """Sign on there; the address that the browser is sent back to."""
        answer = httpx.get(
            url, verify=ssl.create_default_context(cafile=self._ca), follow_redirects=False
        )
        assert answer.status_code == 302
        return answer.headers["location"]

    def get(self, path: str, **named: Any) -> httpx.Response:
        self.fleet.client.cookies.clear()
        return self.fleet.client.get(path, follow_redirects=False, **named)

    def arrive(self, back: str, cookie: str | None) -> httpx.Response:
        assert back.startswith(f"{PAGE}/sign-in/callback?")
        headers = {"Cookie": f"{oidc.COOKIE}={cookie}".encode("latin-1")} if cookie else {}
        return self.get(back.removeprefix(PAGE), headers=headers)

    def sign_on(self) -> httpx.Response:
        url, cookie = self.begin("/hosts")
        return self.arrive(self.come_back(url), cookie)

    def see(self, path: str, answer: httpx.Response) -> httpx.Response:
        """Look at a page with what an answer gave."""
        (cookie,) = [
            one.partition(";")[0]
            for one in answer.headers.get_list("set-cookie")
            if one.startswith(f"{COOKIE}=")
        ]
        return self.get(path, headers={"Cookie": cookie})


@pytest.fixture
def sign_on(tmp_path: Path, start_service: Callable[..., ServedFleet]) -> Iterator[SignOn]:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    with openid_provider(tmp_path / "provider") as (provider, ca):
        settings = Oidc(
            issuer=provider.issuer,
            client_id=CLIENT,
            page_url=PAGE,
            client_secret_file=secret,
            ca=ca,
            roles={"sre": "operator", "boss": "admin", "staff": "viewer"},
            tenants={"shop": "shop", "bank": "bank"},
        )
        fleet = start_service(oidc=settings)
        fleet.service.rates.refused._per_minute = 100_000
        for tenant in ("shop", "bank"):
            fleet.write(changes.add_tenant, tenant, [])
        yield SignOn(fleet, provider, ca)


def test_people_have_the_role_of_their_groups(sign_on: SignOn) -> None:
    fleet, user = sign_on.fleet, sign_on.provider.user
    assert "/sign-in/provider?next=" in sign_on.get("/sign-in").text
    for groups, role in (
        (["staff"], "viewer"),
        (["staff", "sre", "unknown"], "operator"),
        (["boss"], "admin"),
        (["shop", "staff"], "viewer"),
    ):
        user["groups"] = groups
        answer = sign_on.sign_on()
        assert answer.status_code == 200, answer.text
        assert 'url=/hosts"' in answer.text
        assert sign_on.see("/audit", answer).status_code == 200
        token = max(fleet.get("/v1/tokens"), key=lambda one: one["created"])
        assert token["name"].startswith("alice-"), token
        assert (token["role"], token["created_by"]) == (role, "sign-on")
        assert token["expires"] is not None
        entry = fleet.get("/v1/audit")[0]
        assert entry["action"] == "token.sign-on"
        assert entry["detail"]["subject"] == f"{sign_on.provider.issuer} 1"
    # It is revoked as any token is.
    fleet.write(changes.revoke_token, token["uid"])
    assert sign_on.see("/hosts", answer).status_code == 303
    # A tenant sees what is the tenant's.
    user["groups"] = ["shop"]
    answer = sign_on.sign_on()
    assert sign_on.see("/", answer).status_code == 200
    assert sign_on.see("/audit", answer).status_code == 403
    for groups in ([], ["unknown"], ["shop", "bank"], None, 7, [["boss"], {"boss": 1}, None]):
        user["groups"] = groups
        answer = sign_on.sign_on()
        assert answer.status_code == 403, (groups, answer.text)
        assert COOKIE not in answer.headers.get("set-cookie", "")


def test_nobody_has_another_s_name(sign_on: SignOn) -> None:
    names = set()
    for subject, called in (("1", "alice"), ("2", "alice"), ("3", "<b>\x1b[31m"), ("4", 7)):
        sign_on.provider.user = {
            "sub": subject,
            "preferred_username": called,
            "groups": ["staff"],
        }
        assert sign_on.sign_on().status_code == 200
        names.add(sign_on.fleet.get("/v1/audit")[0]["actor"])
    assert len(names) == 4
    assert all(set(one) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for one in names), names


LIES: list[dict[str, Any]] = [
    {"iss": "https://another.example"},
    {"aud": "another"},
    {"aud": ["another", "third"]},
    {"aud": [CLIENT, "another"], "azp": "another"},
    {"nonce": "of another browser"},
    {"nonce": None},
    {"exp": 1_000_000_000},
    {"exp": None},
    {"iat": 99_999_999_999},
    {"sub": None},
    {"iss": None},
    {"aud": None},
]


def test_id_tokens_that_are_not_for_this(sign_on: SignOn) -> None:
    for lies in LIES:
        sign_on.provider.user["groups"] = ["boss"]
        sign_on.provider.lies = lies
        answer = sign_on.sign_on()
        assert answer.status_code == 403, (lies, answer.text)
    tokens = sign_on.fleet.get("/v1/tokens")
    assert [one for one in tokens if one["created_by"] == "sign-on"] == []


def test_id_tokens_that_are_deep(sign_on: SignOn, monkeypatch: pytest.MonkeyPatch) -> None:
    """In head and claims, signed or not."""
    deep = b'{"a":' * 100_000
    sign_on.provider.user["groups"] = ["boss"]
    good = sign_on.provider.token

    def lie(form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        status, said = good(form, authorization)
        parts = said["id_token"].split(".")
        parts[place] = base64.urlsafe_b64encode(deep).decode().rstrip("=")
        return status, {**said, "id_token": ".".join(parts)}

    monkeypatch.setattr(sign_on.provider, "token", lie)
    for place in range(3):
        assert sign_on.sign_on().status_code == 403, place


def test_signatures_of_others(sign_on: SignOn) -> None:
    provider = sign_on.provider
    provider.user["groups"] = ["boss"]
    another = ECKey.generate_key("P-256", {"kid": "one"})
    for algorithm, key in (
        ("ES256", another),
        ("none", None),
        ("HS256", provider.shared_key()),
    ):
        provider.algorithm, provider.signs_with = algorithm, key
        assert sign_on.sign_on().status_code == 403, algorithm


def test_what_was_not_begun_by_this_browser(sign_on: SignOn) -> None:
    sign_on.provider.user["groups"] = ["boss"]
    url, cookie = sign_on.begin()
    other_url, other_cookie = sign_on.begin()
    back = sign_on.come_back(url)
    assert sign_on.arrive(back, None).status_code == 403
    assert sign_on.arrive(back, other_cookie).status_code == 403
    assert (
        sign_on.arrive(back, cookie[:-1] + ("0" if cookie[-1] != "0" else "1")).status_code == 403
    )
    assert sign_on.arrive(back, "x.é").status_code == 403
    denied = f"{PAGE}/sign-in/callback?error=access_denied"
    assert sign_on.arrive(denied, cookie).status_code == 403
    many = "&".join(f"a{at}=b" for at in range(100))
    assert sign_on.arrive(f"{PAGE}/sign-in/callback?{many}", cookie).status_code == 403
    state = parse_qs(urlsplit(url).query)["state"][0]
    stolen = f"{PAGE}/sign-in/callback?code=stolen&state={state}"
    assert sign_on.arrive(stolen, cookie).status_code == 403
    # Another's code, of another browser's challenge, with this one's state.
    code = parse_qs(urlsplit(sign_on.come_back(other_url)).query)["code"][0]
    mixed = f"{PAGE}/sign-in/callback?code={code}&state={state}"
    assert sign_on.arrive(mixed, cookie).status_code == 403
    assert sign_on.arrive(back, cookie).status_code == 200
    assert sign_on.arrive(back, cookie).status_code == 403, "a code is good once"


def test_pages_of_others_are_not_gone_to(sign_on: SignOn) -> None:
    sign_on.provider.user["groups"] = ["boss"]
    for where in ("https://evil.example/", "//evil.example", "/\\evil.example", "javascript:1"):
        url, cookie = sign_on.begin(where)
        answer = sign_on.arrive(sign_on.come_back(url), cookie)
        assert 'url=/"' in answer.text and "evil" not in answer.text


def test_a_provider_that_is_away_or_another(sign_on: SignOn, tmp_path: Path) -> None:
    settings = sign_on.fleet.service.settings.oidc
    assert settings is not None
    (line,) = [one for one in check(sign_on.fleet.service.settings) if one.name == "sign-on"]
    assert line.good, line
    changes_: list[dict[str, Any]] = [
        {"issuer": f"{settings.issuer}/other"},
        {"ca": None},
        {"issuer": "https://127.0.0.1:1"},
    ]
    for change in changes_:
        provider = oidc.Provider(settings.model_copy(update=change), b"k" * 32)
        with pytest.raises(oidc.OidcError):
            provider.begin("/")
    sign_on.provider.issuer += "/another"
    (line,) = [one for one in check(sign_on.fleet.service.settings) if one.name == "sign-on"]
    assert (line.good, line.what) == (False, "the provider does not describe itself")
    with pytest.raises(oidc.OidcError, match="describe"):
        oidc.Provider(settings, b"k" * 32).begin("/")
    with pytest.raises(oidc.OidcError, match="files"):
        oidc.Provider(settings.model_copy(update={"ca": tmp_path / "none"}), b"k" * 32)


def _too_much(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    with suppress(OSError):
        for _ in range(limits.PROVIDER_ANSWER // 65_536 + 2):
            request.wfile.write(b" " * 65_536)


def _says_it_is_too_much(request: Any) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(limits.PROVIDER_ANSWER + 1))
    request.end_headers()


LONG = 100.0
"""Seconds: far more than a busy machine needs, and less than :func:`_too_slowly` takes."""


def _too_slowly(request: Any) -> None:
    with suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_800:
            request.wfile.write(bytes([byte]))
            time.sleep(0.1)


def _elsewhere(request: Any) -> None:
    request.send_response(302)
    request.send_header("Location", "/elsewhere")
    request.send_header("Content-Length", "0")
    request.end_headers()


def _deep(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b'{"a":' * 100_000)


@pytest.mark.parametrize(
    "says",
    [_too_much, _says_it_is_too_much, _too_slowly, _elsewhere, _deep],
    ids=lambda one: one.__name__,
)
def test_a_provider_that_answers_otherwise(
    sign_on: SignOn, monkeypatch: pytest.MonkeyPatch, says: Callable[[Any], None]
) -> None:
    """Wherever it is asked; nobody is signed on, and it has an end."""
    monkeypatch.setattr(oidc, "_TIMEOUT", 1.0)
    provider, settings = sign_on.provider, sign_on.fleet.service.settings.oidc
    assert settings is not None
    provider.user["groups"] = ["boss"]
    provider.says = {
        "/.well-known/openid-configuration": says,
        "/elsewhere": lambda request: request._json(200, provider.describe()),
    }
    began = time.monotonic()
    with pytest.raises(oidc.OidcError):
        oidc.Provider(settings, b"k" * 32).begin("/")
    assert time.monotonic() - began < LONG
    for path in ("/keys", "/token"):
        provider.says = {}
        url, cookie = sign_on.begin()
        back = sign_on.come_back(url)
        provider.says = {path: says}
        began = time.monotonic()
        answer = sign_on.arrive(back, cookie)
        assert answer.status_code in {502, 403}, answer.text
        assert COOKIE not in answer.headers.get("set-cookie", "")
        assert time.monotonic() - began < LONG


def test_without_a_provider_there_is_no_such_way(fleet: ServedFleet) -> None:
    assert "/sign-in/provider" not in fleet.client.get("/sign-in").text
    for path in ("/sign-in/provider", "/sign-in/callback?code=1&state=2"):
        assert fleet.client.get(path, follow_redirects=False).status_code == 404
