#!/usr/bin/env python3
"""A real agent with a software TPM and real runc on this machine, asked for evidence.

Run in a process of its own, since it changes its mounts. Takes root.
"""

import json
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import native_host

from cima_runc.base import limits
from cima_runc.evidence.models import parse_evidence
from cima_runc.evidence.owner import generate, parse_private, public_text
from cima_runc.runtime.agent_socket import AgentRefusedError, call_agent
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.enrolled import enrolled_ak_file, parse_enrolled_ak
from cima_runc.verifier.verify import Expectation, verify

EXAMPLE = native_host.TOP / "examples/remote-verify/walkthrough.sh"
PORT = 18443
NAMES = ("alices-web", "bobs-web", "many")


def certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(cert)]
    command = ["openssl", "req", "-x509", "-days", "2", *curve, *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def starter(directory: Path, prefix: Path) -> Path:
    """Write the command that starts a container of busybox for an owner."""
    script = directory / "start"
    script.write_text(
        textwrap.dedent(f"""\
        #!{sys.executable}
        import json, subprocess, sys
        sys.path.insert(0, {str(native_host.TOP / "tests")!r})
        import native_host
        from pathlib import Path
        name, owner = sys.argv[1:]
        bundle = Path({str(directory)!r}) / name
        native_host.make_bundle(bundle, "/bin/sleep", "600")
        config = json.loads((bundle / "config.json").read_text())
        config["annotations"] = {{"io.cima.owner": owner}}
        (bundle / "config.json").write_text(json.dumps(config))
        with open("/dev/null", "r+b") as null:
            subprocess.run(
                [{str(prefix / "bin/cima-runc")!r}, "run", "-d", "-b", str(bundle), name],
                check=True, stdin=null, stdout=null, stderr=null,
            )
        print(name)
        """)
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def ask(name: str, nonce: bytes, **wanted: Any) -> bytes:
    """Ask over the unix socket."""
    asked = {"container": name, "nonce": nonce.hex(), "host": "none", "boot_log": False}
    body = json.dumps({**asked, "since": None, **wanted}).encode()
    return call_agent(str(native_host.SOCKET), "attest", body, timeout=60)


def many_at_once(start: Path, count: int) -> int:
    """Return how many quotes answered ``count`` requests that came at the same time."""
    private, public = generate()
    names = [f"many-{number}" for number in range(count // limits.WAITING_FOR_ONE_CONTAINER)]
    for name in names:
        subprocess.run([start, name, public_text(public)], check=True, stdout=subprocess.DEVNULL)
    nonces = [os.urandom(32) for _ in range(count)]
    asked = [(names[number % len(names)], nonce) for number, nonce in enumerate(nonces)]
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda one: ask(*one), asked))
    quotes = set()
    for nonce, raw in zip(nonces, answers, strict=True):
        evidence = parse_evidence(raw)
        quotes.add(evidence.quote.attest)
        ak = parse_enrolled_ak(enrolled_ak_file(parse_public(evidence.ak.public)))
        wanted = Expectation(nonce, ak, owner_key=parse_private(private))
        result = verify(raw, wanted)
        assert result.refusal is None, result.refusal
    return len(quotes)


def end_all(prefix: Path) -> None:
    """End the containers, however far we have come."""
    for name in NAMES:
        command = [prefix / "bin/cima-runc", "delete", "-f", name]
        subprocess.run(command, check=False, capture_output=True)


@contextmanager
def ended(prefix: Path) -> Iterator[None]:
    """End the containers in the end."""
    try:
        yield
    finally:
        end_all(prefix)


def main() -> int:
    """Run everything and print what the walk-through prints."""
    with tempfile.TemporaryDirectory(prefix="cima-attest-") as name:
        directory = Path(name)
        native_host.private_mounts(directory)
        prefix = native_host.installation(directory)
        cert, key = certificate(directory)
        https = f'certificate = "{cert}"\nkey = "{key}"\nport = {PORT}\naddress = "127.0.0.1"\n'
        settings = f"[attestation.https]\nenabled = true\n{https}"
        start = starter(directory, prefix)
        url = f"https://localhost:{PORT}"
        # What this kernel does not have is not what is shown here.
        policy = directory / "policy.toml"
        policy.write_text('allow_missing = ["ima", "sensor"]\n')
        work = directory / "work"
        work.mkdir()
        environment = {**os.environ, "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}"}
        with native_host.agent(prefix, directory, settings), ended(prefix):
            done = subprocess.run(
                [EXAMPLE, url, str(cert), str(start), "--policy", str(policy)],
                cwd=work,
                env=environment,
                check=False,
            )
            quotes = many_at_once(start, 200)
            print(f"200 requests at once: {quotes} quotes")
            try:
                ask("many-0", os.urandom(16), host="redacted")
            except AgentRefusedError as error:
                print(f"refused: {error}")
            end_all(prefix)
            parse_evidence(ask("alices-web", os.urandom(16)))
            print("ended, and attested")
        if done.returncode:
            print((directory / "agent.log").read_text(), file=sys.stderr)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
