"""The page as HTML: who sees what, nothing that hosts chose acts, nobody else's forms work."""

import re
from html.parser import HTMLParser
from urllib.parse import quote

import httpx
import pytest
from starlette.testclient import TestClient

from cima_runc.fleet import changes, queries
from cima_runc.fleet.access import Role
from cima_runc.fleet.page.sessions import COOKIE
from tests.support.fleet_page import HOSTILE, Planted, plant
from tests.support.served_fleet import ServedFleet

TAGS = frozenset(
    re.findall(
        r"\w+",
        """a body button caption code dd details div dl dt fieldset form h1 h2 head header html
        input label legend li link main meta nav option p pre rect section select span strong
        summary svg table tbody td th thead time title tr ul br""",
    )
)


class Page(HTMLParser):
    """The elements of a page; whatever the page is not made of is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.forms: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        self.seen.append(tag)
        for name, value in attrs:
            assert not name.startswith("on") and name != "style", (tag, name)
            if name in {"href", "src", "action"}:
                assert value is not None and re.match(r"[/#](?!/)", value), value
                self.targets.append(value)
            if name == "value" and dict(attrs).get("name") == "form":
                self.forms.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def visitor(fleet: ServedFleet, token: str | None = None) -> TestClient:
    """A browser's side: it keeps cookies, over TLS."""
    client = TestClient(fleet.client.app, "https://fleet.example", follow_redirects=False)
    if token is not None:
        answer = client.post("/sign-in", data={"token": token, "next": "/hosts"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/hosts")
    return client


def look(client: TestClient, path: str, status: int = 200) -> Page:
    answer = client.get(path)
    assert answer.status_code == status, (path, answer.text)
    check_headers(answer)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", answer.text)
    return Page(answer.text)


def check_headers(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script" not in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


@pytest.fixture
def planted(fleet: ServedFleet) -> Planted:
    return plant(fleet)


def views(planted: Planted) -> list[str]:
    return [
        "/",
        "/hosts",
        f"/hosts/{planted.ak}",
        "/containers",
        "/containers?verdict=UNTRUSTED&all=1&name=" + quote(HOSTILE),
        f"/containers/{planted.uid}",
        f"/images/{planted.image}",
        "/search",
        f"/search?q={quote(HOSTILE)}",
        f"/search?q=sha256:{planted.digest}",
        "/policies",
        "/enrolments",
        "/events",
        "/webhooks",
        "/audit",
    ]


def test_every_view_with_hostile_names(fleet: ServedFleet, planted: Planted) -> None:
    client = visitor(fleet, fleet.admin)
    texts = {}
    for path in views(planted):
        page = look(client, path)
        assert page.seen.count("h1") == 1 and "script" not in page.seen
        texts[path] = page.text
    # It is there, as text, and a control character is seen as what it is.
    for path in ("/hosts", f"/containers/{planted.uid}", f"/search?q={quote(HOSTILE)}"):
        assert "<script>alert(1)</script>" in texts[path], path
        assert "\\x1b" in texts[path], path
    assert "UNTRUSTED" in texts["/"] and "Nothing fails" not in texts["/"]
    assert "1 places" in texts[f"/search?q=sha256:{planted.digest}"]
    assert "waits-there" in texts["/enrolments"]
    assert "✓ The entries shown here fit" in texts["/audit"]
    # What is observed alone is nobody's verdict.
    newest = fleet.query(queries.policies)[0]
    assert newest["containers"] == len(fleet.query(queries.containers, everything=True))
    # Line ends of our own are line ends; those of others are seen.
    assert "\\x0a" not in "".join(texts.values())


@pytest.mark.parametrize("word", ["\0", "a\0b", "\ud800", "%", "_", "\\", "9" * 4096, "'", "\x1b"])
def test_whatever_is_asked_for_is_answered(fleet: ServedFleet, word: str) -> None:
    client = visitor(fleet, fleet.admin)
    said = quote(word, errors="surrogatepass")
    for path in (
        *(
            f"/containers?{key}={said}"
            for key in ("verdict", "name", "namespace", "image", "after")
        ),
        f"/hosts?after={said}",
        f"/events?before={said}",
        f"/audit?before={said}",
        f"/search?q={said}",
        f"/images/{said}",
        f"/sign-in?next={said}",
    ):
        answer = client.get(path)
        assert answer.status_code in {200, 400, 404, 422}, (path, answer.text)
        assert "\x1b" not in answer.text and "\0" not in answer.text
        if not path.startswith("/sign-in"):
            # The same questions by the API.
            assert fleet.ask("GET", f"/v1{path}").status_code < 500, path
    given = {"Content-Type": "application/x-www-form-urlencoded"}
    wrong = client.post("/sign-in", content=f"token={said}", headers=given)
    assert wrong.status_code == 403


def test_every_link_leads_somewhere(fleet: ServedFleet, planted: Planted) -> None:
    client = visitor(fleet, fleet.admin)
    todo, done = ["/"], set()
    while todo:
        path = todo.pop()
        found = client.get(path)
        assert found.status_code in {200, 405}, (path, found.text)
        done.add(path)
        if found.headers["content-type"].startswith("text/html") and found.status_code == 200:
            todo += {one.partition("#")[0] for one in Page(found.text).targets} - done - {*todo, ""}
        assert len(done) < 200
    assert {f"/containers/{planted.uid}", f"/hosts/{planted.ak}"} <= done


def test_who_is_not_signed_in_sees_nothing(fleet: ServedFleet, planted: Planted) -> None:
    client = visitor(fleet)
    for path in views(planted):
        answer = client.get(path)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in?next=")
        check_headers(answer)
    assert look(client, "/sign-in").forms == []
    wrong = client.post("/sign-in", data={"token": "cima_" + "x" * 43})
    assert wrong.status_code == 403 and COOKIE not in client.cookies
    for text in ("", "a.b.c", "1.1.1", f"{planted.uid}.{2**60}.{'0' * 64}", "é"):
        client.cookies.set(COOKIE, quote(text), domain="fleet.example")
        assert client.get("/").status_code == 303


@pytest.mark.parametrize(
    "where",
    ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", ""],
)
def test_signing_in_leads_nowhere_else(fleet: ServedFleet, where: str) -> None:
    answer = visitor(fleet).post("/sign-in", data={"token": fleet.admin, "next": where})
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert {"httponly", "secure", "samesite=strict", "path=/"} <= set(cookie.split("; "))
    assert fleet.admin not in cookie


def test_a_cookie_ends_with_its_token(fleet: ServedFleet) -> None:
    uid, secret = fleet.write(changes.make_token, "someone", Role.VIEWER)
    client = visitor(fleet, secret)
    look(client, "/")
    fleet.write(changes.revoke_token, uid)
    assert client.get("/").status_code == 303


def test_a_form_of_too_many_fields_is_refused(fleet: ServedFleet) -> None:
    """It was a fault of the service's, with a traceback in its log for each, from anybody."""
    many = "&".join(f"a{at}=b" for at in range(100))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for one, path in (
        (visitor(fleet), "/sign-in"),
        (visitor(fleet, fleet.token(Role.OPERATOR)), f"/enrolments/{'0' * 24}/refuse"),
    ):
        assert one.post(path, content=many, headers=form).status_code == 403


def test_nobody_elses_form_works(fleet: ServedFleet, planted: Planted) -> None:
    operator = visitor(fleet, fleet.token(Role.OPERATOR))
    viewer = visitor(fleet, fleet.token(Role.VIEWER))
    (waiting,) = fleet.query(queries.enrolments)
    path = f"/enrolments/{waiting['uid']}"
    form, others = (look(one, "/enrolments").forms[0] for one in (operator, viewer))
    for given in ({}, {"form": ""}, {"form": others}, {"form": form[:-1]}):
        assert operator.post(f"{path}/refuse", data=given).status_code == 403
    assert viewer.post(f"{path}/refuse", data={"form": others}).status_code == 403
    assert len(look(viewer, "/enrolments").forms) == 1, "a viewer is offered nothing but sign-out"
    cross = {"Sec-Fetch-Site": "cross-site"}
    data = {"token": fleet.admin}
    assert visitor(fleet).post("/sign-in", data=data, headers=cross).status_code == 403
    assert len(fleet.query(queries.enrolments)) == 1
    assert operator.post(f"{path}/nonsense", data={"form": form}).status_code == 404
    labels = {"form": form, "labels": "zone=a tier=web", "without_ek_certificate": "on"}
    assert operator.post(f"{path}/approve", data=labels | {"labels": "zone"}).status_code == 400
    done = operator.post(f"{path}/approve", data=labels)
    assert (done.status_code, done.headers["location"]) == (303, "/enrolments")
    assert fleet.query(queries.enrolments) == []
    (made,) = [one for one in fleet.query(queries.hosts) if one["name"] == "waits-there"]
    assert made["labels"] == {"zone": "a", "tier": "web"}
    assert fleet.query(queries.audit)[0]["actor"] == "someone"
    assert operator.post("/sign-out", data={"form": form}).status_code == 303
    assert operator.get("/").status_code == 303


def test_a_tenant_sees_nothing_of_others(fleet: ServedFleet, planted: Planted) -> None:
    fleet.write(changes.add_tenant, "shop", [planted.owner])
    client = visitor(fleet, fleet.token(Role.TENANT, "shop"))
    secrets = (planted.uid, planted.digest, planted.image, "waits-there", "<script>", "app@")
    for path in ("/", "/hosts", "/containers?all=1", "/events", "/webhooks", "/search?q=/bin/sh"):
        page = look(client, path)
        for secret in secrets:
            assert secret not in page.text, (path, secret)
            assert not any(secret in target for target in page.targets), (path, secret)
    assert "sealed" in look(client, "/containers").text
    for path in (f"/containers/{planted.uid}", f"/images/{planted.image}"):
        look(client, path, 404)
    for path in ("/policies", "/enrolments", "/audit"):
        look(client, path, 403)
    look(client, f"/containers/{planted.sealed}")
    look(client, f"/hosts/{planted.ak}")
