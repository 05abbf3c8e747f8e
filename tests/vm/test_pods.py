"""Several containers as one: Docker Compose, `podman pod`, `podman kube play`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE

pytestmark = pytest.mark.debian("12")

_LOOP = "trap 'exit 5' TERM; echo up; while :; do sleep 0.2; done"


def check_pod(rows: list[dict[str, Any]], count: int) -> None:
    """Each container is measured, its infrastructure container too, and on its own."""
    assert len(rows) == count
    assert len({row["mntns"] for row in rows}) == count
    assert {row["state"] for row in rows} == {"running"}


def wait_for_the_end(before: int) -> None:
    guest.wait_for(
        "the agent knows that they ended",
        lambda: {row["state"] for row in guest.ps()[before:]} == {"stopped"},
    )


def test_compose(image: str, tmp_path: Path) -> None:
    service = {
        "image": IMAGE,
        "runtime": "cima-runc",
        "network_mode": "none",
        "command": ["/bin/sh", "-c", _LOOP],
    }
    services = {
        "one": service | {"ipc": "shareable"},
        "two": service | {"ipc": "service:one", "depends_on": ["one"], "read_only": True},
    }
    # What is JSON is YAML.
    file = tmp_path / "compose.yaml"
    file.write_text(json.dumps({"version": "2.4", "services": services}))
    compose = ["docker-compose", "--project-name=together", f"--file={file}"]
    before = len(guest.ps())
    try:
        guest.ok(*compose, "up", "--detach")
        check_pod(guest.ps()[before:], 2)
        done = guest.run(*compose, "exec", "-T", "two", "/bin/sh", "-c", "echo in; exit 3")
        assert (done.code, done.out) == (3, "in\n"), done.err
        guest.wait_for("it is up", lambda: "up" in guest.ok(*compose, "logs", "one"))
        guest.ok(*compose, "restart", "one")
        rows = guest.ps()[before:]
        assert sorted(guest.run_of(row["id"]) for row in rows) == [1, 2]
    finally:
        guest.ok(*compose, "down", "--timeout=30")
    wait_for_the_end(before)


def test_podman_pod(image: str) -> None:
    """With Podman's own infrastructure container."""
    before = len(guest.ps())
    pod = ["podman", "--runtime=cima-runc"]
    guest.ok(*pod, "pod", "create", "--name=together", "--network=none", "--share=ipc,uts,net")
    try:
        for name in ("one", "two"):
            command = ["/bin/sh", "-c", f"echo {name} >/dev/shm/{name}; ls /dev/shm; {_LOOP}"]
            guest.ok(*pod, "run", "-d", "--pod=together", f"--name={name}", IMAGE, *command)
        guest.wait_for("they share memory", lambda: "one" in guest.ok("podman", "logs", "two"))
        check_pod(guest.ps()[before:], 3)
        guest.ok(*pod, "pod", "pause", "together")
        guest.ok(*pod, "pod", "unpause", "together")
        guest.ok(*pod, "pod", "stop", "together")
    finally:
        guest.run("podman", "pod", "rm", "-f", "--time=0", "together")
    wait_for_the_end(before)


def test_podman_kube_play(image: str, tmp_path: Path) -> None:
    containers = [
        {
            "name": name,
            "image": f"localhost/{IMAGE}:latest",
            "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", _LOOP],
        }
        for name in ("one", "two")
    ]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "played"},
        "spec": {"containers": containers, "restartPolicy": "Never"},
    }
    file = tmp_path / "pod.yaml"
    file.write_text(json.dumps(pod))
    podman = ["podman", "--runtime=cima-runc"]
    before = len(guest.ps())
    try:
        guest.ok(*podman, "kube", "play", "--network=none", file)
        check_pod(guest.ps()[before:], 3)
        done = guest.run("podman", "exec", "played-two", "/bin/sh", "-c", "exit 3")
        assert done.code == 3
    finally:
        guest.ok(*podman, "kube", "down", file)
    wait_for_the_end(before)
