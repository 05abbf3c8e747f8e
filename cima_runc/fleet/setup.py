"""What a service makes for itself at first: tables, a policy, a token, a certificate."""

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import func, select, text

from cima_runc.base.durable import replace_file
from cima_runc.base.errors import CimaError
from cima_runc.fleet import changes, migrate
from cima_runc.fleet.access import Role
from cima_runc.fleet.database import Database
from cima_runc.fleet.schema import ApiToken, Policy, table_of
from cima_runc.fleet.settings import Settings

DEFAULT_POLICY = "default"
_LOCK = 0x73657475
_ACTOR = "service"
_YEARS = 3650


class SetupError(CimaError):
    """The service cannot make what it needs."""


def admin_token_path(settings: Settings) -> Path:
    """Return where the first administrator's token is written."""
    return settings.state_dir / "admin.token"


def prepare(settings: Settings) -> None:
    """Make what is not there yet: the directory, the tables, the first policy and token.

    Tables of an earlier form are left to ``cima-verifier migrate`` in PostgreSQL, where other
    processes may be at work.

    Raises:
        SetupError, DatabaseError, MigrationError, SchemaError: it cannot.
    """
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"{settings.state_dir} cannot be made: {error.strerror}",
            hint="state_dir in the settings, or run it as a user who may write there",
        ) from error
    database = Database(settings.database_url)
    try:
        if not database.is_postgresql or migrate.present(database) is None:
            try:
                migrate.migrate(database)
            except migrate.MigrationRunningError:
                if not database.is_postgresql:
                    raise
        migrate.check(database)
        _first_rows(database, settings)
    finally:
        database.close()


def _first_rows(database: Database, settings: Settings) -> None:
    secret = None
    with database.write() as connection:
        if database.is_postgresql:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        if not connection.execute(select(func.count()).select_from(table_of(Policy))).scalar():
            changes.add_policy(connection, _ACTOR, DEFAULT_POLICY, "")
            changes.assign(connection, _ACTOR, DEFAULT_POLICY, {})
        if not connection.execute(select(func.count()).select_from(table_of(ApiToken))).scalar():
            _, secret = changes.make_token(connection, _ACTOR, "admin", Role.ADMIN)
            # Before it is committed: a token that nobody has is of no use.
            replace_file(admin_token_path(settings), f"{secret}\n".encode("ascii"))


def certificate(settings: Settings) -> tuple[Path, Path]:
    """Return the TLS certificate and its key (PEM); make one of our own where none is set.

    Raises:
        SetupError: one of both is set, or they cannot be made.
    """
    if (settings.certificate is None) != (settings.key is None):
        raise SetupError("certificate and key go together", hint="set both, or none")
    if settings.certificate is not None and settings.key is not None:
        return _usable(settings.certificate, settings.key)
    made, key = settings.state_dir / "certificate.pem", settings.state_dir / "key.pem"
    if not (made.exists() and key.exists()):
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        replace_file(key, pem)
        replace_file(made, _self_signed(private, settings))
        os.chmod(made, 0o644)
    return _usable(made, key)


def _usable(certificate: Path, key: Path) -> tuple[Path, Path]:
    """Return both, once they were seen to go together."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except OSError as error:
        # An SSLError is one, and its text is OpenSSL's.
        why = "no certificate (PEM) and its key" if isinstance(error, ssl.SSLError) else None
        raise SetupError(
            f"{certificate} and {key} cannot be used: {why or error.strerror}",
            hint="certificate and key in the settings",
        ) from error
    return certificate, key


def _self_signed(private: ec.EllipticCurvePrivateKey, settings: Settings) -> bytes:
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys((socket.gethostname(), "localhost", settings.address, "127.0.0.1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            names.append(x509.DNSName(name))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cima-verifier")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_YEARS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False
        )
        .sign(private, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)
