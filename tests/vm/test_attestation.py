"""Evidence of real containers: every engine, the kernel's own log, somebody else at the PCR."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE

pytestmark = pytest.mark.unproven

SLEEP = ("/bin/sh", "-c", "/bin/script; /bin/sleep 600")


@pytest.fixture(scope="module")
def tenant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an owner's key pair and the enrolled key of this host."""
    directory = tmp_path_factory.mktemp("tenant")
    at = str(directory)
    guest.ok("cima", "keygen", f"{at}/owner")
    guest.ok("cima", "enroll", "request", "-o", f"{at}/host.json")
    challenge = ("challenge", f"{at}/host.json", "--any-ek", "--pending", f"{at}/pending.json")
    guest.ok("cima", "enroll", *challenge, "-o", f"{at}/challenge.json")
    guest.ok("cima", "enroll", "activate", f"{at}/challenge.json", "-o", f"{at}/answer.json")
    accept = ("accept", f"{at}/answer.json", "--pending", f"{at}/pending.json")
    guest.ok("cima", "enroll", *accept, "-o", f"{at}/ak.pem")
    return directory


@contextmanager
def running(start: list[str], stop: list[str]) -> Iterator[str]:
    """A container that sleeps; its id."""
    before = {row["id"] for row in guest.ps()}
    guest.ok(*start)
    try:
        new = [row["id"] for row in guest.ps() if row["id"] not in before]
        assert len(new) == 1
        guest.wait_for("the script", lambda: len(guest.files(guest.records(new[0]))) >= 3)
        yield new[0]
    finally:
        guest.ok(*stop)


def with_docker(name: str, owner: str) -> Any:
    options = ["-d", "--name", name, "-e", f"CIMA_OWNER={owner}"]
    return running(guest.docker("cima-runc", *options, IMAGE, *SLEEP), ["docker", "rm", "-f", name])


def with_podman(name: str, owner: str) -> Any:
    options = ["-d", "--name", name, "--annotation", f"io.cima.owner={owner}"]
    return running(
        guest.podman("cima-runc", *options, IMAGE, *SLEEP), ["podman", "rm", "-f", "-t0", name]
    )


def with_containerd(name: str, owner: str) -> Any:
    options = ["-d", "--env", f"CIMA_OWNER={owner}"]
    stop = f"ctr task kill -s KILL {name}; sleep 1; ctr task rm -f {name}; ctr container rm {name}"
    return running([*guest.ctr("cima-runc", name, *options), *SLEEP], ["sh", "-c", stop])


def evidence(container: str, directory: Path, *options: str) -> tuple[Path, str]:
    nonce = os.urandom(32).hex()
    file = directory / f"{nonce[:8]}.json"
    guest.ok("cima", "attest", container, "--nonce", nonce, "-o", file, *options)
    return file, nonce


def verified(file: Path, nonce: str, tenant: Path, *options: str) -> dict[str, Any]:
    """Verify in a process that has nothing of the host but files."""
    copy = Path("/tmp/verifier")
    copy.mkdir(exist_ok=True)
    for source in (file, tenant / "ak.pem", tenant / "owner.key"):
        (copy / source.name).write_bytes(source.read_bytes())
    # /dev goes too, and with it the TPM.
    hidden = "for d in /run/cima /var/lib/cima /sys/kernel/security /dev; do"
    hidden += " mount -t tmpfs none $d; done;"
    command = ["cima", "verify", file.name, "--nonce", nonce, "--ak", "ak.pem", "--json"]
    command += ["--owner-key", "owner.key", *options]
    script = f"{hidden} cd /tmp/verifier; exec {shlex.join(command)}"
    ran = guest.run("unshare", "--mount", "sh", "-c", script)
    assert ran.code in (0, 1, 2), ran.err
    result: dict[str, Any] = json.loads(ran.out)
    return result


def steps(result: dict[str, Any]) -> dict[str, bool]:
    return {check["step"]: check["done"] for check in result["checks"]}


@pytest.mark.parametrize("engine", [with_docker, with_podman, with_containerd])
def test_every_engine(image: str, tenant: Path, engine: Any) -> None:
    owner = (tenant / "owner.pub").read_text().strip()
    with engine(f"attested-{engine.__name__}".replace("_", "-"), owner) as container:
        file, nonce = evidence(container, tenant, "--host", "redacted")
        result = verified(file, nonce, tenant)
    assert "refusal" not in result, result["refusal"]
    assert result["container"] == container
    # Without reference values nothing is trusted, and everything else is checked.
    assert result["verdict"] == "UNKNOWN", result["findings"]
    done = steps(result)
    assert done["host-log"] and done["dependencies"] and done["records"]
    assert result["facts"]["count"] >= 5
    raw = file.read_bytes()
    assert b'"records"' not in raw.partition(b'"dependencies"')[0], "sealed to the owner"


def test_checkquote_accepts(image: str, tenant: Path) -> None:
    with with_docker("checked", (tenant / "owner.pub").read_text().strip()) as container:
        nonce = os.urandom(32).hex()
        ran = guest.run(
            *("cima", "attest", container, "--nonce", nonce, "-o", tenant / "checked.json"),
            *("--host", "redacted", "--tpm2-files", "/root/quote"),
        )
        assert ran.code == 0, ran.err
        command = ran.err.partition("tpm2_checkquote")[2]
        guest.ok("sh", "-c", f"cd /root/quote && tpm2_checkquote {command}")


def test_firmware_log(image: str, tenant: Path) -> None:
    log = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    if not log.exists():
        pytest.skip("the guest's firmware keeps no event log")
    with with_docker("booted", (tenant / "owner.pub").read_text().strip()) as container:
        file, nonce = evidence(container, tenant, "--boot-log")
        result = verified(file, nonce, tenant)
    assert "refusal" not in result, result["refusal"]
    assert steps(result)["boot-log"]


def test_somebody_else_extends(image: str, tenant: Path) -> None:
    with with_docker("foreign", (tenant / "owner.pub").read_text().strip()) as container:
        before = guest.status()["foreign_extends"]
        evidence(container, tenant)
        guest.ok("tpm2_pcrextend", f"12:sha256={'ab' * 32}")
        file, nonce = evidence(container, tenant)
        result = verified(file, nonce, tenant)
    assert "refusal" not in result, result["refusal"]
    assert guest.status()["foreign_extends"] == before + 1
    assert any("somebody else" in finding["what"] for finding in result["findings"])


def test_ended_container(image: str, tenant: Path) -> None:
    with with_docker("ending", (tenant / "owner.pub").read_text().strip()) as container:
        pass
    guest.wait_for("the end", lambda: guest.row(container)["state"] == "stopped")
    file, nonce = evidence(container, tenant)
    result = verified(file, nonce, tenant)
    assert "refusal" not in result, result["refusal"]
    assert result["facts"]["count"] == guest.row(container)["count"]


def test_survives_the_agent(image: str, tenant: Path) -> None:
    state = ("--state", "seen")
    with with_docker("kept", (tenant / "owner.pub").read_text().strip()) as container:
        file, nonce = evidence(container, tenant)
        first = verified(file, nonce, tenant, *state)
        guest.restart_agent()
        file, nonce = evidence(container, tenant)
        second = verified(file, nonce, tenant, *state)
    assert "refusal" not in first and "refusal" not in second
    assert second["facts"]["ak_name"] == first["facts"]["ak_name"]
    assert second["facts"]["reset_count"] == first["facts"]["reset_count"]
    assert steps(second)["continuity"]
    assert any("lost" in finding["what"] for finding in second["findings"])


def test_nothing_of_ten_neighbours(image: str, tenant: Path, tmp_path: Path) -> None:
    with with_docker("crowded", (tenant / "owner.pub").read_text().strip()) as container:
        for number in range(10):
            program = f"/bin/planted-{number}"
            make = f"cp /bin/busybox {program}; echo {number} >>{program}; {program} true"
            bundle = guest.make_bundle(tmp_path / f"planted-{number}", make)
            guest.ok("cima-runc", "run", "--bundle", bundle, f"neighbour-{number}")
        file, nonce = evidence(container, tenant, "--host", "redacted")
        result = verified(file, nonce, tenant)
    assert "refusal" not in result, result["refusal"]
    raw = file.read_bytes()
    for number in range(10):
        row = guest.row(f"neighbour-{number}")
        planted = {f"neighbour-{number}", f"planted-{number}", row["cpcr"]}
        for measured in guest.files(guest.records(row["id"])):
            if b"planted" in measured.path:
                planted |= {measured.digest, measured.path.hex()}
        for one in planted:
            assert one.encode() not in raw
            assert one.encode().hex().encode() not in raw
