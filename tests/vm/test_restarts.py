"""What a restart hides, and what it does not: runs of containers under each engine.

An intruder who ran something of his own and then ends the container's first process, so that the
engine starts it anew, has not washed anything off. Honest restarts are trusted, and said.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import oci
from tests.vm import guest, images
from tests.vm.cri import CONTAINER, EXITED, NODE, TARGET, Cri, Message
from tests.vm.test_attestation import (
    Tenant,
    evidence,
    paths,
    tenant,
    trusted,
    verified,
)
from tests.vm.test_cri import cri, pod_of
from tests.vm.test_hosts_of_others import dockerd_with

__all__ = ["cri", "tenant"]

COMMAND = ["/bin/sh", "-c", "trap 'exit 5' TERM; /bin/script; while :; do sleep 0.2; done"]
INTRUDER = "cp /bin/env /tmp/added; /tmp/added -i /bin/true; rm /tmp/added; kill -TERM 1"


@pytest.fixture(scope="module")
def restarting(tenant: Tenant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    """The same tenant with an image whose first process can be ended from inside."""
    directory = tmp_path_factory.mktemp("restarting")
    for name in ("owner.pub", "owner.key", "ak.pem"):
        shutil.copy(tenant.directory / name, directory / name)
    archive = oci.docker_save(
        directory / "image.tar", *images.busybox(), tag="restarting:latest", config={"Cmd": COMMAND}
    )
    guest.ok("docker", "load", "-i", archive)
    guest.ok("podman", "load", "-i", archive)
    guest.ok("ctr", "image", "import", archive)
    known = Path("/tmp/verifier/image.json")
    known.unlink(missing_ok=True)
    yield Tenant(directory)
    known.unlink(missing_ok=True)


@dataclass(frozen=True)
class Container:
    """A container that runs; what its engine does with it."""

    id: str
    exec: Callable[[str], object]
    """Runs a shell command in it."""
    restart: Callable[[], object]
    """Starts it anew, from outside."""
    come_back: Callable[[], object]
    """Starts it anew once its first process has ended, where the engine does not by itself."""

    def wait_for(self, run: int) -> None:
        """Wait until the script of this run has run."""
        guest.wait_for(f"run {run}", lambda: guest.run_of(self.id) == run, 300)
        guest.wait_for("the script", lambda: b"/bin/script" in paths(self.id), 300)


@contextmanager
def under(engine: str, name: str, owner: str) -> Iterator[Container]:
    match engine:
        case "docker":
            options = ("-d", "--restart=always", f"--name={name}", "-e", f"CIMA_OWNER={owner}")
            found = guest.ok(*guest.docker("cima-runc", *options, "restarting")).strip()
        case "podman":
            named = ("--annotation", f"io.cima.owner={owner}", "localhost/restarting")
            started = guest.podman("cima-runc", "-d", "--restart=always", f"--name={name}", *named)
            found = guest.ok(*started).strip().splitlines()[-1]
        case _:
            binary = f"--runc-binary={shutil.which('cima-runc')}"
            image = "docker.io/library/restarting:latest"
            guest.ok("ctr", "run", "-d", binary, "--env", f"CIMA_OWNER={owner}", image, name)
            found = name
    try:
        container = Container(found, *ways(engine, name))
        container.wait_for(1)
        yield container
    finally:
        if engine == "containerd":
            end(name, "KILL")
            guest.run("ctr", "container", "rm", name)
        else:
            guest.run(engine, "rm", "-f", name)


def ways(
    engine: str, name: str
) -> tuple[Callable[[str], object], Callable[[], object], Callable[[], object]]:
    if engine != "containerd":
        return (
            lambda command: guest.run(engine, "exec", name, "/bin/sh", "-c", command),
            lambda: guest.ok(engine, "restart", name),
            lambda: None,
        )

    def again() -> None:
        end(name, "TERM")
        guest.ok("ctr", "task", "start", "-d", name)

    def command_in(command: str) -> None:
        guest.run("ctr", "task", "exec", "--exec-id=x", name, "/bin/sh", "-c", command)

    return command_in, again, again


def end(name: str, signal: str) -> None:
    guest.run("ctr", "task", "kill", f"--signal=SIG{signal}", name)
    guest.wait_for(
        "it ended", lambda: f"{name} " not in guest.ok("ctr", "task", "ls") or gone(name)
    )


def gone(name: str) -> bool:
    return guest.run("ctr", "task", "rm", name).code == 0


def verdict(container: Container, tenant: Tenant, *options: str) -> dict[str, Any]:
    file, nonce = evidence(container.id, tenant)
    return verified(file, nonce, tenant, *options)


def found(result: dict[str, Any], rule: str) -> list[dict[str, Any]]:
    return [finding for finding in result["findings"] if finding["rule"] == rule]


ENGINES = [
    pytest.param("docker", marks=pytest.mark.debian("12")),
    pytest.param("podman", marks=pytest.mark.debian("13")),
    pytest.param("containerd", marks=pytest.mark.debian("13")),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_intruder_who_ends_the_first_process(restarting: Tenant, engine: str) -> None:
    state = ("--state", f"intruder-{engine}")
    with under(engine, f"intruder-{engine}", restarting.owner) as container:
        trusted(verdict(container, restarting, *state))
        container.exec(INTRUDER)
        container.come_back()
        container.wait_for(2)
        assert b"/tmp/added" not in paths(container.id)
        # Who looked before, and who looks for the first time.
        for options in (state, ()):
            result = verdict(container, restarting, *options)
            assert result["verdict"] == "UNTRUSTED"
            (drift,) = found(result, "file.added")
            assert (drift["run"], drift["path"]) == (1, "/tmp/added")
        # Another restart, an honest one, does not help.
        container.restart()
        container.wait_for(3)
        assert verdict(container, restarting, *state)["verdict"] == "UNTRUSTED"


@pytest.mark.parametrize("engine", ENGINES)
def test_two_honest_restarts_between_two_looks(restarting: Tenant, engine: str) -> None:
    state = ("--state", f"honest-{engine}")
    with under(engine, f"honest-{engine}", restarting.owner) as container:
        trusted(verdict(container, restarting, *state))
        for run in (2, 3):
            container.restart()
            container.wait_for(run)
        for options in (state, ()):
            result = verdict(container, restarting, *options)
            trusted(result)
            (said,) = found(result, "runs.restarted")
            assert said["what"].startswith("this is run 3 of the container; run ")


@pytest.mark.debian("12")
def test_a_container_that_kubelet_starts_anew(cri: Cri, restarting: Tenant) -> None:
    """By another id, in the same pod: as after its first process has ended."""
    archive = restarting.directory / "image.tar"
    guest.ok("ctr", "--namespace=k8s.io", "image", "import", archive)
    pod = pod_of("anew")
    pod_id = cri.run_pod(pod, "cima-runc")
    policy = Path("/tmp/verifier/anew.toml")
    image = "docker.io/library/restarting:latest"
    ids: list[str] = []

    def start() -> Container:
        # As kubelet asks for it: with process numbers of its own, not the pod's.
        own: Message = [(2, [(3, [(1, NODE), (2, CONTAINER)])])]
        log = f"app-{len(ids)}.log"
        container: Message = [(1, [(1, "app")]), (2, [(1, image)]), (11, log), (15, own)]
        ids.append(cri.create(pod_id, pod, container))
        cri.call("StartContainer", (1, ids[-1]))
        found = Container(ids[-1], *([lambda *_: None] * 3))
        found.wait_for(len(ids))
        return found

    options = ("--state", "kubelet", "--policy", policy.name)
    try:
        first = start()
        policy.parent.mkdir(exist_ok=True)
        guest.ok(
            *("cima", "reference", "image", archive, "-o", restarting.directory / "own.json"),
        )
        known = ("--reference", restarting.directory / "own.json")
        guest.ok("cima", "policy", "suggest", first.id, *known, "-o", policy)
        trusted(verdict(first, restarting, *options))
        cri.exec(first.id, "/bin/sh", "-c", INTRUDER)
        guest.wait_for("it has ended", lambda: cri.state(first.id)[0] == EXITED)
        cri.call("RemoveContainer", (1, first.id))
        result = verdict(start(), restarting, *options)
    finally:
        cri.call("StopPodSandbox", (1, pod_id))
        cri.call("RemovePodSandbox", (1, pod_id))
    assert result["verdict"] == "UNTRUSTED"
    (drift,) = found(result, "file.added")
    assert (drift["run"], drift["path"]) == (1, "/tmp/added")


@pytest.mark.debian("13")
def test_what_kubelet_starts_beside_a_container(cri: Cri, restarting: Tenant) -> None:
    """An init container before it, an ephemeral one that shares its processes: each is itself."""
    archive = restarting.directory / "image.tar"
    guest.ok("ctr", "--namespace=k8s.io", "image", "import", archive)
    pod = pod_of("beside")
    pod_id = cri.run_pod(pod, "cima-runc")

    def start(name: str, command: list[str], namespaces: Message) -> str:
        container: Message = [
            (1, [(1, name)]),
            (2, [(1, "docker.io/library/restarting:latest")]),
            *((3, word) for word in command),
            (11, f"{name}.log"),
            (15, [(2, [(3, [(1, NODE), *namespaces])])]),
        ]
        made = cri.create(pod_id, pod, container)
        cri.call("StartContainer", (1, made))
        return made

    try:
        init = start("init", ["/bin/script"], [(2, CONTAINER)])
        guest.wait_for("it has ended", lambda: cri.state(init)[0] == EXITED)
        app = start("app", [], [(2, CONTAINER)])
        guest.wait_for("the script", lambda: b"/bin/script" in paths(app), 300)
        command = ["/bin/sh", "-c", "cp /bin/env /tmp/added; /tmp/added -i /bin/true"]
        debug = start("debug", command, [(2, TARGET), (4, app)])
        guest.wait_for("it has ended", lambda: cri.state(debug)[0] == EXITED)
        guest.wait_for("it is recorded", lambda: guest.row(debug)["state"] == "stopped")
        records = [guest.records(one) for one in (init, app, debug)]
        registers = [guest.contents(each, "register")[0] for each in records]
        assert [register["run"] for register in registers] == [1, 1, 1]
        assert len({register["line"] for register in registers}) == 3
        assert b"/tmp/added" in paths(debug)
        assert b"/tmp/added" not in paths(app) + paths(init)
        assert guest.row(app)["state"] == "running"
    finally:
        cri.call("StopPodSandbox", (1, pod_id))
        cri.call("RemovePodSandbox", (1, pod_id))


@pytest.mark.debian()
def test_dockerd_is_started_anew_under_a_container(restarting: Tenant) -> None:
    """With live-restore it runs on: the same run, of which nothing is lost."""
    state = ("--state", "living")
    living = dockerd_with(**{"live-restore": True})
    with living, under("docker", "living", restarting.owner) as container:
        trusted(verdict(container, restarting, *state))
        guest.restart("docker")
        container.exec("/bin/env -i /bin/true")
        assert guest.run_of(container.id) == 1
        assert b"/bin/env" in paths(container.id)
        result = verdict(container, restarting, *state)
        trusted(result)
        assert not found(result, "runs.restarted")
        container.exec(INTRUDER)
        container.wait_for(2)
        assert verdict(container, restarting, *state)["verdict"] == "UNTRUSTED"


@pytest.mark.debian("13")
def test_a_container_made_anew_under_the_same_name(restarting: Tenant) -> None:
    """By another id it is the same line, since its owner called it so."""
    state = ("--state", "renamed")
    named = (
        "--annotation",
        f"io.cima.owner={restarting.owner}",
        "--annotation",
        "io.cima.name=web",
    )
    ids = []
    for number, command in enumerate(("/bin/true", INTRUDER, "/bin/true")):
        options = ("-d", f"--name=anew-{number}", *named, "localhost/restarting")
        ids.append(guest.ok(*guest.podman("cima-runc", *options)).strip().splitlines()[-1])
        try:
            guest.wait_for("the script", lambda: b"/bin/script" in paths(ids[-1]), 300)
            if number == 1:
                guest.run("podman", "exec", f"anew-{number}", "/bin/sh", "-c", command)
            else:
                file, nonce = evidence(ids[-1], restarting)
                result = verified(file, nonce, restarting, *state)
        finally:
            guest.ok("podman", "rm", "-f", "-t0", f"anew-{number}")
        if number == 0:
            trusted(result)
    assert result["verdict"] == "UNTRUSTED"
    (drift,) = found(result, "file.added")
    assert (drift["run"], drift["path"]) == (2, "/tmp/added")
