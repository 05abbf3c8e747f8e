"""Who is signed in on the page: a cookie under the service's key; nothing of it is stored.

The cookie names a token of the service, and is not the token: it ends by itself, and at once when
the token is revoked. A form carries a second value that is made from the cookie, which no other
site can know.
"""

import hmac

from sqlalchemy import Connection, select

from cima_runc.fleet import access, clock
from cima_runc.fleet.access import NotSignedInError, Person, Role
from cima_runc.fleet.schema import ApiToken, table_of

COOKIE = "__Host-cima"
"""Browsers take a cookie of such a name over TLS only, for this host and all its paths."""
LIFETIME = 12 * 3600
"""Seconds."""
_SESSION, _FORM = b"cima-page-v1\0", b"cima-page-form-v1\0"


class PageSessions:
    """Makes cookies and knows them again; all processes have the same key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign_in(self, connection: Connection, secret: str) -> str:
        """Return the cookie of whose token this is.

        Raises:
            NotSignedInError: nobody's.
        """
        access.person_of(connection, secret)
        token = table_of(ApiToken).c
        uid = connection.execute(
            select(token.uid).where(token.digest == access.digest_of(secret))
        ).scalar_one()
        ends = clock.now() // 1000 + LIFETIME
        return f"{uid}.{ends}.{self._mac(_SESSION, f'{uid}.{ends}')}"

    def person(self, connection: Connection, cookie: str | None) -> Person:
        """Return who has this cookie.

        Raises:
            NotSignedInError: nobody; it has ended, or the token was revoked.
        """
        uid, _, rest = (cookie or "").partition(".")
        ends, _, mac = rest.partition(".")
        is_good = (
            ends.isascii()
            and ends.isdigit()
            and len(ends) <= 12
            and _same(mac, self._mac(_SESSION, f"{uid}.{ends}"))
        )
        if is_good and clock.now() // 1000 < int(ends):
            token = table_of(ApiToken).c
            row = connection.execute(
                select(token.name, token.role, token.tenant, token.expires).where(
                    token.uid == uid, token.revoked.is_(None)
                )
            ).first()
            if row is not None and (row.expires is None or row.expires > clock.now()):
                return Person(row.name, Role(row.role), row.tenant)
        raise NotSignedInError("nobody is signed in", hint="sign in")

    def form(self, cookie: str) -> str:
        """Return what forms of this session carry."""
        return self._mac(_FORM, cookie)

    def is_form(self, cookie: str | None, form: str) -> bool:
        """Whether a form was made for this session."""
        return cookie is not None and _same(form, self.form(cookie))

    def _mac(self, label: bytes, text: str) -> str:
        return hmac.digest(self._key, label + text.encode("utf-8", "replace"), "sha256").hex()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode("ascii"))
