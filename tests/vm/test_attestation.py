"""Evidence of real containers: every engine, the kernel's own log, somebody else at the PCR."""

import base64
import json
import os
import re
import shlex
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import pytest

from tests.support import evidence_by_hand as by_hand
from tests.support import oci
from tests.support.planted import everything, found
from tests.vm import guest, images

SLEEP = ["/bin/sh", "-c", "/bin/script; exec /bin/sleep 6000"]
FIRMWARE_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
CHECKOUT = Path(__file__).resolve().parents[2]
PORT = 18443
SETTINGS = """
[attestation]
owner_variable = true
ak_certificate = "{directory}/ak.crt"
[attestation.https]
enabled = true
address = "127.0.0.1"
port = {port}
certificate = "{directory}/endpoint.pem"
key = "{directory}/endpoint.key"
"""


@dataclass(frozen=True)
class Tenant:
    """What a tenant has: his image, an owner's key pair, the enrolled key of the host."""

    directory: Path

    @property
    def owner(self) -> str:
        return (self.directory / "owner.pub").read_text().strip()

    @property
    def private(self) -> bytes:
        return (self.directory / "owner.key").read_bytes()

    @property
    def ak_name(self) -> bytes:
        first = (self.directory / "ak.pem").read_text().splitlines()[0]
        return bytes.fromhex(first.removeprefix("cima-ak-name: "))


@pytest.fixture(scope="module")
def tenant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    directory = tmp_path_factory.mktemp("tenant")
    make_image(directory)
    make_certificate(directory, "endpoint", "subjectAltName=DNS:localhost")
    make_certificate(directory, "authority", "keyUsage=keyCertSign")
    with guest.Settings(SETTINGS.format(directory=directory, port=PORT)):
        guest.restart_agent()
        enrol(directory)
        yield Tenant(directory)
    guest.restart_agent()


def make_image(directory: Path) -> None:
    """An image that sleeps, in every engine, and its reference values."""
    archive = oci.docker_save(
        directory / "image.tar", *images.busybox(), tag="tenant:latest", config={"Cmd": SLEEP}
    )
    guest.ok("docker", "load", "-i", archive)
    guest.ok("podman", "load", "-i", archive)
    guest.ok("ctr", "image", "import", archive)
    guest.ok("cima", "reference", "image", archive, "-o", directory / "image.json")


def make_certificate(directory: Path, name: str, extension: str) -> None:
    guest.ok(
        *("openssl", "req", "-x509", "-days", "2", "-newkey", "ec", "-nodes"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"),
        *("-addext", extension),
        *("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"),
    )


def enrol(directory: Path) -> None:
    """By the certificate that the TPM's manufacturer has made for its endorsement key."""
    at = str(directory)
    guest.ok("cima", "keygen", f"{at}/owner")
    guest.ok("cima", "enroll", "request", "-o", f"{at}/host.json")
    manufacturer = ("--ek-ca", "/opt/cima-test/tpm-ca.pem", "--pending", f"{at}/pending.json")
    guest.ok(
        *("cima", "enroll", "challenge", f"{at}/host.json", *manufacturer),
        *("-o", f"{at}/challenge.json"),
    )
    guest.ok("cima", "enroll", "activate", f"{at}/challenge.json", "-o", f"{at}/answer.json")
    accept = ("accept", f"{at}/answer.json", "--pending", f"{at}/pending.json")
    authority = ("--authority", f"{at}/authority.pem", "--authority-key", f"{at}/authority.key")
    certificate = ("--certificate", f"{at}/ak.crt", *authority)
    guest.ok("cima", "enroll", *accept, "-o", f"{at}/ak.pem", *certificate)


# -- containers -----------------------------------------------------------------------------------


@contextmanager
def running(container: str, stop: list[str]) -> Iterator[str]:
    """A container that was started, once its script has run; its id."""
    try:
        guest.wait_for("the script", lambda: b"/bin/script" in paths(container), 300)
        yield container
    finally:
        guest.ok(*stop)


def paths(container: str) -> list[bytes]:
    return [measured.path for measured in guest.files(guest.records(container))]


def with_docker(name: str, owner: str | None) -> AbstractContextManager[str]:
    named = ["-e", f"CIMA_OWNER={owner}"] if owner else []
    started = guest.docker("cima-runc", "-d", "--name", name, *named, "tenant")
    return running(guest.ok(*started).strip(), ["docker", "rm", "-f", name])


def with_podman(name: str, owner: str | None) -> AbstractContextManager[str]:
    named = ["--annotation", f"io.cima.owner={owner}"] if owner else []
    started = guest.podman("cima-runc", "-d", "--name", name, *named, "localhost/tenant")
    container = guest.ok(*started).strip().splitlines()[-1]
    return running(container, ["podman", "rm", "-f", "-t0", name])


def with_containerd(name: str, owner: str | None) -> AbstractContextManager[str]:
    named = ["--env", f"CIMA_OWNER={owner}"] if owner else []
    binary = f"--runc-binary={shutil.which('cima-runc')}"
    image = "docker.io/library/tenant:latest"
    guest.ok("sh", "-c", f"ctr run -d {binary} {shlex.join(named)} {image} {name} >/dev/null 2>&1")
    gone = f"! ctr task ls -q | grep -qx {name}"
    stop = f"ctr task kill -s KILL {name}; until ctr task rm {name} || {gone}; do sleep 0.2; done"
    return running(name, ["sh", "-c", f"{stop}; ctr container rm {name}"])


Engine = Callable[[str, str | None], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def alices(tenant: Tenant) -> Iterator[str]:
    """A container under Docker that stays as it is."""
    with with_docker("alices", tenant.owner) as container:
        yield container


# -- evidence -------------------------------------------------------------------------------------


def evidence(container: str, tenant: Tenant, *options: str) -> tuple[Path, bytes]:
    nonce = os.urandom(32)
    file = tenant.directory / f"{nonce[:4].hex()}.json"
    guest.ok("cima", "attest", container, "--nonce", nonce.hex(), "-o", file, *options)
    return file, nonce


def verified(
    file: Path,
    nonce: bytes,
    tenant: Tenant,
    *options: str,
    ak: tuple[str, str] = ("--ak", "ak.pem"),
) -> dict[str, Any]:
    """Verify in a process that has nothing of the host but evidence, keys, the image's archive."""
    copy = Path("/tmp/verifier")
    copy.mkdir(exist_ok=True)
    given = [tenant.directory / name for name in (ak[1], "owner.key", "image.tar")]
    for source in (file, *given):
        (copy / source.name).write_bytes(source.read_bytes())
    # /dev goes too, and with it the TPM.
    if violations():  # of tests before, on volumes: redacted does not say whose
        (copy / "violations.toml").write_text("[host]\nallow_violations = true\n")
        options += ("--policy", "violations.toml")
    hidden = "for d in /run /var /sys /dev /etc/cima; do mount -t tmpfs none $d; done;"
    command = ["cima", "verify", file.name, "--nonce", nonce.hex(), *ak, "--json"]
    command += ["--owner-key", "owner.key", "--reference", "image.json", *options]
    reference = "[ -e image.json ] || cima reference image image.tar -o image.json >&2"
    script = f"{hidden} cd /tmp/verifier; {reference}; exec {shlex.join(command)}"
    ran = guest.run("unshare", "--mount", "--net", "--ipc", "sh", "-c", script)
    assert ran.code in (0, 1, 2), ran.err
    result: dict[str, Any] = json.loads(ran.out)
    assert ran.code == {"TRUSTED": 0, "UNTRUSTED": 1}.get(result["verdict"], 2)
    return result


def violations() -> bool:
    """Whether the kernel's log has some for the host's PCR."""
    lines = (line.split(maxsplit=2) for line in guest.ASCII_LOG.read_bytes().splitlines())
    return any(line[0] == b"10" and not line[1].strip(b"0") for line in lines)


def trusted(result: dict[str, Any]) -> None:
    assert "refusal" not in result, result["refusal"]
    failed = [finding for finding in result["findings"] if finding["severity"] == "fail"]
    assert (result["verdict"], failed) == ("TRUSTED", [])


def steps(result: dict[str, Any]) -> dict[str, bool]:
    return {check["step"]: check["done"] for check in result["checks"]}


@pytest.mark.parametrize("engine", [with_docker, with_podman, with_containerd])
def test_trusted_under_every_engine(tenant: Tenant, engine: Engine, tmp_path: Path) -> None:
    with engine(f"attested-{engine.__name__[5:]}", tenant.owner) as container:
        options = ["--host", "redacted"]
        options += ["--boot-log"] * FIRMWARE_LOG.exists()
        files = ("--tpm2-files", str(tmp_path / "quote"))
        file, nonce = evidence(container, tenant, *options, *files)
        result = verified(file, nonce, tenant, "--container", container, *options)
    trusted(result)
    assert result["facts"]["count"] >= 5  # registered, configuration, root file system, two files
    done = steps(result)
    assert done["host-log"] and done["dependencies"] and done["records"]
    assert done["boot-log"] == FIRMWARE_LOG.exists()
    # The same once more with nothing of ours, and by tpm2-tools.
    hand = by_hand.verify(
        file.read_bytes(),
        nonce,
        tenant.ak_name,
        container,
        private_pem=tenant.private,
        host="redacted",
        boot_log="--boot-log" in options,
    )
    assert len(hand["records"]) == result["facts"]["count"]
    assert hand["host_log"]["aggregate"] == "equal"
    checkquote(tmp_path / "quote", json.loads(file.read_text()))


def checkquote(directory: Path, made: dict[str, Any]) -> None:
    leaf = sha256(b"\0" + bytes.fromhex(made["request"])).digest()
    place = made["aggregation"]
    root = by_hand.up(leaf, place["index"], place["path"]).hex()
    command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "quote.msg", "-s", "quote.sig"]
    command += ["-f", "quote.pcrs", "-g", "sha256", "-q", root]
    guest.ok("sh", "-c", f"cd {directory} && {shlex.join(command)}")
    wrong = shlex.join([*command[:-1], "00" * 32])
    assert guest.run("sh", "-c", f"cd {directory} && {wrong}").code != 0


@pytest.mark.debian("12")
def test_trusted_by_the_keys_certificate(tenant: Tenant, alices: str) -> None:
    """By a verifier who has not enrolled this host, and trusts who has."""
    file, nonce = evidence(alices, tenant)
    trusted(verified(file, nonce, tenant, ak=("--ak-ca", "authority.pem")))
    other = verified(file, nonce, tenant, ak=("--ak-ca", "endpoint.pem"))
    assert other["refusal"]["error"] == "AkNotEnrolledError"


@pytest.mark.debian("13")
def test_drift_is_untrusted(tenant: Tenant) -> None:
    with with_docker("drifting", tenant.owner) as container:
        guest.ok("docker", "exec", "drifting", "/bin/sh", "-c", "cp /bin/env /tmp/x; /tmp/x true")
        file, nonce = evidence(container, tenant)
        result = verified(file, nonce, tenant)
    assert result["verdict"] == "UNTRUSTED"
    failed = [one for one in result["findings"] if one["severity"] == "fail"]
    assert [(one["rule"], one["path"]) for one in failed] == [("file.added", "/tmp/x")]


@pytest.mark.debian("13")
def test_walkthrough_over_https(tenant: Tenant, tmp_path: Path) -> None:
    """examples/remote-verify with Docker, over TLS."""
    start = tmp_path / "start"
    start.write_text(
        "#!/bin/sh\nexec docker run -d --runtime=cima-runc --network=none"
        ' --name "$1" -e "CIMA_OWNER=$2" tenant\n'
    )
    start.chmod(0o755)
    shutil.copy(tenant.directory / "endpoint.pem", tmp_path / "ca.pem")
    shutil.copy(tenant.directory / "image.json", tmp_path / "app.json")
    script = CHECKOUT / "examples/remote-verify/walkthrough.sh"
    url = f"https://localhost:{PORT}"
    command = shlex.join([str(script), url, "ca.pem", "./start", "--reference", "app.json"])
    ran = guest.run("sh", "-c", f"cd {tmp_path} && exec {command} 2>&1")
    print(ran.out)  # what the README shows
    guest.ok("docker", "rm", "-f", "alices-web", "bobs-web")
    assert ran.code == 0, ran.out
    assert "TRUSTED: container" in ran.out
    assert "tpm2_checkquote: accepted" in ran.out
    assert "OwnerKeyError" in ran.out
    assert "NonceError" in ran.out
    assert "nothing of bobs-web" in ran.out
    shown = (CHECKOUT / "examples/remote-verify/README.md").read_text()
    assert unlike_each_run(ran.out.strip()) in unlike_each_run(shown)


def unlike_each_run(text: str) -> str:
    """Without keys, digests and counts."""
    return re.sub(r"x25519:\S+|[0-9a-f]{64,}|\d+", "N", text)


# -- what happens to a host -----------------------------------------------------------------------


@pytest.mark.debian("12")
def test_somebody_else_extends(tenant: Tenant, alices: str) -> None:
    count = guest.status()["foreign_extends"]
    evidence(alices, tenant)
    guest.ok("tpm2_pcrextend", f"12:sha256={'ab' * 32}")
    file, nonce = evidence(alices, tenant)
    result = verified(file, nonce, tenant)
    trusted(result)  # the policy tolerates it, and says so
    assert any(finding["rule"] == "host.foreign" for finding in result["findings"])
    assert guest.status()["foreign_extends"] == count + 1
    shown = json.loads(file.read_text())["binding"]["status"]["foreign"]
    assert shown["count"] == count + 1
    assert shown["last"][-1]["kind"] == "changed"
    by_hand.verify(file.read_bytes(), nonce, tenant.ak_name, alices, private_pem=tenant.private)


@pytest.mark.debian("13")
def test_ended_container(tenant: Tenant) -> None:
    with with_docker("ending", tenant.owner) as container:
        pass
    guest.wait_for("the end", lambda: guest.row(container)["state"] == "stopped")
    file, nonce = evidence(container, tenant)
    result = verified(file, nonce, tenant)
    trusted(result)
    assert result["facts"]["count"] == guest.row(container)["count"]
    assert result["facts"]["ended"]
    assert guest.types(guest.records(container))[-1] == "exit"


@pytest.mark.debian("12")
def test_only_what_is_new(tenant: Tenant) -> None:
    state = ("--state", "seen")
    with with_docker("growing", tenant.owner) as container:
        file, nonce = evidence(container, tenant)
        first = verified(file, nonce, tenant, *state)["facts"]["count"]
        guest.ok("docker", "exec", "growing", "/bin/env", "true")
        file, nonce = evidence(container, tenant, "--state", "/tmp/verifier/seen")
        result = verified(file, nonce, tenant, *state)
        # Without what was remembered, or twice, the rest proves nothing.
        again = verified(file, nonce, tenant, "--state", "empty")
    trusted(result)
    assert result["facts"]["since"] == first < result["facts"]["count"]
    assert steps(result)["continuity"]
    assert again["refusal"]["error"] == "NotRememberedError"


@pytest.mark.debian("13")
def test_exports(tenant: Tenant, alices: str) -> None:
    records = guest.records(alices)
    lines = guest.ok("cima", "log", alices, "--format", "ima-ascii").splitlines()
    assert [line.split()[1] for line in lines] == [r["digests"][0]["digest"] for r in records]
    exported = json.loads(guest.ok("cima", "log", alices, "--format", "cel-json"))
    assert exported == [{k: v for k, v in r.items() if k != "meta"} for r in records]
    tlv = tenant.directory / "log.tlv"
    guest.ok("sh", "-c", f"cima log {alices} --format cel-tlv >{tlv}")
    values, data = [], tlv.read_bytes()
    while data:
        kind, size = struct.unpack(">BI", data[:5])
        values.append((kind, data[5 : 5 + size]))
        data = data[5 + size :]
    assert [int.from_bytes(v, "big") for k, v in values if k == 0] == list(range(len(records)))
    digests = [value[5:].hex() for kind, value in values if kind == 3]
    assert digests == [record["digests"][0]["digest"] for record in records]


# -- privacy --------------------------------------------------------------------------------------


@contextmanager
def neighbours(directory: Path, count: int) -> Iterator[list[str]]:
    """Containers of other owners, each with a program of its own; their names."""
    names = [f"neighbour-{number}" for number in range(count)]
    try:
        for name in names:
            guest.ok("sh", "-c", f"{start_neighbour(directory, name)} </dev/null >/dev/null 2>&1")
        yield names
    finally:
        for name in names:
            guest.run("cima-runc", "delete", "-f", name)
            guest.run("umount", directory / name / "rootfs")


def start_neighbour(directory: Path, name: str) -> str:
    program = f"/opt/planted-by-{name}"
    make = f"cp /bin/busybox {program}; echo {name} >>{program}; {program} true; exec sleep 6000"
    bundle = guest.make_bundle(directory / name, make)
    # An overlay, as every engine makes it: the IMA policy puts its files on PCR 11.
    for part in ("rootfs", "upper", "work"):
        (bundle / part).mkdir()
    (bundle / "upper/opt").mkdir()
    layers = f"lowerdir={guest.TREE},upperdir={bundle}/upper,workdir={bundle}/work"
    guest.ok("mount", "-t", "overlay", "-o", layers, "none", bundle / "rootfs")
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": "rootfs", "readonly": False}
    public = base64.b64encode(os.urandom(32)).decode()
    config["annotations"] = {"io.cima.owner": f"x25519:{public}"}
    config["process"]["env"].append(f"SECRET=hidden-by-{name}")
    (bundle / "config.json").write_text(json.dumps(config))
    return f"cima-runc run -d --bundle {bundle} {name}"


def own(name: str) -> list[bytes]:
    """Everything that is a neighbour's own."""
    row = guest.row(name)
    records = guest.records(name)
    bundle = Path(row["bundle"])
    config = json.loads((bundle / "config.json").read_text())
    public = base64.b64decode(config["annotations"]["io.cima.owner"].removeprefix("x25519:"))
    stored = guest.STATE / "containers" / str(row["registration"])
    planted = [
        *(name.encode(), f"planted-by-{name}".encode(), f"hidden-by-{name}".encode()),
        *(str(bundle).encode(), str(row["registration"]).encode(), str(row["mntns"]).encode()),
        *(sha256(name.encode()).digest(), public, sha256(public).digest()),
        *(bytes.fromhex(row["cpcr"]), (stored / "secret").read_bytes()),
        *(bytes.fromhex(record["digests"][0]["digest"]) for record in records),
    ]
    of_program = [one for one in guest.files(records) if b"planted-by" in one.path]
    assert of_program
    for measured in of_program:
        planted += [bytes.fromhex(measured.digest), *template_hashes(measured)]
    return planted


def template_hashes(measured: guest.Measured) -> list[bytes]:
    """Both banks' hashes of the kernel's own line for that file."""
    lines = guest.ASCII_LOG.read_bytes().splitlines()
    wanted = f"sha256:{measured.digest}".encode()
    (line,) = (line for line in lines if line.split()[3] == wanted)
    assert line.split()[0] == b"11"
    fields = [b"sha256:\0" + bytes.fromhex(measured.digest), measured.path + b"\0"]
    fields += [b""] * (line.split()[2] == b"ima-sig")
    data = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    assert sha1(data).hexdigest().encode() == line.split()[1]
    return [sha1(data).digest(), sha256(data).digest()]


@pytest.mark.debian("12")
def test_nothing_of_ten_neighbours(tenant: Tenant, alices: str, tmp_path: Path) -> None:
    first, _ = evidence(alices, tenant)
    with neighbours(tmp_path, 10) as names:
        for name in names:
            guest.wait_for(name, lambda at=name: any(b"planted" in p for p in paths(at)), 300)
        second, _ = evidence(alices, tenant)
        redacted, nonce = evidence(alices, tenant, "--host", "redacted")
        planted = [one for name in names for one in own(name)]
    trusted(verified(redacted, nonce, tenant, "--host", "redacted"))

    for file in (first, second, redacted):
        text = everything(file.read_bytes(), tenant.private)
        assert b"/bin/script" in text  # the search finds what is there
        told = [one for one in planted if found(one, text)]
        assert not told

    # Unchanged, but for what every new quote has, and what is encrypted anew.
    before, after = (json.loads(file.read_text()) for file in (first, second))
    differing = {key for key in before if before[key] != after[key]}
    assert differing == {"quote", "aggregation", "binding", "nonce", "request", "sealed"}
    assert before["binding"]["slot"] == after["binding"]["slot"]
    same = {"pcr", "status", "slot"}
    for key in before["binding"].keys() - same:
        assert before["binding"][key] != after["binding"][key]
    opened = [by_hand.open_owner_part(one, tenant.private) for one in (before, after)]
    for key in ("line", "cpcr", "count", "runs", "missing"):
        assert opened[0][key] == opened[1][key]
    parts = [one["services"]["records"] for one in opened]
    assert len(parts[0]) <= len(parts[1])
    for one, owner in zip((before["binding"], after["binding"]), opened, strict=True):
        assert len(one["path"]) == len(owner["services"]["path"]) == 10

    # A redacted log names no file of the host.
    host = json.loads(redacted.read_text())["host_log"]
    assert all(isinstance(entry, str) for entry in host["entries"][1:])
    told = [path for path in paths_of_host(opened[1]) if path in text]
    assert not told


def paths_of_host(owner: dict[str, Any]) -> list[bytes]:
    """Files on the host's PCR that neither the container nor what it relies on has."""
    known = everything(json.dumps({"owner": owner}).encode(), None)
    lines = [line.split(maxsplit=4) for line in guest.ASCII_LOG.read_bytes().splitlines()]
    files = [line[4].strip() for line in lines if line[0] == b"10"]
    others = [path for path in files if path.startswith(b"/") and path not in known]
    assert len(others) > 50
    return others


# -- last, since it restarts the agent ------------------------------------------------------------


@pytest.mark.debian("12")
def test_survives_the_agent(tenant: Tenant) -> None:
    state = ("--state", "seen")
    with with_docker("kept", tenant.owner) as container:
        file, nonce = evidence(container, tenant)
        first = verified(file, nonce, tenant, *state)
        guest.restart_agent()
        file, nonce = evidence(container, tenant)
        second = verified(file, nonce, tenant, *state)
    trusted(first)
    assert "refusal" not in second
    for fact in ("ak_name", "reset_count"):
        assert second["facts"][fact] == first["facts"][fact]
    assert second["facts"]["count"] >= first["facts"]["count"]
    assert steps(second)["continuity"]
