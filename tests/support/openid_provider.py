"""A small OpenID provider over HTTPS: it signs on whom the test says, and can lie in its tokens.

It is written from OpenID Connect Core 1.0 and RFC 7636, not from what it is used with.
"""

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from cima_runc.fleet import setup
from cima_runc.fleet.settings import Settings

CLIENT, SECRET = "cima", "a secret of the provider's"


class OpenIdProvider:
    """What it does; ``user`` is who sits before the browser."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.key = ECKey.generate_key("P-256", {"kid": "one", "alg": "ES256", "use": "sig"})
        self.user: dict[str, Any] = {"sub": "1", "preferred_username": "Alice", "groups": []}
        self.lies: dict[str, Any] = {}
        """Claims that are other than they should be; None: left out."""
        self.signs_with: Any = self.key
        self.algorithm = "ES256"
        self.says: dict[str, Callable[[Any], None]] = {}
        """What is done with a request to a path in place of answering it."""
        self._codes: dict[str, dict[str, str]] = {}

    def describe(self) -> dict[str, Any]:
        """The provider's metadata."""
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes once the user has signed on."""
        assert query["client_id"] == CLIENT and query["response_type"] == "code"
        assert "openid" in query["scope"].split()
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe()
        self._codes[code] = query
        return query["redirect_uri"] + "?" + urlencode({"code": code, "state": query["state"]})

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """Exchange a code, once, for what says who it is."""
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        asked = self._codes.pop(form.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(
            hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        )
        if (
            authorization != f"Basic {basic}"
            or asked is None
            or asked["redirect_uri"] != form.get("redirect_uri")
            or asked["code_challenge"] != challenge.decode().rstrip("=")
        ):
            return 400, {"error": "invalid_grant"}
        now = round(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.user,
            **self.lies,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": self.algorithm, "kid": "one"}
        if self.algorithm == "none":
            parts = (json.dumps(part).encode() for part in (header, claims))
            made = ".".join(base64.urlsafe_b64encode(p).decode().rstrip("=") for p in parts) + "."
        else:
            made = jwt.encode(header, claims, self.signs_with, algorithms=[self.algorithm])
        return 200, {"access_token": "x", "token_type": "Bearer", "id_token": made}

    def keys(self) -> dict[str, Any]:
        """Its public keys."""
        return {"keys": [self.key.as_dict(private=False)]}

    def shared_key(self) -> OctKey:
        """Its public key's bytes as a secret, as who confuses algorithms would have it."""
        return OctKey.import_key(json.dumps(self.keys()).encode())


@contextmanager
def openid_provider(root: Path) -> Iterator[tuple[OpenIdProvider, Path]]:
    """Run one; gives it, and the authorities for its certificate."""
    root.mkdir()
    certificate, key = setup.certificate(Settings(state_dir=root))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path)
            if path.path in provider.says:
                provider.says[path.path](self)
            elif path.path == "/authorize":
                self.send_response(302)
                self.send_header("Location", provider.authorize(_fields(path.query)))
                self.end_headers()
            elif path.path == "/.well-known/openid-configuration":
                self._json(200, provider.describe())
            elif path.path == "/keys":
                self._json(200, provider.keys())
            else:
                self._json(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.path in provider.says:
                provider.says[self.path](self)
                return
            self._json(*provider.token(_fields(body), self.headers.get("Authorization", "")))

        def _json(self, status: int, value: dict[str, Any]) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    provider = OpenIdProvider(f"https://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield provider, certificate
    finally:
        server.shutdown()
        server.server_close()


def _fields(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text).items()}
