"""Is what runs what the image is? Each engine, each kind of image, and each way to cheat."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cima_runc.cli.main import app
from tests.support import oci
from tests.vm import guest, images
from tests.vm.guest import Ran, Settings

ANY_COMMAND = "[config]\nallow_any_args = true\n"


def with_docker(image: str, *command: str, options: tuple[str, ...] = ()) -> Ran:
    return guest.run(*guest.docker("cima-runc", "--rm", *options, image, *command))


def with_podman(image: str, *command: str, options: tuple[str, ...] = ()) -> Ran:
    started = guest.podman("cima-runc", "--rm", *options, f"localhost/{image}", *command)
    return guest.run(*started)


def with_ctr(image: str, *command: str, options: tuple[str, ...] = ()) -> Ran:
    name = f"appraised-{len(guest.ps())}"
    binary = shutil.which("cima-runc")
    reference = f"docker.io/library/{image}:latest"
    return guest.run(
        *("ctr", "run", "--rm", f"--runc-binary={binary}", *options, reference, name, *command)
    )


Engine = Callable[..., Ran]
ENGINES = [with_docker, with_podman, with_ctr]


def cima(*arguments: str | Path) -> Ran:
    """Our command in this process: a new Python takes seconds in an emulated guest."""
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, "")


@cache
def reference(image: str) -> Path:
    path = images.DIRECTORY / f"{image}.json"
    made = cima("reference", "image", images.archive(image), "-o", path)
    assert made.code == 0, made
    return path


@dataclass(frozen=True)
class Appraised:
    code: int
    verdict: str
    findings: list[dict[str, Any]]

    @property
    def failed(self) -> dict[str, str]:
        """Path by rule of what makes it untrusted."""
        return {f["rule"]: f["path"] for f in self.findings if f["severity"] == "fail"}


def last_container() -> str:
    found: str = guest.ps()[-1]["id"]
    return found


def appraise(
    container: str, image: str, tmp_path: Path, policy: str = "", host: Path | None = None
) -> Appraised:
    options: list[str | Path] = ["--reference", reference(image)]
    if policy:
        (tmp_path / "policy.toml").write_text(policy)
        options += ["--policy", tmp_path / "policy.toml"]
    if host is not None:
        options += ["--reference", host]
    ran = cima("appraise", container, *options, "--json")
    shown = json.loads(ran.out)
    return Appraised(ran.code, shown["verdict"], shown["findings"])


def untrusted(ran: Ran, image: str, tmp_path: Path, policy: str = ANY_COMMAND) -> dict[str, str]:
    """Paths by rules of what makes the latest container untrusted."""
    appraised = appraise(last_container(), image, tmp_path, policy)
    assert (appraised.code, appraised.verdict) == (1, "UNTRUSTED"), ran
    return appraised.failed


def trusted(image: str, tmp_path: Path, policy: str = "") -> Appraised:
    """The latest container's appraisal, which must come out well."""
    appraised = appraise(last_container(), image, tmp_path, policy)
    assert (appraised.code, appraised.verdict) == (0, "TRUSTED"), appraised.failed
    return appraised


def rootfs() -> dict[str, Any]:
    """What was measured of the latest container's root filesystem."""
    found = [record["content"] for record in guest.records(last_container())]
    measured: dict[str, Any] = next(each for each in found if each.get("type") == "rootfs")
    return measured


# -- the same digests, and trusted -----------------------------------------------------------------


LARGE = pytest.param("debian", marks=pytest.mark.debian())
"""Some 10,000 files take minutes under emulation."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("image", ["busybox", "odd", LARGE])
def test_an_untouched_run_is_trusted(image: str, engine: Engine, tmp_path: Path) -> None:
    wanted = json.loads(reference(image).read_text())
    ran = engine(image)
    assert ran.code == 0, ran
    measured = [layer["digest"] for layer in rootfs()["layers"] if layer["kind"] == "lower"]
    known = [
        {layer["digest"], *layer.get("other_digests", {}).values()} for layer in wanted["layers"]
    ]
    assert len(measured) == len(known)
    for number, (digest, digests) in enumerate(zip(measured, known, strict=True)):
        assert digest in digests, f"layer {number}: {differences(number, digest, image, tmp_path)}"
    trusted(image, tmp_path)


def differences(number: int, digest: str, image: str, tmp_path: Path) -> str:
    """How the host's manifest of a layer differs from the image's."""
    output = tmp_path / "manifests"
    archive = images.archive(image)
    cima("reference", "image", archive, "-o", tmp_path / "x.json", "--manifests", output)
    wanted = json.loads(reference(image).read_text())["layers"][number]["digest"]
    own = guest.STATE / "rootfs/manifests" / f"{digest[7:]}.mtree"
    return guest.run("diff", output / f"{wanted[7:]}.mtree", own).out[:4000]


@pytest.mark.debian()
def test_the_debian_like_image_is_as_large_as_it_should_be() -> None:
    files = json.loads(reference("debian").read_text())["files"]
    assert len(files) > 8000
    assert any(int(file["mode"], 8) & 0o4000 for file in files.values())


@pytest.mark.debian("13")
@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_what_an_engine_saves_gives_the_same_reference_values(engine: str, tmp_path: Path) -> None:
    wanted = json.loads(reference("odd").read_text())
    name = "odd" if engine == "docker" else "localhost/odd"
    guest.ok(engine, "save", "-o", tmp_path / "saved.tar", name)
    out = tmp_path / "saved.json"
    cima("reference", "image", tmp_path / "saved.tar", "-o", out)
    found = json.loads(out.read_text())
    assert [layer["digest"] for layer in found["layers"]] == [
        layer["digest"] for layer in wanted["layers"]
    ]
    assert found["files"] == wanted["files"]


@pytest.mark.debian("12", "forky")
def test_users_that_are_others_on_the_host(tmp_path: Path) -> None:
    reference("odd")
    ran = with_podman("odd", options=("--uidmap=0:100000:65536",))
    assert ran.code == 0, ran
    trusted("odd", tmp_path)


def test_a_user_whom_the_image_does_not_know(tmp_path: Path) -> None:
    """Podman adds a line for it to the image's /etc/passwd; what others add is found."""
    reference("numbered")
    name = f"numbered-{os.getpid()}"
    ran = guest.run(*guest.podman("cima-runc", f"--name={name}", "localhost/numbered"))
    assert (ran.code, ran.out) == (0, "the script ran\n"), ran
    assert "./etc/passwd" in rootfs()["layers"][-1]["manifest"]
    trusted("numbered", tmp_path)
    guest.ok("podman", "--runtime=cima-runc", "start", "-a", name)
    trusted("numbered", tmp_path, "allow_restarts = true\n")
    guest.ok("podman", "rm", name)
    ran = with_podman("numbered", options=("--passwd-entry=toor::0:0::/:/bin/sh",))
    assert ran.code == 0, ran
    assert untrusted(ran, "numbered", tmp_path) == {"rootfs.written": "/etc/passwd"}


@pytest.mark.debian("12")
def test_fuse_overlayfs(tmp_path: Path) -> None:
    """It is measured layer by layer too, from the command line of the process that serves it.

    That can answer each read anew: so a policy has to name what may run from it nevertheless.
    """
    # In a place of its own: Podman goes on with FUSE where it once had it.
    place = ("--root=/srv/fuse", "--runroot=/run/fuse")
    program = "--storage-opt=overlay.mount_program=/usr/bin/fuse-overlayfs"
    wanted = reference("odd")
    guest.ok("podman", *place, program, "load", "-i", images.archive("odd"))

    def start(*command: str) -> None:
        name, *rest = guest.podman("cima-runc", "--rm", "localhost/odd", *command)
        ran = guest.run(name, *place, program, *rest)
        assert ran.code == 0, ran

    start()
    assert rootfs()["filesystem"] == "fuse-overlayfs"
    assert appraise(last_container(), "odd", tmp_path).failed.keys() == {"records.unstable"}
    path = tmp_path / "suggested.toml"
    assert cima("policy", "suggest", last_container(), "--reference", wanted, "-o", path).code == 0
    policy = path.read_text()
    assert "allow_violations" not in policy
    start()
    trusted("odd", tmp_path, policy)
    start("/bin/sh", "-c", "cp /bin/env /tmp/added; /tmp/added -i /bin/true; true")
    failed = appraise(last_container(), "odd", tmp_path, policy).failed
    assert failed["file.added"] == "/tmp/added"
    assert "records.unstable" in failed


@pytest.mark.debian("13")
@pytest.mark.parametrize("engine", [with_docker, with_podman])
def test_options_that_engines_serve_themselves(engine: Engine, tmp_path: Path) -> None:
    options = ("--read-only", "--tmpfs=/tmp", "--workdir=/", "--hostname=box", "--cap-drop=all")
    ran = engine("busybox", options=options)
    assert ran.code == 0, ran
    trusted("busybox", tmp_path)


@pytest.mark.debian("12")
@pytest.mark.skipif(shutil.which("docker-init") is None, reason="the guest has no docker-init")
def test_dockers_init_program_is_no_drift(tmp_path: Path) -> None:
    ran = with_docker("busybox", options=("--init",))
    assert ran.code == 0, ran
    appraised = trusted("busybox", tmp_path)
    assert "file.init" in {finding["rule"] for finding in appraised.findings}


# -- what was written after the start --------------------------------------------------------------

LIBRARY = next(path for path in guest.libraries() if "/libc.so" in path)

DRIFT = {
    "a copied program": (
        with_docker,
        "cp /bin/busybox /tmp/tool; ln -s true /tmp/true; /tmp/tool true; true",
        {"file.added": "/tmp/tool"},
    ),
    "a replaced library": (
        with_podman,
        f"cp {LIBRARY} /tmp/l; echo x >> /tmp/l; cp /tmp/l {LIBRARY}; /bin/env -i /bin/true; true",
        {"file.changed": LIBRARY},
    ),
    "an edited script": (
        with_ctr,
        "echo 'echo more' >> /bin/script; /bin/script; true",
        {"file.changed": "/bin/script"},
    ),
}


@pytest.mark.debian("13")
@pytest.mark.parametrize("case", list(DRIFT))
def test_drift(case: str, tmp_path: Path) -> None:
    engine, command, expected = DRIFT[case]
    reference("busybox")
    ran = engine("busybox", "/bin/sh", "-c", command)
    assert ran.code == 0, ran
    assert untrusted(ran, "busybox", tmp_path) == expected
    shown = cima("appraise", last_container(), "--reference", reference("busybox"))
    assert shown.code == 1
    assert shown.out.startswith("UNTRUSTED")
    assert "drift" in shown.out
    assert next(iter(expected.values())) in shown.out


@pytest.mark.debian("12")
def test_a_suggested_policy_makes_the_same_run_trusted(tmp_path: Path) -> None:
    _, command, _ = DRIFT["a copied program"]
    with_docker("busybox", "/bin/sh", "-c", command, options=("-v", "/srv:/data:ro"))
    container, path = last_container(), tmp_path / "suggested.toml"
    options = ("--reference", reference("busybox"), "-o", path)
    assert cima("policy", "suggest", container, *options).code == 0
    assert "/tmp/tool" in cima("policy", "check", path).out
    trusted("busybox", tmp_path, path.read_text())


@pytest.mark.debian("12")
def test_what_a_container_left_is_found_when_it_starts_again(tmp_path: Path) -> None:
    name = f"again-{os.getpid()}"
    reference("busybox")
    edit = "grep -q changed /bin/script || echo '# changed' >> /bin/script"
    guest.run(*guest.docker("cima-runc", f"--name={name}", "busybox", "/bin/sh", "-c", edit))
    ran = guest.run("docker", "start", "-a", name)
    failed = untrusted(ran, "busybox", tmp_path)
    assert failed == {"rootfs.written": "/bin/script"}
    guest.ok("docker", "rm", name)


# -- the host --------------------------------------------------------------------------------------


@pytest.fixture
def cache_setting(request: pytest.FixtureRequest) -> Iterator[str]:
    with Settings(f'[rootfs]\ncache = "{request.param}"\n'):
        guest.restart_agent()
        yield request.param
    guest.restart_agent()


@pytest.mark.debian("12")
@pytest.mark.parametrize("cache_setting", ["on", "off"], indirect=True)
def test_a_layer_changed_on_the_host_between_two_starts(cache_setting: str, tmp_path: Path) -> None:
    reference("odd")
    with_docker("odd")
    trusted("odd", tmp_path)
    inspected = guest.ok("docker", "inspect", "-f", "{{json .GraphDriver.Data}}", "odd")
    data = json.loads(inspected)
    layers = [data["UpperDir"], *data.get("LowerDir", "").split(":")]
    file = next(path for path in (Path(layer, "owned/file") for layer in layers) if path.exists())
    before, times = file.read_bytes(), file.stat()
    file.write_bytes(bytes(byte ^ 1 for byte in before))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        ran = with_docker("odd")
        failed = untrusted(ran, "odd", tmp_path)
        assert failed == {"rootfs.layer": "layer 1 of 4, from the bottom"}
    finally:
        file.write_bytes(before)


# What each engine writes for each of these is compared in tests/unit/verifier/test_engines.py.


@pytest.mark.debian("13")
def test_privileged(tmp_path: Path) -> None:
    reference("busybox")
    ran = with_docker("busybox", options=("--privileged",))
    assert ran.code == 0, ran
    failed = untrusted(ran, "busybox", tmp_path)
    assert {"config.privileged", "config.capabilities"} <= failed.keys()
    assert "privileged         YES" in cima("show", last_container()).out


@pytest.mark.debian("12")
def test_a_mounted_directory_of_the_host(tmp_path: Path) -> None:
    reference("busybox")
    ran = with_podman("busybox", options=("-v", "/srv:/data"))
    assert ran.code == 0, ran
    assert untrusted(ran, "busybox", tmp_path) == {"config.mount": "/data"}
    assert "/data rw FROM THE HOST: /srv" in cima("show", last_container()).out
    policy = "[config]\nmounts = [{destination = '/data', source = '/srv'}]\n"
    trusted("busybox", tmp_path, policy)


@pytest.mark.debian("13")
def test_a_namespace_of_the_host(tmp_path: Path) -> None:
    reference("busybox")
    ran = with_ctr("busybox", options=("--net-host",))
    assert ran.code == 0, ran
    failed = untrusted(ran, "busybox", tmp_path)
    assert failed["config.namespace"] == "linux.namespaces"


@pytest.mark.debian("12")
def test_the_hosts_network_by_the_name_that_docker_has_for_it(tmp_path: Path) -> None:
    reference("busybox")
    options = ("--rm", "--runtime=cima-runc", "--network=host")
    ran = guest.run("docker", "run", *options, "busybox")
    assert ran.code == 0, ran
    assert "config.namespace" in untrusted(ran, "busybox", tmp_path)


@pytest.mark.debian("13")
def test_a_container_of_another_image(tmp_path: Path) -> None:
    reference("busybox")
    ran = with_docker("busybox")
    # This one begins with the same layer.
    assert "rootfs.layers" in untrusted(ran, "odd", tmp_path)
    archive = oci.docker_save(tmp_path / "other.tar", oci.archive(oci.member("other")))
    assert cima("reference", "image", archive, "-o", tmp_path / "other.json").code == 0
    shown = cima("appraise", last_container(), "--reference", tmp_path / "other.json")
    assert shown.code == 1
    assert "fail rootfs.image: no layer is one of" in shown.out


@pytest.mark.debian("12")
def test_an_upgraded_runc(tmp_path: Path) -> None:
    reference("busybox")
    with_docker("busybox")
    host = tmp_path / "host.json"

    def is_complete() -> bool:
        assert cima("reference", "host", "-o", host).code == 0
        found = appraise(last_container(), "busybox", tmp_path, host=host)
        return found.verdict == "TRUSTED"

    guest.wait_for("the dependencies are all recorded", is_complete)
    runc = Path(shutil.which("runc") or "")
    kept = runc.with_suffix(".kept")
    runc.rename(kept)
    try:
        shutil.copy(kept, runc)
        with runc.open("ab") as file:
            file.write(b"upgraded")
        ran = with_docker("busybox")
        assert ran.code == 0, ran
        container = last_container()

        def named() -> bool:
            found = appraise(container, "busybox", tmp_path, host=host)
            return found.failed.get("dependency.changed") == str(runc)

        guest.wait_for("the other runc is named", named)
        assert appraise(container, "busybox", tmp_path, host=host).code == 1
    finally:
        kept.rename(runc)


@pytest.mark.debian("13")
def test_what_cannot_be_appraised(tmp_path: Path) -> None:
    ran = guest.run("cima", "appraise", "nobody", "--reference", reference("busybox"))
    assert (ran.code, ran.out) == (2, "")
    ran = guest.run("cima", "appraise", last_container(), "--reference", "/dev/null")
    assert ran.code == 2
    (tmp_path / "policy.toml").write_text("[config]\ncolour = 1\n")
    options = ("--reference", reference("busybox"), "--policy", tmp_path / "policy.toml")
    ran = guest.run("cima", "appraise", last_container(), *options)
    assert ran.code == 2
    assert "config.colour" in ran.err
