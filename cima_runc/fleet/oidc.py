"""Signing people on by an OpenID provider: the authorization code flow, with PKCE.

Who comes back gets a token of this service that ends by itself, with the role that the settings
give to one of the groups which the provider names: it is listed, revoked and written down as all
tokens are. What speaks with the provider is imported when somebody comes. Source: OpenID Connect
Core 1.0, sections 3.1 and 3.1.3.7; RFC 7636 (PKCE).

"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import ssl
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy import Connection, delete, insert

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.base.peer import fetch
from cima_runc.fleet import access, audit, changes, clock
from cima_runc.fleet.access import AccessError, Role
from cima_runc.fleet.schema import ApiToken, new_uid, table_of
from cima_runc.fleet.settings import Oidc

COOKIE = "__Host-cima-sign-on"
PENDING_SECONDS = 600
"""How long somebody may take at the provider."""
SESSION_MS = 12 * 3_600_000
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
"""Signatures of ID tokens: never none, and never by a secret that is shared."""
_KNOWN_SECONDS = 3600.0
_TIMEOUT = 10.0
_LEEWAY = 60
_SECRET_BYTES = 4096
_GROUPS = 1000
_MAC = b"cima-sign-on-v1\0"


class OidcError(CimaError):
    """The provider does not answer as a provider does."""


class SignOnError(AccessError):
    """Somebody is not signed on."""


@dataclass(frozen=True)
class Somebody:
    """Who the provider says that has come."""

    name: str
    """As the audit log has it: what they are called there, and what tells them from all others."""
    subject: str
    role: Role
    tenant: str | None


class Provider:
    """An OpenID provider; its methods wait for it, for any number of threads."""

    def __init__(self, settings: Oidc, key: bytes) -> None:
        """``key`` is the one that cookies are made with.

        Raises:
            OidcError: a file of the settings cannot be read.
        """
        self._settings = settings
        self._key = key
        try:
            self._tls = ssl.create_default_context(cafile=settings.ca)
            path = settings.client_secret_file
            self._secret = (
                read_bounded(path, _SECRET_BYTES).decode("ascii").strip() if path else None
            )
        except (OSError, ValueError) as error:
            raise OidcError(
                f"the provider's files cannot be read: {error}", hint="oidc in the settings"
            ) from error
        self._known: tuple[float, dict[str, Any]] | None = None

    @property
    def redirect(self) -> str:
        """Where the provider sends people back to."""
        return f"{self._settings.page_url.rstrip('/')}/sign-in/callback"

    # -- there ------------------------------------------------------------------------------------

    def begin(self, where: str) -> tuple[str, str]:
        """Return the address that somebody is sent to, and the cookie that goes along; ``where``
        is the page to go on with afterwards.

        Raises:
            OidcError: the provider does not answer.
        """
        verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
        with self._client() as client:
            url, state = client.create_authorization_url(
                self._describe()["authorization_endpoint"], nonce=nonce, code_verifier=verifier
            )
        pending = {
            "state": state,
            "nonce": nonce,
            "verifier": verifier,
            "where": where,
            "ends": round(time.time()) + PENDING_SECONDS,
        }
        raw = base64.urlsafe_b64encode(json.dumps(pending).encode("ascii")).decode("ascii")
        return url, f"{raw}.{self._mac(raw)}"

    # -- and back ---------------------------------------------------------------------------------

    def finish(self, cookie: str | None, query: str) -> tuple[Somebody, str]:
        """Return who has come back with this cookie and query, and the page to go on with.

        Raises:
            SignOnError: it was not begun here, the provider refuses it, or no role is given.
            OidcError: the provider does not answer.
        """
        pending = self._pending(cookie)
        try:
            several = parse_qs(query, max_num_fields=16)
        except ValueError as error:
            raise SignOnError("the answer has too many fields", hint="sign in again") from error
        given = {name: values[0] for name, values in several.items()}
        if not hmac.compare_digest(
            given.get("state", "").encode("utf-8", "replace"), pending["state"].encode("ascii")
        ):
            raise SignOnError("this is not what was begun here", hint="sign in again")
        if given.get("iss", self._settings.issuer) != self._settings.issuer:
            raise SignOnError("another provider answers", hint="sign in again")
        if "code" not in given:
            raise SignOnError("the provider does not sign you on", hint="sign in again")
        claims = self._claims(given["code"], pending)
        return self._somebody(claims), pending["where"]

    def _pending(self, cookie: str | None) -> dict[str, Any]:
        raw, _, mac = (cookie or "").partition(".")
        wanted = self._mac(raw)
        if hmac.compare_digest(mac.encode("utf-8", "replace"), wanted.encode("ascii")):
            pending: dict[str, Any] = json.loads(base64.urlsafe_b64decode(raw))
            if time.time() < pending["ends"]:
                return pending
        raise SignOnError("this sign-on was not begun here, or took too long", hint="sign in again")

    def _claims(self, code: str, pending: dict[str, Any]) -> dict[str, Any]:
        import httpx
        from authlib.common.errors import AuthlibBaseError
        from authlib.oidc.core import CodeIDToken
        from joserfc import jws
        from joserfc.errors import JoseError

        issuer, client_id = self._settings.issuer, self._settings.client_id
        about = self._describe()
        try:
            with self._client() as client:
                token = client.fetch_token(
                    about["token_endpoint"], code=code, code_verifier=pending["verifier"]
                )
            signed = jws.deserialize_compact(
                str(token["id_token"]), self._keys(about), algorithms=_ALGORITHMS
            )
            found = load_object(signed.payload, what="the ID token", limit=limits.PROVIDER_ANSWER)
            wanted = {
                "iss": {"essential": True, "value": issuer},
                "aud": {"essential": True, "value": client_id},
                "sub": {"essential": True},
            }
            checked = CodeIDToken(
                found,
                signed.headers(),
                wanted,
                {"nonce": pending["nonce"], "client_id": client_id},
            )
            checked.validate(leeway=_LEEWAY)
        except (
            AuthlibBaseError,
            JoseError,
            JsonError,
            KeyError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise SignOnError(
                f"what the provider says of you is not good: {type(error).__name__}",
                hint="sign in again",
            ) from error
        except httpx.HTTPError as error:
            raise _away(error) from error
        return dict(found)

    def _somebody(self, claims: dict[str, Any]) -> Somebody:
        settings = self._settings
        groups = claims.get(settings.claim)
        several = groups if isinstance(groups, list) else [groups]
        named = {one for one in several[:_GROUPS] if isinstance(one, str)}
        subject = f"{settings.issuer} {claims['sub']}"
        # Two people may call themselves the same; nobody has another's subject.
        shown = next(
            (claims[one] for one in ("preferred_username", "email") if claims.get(one)), "somebody"
        )
        called = re.sub(r"[^a-z0-9._-]+", "-", str(shown).lower())[:40].strip("-._") or "somebody"
        name = f"{called}-{hashlib.sha256(subject.encode('utf-8', 'replace')).hexdigest()[:8]}"
        for role in (Role.ADMIN, Role.OPERATOR, Role.VIEWER):
            if any(settings.roles.get(one) == role.value for one in named):
                return Somebody(name, subject, role, None)
        tenants = sorted({settings.tenants[one] for one in named & settings.tenants.keys()})
        if len(tenants) == 1:
            return Somebody(name, subject, Role.TENANT, tenants[0])
        raise SignOnError(
            "none of your groups has a role here" if not tenants else "you are of several tenants",
            hint="an administrator gives one: oidc in the service's settings",
        )

    # -- the provider -----------------------------------------------------------------------------

    def _client(self) -> Any:
        import httpx
        from authlib.integrations.httpx_client import OAuth2Client

        provider = self

        class Bounded(httpx.BaseTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                kept = ("accept", "authorization", "content-type", "user-agent")
                try:
                    status, headers, raw = provider._fetch(
                        str(request.url),
                        method=request.method,
                        body=request.read(),
                        headers={
                            name: request.headers[name] for name in kept if name in request.headers
                        },
                    )
                except (OSError, HTTPException, ValueError) as error:
                    raise httpx.TransportError(type(error).__name__) from error
                told = {"content-type": headers.get("content-type", "")}
                return httpx.Response(status, headers=told, content=raw)

        return OAuth2Client(
            self._settings.client_id,
            self._secret,
            scope=self._settings.scope,
            redirect_uri=self.redirect,
            code_challenge_method="S256",
            transport=Bounded(),
            follow_redirects=False,
            trust_env=False,
        )

    def _describe(self) -> dict[str, Any]:
        known = self._known
        if known is not None and time.monotonic() - known[0] < _KNOWN_SECONDS:
            return known[1]
        issuer = self._settings.issuer
        found = self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        wanted = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        is_good = found.get("issuer") == issuer and all(
            str(found.get(one, "")).startswith("https://") for one in wanted
        )
        if not is_good:
            raise OidcError("the provider does not describe itself", hint="oidc in the settings")
        self._known = time.monotonic(), found
        return found

    def _keys(self, about: dict[str, Any]) -> Any:
        from joserfc.jwk import KeySet

        # Asked for each time: people sign on seldom, and keys are rotated.
        return KeySet.import_key_set(self._get(about["jwks_uri"]))  # type: ignore[arg-type]

    def _get(self, url: str) -> dict[str, Any]:
        try:
            status, _, raw = self._fetch(url)
            if status != 200:
                raise OidcError(
                    f"the provider answers with status {status}", hint="oidc in the settings"
                )
            return load_object(raw, what="the answer", limit=limits.PROVIDER_ANSWER)
        except JsonError as error:
            raise OidcError(
                "the provider answers with something else", hint="oidc in the settings"
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            raise _away(error) from error

    def _fetch(self, url: str, **named: Any) -> tuple[int, HTTPMessage, bytes]:
        limit = limits.PROVIDER_ANSWER
        return fetch(url, context=self._tls, limit=limit, seconds=_TIMEOUT, **named)

    def _mac(self, raw: str) -> str:
        return hmac.digest(self._key, _MAC + raw.encode("utf-8", "replace"), "sha256").hex()


def _away(error: Exception) -> OidcError:
    return OidcError(
        f"the provider does not answer: {type(error).__name__}", hint="try again; see cima-verifier"
    )


def sign_on(connection: Connection, who: Somebody) -> str:
    """Give somebody a token that ends by itself, in place of those that have ended; return it.

    Raises:
        NotFoundError: there is no such tenant.
    """
    table, now = table_of(ApiToken), clock.now()
    tenant = changes.tenant_number(connection, who.tenant) if who.tenant is not None else None
    connection.execute(delete(table).where(table.c.name == who.name, table.c.expires < now))
    uid, secret = new_uid(), access.new_secret()
    connection.execute(
        insert(table).values(
            uid=uid,
            name=who.name,
            digest=access.digest_of(secret),
            role=who.role.value,
            tenant=tenant,
            created=now,
            created_by="sign-on",
            expires=now + SESSION_MS,
        )
    )
    detail = {"subject": who.subject, "role": who.role.value, "tenant": who.tenant}
    audit.note(connection, who.name, "token.sign-on", uid, detail)
    return secret
