"""Containers in which nothing runs but what is in their image."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import COMMAND, IMAGE, Settings

REFERENCES = Path("/etc/cima/references")
PROGRAM = "/tmp/busybox-unknown"
UNKNOWN = f"cp /bin/busybox {PROGRAM}; echo >>{PROGRAM}; {PROGRAM} true && echo it ran"
"""A program that is in no image: a copy with one byte more."""


@pytest.fixture(scope="module")
def enforcing(image: str) -> Iterator[str]:
    """The image's id, on a host that enforces."""
    REFERENCES.mkdir(parents=True, exist_ok=True)
    reference = REFERENCES / "test.json"
    guest.ok("cima", "reference", "image", "/root/image.tar", "-o", reference)
    with Settings("[enforcement]\nenforce = true\n"):
        guest.restart_agent()
        yield json.loads(reference.read_text())["image_id"]
    reference.unlink()
    guest.restart_agent()


def denied(container: str) -> list[str]:
    contents = [record["content"] for record in guest.records(container)]
    return [
        bytes.fromhex(content["path_hex"]).decode()
        for content in contents
        if content.get("type") == "violation" and content["denied"]
    ]


def paths(container: str) -> set[bytes]:
    return {file.path for file in guest.files(guest.records(container))}


def test_what_is_in_the_image_runs(enforcing: str) -> None:
    ran = guest.run(*guest.docker("cima-runc", "--rm", IMAGE, "/bin/sh", "-c", COMMAND))
    assert ran.code == 7, ran
    container = guest.ps()[-1]["id"]
    found = guest.records(container)
    assert found[0]["content"]["enforced"] == enforcing
    assert {file.path: file.digest for file in guest.files(found)} == guest.files_of_command()
    assert denied(container) == []


def test_what_is_not_is_denied_and_recorded(enforcing: str, tmp_path: Path) -> None:
    started = guest.docker("cima-runc", "-d", IMAGE, "/bin/sh", "-c", f"{UNKNOWN}; sleep 600")
    container = guest.ok(*started).strip()
    guest.wait_for("denied", lambda: denied(container) == [PROGRAM])
    assert "it ran" not in guest.ok("docker", "logs", container)
    assert "Operation not permitted" in guest.run("docker", "logs", container).err
    # Whoever enters the container is bound by the same, and so is the agent that takes over.
    guest.restart_agent()
    ran = guest.run("docker", "exec", container, PROGRAM, "true")
    assert ran.code != 0
    assert "not permitted" in (ran.err + ran.out).lower()
    guest.ok("docker", "exec", container, "/bin/script")
    assert PROGRAM.encode() not in paths(container)
    assert b"/bin/script" in paths(container)
    shown = guest.ok("cima", "log", container)
    assert "denied" in shown
    guest.ok("docker", "rm", "-f", container)

    reference = REFERENCES / "test.json"
    ran = guest.run("cima", "appraise", container, "--reference", reference, "--json")
    findings = json.loads(ran.out)["findings"]
    by_rule = {finding["rule"]: finding for finding in findings}
    assert by_rule["records.denied"]["severity"] == "warn"
    assert by_rule["records.denied"]["path"] == PROGRAM
    assert "records.violation" not in by_rule
    assert "file.added" not in by_rule


def test_a_container_of_an_unknown_image_does_not_start(enforcing: str, tmp_path: Path) -> None:
    bundle = guest.make_bundle(tmp_path / "strange", "echo it ran")
    ran = guest.run("cima-runc", "run", "--bundle", bundle, "strange")
    assert ran.code != 0
    assert "it ran" not in ran.out
    assert "none of the images in /etc/cima/references" in ran.err
    assert "cima reference image" in ran.err


def test_a_damaged_reference_stops_containers(enforcing: str, tmp_path: Path) -> None:
    damaged = REFERENCES / "damaged.json"
    damaged.write_text("{}")
    try:
        ran = guest.run(*guest.docker("cima-runc", "--rm", IMAGE, "/bin/echo", "it ran"))
    finally:
        damaged.unlink()
    assert ran.code != 0
    assert "it ran" not in ran.out
    assert "not a file of reference values" in ran.err


def test_where_they_are_admitted_unknown_images_run_anything(
    enforcing: str, tmp_path: Path
) -> None:
    bundle = guest.make_bundle(tmp_path / "admitted", UNKNOWN)
    with Settings('[enforcement]\nenforce = true\nunknown_images = "admit"\n'):
        guest.restart_agent()
        out = guest.ok("cima-runc", "run", "--bundle", bundle, "admitted")
    assert out == "it ran\n"
    assert PROGRAM.encode() in paths("admitted")
    assert "enforced" not in guest.records("admitted")[0]["content"]
