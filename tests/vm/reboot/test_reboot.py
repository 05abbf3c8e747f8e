"""Containers that are there before a reboot of their host and after it, under each engine.

Their lines go on: whoever looked before, and whoever looks for the first time, is told of the run
before, and of what was done in it.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import oci
from tests.vm import guest, images
from tests.vm.test_attestation import (
    Tenant,
    enrol,
    evidence,
    make_certificate,
    paths,
    trusted,
    verified,
)

# Twelve minutes of processor time: with --everything.
pytestmark = pytest.mark.debian()

STORY = Path("/root/story")
VERIFIER = Path("/tmp/verifier")
"""Where the tenant verifies; gone with a reboot, as his machine is not."""
COMMAND = ["/bin/sh", "-c", "trap 'exit 5' TERM; /bin/script; while :; do sleep 0.2; done"]
INTRUDER = "cp /bin/env /tmp/added; /tmp/added -i /bin/true; rm /tmp/added"
NAMES = ("docker", "podman", "containerd", "intruded")
SETTINGS = "[attestation]\nowner_variable = true\n"


@pytest.fixture(name="tenant")
def _tenant() -> Tenant:
    return Tenant(STORY)


def identity(name: str) -> str:
    return (STORY / f"{name}.id").read_text()


def verdict(name: str, tenant: Tenant, *options: str) -> dict[str, Any]:
    file, nonce = evidence(identity(name), tenant)
    return verified(file, nonce, tenant, *options)


def remembering(name: str) -> tuple[str, str]:
    return ("--state", f"state-{name}")


def wait_for(name: str, run: int) -> None:
    container = identity(name)
    guest.wait_for(f"run {run} of {name}", lambda: guest.run_of(container) == run, 300)
    guest.wait_for("the script", lambda: b"/bin/script" in paths(container), 300)


@pytest.mark.boot(1)
def test_they_are_trusted_before(tenant: Tenant) -> None:
    STORY.mkdir()
    guest.Settings.path.parent.mkdir(exist_ok=True)
    guest.Settings.path.write_text(guest.Settings.patience + SETTINGS)
    guest.restart_agent()
    make_certificate(STORY, "authority", "keyUsage=keyCertSign")
    enrol(STORY)
    archive = oci.docker_save(
        STORY / "image.tar", *images.busybox(), tag="restarting:latest", config={"Cmd": COMMAND}
    )
    guest.ok("docker", "load", "-i", archive)
    owned = ("-e", f"CIMA_OWNER={tenant.owner}", "restarting")
    ids = {
        name: guest.ok(*guest.docker("cima-runc", "-d", "--restart=always", *owned)).strip()
        for name in ("docker", "intruded")
    }
    guest.ok("podman", "load", "-i", archive)
    named = ("--annotation", f"io.cima.owner={tenant.owner}", "localhost/restarting")
    ids["podman"] = guest.ok(*guest.podman("cima-runc", "-d", *named)).strip().splitlines()[-1]
    guest.ok("ctr", "image", "import", archive)
    guest.ok(
        *("ctr", "run", "-d", f"--runc-binary={shutil.which('cima-runc')}"),
        *("--env", f"CIMA_OWNER={tenant.owner}"),
        *("docker.io/library/restarting:latest", "rebooted"),
    )
    ids["containerd"] = "rebooted"
    for name, found in ids.items():
        (STORY / f"{name}.id").write_text(found)
        wait_for(name, 1)
        trusted(verdict(name, tenant, *remembering(name)))
    guest.run("docker", "exec", ids["intruded"], "/bin/sh", "-c", INTRUDER)
    assert b"/tmp/added" in paths(ids["intruded"])
    shutil.copytree(VERIFIER, STORY / "verifier")


@pytest.mark.boot(2)
def test_their_lines_go_on_after_it(tenant: Tenant) -> None:
    shutil.copytree(STORY / "verifier", VERIFIER)
    guest.ok("podman", "start", identity("podman"))
    guest.ok("ctr", "task", "start", "-d", identity("containerd"))
    for name in NAMES:
        # Docker has started its own by itself.
        wait_for(name, 2)
        assert b"/tmp/added" not in paths(identity(name))
    (VERIFIER / "restarts.toml").write_text("allow_restarts = true\n")
    for options in (lambda name: (), remembering):
        for name in NAMES:
            result = verdict(name, tenant, *options(name))
            failed = {f["rule"] for f in result["findings"] if f["severity"] == "fail"}
            assert any("run 1" in f["what"] for f in result["findings"] if "runs." in f["rule"])
            if name == "intruded":
                assert result["verdict"] == "UNTRUSTED"
                (drift,) = (f for f in result["findings"] if f["rule"] == "file.added")
                assert (drift["run"], drift["path"]) == (1, "/tmp/added")
                continue
            if name in {"docker", "podman"}:
                trusted(result)
                continue
            # ctr's containers outlive containerd and the agent: their end is on nobody's record.
            # That is trusted by those alone who say that they tolerate it.
            assert (result["verdict"], failed) == ("UNTRUSTED", {"runs.end_not_seen"})
            trusted(verdict(name, tenant, "--policy", "restarts.toml"))
