"""Settings of the service: a TOML file, every key with a default, so that none is needed."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.errors import CimaError
from cima_runc.validation import first_of

FILE = Path("/etc/cima/verifier.toml")
"""Where the file is looked for, unless another is given."""
ENVIRONMENT = "CIMA_VERIFIER_DATABASE"
"""Environment variable with the database's URL: it may hold a password, which no file should."""


class SettingsError(CimaError):
    """The settings cannot be used."""


_Seconds = Annotated[float, Field(gt=0, le=86_400)]
_Pcr = Annotated[int, Field(ge=0, le=23)]


_Https = Annotated[str, Field(max_length=2048, pattern=r"^https://[^\s?#@]+$")]


class Oidc(BaseModel):
    """The OpenID provider that people sign on with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: _Https
    """As the provider names itself."""
    client_id: Annotated[str, Field(min_length=1, max_length=255)]
    """This service's name with the provider."""
    page_url: _Https
    """Where browsers reach this service: the provider sends people back there, to
    ``/sign-in/callback``."""
    client_secret_file: Path | None = None
    """File of the secret that the provider has given; none for a public client."""
    ca: Path | None = None
    """Authorities for the provider's certificate (PEM); none: the system's."""
    scope: str = "openid profile email"
    """What is asked for; ``openid`` must be in it."""
    claim: str = "groups"
    """The claim of the ID token that names somebody's groups."""
    roles: dict[str, Literal["viewer", "operator", "admin"]] = {}
    """The role of each group; of several the one that may most."""
    tenants: dict[str, str] = {}
    """The tenant that a group is: who has no other role sees that tenant's containers."""


class Settings(BaseModel):
    """Settings of the service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = Path("/var/lib/cima-verifier")
    """Where the SQLite file and the certificate are made."""
    database: str = ""
    """URL of the database, ``postgresql://user@host/name``; empty: an SQLite file below
    ``state_dir``."""
    address: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8443
    """Port to listen on; 0: any that is free."""
    certificate: Path | None = None
    """TLS certificate (PEM); none: one of our own is made."""
    key: Path | None = None
    """Its private key (PEM)."""
    manufacturers: Path | None = None
    """Certificates of TPM manufacturers (PEM); none: no TPM is proved to be hardware."""
    interval: _Seconds = 60.0
    """Seconds between a host's reports."""
    min_interval: _Seconds = 2.0
    """Seconds between them at least, where something changes all the time."""
    overdue: Annotated[float, Field(ge=1, le=100)] = 2.0
    """How many intervals a report proves something; after that its host is STALE."""
    nonce_seconds: _Seconds = 60.0
    """How long a nonce lives."""
    enrolment: bool = True
    """Whether hosts may ask to be enrolled, with a join token or for approval."""
    reports_per_minute: Annotated[int, Field(ge=1)] = 120
    """Reports of one host."""
    report_mib_per_minute: Annotated[int, Field(ge=1)] = 64
    """MiB of one host's reports, as they are without compression; what more it has comes later."""
    answer_mib_per_minute: Annotated[int, Field(ge=1)] = 256
    """MiB of one host's answers to tenants, as they are without compression: each is kept until it
    is fetched, for some minutes at most."""
    enrolments_per_minute: Annotated[int, Field(ge=1)] = 20
    """Attempts to enrol, from one address."""
    tenants_per_minute: Annotated[int, Field(ge=1)] = 60
    """Requests for evidence, from one address."""
    oidc: Oidc | None = None
    """The OpenID provider that people sign on with; none: by tokens of the service alone."""
    allow_private_webhooks: bool = False
    """Whether the operator's webhooks may go to addresses that are not public, as 10.0.0.0/8."""
    allow_private_tenant_webhooks: bool = False
    """Whether tenants' may: these reach what the service reaches, and learn how it answers."""
    issuer: _Https | None = None
    """The service's address as tokens name it (``iss``), and as those who take them reach it; none:
    ``https://`` with ``address`` and ``port``."""
    token_seconds: Annotated[int, Field(ge=10, le=3600)] = 300
    """How long after a container's quote the tokens end that are issued by it."""
    tokens_per_minute: Annotated[int, Field(ge=1)] = 600
    """Tokens of one tenant, or of the operator."""
    tenant_views_per_minute: Annotated[int, Field(ge=1)] = 600
    """What one tenant may look at, by API and page."""
    tenant_changes_per_minute: Annotated[int, Field(ge=1)] = 10
    """Webhooks that one tenant may add or remove."""
    proxies: tuple[str, ...] = ("127.0.0.1",)
    """Addresses, or networks, of proxies before this service whose ``X-Forwarded-For`` is believed:
    limits that go by address are for each host then, and not for all behind the proxy together."""
    host_gib: Annotated[float, Field(gt=0)] | None = None
    """GiB of records, and of the kernel's log, that are kept of one host: a report that brings more
    is refused, and the host STALE until it is given more or what is older than ``keep_days`` has
    gone. None: without end."""
    keep_days: Annotated[int, Field(ge=1)] = 90
    """Days that ended containers' records, events and requests are kept."""
    boot_pcrs: tuple[_Pcr, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
    """PCRs of firmware, loader and kernel that a report must quote."""
    binding_pcr: _Pcr = 12
    """PCR that hosts bind their registers into."""
    host_pcr: _Pcr = 10
    """PCR of the kernel's own log."""
    require_safe_clock: bool = True
    """Whether a host is refused while its TPM does not vouch for its clock: after a power cut, for
    some seventy minutes at most. Without, a host whose power is cut can be put back by as much."""

    @property
    def database_url(self) -> str:
        """The database's URL as SQLAlchemy wants it."""
        url = os.environ.get(ENVIRONMENT) or self.database
        if not url:
            return f"sqlite:///{self.state_dir / 'fleet.db'}"
        for short in ("postgresql://", "postgres://"):
            if url.startswith(short):
                return "postgresql+psycopg://" + url.removeprefix(short)
        return url


def read_settings(path: Path | None = None) -> Settings:
    """Read the settings; ``path`` None looks for :data:`FILE`, and does without.

    Raises:
        SettingsError: names the key and what is wrong with it.
    """
    where = path if path is not None else FILE
    try:
        raw = read_bounded(where, limits.VERIFIER_INPUT)
    except FileNotFoundError as error:
        if path is None:
            return Settings()
        raise SettingsError(f"{where} is not there") from error
    except OSError as error:
        raise SettingsError(f"{where}: {error.strerror}") from error
    try:
        return Settings.model_validate(tomllib.loads(raw.decode("utf-8")))
    except ValidationError as error:
        keys = ", ".join(sorted(Settings.model_fields))
        raise SettingsError(f"{where}: {first_of(error)}", hint=f"keys are {keys}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{where} is not TOML: {error}") from error
