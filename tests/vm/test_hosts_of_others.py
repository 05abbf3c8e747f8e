"""Honest containers on hosts that keep their engines' things elsewhere, and as kubelet makes them.

Each kind: a policy is made once by `cima policy suggest`, the next container of the same kind is
TRUSTED with it, and one that a program was added to is UNTRUSTED. By default each kind is tried on
one release, all of them by turns; what we make of an engine's directories is the same on each.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest, images
from tests.vm.conftest import release
from tests.vm.cri import Cri, Message
from tests.vm.test_appraisal import appraise, cima, last_container, reference, rootfs
from tests.vm.test_cri import CONFIG, OF_A_NODE
from tests.vm.test_rootless_podman import UID, USER, allowed, as_user, set_storage, user

__all__ = ["allowed", "user"]

IMAGE = "busybox"
HONEST = "/bin/script; /bin/true"
ADDED = f"{HONEST}; cp /bin/env /tmp/added; /tmp/added -i /bin/true"
DAEMON = Path("/etc/docker/daemon.json")
ON_12, ON_13, ON_FORKY = (pytest.mark.debian(release) for release in ("12", "13", "forky"))

Start = Callable[[str], object]
"""Starts a container with a shell command and waits for its end."""


def mounts_of(container: str) -> list[dict[str, Any]]:
    (config,) = guest.contents(guest.records(container), "config")
    found: list[dict[str, Any]] = config["config"]["mounts"]
    return found


def engine_of(container: str) -> dict[str, Any]:
    (register,) = guest.contents(guest.records(container), "register")
    found: dict[str, Any] = register["engine"]
    return found


def serves_the_next(start: Start, tmp_path: Path) -> str:
    """Check one kind of container; returns the policy that was suggested."""
    start(HONEST)
    first = last_container()
    policy = tmp_path / "suggested.toml"
    made = cima("policy", "suggest", first, "--reference", reference(IMAGE), "-o", policy)
    assert made.code == 0, made
    text = policy.read_text()
    assert first.rpartition("/")[2] not in text, text
    start(HONEST)
    following = last_container()
    assert following != first
    appraised = appraise(following, IMAGE, tmp_path, text)
    assert (appraised.code, appraised.verdict) == (0, "TRUSTED"), (
        appraised.failed,
        engine_of(following),
        mounts_of(following),
    )
    start(ADDED)
    appraised = appraise(last_container(), IMAGE, tmp_path, text)
    assert (appraised.code, appraised.verdict) == (1, "UNTRUSTED")
    assert appraised.failed["file.added"] == "/tmp/added"
    return text


# -- Docker ----------------------------------------------------------------------------------------


@contextmanager
def dockerd_with(**more: object) -> Iterator[None]:
    before = DAEMON.read_bytes()
    DAEMON.write_text(json.dumps(json.loads(before) | more))
    try:
        guest.restart("docker")
        guest.ok("docker", "load", "-i", images.archive(IMAGE))
        yield
    finally:
        DAEMON.write_bytes(before)
        guest.restart("docker")


def with_docker(command: str) -> None:
    # A network of Docker's own, so that it sets it up by a hook, and with files of its own.
    run = ["docker", "run", "--rm", "--runtime=cima-runc", "--shm-size=1m", IMAGE]
    guest.ok(*run, "/bin/sh", "-c", command)


@pytest.mark.parametrize(
    ("settings", "root"),
    [
        pytest.param({"data-root": "/srv/docker"}, "/srv/docker", id="data-root", marks=ON_12),
        pytest.param(
            {"data-root": "/srv/remapped", "userns-remap": "default"},
            "/srv/remapped/",
            id="userns-remap",
            marks=ON_FORKY,
        ),
    ],
)
def test_docker(settings: dict[str, object], root: str, tmp_path: Path) -> None:
    with dockerd_with(**settings):
        text = serves_the_next(with_docker, tmp_path)
        assert "mounts" not in text
        found = engine_of(last_container())
        assert found["name"] == "docker" and found["roots"][0].startswith(root), found


@pytest.mark.debian()
@pytest.mark.skipif(release() == "12", reason="Docker 20.10 has no other image store")
def test_docker_on_containerds_image_store(tmp_path: Path) -> None:
    store = {"features": {"containerd-snapshotter": True}, "storage-driver": "overlayfs"}
    with dockerd_with(**store):
        assert "io.containerd.snapshotter.v1" in guest.ok("docker", "info")
        text = serves_the_next(with_docker, tmp_path)
        assert "mounts" not in text
        found = engine_of(last_container())
        assert (found["name"], found["roots"]) == ("docker", ["/var/lib/docker"])
        assert (rootfs()["filesystem"], rootfs()["reason"]) == ("overlay", "")


@ON_13
def test_docker_of_a_user(allowed: None, tmp_path: Path) -> None:
    home = Path("/home") / USER
    archive = home / "busybox.tar"
    shutil.copy(images.archive(IMAGE), archive)
    shutil.chown(archive, USER, USER)
    script = "/usr/share/docker.io/contrib/dockerd-rootless.sh"
    runtime = "--add-runtime=cima-runc=/opt/cima/bin/cima-runc"
    # As udev has it, which guests are without.
    guest.ok("modprobe", "tun")
    Path("/dev/net/tun").chmod(0o666)
    started = ["systemd-run", "--user", "--unit=docker", script, runtime]
    done = as_user(*started, "--iptables=false", "--bridge=none")
    assert done.code == 0, done.err
    docker = ["docker", f"--host=unix:///run/user/{UID}/docker.sock"]
    try:
        # Its socket is there before it has begun, and where it fails to.
        guest.wait_for("dockerd", lambda: as_user(*docker, "version").code == 0, 300)
    except AssertionError:
        log = guest.run("journalctl", "--no-pager", "_SYSTEMD_USER_UNIT=docker.service")
        raise AssertionError(log.out) from None
    done = as_user(*docker, "load", "-i", str(archive))
    assert done.code == 0, done.err

    def start(command: str) -> None:
        run = ["run", "--rm", "--runtime=cima-runc", "--network=none", IMAGE]
        done = as_user(*docker, *run, "/bin/sh", "-c", command)
        assert done.code == 0, done.err

    try:
        serves_the_next(start, tmp_path)
        found = engine_of(last_container())
        assert (found["name"], found["roots"]) == ("docker", [f"{home}/.local/share/docker"])
    finally:
        as_user("systemctl", "--user", "stop", "docker")


# -- Podman ----------------------------------------------------------------------------------------

ELSEWHERE = ["podman", "--root=/srv/containers", "--runroot=/run/elsewhere", "--runtime=cima-runc"]


@ON_13
def test_podman_with_its_storage_elsewhere(tmp_path: Path) -> None:
    guest.ok(*ELSEWHERE, "load", "-i", images.archive(IMAGE))
    guest.ok(*ELSEWHERE, "secret", "create", "token", "-", stdin="value")

    def start(command: str) -> None:
        run = ["run", "--rm", "--network=none", "--secret=token", f"localhost/{IMAGE}"]
        guest.ok(*ELSEWHERE, *run, "/bin/sh", "-c", command)

    text = serves_the_next(start, tmp_path)
    assert "mounts" not in text
    found = engine_of(last_container())
    assert (found["name"], found["cri"]) == ("podman", False)
    assert (found["roots"], found["states"]) == (["/srv/containers"], ["/run/elsewhere"])


@ON_FORKY
def test_two_containers_in_a_pod_of_podman(tmp_path: Path) -> None:
    """The second has the first one's hosts file, and shares its namespaces."""
    guest.ok(*ELSEWHERE, "load", "-i", images.archive(IMAGE))
    pods: list[str] = []

    def start(command: str) -> None:
        name = f"pod-{len(pods)}"
        pods.append(name)
        guest.ok(*ELSEWHERE, "pod", "create", f"--name={name}", "--network=none")
        run = ["run", f"--pod={name}", f"localhost/{IMAGE}", "/bin/sh", "-c"]
        guest.ok(*ELSEWHERE, *run, HONEST)
        guest.ok(*ELSEWHERE, *run, command)

    try:
        serves_the_next(start, tmp_path)
        assert engine_of(last_container())["shares"]
    finally:
        guest.run(*ELSEWHERE, "pod", "rm", "-f", "--all", "--time=0")


@ON_12
def test_podman_of_a_user(allowed: None, tmp_path: Path) -> None:
    set_storage()
    archive = Path("/home") / USER / "busybox.tar"
    shutil.copy(images.archive(IMAGE), archive)
    shutil.chown(archive, USER, USER)
    assert as_user("podman", "load", "-i", str(archive)).code == 0

    def start(command: str) -> None:
        run = ["run", "--rm", "--network=none", f"localhost/{IMAGE}", "/bin/sh", "-c", command]
        done = as_user("podman", "--runtime=cima-runc", *run)
        assert done.code == 0, done.err

    text = serves_the_next(start, tmp_path)
    assert "mounts" not in text
    found = engine_of(last_container())
    assert (found["name"], found["states"]) == ("podman", [f"/run/user/{UID}/containers"])


# -- Kubernetes ------------------------------------------------------------------------------------


@pytest.fixture(name="cri")
def _cri() -> Iterator[Cri]:
    archive = subprocess.check_output(["tar", "-C", guest.make_tree(), "-c", "."])
    guest.ok(
        *("docker", "import", "--change", 'CMD ["/bin/sleep", "1000000"]', "-", "pause"),
        stdin=archive,
    )
    guest.ok("docker", "save", "pause", "-o", "/root/pause.tar")
    guest.ok("ctr", "--namespace=k8s.io", "image", "import", "/root/pause.tar")
    guest.ok("ctr", "--namespace=k8s.io", "image", "import", images.archive(IMAGE))
    before = CONFIG.read_bytes() if CONFIG.exists() else b""
    # Everything where k0s and others have it.
    root = 'root = "/srv/node/containerd"\nstate = "/run/node/containerd"\n'
    CONFIG.write_text(OF_A_NODE.replace("version = 2\n", f"version = 2\n{root}"))
    guest.ok("cima", "configure", "containerd")
    guest.restart("containerd")
    guest.ok("ctr", "--namespace=k8s.io", "image", "import", "/root/pause.tar")
    guest.ok("ctr", "--namespace=k8s.io", "image", "import", images.archive(IMAGE))
    client = Cri()
    try:
        yield client
    finally:
        client.close()
        guest.run("cima", "configure", "containerd", "--remove")
        CONFIG.write_bytes(before)
        guest.restart("containerd")
        guest.restart("docker")


def pod_of(number: int) -> tuple[str, Message]:
    uid = f"{number:08x}-2222-3333-4444-555555555555"
    metadata = [(1, f"pod-{number}"), (2, uid), (3, "default")]
    slice_ = f"kubepods-besteffort-pod{uid.replace('-', '_')}.slice"
    return uid, [(1, metadata), (3, "/var/log/pods"), (8, [(1, slice_), (2, [(1, [(1, 2)])])])]


def as_kubelet_makes_it(kubelet: Path, uid: str, name: str, random: str) -> list[Any]:
    """The files and directories that kubelet makes for a container, as CRI mounts."""
    own = kubelet / "pods" / uid
    log = own / "containers" / name / random
    log.parent.mkdir(parents=True)
    log.touch()
    (own / "etc-hosts").write_text("127.0.0.1 localhost\n")
    token = own / "volumes/kubernetes.io~projected" / f"kube-api-access-{random[:5]}"
    info = own / "volumes/kubernetes.io~downward-api/podinfo"
    projected = own / "volumes/kubernetes.io~projected/all-in-one"
    for directory in (token, info, projected):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "token").write_text("secret")
    pairs = [
        ("/etc/hosts", own / "etc-hosts", 0),
        ("/dev/termination-log", log, 0),
        ("/var/run/secrets/kubernetes.io/serviceaccount", token, 1),
        ("/etc/podinfo", info, 1),
        ("/projected-volume", projected, 1),
    ]
    return [(7, [(1, at), (2, str(source)), (3, ro)]) for at, source, ro in pairs]


@pytest.mark.parametrize(
    "two",
    [pytest.param(False, id="one", marks=ON_FORKY), pytest.param(True, id="two", marks=ON_12)],
)
def test_a_pod_of_kubernetes(cri: Cri, two: bool, tmp_path: Path) -> None:
    kubelet = tmp_path / "kubelet"
    address = kubelet / "pod-resources/kubelet.sock"
    address.parent.mkdir(parents=True)
    listen = (
        "import os,socket,sys,time; s=socket.socket(socket.AF_UNIX); at=sys.argv[1]; "
        "os.path.exists(at) and os.unlink(at); s.bind(at); "
        "s.listen(); print('up', flush=True); time.sleep(10000)"
    )
    pods: list[str] = []
    kubelets: list[subprocess.Popen[bytes]] = []

    def start_kubelet() -> None:
        """Anew, as after its upgrade."""
        for running in kubelets:
            running.kill()
            running.wait()
        command = ["/usr/bin/python3", "-c", listen, str(address)]
        kubelets.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        out = kubelets[-1].stdout
        assert out is not None and out.readline() == b"up\n"

    def start(command: str) -> None:
        start_kubelet()
        uid, pod = pod_of(len(pods) + 10 * two + 1)
        pods.append(cri.run_pod(pod, "cima-runc"))
        for name in ("beside", "app") if two else ("app",):
            words = ("/bin/sh", "-c", command if name == "app" else HONEST)
            container = [
                (1, [(1, name)]),
                (2, [(1, f"docker.io/library/{IMAGE}:latest")]),
                *((3, word) for word in words),
                *as_kubelet_makes_it(kubelet, uid, name, f"{len(pods):05x}a1b"),
                (11, f"{uid}-{name}.log"),
            ]
            made = cri.create(pods[-1], pod, container)
            cri.call("StartContainer", (1, made))
            guest.wait_for("it has ended", lambda made=made: cri.state(made)[0] == 2)  # type: ignore[misc]

    try:
        text = serves_the_next(start, tmp_path)
        assert "mounts" not in text, text
        found = engine_of(last_container())
    finally:
        for running in kubelets:
            running.kill()
            running.wait()
        for pod in pods:
            cri.call("StopPodSandbox", (1, pod))
            cri.call("RemovePodSandbox", (1, pod))
    assert (found["name"], found["cri"]) == ("containerd", True)
    assert found["roots"] == ["/srv/node/containerd"]
    assert found["states"] == ["/run/node/containerd"]
    assert str(kubelet) in found["kubelets"]


# -- crun ------------------------------------------------------------------------------------------


@pytest.fixture(name="crun")
def _crun() -> Iterator[None]:
    with guest.Settings('runtimes = ["crun"]\n'):
        yield


def by_crun(bundle: Path, *options: str, before: tuple[str, ...] = ()) -> guest.Ran:
    command = ["cima-runc", *before, "run", f"--bundle={bundle}", *options, "by-crun"]
    done = guest.run("sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", bundle.parent, *command)
    guest.run("crun", "delete", "--force", "by-crun")
    return done


def containers_of_crun(container: str) -> list[Path]:
    """What crun keeps of a container that lives: runc has state.json there."""
    places = [Path("/run/crun"), *Path("/run/docker").glob("runtime-*/moby")]
    return [place for place in places if (place / container / "status").is_file()]


@pytest.mark.parametrize(
    "cli",
    [
        pytest.param("docker", marks=ON_12),
        pytest.param("podman", marks=ON_13),
    ],
)
def test_crun_under_an_engine(crun: None, cli: str, tmp_path: Path) -> None:
    """A whole life, restarted from outside and by the engine, and then as with runc."""
    guest.ok(cli, "load", "-i", images.archive(IMAGE))
    run = guest.docker if cli == "docker" else guest.podman
    image = IMAGE if cli == "docker" else f"localhost/{IMAGE}"
    loop = "trap 'exit 5' TERM; /bin/script; while :; do sleep 0.2; done"
    life = ("-d", "--restart=always", "--name=life", image, "/bin/sh", "-c", loop)
    container = guest.ok(*run("cima-runc", *life)).strip().splitlines()[-1]

    def wait_for(number: int) -> None:
        guest.wait_for(f"run {number}", lambda: guest.run_of(container) == number, 300)
        up = {b"/bin/script"}
        guest.wait_for(
            "the script", lambda: up <= {f.path for f in guest.files(guest.records(container))}, 300
        )

    try:
        wait_for(1)
        assert containers_of_crun(container)
        done = guest.run(cli, "exec", "life", "/bin/sh", "-c", "echo in; echo no >&2; exit 3")
        assert done == guest.Ran(3, "in\n", "no\n")
        guest.ok(cli, "pause", "life")
        guest.ok(cli, "unpause", "life")
        guest.ok(cli, "restart", "life")
        wait_for(2)
        guest.run(cli, "exec", "life", "/bin/sh", "-c", "kill -TERM 1")
        wait_for(3)
    finally:
        guest.run(cli, "rm", "-f", "life")
    guest.wait_for("it has ended", lambda: guest.row(container)["state"] == "stopped")

    def start(command: str) -> None:
        guest.ok(*run("cima-runc", "--rm", image, "/bin/sh", "-c", command))

    serves_the_next(start, tmp_path)


def test_a_configuration_under_another_name(crun: None, tmp_path: Path) -> None:
    bundle = guest.make_bundle(tmp_path / "bundle", "echo not this")
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"][-1] = "echo this"
    (tmp_path / "other.json").write_text(json.dumps(config))
    done = by_crun(bundle, "--config", "other.json")
    assert done.out == "this\n", done.err
    (measured,) = guest.contents(guest.records(last_container()), "config")
    assert measured["config"]["process"]["args"][-1] == "echo this"
    hooks = json.loads((tmp_path / "other.json").read_text())["hooks"]
    assert not any("timeout" in entry for entries in hooks.values() for entry in entries)


def test_without_a_cgroup(crun: None, tmp_path: Path) -> None:
    bundle = guest.make_bundle(tmp_path / "bundle", "echo hello")
    done = by_crun(bundle, before=("--cgroup-manager=disabled",))
    assert done.out == "hello\n", done.err
    assert b"/bin/busybox" in {each.path for each in guest.files(guest.records("by-crun"))}


def test_a_user_namespace_with_devices(crun: None, tmp_path: Path) -> None:
    """crun then says that the bundle is ``/``."""
    bundle = guest.make_bundle(tmp_path / "bundle", "echo hello")
    shutil.copytree(guest.TREE, bundle / "rootfs", symlinks=True)
    guest.ok("chown", "-R", "100000:100000", bundle / "rootfs")
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": "rootfs"}
    config["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 100000, "size": 1000}]
    config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    config["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]
    (bundle / "config.json").write_text(json.dumps(config))
    for directory in (tmp_path, *list(tmp_path.parents)[:-1]):
        directory.chmod(directory.stat().st_mode | 0o011)
    done = by_crun(bundle)
    assert done.out == "hello\n", done.err
    (measured,) = guest.contents(guest.records("by-crun"), "config")
    assert measured["config"]["process"]["args"][-1] == "echo hello"
