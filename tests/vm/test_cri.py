"""Kubernetes' way: pods through containerd's CRI, with cima-runc as a runtime handler."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.vm import guest
from tests.vm.cri import EXITED, NODE, RUNNING, Cri, Message, decode
from tests.vm.guest import IMAGE

pytestmark = pytest.mark.debian("12")

CONFIG = Path("/etc/containerd/config.toml")
PLUGIN = 'plugins."io.containerd.grpc.v1.cri"'
OF_A_NODE = f"""version = 2
[{PLUGIN}]
  sandbox_image = "docker.io/library/pause:latest"
  [{PLUGIN}.containerd]
    default_runtime_name = "runc"
    [{PLUGIN}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{PLUGIN}.containerd.runtimes.runc.options]
        SystemdCgroup = true
"""
"""As Kubernetes' documentation has it, with systemd's cgroups."""
HANDLERS = ("runc", "cima-runc")
_LOOP = 'trap "exit 5" TERM; echo up; while :; do sleep 0.2; done'


@pytest.fixture(scope="module")
def cri(image: str) -> Iterator[Cri]:
    """containerd with the handler that `cima configure` makes, and images for it."""
    archive = subprocess.check_output(["tar", "-C", guest.make_tree(), "-c", "."])
    command = 'CMD ["/bin/sleep", "1000000"]'
    guest.ok("docker", "import", "--change", command, "-", "pause", stdin=archive)
    guest.ok("docker", "save", IMAGE, "pause", "-o", "/root/pods.tar")
    guest.ok("ctr", "--namespace=k8s.io", "image", "import", "/root/pods.tar")
    original = CONFIG.read_bytes()
    CONFIG.write_text(OF_A_NODE)
    guest.ok("cima", "configure", "containerd")
    guest.restart("containerd")
    client = Cri()
    try:
        yield client
    finally:
        client.close()
        guest.ok("cima", "configure", "containerd", "--remove")
        assert CONFIG.read_text() == OF_A_NODE
        CONFIG.write_bytes(original)
        guest.restart("containerd")


def pod_of(name: str) -> Message:
    """A pod on the host's network: there are no network plugins here."""
    security = [(1, [(1, NODE)])]
    return [
        (1, [(1, name), (2, f"uid-{name}"), (3, "default")]),
        (3, "/var/log/pods"),
        (8, [(1, "kubepods.slice"), (2, security)]),
    ]


def container_of(name: str, *command: str, memory: int = 0) -> Message:
    return [
        (1, [(1, name)]),
        (2, [(1, f"docker.io/library/{IMAGE}:latest")]),
        *((3, word) for word in command),
        (11, f"{name}.log"),
        (15, [(1, [(4, memory)])]),
    ]


def run_to_its_end(cri: Cri, handler: str, *command: str, memory: int = 0) -> tuple[str, ...]:
    """The start's error, the exit code, the reason and the output of a container in a pod."""
    pod = pod_of(f"end-{handler}")
    pod_id = cri.run_pod(pod, handler)
    try:
        made = cri.create(pod_id, pod, container_of("end", *command, memory=memory))
        error = ""
        try:
            cri.call("StartContainer", (1, made))
        except grpc.RpcError as failed:
            error = failed.details()
        guest.wait_for("it has ended", lambda: cri.state(made)[0] == EXITED)
        status = cri.status(made)
        log = Path("/var/log/pods/end.log")
        lines = [line.split(" ", 3)[3] for line in log.read_text().splitlines()]
        log.unlink()
        shown = (error, str(status.get(7, [0])[0]), status[10][0].decode(), "\n".join(lines))
    finally:
        cri.call("StopPodSandbox", (1, pod_id))
        cri.call("RemovePodSandbox", (1, pod_id))
    return tuple(re.sub(r"[0-9a-f]{64}", "ID", text) for text in shown)


def test_the_handler_is_there(cri: Cri) -> None:
    info = cri.call("Status", (1, 1))[2]
    (config,) = (entry[2][0] for entry in map(decode, info) if entry[1] == [b"config"])
    handlers = json.loads(config)["containerd"]["runtimes"]
    assert handlers["cima-runc"]["options"] == {
        "BinaryName": "/opt/cima/bin/cima-runc",
        "SystemdCgroup": True,
    }


def test_a_pod(cri: Cri) -> None:
    """Its infrastructure container and each of its containers are measured on their own."""
    before = len(guest.ps())
    pod = pod_of("whole")
    pod_id = cri.run_pod(pod, "cima-runc")
    try:
        ids = []
        for name in ("one", "two"):
            container = container_of(name, "/bin/sh", "-c", f"echo {name} >/dev/shm/x; {_LOOP}")
            ids.append(cri.create(pod_id, pod, container))
            cri.call("StartContainer", (1, ids[-1]))
        one, two = ids
        log = Path("/var/log/pods/one.log")
        guest.wait_for("it is up", lambda: log.exists() and " up" in log.read_text())

        assert cri.exec(one, "/bin/sh", "-c", "echo in; echo no >&2; exit 3") == (
            3,
            b"in\n",
            b"no\n",
        )
        assert cri.exec(one, "/bin/cat", "/dev/shm/x")[1] == b"two\n"
        cri.call("UpdateContainerResources", (1, one), (2, [(4, 64 << 20)]))
        assert cri.call("ContainerStats", (1, one))[1]

        rows = guest.ps()[before:]
        assert [row["id"] for row in rows] == [pod_id, one, two]
        assert len({row["mntns"] for row in rows}) == 3
        paths = {file.path for file in guest.files(guest.records(one))}
        assert b"/bin/busybox" in paths

        cri.call("StopContainer", (1, one), (2, 30))
        assert cri.state(one) == (EXITED, 5)
        assert cri.state(two)[0] == RUNNING
    finally:
        cri.call("StopPodSandbox", (1, pod_id))
        cri.call("RemovePodSandbox", (1, pod_id))
    guest.wait_for(
        "their ends are recorded",
        lambda: {row["state"] for row in guest.ps()[before:]} == {"stopped"},
    )


@pytest.mark.parametrize(
    "command",
    [["/no/such/program"], ["/etc"], ["/bin/sh", "-c", "echo out; exit 42"]],
    ids=lambda command: command[-1],
)
def test_an_end_is_told_as_with_runc(cri: Cri, command: list[str]) -> None:
    plain, ours = (run_to_its_end(cri, handler, *command) for handler in HANDLERS)
    assert ours == plain


def test_out_of_memory(cri: Cri) -> None:
    command = ["/bin/busybox", "tail", "/dev/zero"]
    plain, ours = (run_to_its_end(cri, each, *command, memory=24 << 20) for each in HANDLERS)
    # containerd 1.6 hears of the end and of its reason apart: the reason may come too late for it,
    # with runc as well. Docker's and Podman's is in test_engines.py.
    reasons = {"OOMKilled", "Error"}
    assert {plain[2], ours[2]} <= reasons
    assert (ours[:2], ours[3]) == (plain[:2], plain[3])
    assert ours[1] == "137"
