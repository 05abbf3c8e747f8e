"""Engines as processes: shells under an engine's names, with the arguments that engines give."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import process_tree as tree

from cima_runc.measure.engine import EngineFinder
from cima_runc.ml.contents import Engine

_CLONE_NEWNET = 0x40000000
ID, OTHER = "c" * 64, "d" * 64


def bind(destination: str, source: object) -> dict[str, Any]:
    return {"destination": destination, "source": str(source), "type": "bind"}


def task(state: Path, namespace: str, name: str = ID) -> Path:
    bundle = state / "io.containerd.runtime.v2.task" / namespace / name
    bundle.mkdir(parents=True)
    return bundle


@contextmanager
def shim(tmp_path: Path, bundle: Path, namespace: str) -> Iterator[tree.Tree]:
    arguments = ("-namespace", namespace, "-address", str(tmp_path / "containerd.sock"))
    here = Path.cwd()
    os.chdir(bundle)
    try:
        with tree.container(tmp_path, "containerd-shim-runc-v2", *arguments) as box:
            yield box
    finally:
        os.chdir(here)


def test_containerd_by_the_bundle_that_it_made(tmp_path: Path) -> None:
    """Whatever its configuration says: k3s, microk8s and a snap need no rule of their own."""
    state, data = tmp_path / "run/k3s", tmp_path / "data"
    bundle = task(state, "k8s.io")
    (bundle / "work").symlink_to(task(data, "k8s.io"))
    with shim(tmp_path, bundle, "k8s.io") as box:
        found = EngineFinder().find(box.first, str(bundle), {})
    assert found == Engine(
        name="containerd",
        cri=True,
        roots=(str(data),),
        states=(str(state),),
        kubelets=found.kubelets,
    )
    assert found.kubelets


def test_a_bundle_that_the_shims_containerd_did_not_make(tmp_path: Path) -> None:
    bundle, other = task(tmp_path / "state", "default"), task(tmp_path / "elsewhere", "default")
    by_hand = tmp_path / "bundle"
    with shim(tmp_path, bundle, "default") as box:
        find = EngineFinder().find
        assert find(box.first, str(bundle), {}).name == "containerd"
        for strange in (other, by_hand, bundle / "more", f"{bundle}/../{ID}"):
            assert find(box.first, str(strange), {}) == Engine(name=None)
    assert EngineFinder().find(os.getpid(), str(bundle), {}) == Engine(name=None)


def test_docker_says_where_its_data_is(tmp_path: Path) -> None:
    bundle = task(tmp_path / "state", "moby-100000.100000")
    data = tmp_path / "srv"
    data.mkdir()
    link = tmp_path / "link"
    link.symlink_to(data)
    config = {"mounts": [bind("/more", "/srv/data"), {"destination": 1}, "no mount"]}
    arguments = ("--containerd", str(tmp_path / "containerd.sock"), "--data-root", str(link))
    dockerd = tree.program(tmp_path, "dockerd")
    with (
        tree.running(dockerd, "read x", *arguments),
        shim(tmp_path, bundle, "moby-100000.100000") as box,
    ):
        found = EngineFinder().find(box.first, str(bundle), config)
    remapped = "100000.100000"
    assert found.name == "docker" and not found.cri
    assert set(found.roots) == {f"{link}/{remapped}", f"{data}/{remapped}"}
    assert found.shares == found.redirected == ()


def test_docker_by_its_own_answer(tmp_path: Path) -> None:
    bundle = task(tmp_path / "state", "moby")
    data = tmp_path / "answered"
    own = data / "containers" / ID
    own.mkdir(parents=True)
    (own / "hosts").touch()
    (own / "hostname").symlink_to("/etc/shadow")
    config = {
        "mounts": [
            bind("/etc/hosts", own / "hosts"),
            bind("/etc/hostname", own / "hostname"),
            bind("/etc/resolv.conf", f"{data}/containers/{OTHER}/resolv.conf"),
        ]
    }
    script = tmp_path / "dockerd.py"
    script.write_text(_DOCKERD)
    # An executable by that name: what is looked at is /proc/PID/exe.
    program = tmp_path / "bin" / "dockerd"
    program.parent.mkdir()
    shutil.copy(os.path.realpath(sys.executable), program)
    address = tmp_path / "docker.sock"
    command = [program, script, address, data, "--containerd", tmp_path / "containerd.sock"]
    environment = {"PYTHONHOME": sys.base_prefix}
    with subprocess.Popen(
        list(map(str, command)), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as dockerd:
        try:
            assert dockerd.stdout is not None
            assert dockerd.stdout.readline() == b"up\n"
            with shim(tmp_path, bundle, "moby") as box:
                found = EngineFinder().find(box.first, str(bundle), config)
        finally:
            dockerd.kill()
    assert found.roots == (str(data),)
    assert found.redirected == ("/etc/hostname",)
    assert found.shares == ()


_DOCKERD = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1]); listener.listen(); print("up", flush=True)
    while True:
        channel, _ = listener.accept()
        with channel:
            assert channel.recv(65536).startswith(b"GET /info")
            body = json.dumps({"DockerRootDir": sys.argv[2]}).encode()
            head = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
            channel.sendall(head + body)
"""


def conmon(tmp_path: Path, *arguments: str) -> Any:
    return tree.container(tmp_path, "conmon", *arguments)


def test_podman_by_what_conmon_was_told(tmp_path: Path) -> None:
    words = ["/usr/bin/podman", "--root", "/srv/containers", "--runroot", "/run/elsewhere", "rm"]
    arguments = ["--exit-command", words[0]]
    for word in words[1:]:
        arguments += ["--exit-command-arg", word]
    bundle = f"/srv/containers/overlay-containers/{ID}/userdata"
    with conmon(tmp_path, "-c", ID, *arguments) as box:
        for uid in (0, 1000):
            found = EngineFinder().find(box.first, bundle, {}, uid)
            wanted = Engine(name="podman", roots=("/srv/containers",), states=("/run/elsewhere",))
            assert found == wanted


def test_cri_o_by_its_bundle(tmp_path: Path) -> None:
    with conmon(tmp_path, "-c", ID, "-b", "/x") as box:
        find = EngineFinder().find
        found = find(box.first, f"/run/containers/storage/overlay-containers/{ID}/userdata", {})
        assert (found.name, found.cri) == ("cri-o", True)
        assert found.states == ("/run/containers/storage",)
        assert find(box.first, "/tmp/bundle", {}) == Engine(name=None)


def test_containers_whose_namespaces_are_shared(tmp_path: Path) -> None:
    words = ("--exit-command", "podman", "--exit-command-arg", "--root", "--exit-command-arg")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    arguments = (*words, str(tmp_path))
    userdata = tmp_path / "overlay-containers"
    config = {"mounts": [bind("/etc/hosts", userdata / OTHER / "userdata/hosts")]}
    with (
        conmon(tmp_path / "one", "-c", ID, *arguments) as box,
        conmon(tmp_path / "two", "-c", OTHER, *arguments),
    ):
        bundle = str(userdata / ID / "userdata")
        # Both are on the host's: nothing is shared that others have not too.
        assert EngineFinder().find(box.first, bundle, config).shares == ()

    def apart() -> None:
        # Of this thread alone, and of the processes that it starts.
        assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
        with (
            conmon(tmp_path / "one", "-c", ID, *arguments) as box,
            conmon(tmp_path / "two", "-c", OTHER, *arguments),
        ):
            found.append(EngineFinder().find(box.first, bundle, config).shares)

    found: list[tuple[str, ...]] = []
    with ThreadPoolExecutor(1) as worker:
        worker.submit(apart).result()
    assert found == [(OTHER,)]


def test_kubelets_root_directory(tmp_path: Path) -> None:
    """By its flag, and by the socket that kubelets built into another program listen on."""
    bundle = task(tmp_path / "state", "k8s.io")
    short = Path(tempfile.mkdtemp(dir="/tmp"))  # a socket's path has at most 107 bytes
    address = short / "kubelet/pod-resources/kubelet.sock"
    address.parent.mkdir(parents=True)
    kubelet = tree.program(tmp_path, "kubelet")
    with (
        tree.listening(address),
        tree.running(kubelet, "read x", "--root-dir=/srv/kubelet"),
        tree.running(tree.program(tmp_path, "nobody"), "read x", "--root-dir=/srv/other"),
        shim(tmp_path, bundle, "k8s.io") as box,
    ):
        found = EngineFinder().find(box.first, str(bundle), {})
    # Others on this host may have kubelets too.
    assert set(found.kubelets) >= {str(short / "kubelet"), "/srv/kubelet"}
    assert "/srv/other" not in found.kubelets
    shutil.rmtree(short)


def test_a_kubelet_that_starts_again_elsewhere(tmp_path: Path) -> None:
    """What is remembered of it holds no longer than it runs."""
    bundle = task(tmp_path / "state", "k8s.io")
    kubelet = tree.program(tmp_path, "kubelet")
    finder = EngineFinder()
    with shim(tmp_path, bundle, "k8s.io") as box:
        finder.find(box.first, str(bundle), {})  # none, or those of others on this host
        for root, other in (("/srv/one", "/srv/two"), ("/srv/two", "/srv/one")):
            with tree.running(kubelet, "read x", f"--root-dir={root}"):
                found = finder.find(box.first, str(bundle), {}).kubelets
                assert finder.find(box.first, str(bundle), {}).kubelets == found
            assert root in found
            assert other not in found


_OWN_ROOT = """
mkdir "$0"; mount -t tmpfs none "$0"
for each in /*; do
    if [ -L "$each" ]; then cp -P "$each" "$0"; fi
    if [ -d "$each" ] && ! [ -L "$each" ]; then mkdir "$0$each"; mount --rbind "$each" "$0$each"; fi
done
exec chroot "$0" "$@"
"""


def inside(tmp_path: Path, kind: str) -> tuple[str, ...]:
    """Return what runs a command with the host's numbers of processes, as a container may."""
    apart = ("unshare", "--mount")
    match kind:
        case "service":
            return apart
        case "root of its own":
            return (*apart, "sh", "-c", _OWN_ROOT, str(tmp_path / "root"))
        case _:  # the host's root directory is mounted, and changed to
            (tmp_path / "its").mkdir()
            name = str(tree.program(tmp_path / "its", kind))
            return (name, "-c", f'{" ".join(apart)} "$@"\n:', name)


KINDS = ("root of its own", "conmon", "containerd-shim-runc-v2")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")
@pytest.mark.parametrize(("kind", "counts"), [("service", True), *((one, False) for one in KINDS)])
@pytest.mark.parametrize("what", ["kubelet", "kubelet's socket", "dockerd", "a sharing container"])
def test_who_has_an_engines_name_in_a_container_decides_nothing(
    what: str, kind: str, *, counts: bool, tmp_path: Path
) -> None:
    """A container with the host's numbers of processes and network, and its root, can have every
    name, argument and socket: only what is in no container is believed."""
    wrapper = inside(tmp_path, kind)
    if what == "a sharing container":
        # What is above it has its arguments too, in this test alone.
        told = ("containerd-shim", "-id") if kind == "conmon" else ("conmon", "-c")
        assert (shares_of_one_told(tmp_path, wrapper, *told) == (OTHER,)) is counts
        return
    namespace = "moby" if what == "dockerd" else "k8s.io"
    bundle = task(tmp_path / "state", namespace)
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    address = short / "pod-resources/kubelet.sock"
    address.parent.mkdir()
    posing = {
        "kubelet": lambda: tree.running(
            tree.program(tmp_path, "kubelet"), "read x", f"--root-dir={short}", wrapper=wrapper
        ),
        "kubelet's socket": lambda: tree.listening(address, *wrapper),
        "dockerd": lambda: tree.running(
            tree.program(tmp_path, "dockerd"),
            "read x",
            *("--containerd", str(tmp_path / "containerd.sock"), "--data-root", str(short)),
            wrapper=wrapper,
        ),
    }
    with posing[what](), shim(tmp_path, bundle, namespace) as box:
        found = EngineFinder().find(box.first, str(bundle), {})
    assert (str(short) in (*found.roots, *found.kubelets)) is counts
    shutil.rmtree(short)


def shares_of_one_told(
    tmp_path: Path, wrapper: tuple[str, ...], name: str, flag: str
) -> tuple[str, ...]:
    """Return which containers one shares namespaces with, where a program ``name`` that is run by
    ``wrapper`` in its network namespace was told the id of another."""
    userdata = tmp_path / "overlay-containers"
    words = ("--exit-command-arg", "--root", "--exit-command-arg", str(tmp_path))
    config = {"mounts": [bind("/etc/hosts", userdata / OTHER / "userdata/hosts")]}
    told = tree.program(tmp_path, name)

    def apart() -> tuple[str, ...]:
        assert ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
        with (
            tree.running(told, "sh -c 'echo; read x'\n:", flag, OTHER, wrapper=wrapper),
            conmon(tmp_path, "-c", ID, *words) as box,
        ):
            return EngineFinder().find(box.first, str(userdata / ID / "userdata"), config).shares

    with ThreadPoolExecutor(1) as worker:
        return worker.submit(apart).result()


def test_a_process_that_is_gone() -> None:
    gone = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(gone, 0)
    assert EngineFinder().find(gone, "/bundle", {}) == Engine(name=None)
