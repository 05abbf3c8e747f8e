"""``cima verify`` and ``cima log`` as people run them: output and exit status."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.jwk import ECKey
from simulated_host import SimulatedHost, simulated_host, tampered
from typer.testing import CliRunner, Result

from cima_runc.base.errors import CimaError
from cima_runc.cli import shapes
from cima_runc.cli.main import app
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.enrolled import enrolled_ak_file

NONCE = os.urandom(32)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    with simulated_host(tmp_path) as made:
        made.start("plain")
        ak = made.attester.attestation_key().public
        (tmp_path / "ak.pem").write_bytes(enrolled_ak_file(parse_public(ak)))
        yield made


def cima(*words: object) -> Result:
    words = tuple(str(word) for word in words)
    done = CliRunner().invoke(app, words)
    if "--json" in words and isinstance(done.exception, SystemExit | None):
        shapes.check(words, done.stdout)
    return done


def verify(host: SimulatedHost, raw: bytes, *options: object, nonce: bytes = NONCE) -> Result:
    (host.root / "evidence.json").write_bytes(raw)
    words = [host.root / "evidence.json", "--nonce", nonce.hex(), "--ak", host.root / "ak.pem"]
    return cima("verify", *words, *options)


def test_true_evidence_without_reference_values(host: SimulatedHost) -> None:
    done = verify(host, host.evidence("plain", NONCE), "--container", "plain")
    assert done.exit_code == 2, done.output
    assert "nothing was appraised" in done.stdout
    assert done.stdout.splitlines()[-1] == "UNKNOWN: container plain, run 1, first seen"
    assert f"host: attestation key {host.enrolled().name.hex()}" in done.stdout
    assert "not proved: dependencies: on the agent's word" in done.stdout
    assert "policy default, version" in done.stdout


def test_untrusted(host: SimulatedHost) -> None:
    raw = host.evidence("plain", NONCE)
    done = verify(host, tampered(raw, owner__blind="5e" * 32))
    assert done.exit_code == 1
    assert "LeafError: " in done.stdout
    assert "expected: " in done.stdout and "hint: " in done.stdout
    as_json = json.loads(verify(host, raw, "--json", nonce=bytes(32)).stdout)
    assert (as_json["verdict"], as_json["refusal"]["error"]) == ("STALE", "NonceError")


def test_state(host: SimulatedHost) -> None:
    seen = ("--state", host.root / "seen")
    (number,) = host.store.registrations()
    raw = host.evidence("plain", NONCE)
    assert "nothing is remembered" in verify(host, raw, *seen).stdout
    host.run(number, b"/bin/more", b"more")
    later = host.evidence("plain", NONCE, since=host.since(number, 2))
    assert "continues run 1 at record 2" in verify(host, later, *seen).stdout
    done = verify(host, raw, *seen)
    assert done.exit_code == 1
    assert "ClockError" in done.stdout or "RollbackError" in done.stdout
    next((host.root / "seen").glob("*.json")).write_bytes(b"{}")
    done = verify(host, raw, *seen)
    assert done.exit_code == 2
    assert "StateVersionError" in done.stdout


def test_policy_and_token(host: SimulatedHost) -> None:
    (host.root / "policy.toml").write_text("boot_pcrs = [0]\n")
    done = verify(host, host.evidence("plain", NONCE), "--policy", host.root / "policy.toml")
    assert "PcrSelectionError" in done.stdout
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (host.root / "key.pem").write_bytes(key)
    token = host.root / "result.jwt"
    options = ("--jwt", token, "--jwt-key", host.root / "key.pem", "--jwt-audience", "https://a")
    verify(host, host.evidence("plain", NONCE), *options)
    claims = jwt.decode(token.read_text().strip(), ECKey.import_key(key)).claims
    assert claims["cima"]["verdict"] == "UNKNOWN"
    assert claims["submods"].keys() == {"plain"}


def test_of_what_has_ended_there_is_no_token(host: SimulatedHost) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (host.root / "key.pem").write_bytes(key)
    (number,) = host.store.registrations()
    host.end(number)
    token = host.root / "result.jwt"
    options = ("--jwt", token, "--jwt-key", host.root / "key.pem", "--jwt-audience", "https://a")
    done = verify(host, host.evidence("plain", NONCE), *options)
    assert done.stdout.splitlines()[-1].endswith("ended: deleted")
    assert "no token" in done.stderr
    assert not token.exists()


def test_exit_status_1_is_untrusted_and_nothing_else(host: SimulatedHost) -> None:
    """Kind: an error that a program takes for a verdict."""
    raw = host.evidence("plain", NONCE)
    (host.root / "bad").write_bytes(b"\xff{")
    bad = host.root / "bad"
    for options in (
        ("--policy", bad),
        ("--policy", "/nowhere"),
        ("--reference", bad),
        ("--owner-key", bad),
        ("--state", bad),
        ("--ak-name", "00"),
        ("--jwt", "/nowhere"),
    ):
        done = verify(host, raw, *options)
        code = done.exception.exit_code if isinstance(done.exception, CimaError) else done.exit_code
        assert code == 2, (options, done.output)


@pytest.mark.parametrize("words", [("reference", "image"), ("reference", "host"), ("verify",)])
def test_help_is_no_traceback(words: tuple[str, ...]) -> None:
    done = cima(*words, "--help")
    assert done.exit_code == 0
    assert words[-1] in done.output


def test_terminal_gets_nothing_of_the_evidence_unescaped(host: SimulatedHost) -> None:
    raw = tampered(host.evidence("plain", NONCE), container="a\x1b[31m\n")
    assert "\x1b" not in verify(host, raw).stdout
    for garbage in (b"\x1b[31m", b'{"type":"cima-evidence","version":"\\u001b[31m"}'):
        done = verify(host, garbage)
        assert done.exit_code == 2
        assert "\x1b" not in done.output


@pytest.mark.parametrize(
    "words",
    [
        ("attest", "plain", "--nonce", "zz"),
        ("attest", "plain", "--nonce", "ab"),
        ("verify", "/nowhere", "--nonce", "ab" * 16, "--ak", "/nowhere"),
        ("enroll", "challenge", "/nowhere"),
        ("attest", "plain", "--nonce", "ab" * 16, "--url", "http://localhost"),
    ],
)
def test_mistakes_are_told(words: tuple[str, ...]) -> None:
    done = cima(*words)
    assert isinstance(done.exception, CimaError)


def test_keygen(tmp_path: Path) -> None:
    done = cima("keygen", tmp_path / "alice")
    assert done.stdout.startswith("x25519:")
    assert (tmp_path / "alice.pub").read_text() == done.stdout
    assert (tmp_path / "alice.key").stat().st_mode & 0o077 == 0
    again = cima("keygen", tmp_path / "alice")
    assert isinstance(again.exception, CimaError)


def test_log_formats(host: SimulatedHost) -> None:
    (number,) = host.store.registrations()
    host.run(number, b"/bin/sh", b"sh")
    settings = host.root / "config.toml"
    settings.write_text(f'state_dir = "{host.root / "state"}"\nsocket = "{host.root / "none"}"\n')
    # No agent there: what is stored is shown.
    shown = cima("--config", settings, "log", "plain", "--format", "cel-json")
    assert [record["recnum"] for record in json.loads(shown.stdout)] == [0, 1, 2]
    ascii_log = cima("--config", settings, "log", "plain", "--format", "ima-ascii").stdout
    assert "cima-ng sha256:" in ascii_log
    table = cima("--config", settings, "log", "plain").stdout.splitlines()
    assert table[0].split()[:2] == ["#", "what"]
    assert table[-1].split()[1] == "BPRM_CHECK" and table[-1].endswith("/bin/sh")
    tlv = cima("--config", settings, "log", "plain", "--format", "cel-tlv").stdout_bytes
    assert tlv.startswith(b"\0\0\0\0\x08" + bytes(8) + b"\xc0\0\0\0\x05plain")
