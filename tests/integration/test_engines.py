"""Layers as Docker, containerd and Podman themselves unpack them, and mount them.

Each engine runs with directories of its own and no network. Those that are not installed are
skipped; images come from archives, no registry is asked.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cima_runc.measure.idmap import IDENTITY, IdMap, parse_id_maps
from cima_runc.measure.mtree import parse_manifest
from cima_runc.measure.overlay import RootFilesystem, fuse_overlayfs_commands, read_rootfs
from cima_runc.measure.rootfs import RootfsMeasurement, Store, measure
from cima_runc.verifier.reference.file import ImageReference
from cima_runc.verifier.reference.image import read_image
from tests.support.example_layers import BOTTOM, LINKED, RELINKED, TOP
from tests.support.oci import Layout, archive, directory, docker_save, member

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run engines")
SHIFT = parse_id_maps(b"0 100000 65536\n", b"0 100000 65536\n")
LAYERS = [BOTTOM, TOP, LINKED, RELINKED, archive(), archive(directory("x"))]
REPEATED = archive(
    member("file", b"first"),
    member("file", b"second", mode=0o600),
    directory("was"),
    member("was/in", b"x"),
    member("was", b"a file now"),
    member(".wh.here", b""),
    member("here", b"again"),
)
"""A path twice, which only containerd takes."""


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture(name="work")
def _work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cima-engine-", dir="/var/tmp") as name:
        yield Path(name)


def run(*command: object, **more: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        **more,  # type: ignore[call-overload]
    )
    assert not done.returncode, done.stderr
    return str(done.stdout)


@contextmanager
def daemon(command: list[object], log: Path, is_up: Callable[[], bool]) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out)
    try:
        for _ in range(300):
            if is_up():
                break
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def measured(
    point: Path, work: Path, ids: IdMap = IDENTITY
) -> tuple[RootFilesystem, RootfsMeasurement]:
    mountinfo = Path("/proc/self/mountinfo").read_bytes()
    rootfs = read_rootfs(point, mountinfo, fuse_overlayfs_commands)
    return rootfs, measure(rootfs, Store.at(work / "store"), ids=ids)


def check(found: RootfsMeasurement, reference: ImageReference, engine: str) -> None:
    """The image's layers have the digests that the reference has for this engine."""
    expected = [layer.other_digests.get(engine, layer.digest) for layer in reference.layers]  # type: ignore[call-overload]
    assert [layer.digest for layer in found.layers[: len(expected)]] == expected
    assert {layer.kind for layer in found.layers[: len(expected)]} <= {"lower"}


@needs("containerd", "ctr")
def test_containerd(work: Path) -> None:
    layout = Layout()
    layout.image(*LAYERS, REPEATED)
    image = layout.write_archive(work / "image.tar")
    (work / "config.toml").write_text(
        f'version = 2\nroot = "{work}/root"\nstate = "{work}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{work}/socket"\n'
    )
    ctr = ("ctr", "-a", work / "socket")
    command = ["containerd", "-c", work / "config.toml", "-l", "warn"]
    with daemon(command, work / "log", (work / "socket").exists):
        run(*ctr, "images", "import", "--base-name", "example.com/x", image)
        (work / "m").mkdir()
        run(*ctr, "images", "mount", "--rw", "example.com/x:latest", work / "m")
        try:
            (work / "m/written").write_text("x")
            rootfs, found = measured(work / "m", work)
        finally:
            run("umount", work / "m")
    check(found, read_image(image).reference, "containerd")
    assert [layer.role for layer in rootfs.layers] == ["lower"] * 7 + ["upper"]
    assert found.layers[-1].files == 1


@needs("dockerd", "docker", "containerd")
@pytest.mark.parametrize("is_shifted", [False, True])
def test_docker(work: Path, is_shifted: bool) -> None:
    image = docker_save(work / "image.tar", *LAYERS)
    options: list[object] = ["--data-root", work / "root", "--exec-root", work / "exec"]
    options += ["-p", work / "pid", "-H", f"unix://{work}/socket", "--iptables=false"]
    options += ["--bridge=none", "--storage-driver=overlay2"]
    command: list[object] = ["dockerd", *options]
    if is_shifted:
        # dockerd takes a namespace's ids from a user's; it sees one that this machine has not.
        work.chmod(0o711)
        script = ""
        for name, line in (
            ("passwd", "dockremap:x:998:998::/:/bin/false"),
            ("group", "dockremap:x:998:"),
            ("subuid", "dockremap:100000:65536"),
            ("subgid", "dockremap:100000:65536"),
        ):
            own = Path("/etc", name)
            if not own.exists():
                pytest.skip(f"needs {own}")
            (work / name).write_text(f"{own.read_text()}{line}\n")
            script += f"mount --bind {work / name} {own} && "
        script += 'exec "$@" --userns-remap=default'
        command = ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, "sh", *command]
    docker = ("docker", "-H", f"unix://{work}/socket")

    def is_up() -> bool:
        return not subprocess.run([*docker, "version"], check=False, capture_output=True).returncode

    with daemon(command, work / "log", is_up):
        run(*docker, "load", "-i", image)
        run(*docker, "create", "--name", "example", "example:latest", "/bin/sh")
        inspect = run(*docker, "inspect", "-f", "{{json .GraphDriver.Data}}", "example")
        data = json.loads(inspect)
        point = Path(data["MergedDir"])
        point.mkdir(exist_ok=True)
        value = "lowerdir={LowerDir},upperdir={UpperDir},workdir={WorkDir}".format(**data)
        run("mount", "-t", "overlay", "overlay", "-o", value, point)
        try:
            rootfs, found = measured(point, work, SHIFT if is_shifted else IDENTITY)
            made = rootfs.layers[-2].path
        finally:
            run("umount", point)
    check(found, read_image(image).reference, "docker")
    assert [layer.role for layer in rootfs.layers] == ["lower"] * 6 + ["init", "upper"]
    assert made.parent.name.endswith("-init")
    with Store.at(work / "store").manifests.open(found.layers[-2].digest) as manifest:
        paths = {entry.path for entry in parse_manifest(manifest.read())}
    assert paths > {b".dockerenv", b"etc/hosts", b"etc/resolv.conf"}
    assert found.layers[-1].entries == 0


@needs("podman")
@pytest.mark.parametrize("how", ["overlay", "fuse-overlayfs", "shifted"])
def test_podman(work: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("fuse-overlayfs")
    if how == "fuse-overlayfs" and not (program and Path("/dev/fuse").exists()):
        pytest.skip("needs fuse-overlayfs and /dev/fuse")
    layout = Layout()
    layout.image(*LAYERS)
    image = layout.write_archive(work / "image.tar")
    (work / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\nrunroot = "{work}/run"\ngraphroot = "{work}/root"\n'
        '[storage.options.overlay]\nmountopt = "nodev,metacopy=on"\n'
        + (f'mount_program = "{program}"\n' if how == "fuse-overlayfs" else "")
    )
    (work / "containers.conf").touch()
    (work / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(work / "storage.conf"))
    monkeypatch.setenv("CONTAINERS_CONF", str(work / "containers.conf"))
    monkeypatch.setenv("HOME", str(work))
    run("podman", "load", "--signature-policy", work / "policy.json", "-i", image)
    shift = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
    create = ["podman", "create", "--network", "none", *(shift if how == "shifted" else [])]
    container = run(*create, run("podman", "images", "-q").split()[0], "/bin/sh").strip()
    point = Path(run("podman", "mount", container).strip())
    try:
        rootfs, found = measured(point, work, SHIFT if how == "shifted" else IDENTITY)
    finally:
        run("podman", "umount", container)
        run("podman", "rm", container)
    check(found, read_image(image).reference, "podman")
    assert rootfs.kind == ("fuse-overlayfs" if how == "fuse-overlayfs" else "overlay")
    assert [layer.role for layer in rootfs.layers] == ["lower"] * 6 + ["upper"]


@needs("podman")
def test_podman_save(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its formats, read back, is the image that was loaded."""
    layout = Layout()
    layout.image(*LAYERS)
    image = layout.write_archive(work / "image.tar")
    storage = f'[storage]\ndriver = "vfs"\nrunroot = "{work}/run"\ngraphroot = "{work}/root"\n'
    (work / "storage.conf").write_text(storage)
    (work / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(work / "storage.conf"))
    monkeypatch.setenv("HOME", str(work))
    policy = ("--signature-policy", work / "policy.json")
    run("podman", "load", *policy, "-i", image)
    name = run("podman", "images", "-q").split()[0]
    expected = read_image(image).reference
    for form in ("docker-archive", "oci-archive", "oci-dir"):
        run("podman", "save", *policy, "--format", form, "-o", work / form, name)
        found = read_image(work / form).reference
        assert found.files == expected.files
        assert [layer.digests for layer in found.layers] == [
            layer.digests for layer in expected.layers
        ]


@needs("skopeo")
def test_skopeo_copies(work: Path) -> None:
    """Between all forms and compressions, an image's reference values stay the same."""
    layout = Layout()
    layout.image(*LAYERS)
    layout.write_directory(work / "oci")
    expected = read_image(work / "oci").reference
    for destination in (
        f"oci-archive:{work}/oci.tar:x:1",
        f"docker-archive:{work}/docker.tar:example.com/x:1",
        f"oci:{work}/again:x",
    ):
        options = ("--insecure-policy", "copy", "--quiet")
        run("skopeo", *options, f"oci:{work}/oci:latest", destination)
    for name in ("oci.tar", "docker.tar", "again"):
        found = read_image(work / name).reference
        assert found.files == expected.files
        assert found.layers[0].digests == expected.layers[0].digests
    forced = ("--insecure-policy", "copy", "--quiet", "--dest-compress-format", "zstd")
    run("skopeo", *forced, "--dest-compress", f"oci:{work}/oci:latest", f"oci:{work}/zstd:x")
    assert read_image(work / "zstd").reference.files == expected.files
