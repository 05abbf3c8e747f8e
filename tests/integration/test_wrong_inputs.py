"""What people get wrong, for each command and each file that it takes: one line that names it.

The status is 2, nothing is a traceback, and nobody is told in words of our libraries.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from simulated_host import SimulatedHost, simulated_host

from cima_runc.agent.enrolment import request
from cima_runc.cli.configure import Target
from cima_runc.cli.main import main
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.enrolled import enrolled_ak_file

NONCE = "5e" * 32


def enrolment_request(host: SimulatedHost) -> bytes:
    """What ``cima enroll request`` writes on it."""
    return request(host.attester).model_dump_json(exclude_none=True).encode()


JARGON = re.compile(
    r"Traceback|pydantic|discriminator|union_tag|Input should|JSONDecode|validation error"
    r"|tar header|\bNoneType\b|\[type=|Errno|codec can't|object has no attribute"
    r"|Value error|unable to parse|_ssl\.c|\(char|\['"
)


def missing(path: Path) -> None:
    pass


def directory(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def text(path: Path) -> None:
    path.write_text("what somebody wrote\n")


def array(path: Path) -> None:
    path.write_text("[]\n")


def object_(path: Path) -> None:
    path.write_text('{"type": ["a list"], "version": {}}\n')


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def certificate(path: Path) -> None:
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)


def archive(path: Path) -> None:
    with tarfile.open(path, "w") as made:
        member = tarfile.TarInfo("of no image")
        member.size = 4
        made.addfile(member, io.BytesIO(b"data"))


def cut_archive(path: Path) -> None:
    archive(path)
    path.write_bytes(path.read_bytes()[:700])


def forbidden(path: Path) -> None:
    path.write_text("what somebody wrote\n")
    path.chmod(0)


KINDS: tuple[Callable[[Path], None], ...] = (
    *(missing, directory, empty, noise, text, array, object_, deep, certificate, huge),
    *(archive, cut_archive, forbidden),
)

# X is the file that is wrong; the names in capitals are good ones.
COMMANDS = (
    "verify X --nonce NONCE --ak AK",
    "verify EVIDENCE --nonce NONCE --ak X",
    "verify EVIDENCE --nonce NONCE --ak-ca X",
    "verify EVIDENCE --nonce NONCE --ak AK --owner-key X",
    "verify EVIDENCE --nonce NONCE --ak AK --reference X",
    "verify EVIDENCE --nonce NONCE --ak AK --policy X",
    "appraise plain --reference X",
    "reference image X -o OUT",
    "reference verify X --key AK",
    "reference convert X --to-keylime OUT",
    "reference host --from-keylime X -o OUT",
    "policy check X",
    "policy suggest plain --reference X -o OUT",
    "enroll challenge X --any-ek --pending OUT -o OUT2",
    "enroll accept X --pending X -o OUT",
    "enroll activate X -o OUT",
    "enroll challenge HOST --ek-ca X --pending OUT -o OUT2",
    "enroll challenge HOST --ek-ca AK --ek-chain X --pending OUT -o OUT2",
    "enroll challenge HOST --ek-ca AK --ek-certificate X --pending OUT -o OUT2",
    "verify EVIDENCE --nonce NONCE --ak AK --jwt OUT --jwt-key X --jwt-audience A",
    "reference verify REFERENCE --key X",
    "reference image REFERENCE --sign-key X",
    "reference host --from-keylime REFERENCE --key X -o OUT",
    "policy suggest --records X -o OUT",
    "attest plain --nonce NONCE --url https://localhost:1 --ca X",
    "attest plain --nonce NONCE --url https://localhost:1 --cert X",
    "enroll request --url https://localhost:1 --ca X -o OUT",
    "configure docker --runtime X --dry-run",
    *(
        f"configure {name} --file X --runtime /bin/sh --dry-run"
        for name in Target
        if name != "fleet"
    ),
    "configure containerd --remove --file X --dry-run",
    "configure fleet --url https://localhost:1 --ca X --dry-run",
    "configure fleet --url https://localhost:1 --join-token-file X --dry-run",
    "--config X ps",
    "--config X doctor --json",
    "--config X configure docker --dry-run",
)
NOTHING_WRONG = {
    (missing, "--join-token-file"): "somebody may approve of the host: a line says so",
    (missing, "--file"): "an engine's file that is not there yet is made",
    (empty, "--file"): "and one that holds nothing is filled",
    (object_, "docker --file"): "these are settings of dockerd's",
    (empty, "policy"): "an empty policy is one: it allows nothing besides",
    (empty, "--config"): "empty settings are the defaults",
}


@contextmanager
def as_nobody(directory: Path) -> Iterator[None]:
    """Root reads everything."""
    directory.chmod(0o755)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


class Wrong:
    """Good files, and how a command ends."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.root = root
        self._files = files

    def run(self, line: str, wrong: Path | None) -> tuple[int, str, str]:
        words = [
            str(wrong) if word == "X" else self._files.get(word, word) for word in line.split()
        ]
        out, err = io.StringIO(), io.StringIO()
        before, stdin = sys.argv, sys.stdin
        sys.stdin = io.TextIOWrapper(io.BytesIO())
        settings = [] if "--config" in words else ["--config", self._files["SETTINGS"]]
        sys.argv = ["cima", *settings, *words]
        try:
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                main()
        finally:
            sys.argv, sys.stdin = before, stdin
        return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def good() -> Iterator[Wrong]:
    # Not pytest's own directory: nobody else can read there.
    with tempfile.TemporaryDirectory(prefix="cima-wrong-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        (root / "host").mkdir()
        with simulated_host(root / "host") as host:
            yield _good(root, host)


def _good(root: Path, host: SimulatedHost) -> Wrong:
    host.start("plain")
    raw = host.evidence("plain", bytes.fromhex(NONCE))
    public = host.attester.attestation_key().public
    files = {name: str(root / name.lower()) for name in ("AK", "EVIDENCE", "OUT", "OUT2")}
    Path(files["AK"]).write_bytes(enrolled_ak_file(parse_public(public)))
    Path(files["EVIDENCE"]).write_bytes(raw)
    files["SETTINGS"] = str(root / "config.toml")
    Path(files["SETTINGS"]).write_text(
        f'state_dir = "{host.root / "state"}"\nsocket = "{root / "no.sock"}"\n'
    )
    files["REFERENCE"] = str(root / "reference")
    Path(files["REFERENCE"]).write_text("{}")
    files["HOST"] = str(root / "host.json")
    Path(files["HOST"]).write_bytes(enrolment_request(host))
    subprocess.run(["chmod", "-R", "a+rX", root], check=True)
    files |= {"NONCE": NONCE, "EMPTY": "", "LONG": "a" * 5000}
    return Wrong(root, files)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.rstrip("_"))
@pytest.mark.parametrize("line", COMMANDS)
def test_a_wrong_file(good: Wrong, line: str, kind: Callable[[Path], None], tmp_path: Path) -> None:
    """Finding 10. Kind: exit status 1 is UNTRUSTED; a file that is wrong is 2, and named."""
    words = line.replace("--policy", "policy").replace("policy check X", "policy X")
    for (excused, word), why in NOTHING_WRONG.items():
        if kind is excused and f"{word} X" in words:
            pytest.skip(why)
    wrong = tmp_path / "the-wrong-one"
    kind(wrong)
    with as_nobody(tmp_path) if kind is forbidden else nullcontext():
        status, out, err = good.run(line, wrong)
    told = out + err
    assert status == 2, (status, told)
    assert not JARGON.search(told), told
    assert "the-wrong-one" in told, told
    assert len(err.splitlines()) <= 4, err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("log nothing", "nothing"),
        ("show nothing", "nothing"),
        ("status", "no.sock"),
        (f"attest plain --nonce {NONCE}", "no.sock"),
        ("attest plain --nonce zz", "--nonce"),
        (f"attest plain --nonce {NONCE} --url ftp://here", "ftp://here"),
        (f"attest plain --nonce {NONCE} --url https://localhost:1 --ca /nowhere/ca", "/nowhere/ca"),
        (f"verify EVIDENCE --nonce {NONCE}", "--ak"),
        ("verify EVIDENCE --nonce 00 --ak AK", "--nonce"),
        (f"verify EVIDENCE --nonce {NONCE} --ak AK --jwt /tmp/x", "--jwt-key"),
        (f"verify EVIDENCE --nonce {NONCE} --ak AK --jwt /tmp/x --jwt-key X", "--jwt-audience"),
        (f"verify EVIDENCE --nonce {NONCE} --ak AK --state AK", "ak"),
        (f"verify EVIDENCE --nonce {NONCE} --ak AK --host everything", "--host"),
        ("reference image debian:13 -o OUT", "debian:13"),
        ("keygen /nowhere/alice", "/nowhere/alice"),
        ("policy suggest nothing", "nothing"),
        # Nothing at all: a variable that was not set.
        ("log EMPTY", "empty"),
        ("show EMPTY", "empty"),
        ("appraise EMPTY --reference REFERENCE", "empty"),
        ("attest EMPTY --nonce NONCE", "empty"),
        ("keygen EMPTY", "empty"),
        ("reference image EMPTY", "empty"),
        ("verify EVIDENCE --nonce EMPTY --ak AK", "--nonce"),
        # What does not go together, or is none of the words that there are.
        ("log plain --json --format cel-json", "--format"),
        ("log plain --follow --format cel-tlv", "--follow"),
        ("ps --json --watch", "--watch"),
        ("log plain --format json", "json"),
        ("configure dockr", "dockr"),
        ("configure docker --remove --set-as-default", "--set-as-default"),
        ("configure docker --runtime cima-runc", "cima-runc"),
        ("completion tcsh", "tcsh"),
        ("enroll open --minutes soon", "--minutes"),
        ("enroll challenge HOST --any-ek --ek-ca AK", "--ek-ca"),
        ("enroll challenge HOST --any-ek --ek-chain AK", "--ek-chain"),
        ("reference host --key AK", "--key"),
        ("attest plain --nonce NONCE --ca AK", "--ca"),
        ("attest plain --nonce NONCE --url https://localhost:1 --key AK", "--key"),
        ("enroll request --cert AK", "--cert"),
        ("attest plain --nonce NONCE --url https://localhost:1", "https://localhost:1"),
        ("verify - --nonce NONCE --ak - ", "standard input"),
        ("verify https://host/evidence.json --nonce NONCE --ak AK", "evidence.json"),
        ("keygen /tmp", "/tmp is a directory"),
        ("log LONG", "aaaa"),
    ],
)
def test_a_wrong_word(good: Wrong, line: str, named: str) -> None:
    status, out, err = good.run(line, None)
    assert status == 2, (status, out, err)
    assert not JARGON.search(out + err), out + err
    assert named in out + err, out + err
    assert not out or not err.startswith("Usage"), out
    assert max(map(len, err.splitlines()), default=0) < 600, err


def test_an_image_by_name_is_told_how_to_save_one(good: Wrong) -> None:
    _, _, err = good.run("reference image registry.example/app:1 -o OUT", None)
    assert "docker save" in err and "registry.example/app:1" in err


@pytest.mark.parametrize(
    ("line", "next_step"),
    [
        ("keygen X", "another name"),
        ("attest plain --nonce zz", "openssl rand -hex 32"),
        ("policy check X", "cima policy suggest"),
        ("verify EVIDENCE --nonce NONCE --ak X", "cima enroll"),
        ("status", "systemctl start cima-agent"),
        ("log nothing", "cima ps"),
        ("fleet overview", "--url"),
    ],
)
def test_an_error_says_what_to_do_next(
    good: Wrong, line: str, next_step: str, tmp_path: Path
) -> None:
    (tmp_path / "X").write_text("what somebody wrote\n")
    (tmp_path / "X.key").write_text("")
    _, _, err = good.run(line, tmp_path / "X")
    assert next_step in err, err


def test_every_error_is_json_too(good: Wrong) -> None:
    for line in ("status --json", "log nothing --json", "ps --no-such-option --json"):
        status, out, _ = good.run(line, None)
        error = json.loads(out)["error"]
        assert status == 2 and error["kind"] and error["what"], (line, out)


@pytest.mark.parametrize("option", ["--owner-key", "--policy", "--reference"])
def test_a_file_through_a_pipe_is_read_once(good: Wrong, option: str) -> None:
    """Finding 11. Kind: what a second look would find there is nothing: the error is about what was
    given."""
    reading, writing = os.pipe()
    os.write(writing, b"what somebody wrote\n")
    os.close(writing)
    try:
        line = f"verify EVIDENCE --nonce NONCE --ak AK {option} X"
        status, out, err = good.run(line, Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    assert status == 2, (out, err)
    assert f"/dev/fd/{reading}: " in err, err
    said = {"--owner-key": "PEM", "--policy": "not TOML", "--reference": "not JSON"}
    assert said[option] in err, err
