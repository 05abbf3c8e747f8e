"""Who may do what: roles, and local tokens."""

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, select

from cima_runc.base.errors import CimaError
from cima_runc.fleet import clock
from cima_runc.fleet.schema import ApiToken, table_of

PREFIX = "cima_"
_BYTES = 32


class Role(StrEnum):
    """What somebody may do."""

    VIEWER = "viewer"
    """See all."""
    OPERATOR = "operator"
    """And approve hosts, change policies, references and webhooks."""
    ADMIN = "admin"
    """And give tokens, make tenants."""
    TENANT = "tenant"
    """See own containers, by their owner's key, and nothing else."""


_MAY = {
    Role.VIEWER: {Role.VIEWER},
    Role.OPERATOR: {Role.VIEWER, Role.OPERATOR},
    Role.ADMIN: {Role.VIEWER, Role.OPERATOR, Role.ADMIN},
    Role.TENANT: set[Role](),
}


class AccessError(CimaError):
    """Somebody may not do what was asked."""


class LimitedError(CimaError):
    """Somebody asks too often."""


class NotSignedInError(AccessError):
    """It is not known who asks."""


class ForbiddenError(AccessError):
    """It is known who asks, and the role is not enough."""


@dataclass(frozen=True)
class Person:
    """Somebody, or a program, who was recognised."""

    name: str
    role: Role
    tenant: int | None = None
    """Set for the role tenant, and for it alone."""

    def must_be(self, role: Role) -> None:
        """See that this person may do what ``role`` may.

        Raises:
            ForbiddenError: no.
        """
        if role not in _MAY[self.role]:
            raise ForbiddenError(
                f"the role {self.role.value} is not enough", hint=f"{role.value} is wanted"
            )


def new_secret() -> str:
    """Return a new token: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def digest_of(secret: str) -> str:
    """Return what is kept of a token: SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def person_of(connection: Connection, secret: str | None) -> Person:
    """Return whose token this is.

    Raises:
        NotSignedInError: nobody's, or one that has expired or was revoked.
    """
    if secret:
        token = table_of(ApiToken).c
        # Compared by digest: how long it takes tells nothing of the token.
        row = connection.execute(
            select(token.name, token.role, token.tenant, token.expires).where(
                token.digest == digest_of(secret), token.revoked.is_(None)
            )
        ).first()
        if row is not None and (row.expires is None or row.expires > clock.now()):
            return Person(row.name, Role(row.role), row.tenant)
    raise NotSignedInError("the token is not one of this service", hint="cima fleet tokens")
