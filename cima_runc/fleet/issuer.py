"""The service as an issuer of tokens: its keys, and signing with them.

Keys are rows that all processes share. One that is replaced signs nothing more, and is published
until all that it signed has ended. ES256 (RFC 7518, 3.4); keys by RFC 7517, thumbprints by RFC
7638. Source: fleet, section 6.
"""

from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet
from sqlalchemy import Connection, delete, insert, or_, select, text, update

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError, load_object
from cima_runc.fleet import audit, clock
from cima_runc.fleet.claims import Profile
from cima_runc.fleet.schema import IssuedToken, ServiceKey, table_of

PURPOSE = "issuer"
LONGEST = 3600
"""Seconds that a token lives at most."""
_KEY, _ISSUED = table_of(ServiceKey), table_of(IssuedToken)
_LOCK = 0x69737375
_ALGORITHM = "ES256"


def sign(connection: Connection, profile: Profile, claims: dict[str, Any]) -> str:
    """Return a signed token. In a transaction that may write."""
    key = _current(connection)
    head = {"alg": _ALGORITHM, "typ": profile.type, "kid": key.kid}
    return jwt.encode(head, claims, key, algorithms=[_ALGORITHM])


def published(connection: Connection) -> dict[str, Any]:
    """Return the public keys, as a JWK set."""
    keys = [
        {**key.as_dict(private=False), "use": "sig", "alg": _ALGORITHM}
        for key in _keys(connection, clock.now())
    ]
    return {"keys": keys}


def read(connection: Connection, token: str) -> dict[str, Any] | None:
    """Return the claims of a token that this service has signed; None: it is none."""
    keys = KeySet(list(_keys(connection, clock.now())))
    try:
        found = jws.deserialize_compact(token, keys, algorithms=[_ALGORITHM])
        return load_object(found.payload, what="the token", limit=limits.TOKEN)
    except (JoseError, JsonError, ValueError, TypeError, KeyError, RecursionError):
        return None


def rotate(connection: Connection, actor: str) -> str:
    """Make a key that signs from now on; return its name (``kid``)."""
    _alone(connection)
    now = clock.now()
    connection.execute(
        delete(_KEY).where(_KEY.c.purpose == PURPOSE, _KEY.c.retired < now - LONGEST * 2000)
    )
    connection.execute(
        update(_KEY).where(_KEY.c.purpose == PURPOSE, _KEY.c.retired.is_(None)).values(retired=now)
    )
    made = _make(connection)
    audit.note(connection, actor, "issuer.rotate", made.kid or "", {})
    return made.kid or ""


def forget(connection: Connection, now: int) -> None:
    """Remove what is kept of tokens that have ended."""
    connection.execute(delete(_ISSUED).where(_ISSUED.c.expires < now))


def _current(connection: Connection) -> ECKey:
    rows = select(_KEY.c.secret, _KEY.c.kid).where(
        _KEY.c.purpose == PURPOSE, _KEY.c.retired.is_(None)
    )
    row = connection.execute(rows).first()
    if row is None:
        _alone(connection)
        row = connection.execute(rows).first()
    return _key(row.secret, row.kid) if row is not None else _make(connection)


def _make(connection: Connection) -> ECKey:
    private = ec.generate_private_key(ec.SECP256R1())
    secret = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    kid = ECKey.import_key(secret).thumbprint()
    connection.execute(
        insert(_KEY).values(purpose=PURPOSE, kid=kid, secret=secret, created=clock.now())
    )
    return _key(secret, kid)


def _keys(connection: Connection, now: int) -> list[ECKey]:
    since = now - LONGEST * 1000
    rows = connection.execute(
        select(_KEY.c.secret, _KEY.c.kid)
        .where(_KEY.c.purpose == PURPOSE, or_(_KEY.c.retired.is_(None), _KEY.c.retired > since))
        .order_by(_KEY.c.id.desc())
    )
    return [_key(row.secret, row.kid) for row in rows]


def _key(secret: bytes, kid: str) -> ECKey:
    return ECKey.import_key(bytes(secret), {"kid": kid})


def _alone(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
