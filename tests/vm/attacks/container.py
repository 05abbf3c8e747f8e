"""Containers as engines make them, each with the attacks in its image, and what is seen of each."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cima_runc.cli.main import app
from tests.support import oci
from tests.vm import guest
from tests.vm.attacks.attacks import Place, Rights
from tests.vm.images import _tar

BUILT = Path(__file__).parent / "build"
WORK = Path("/root/attacks")
IMAGE = "attacks"
ARCHIVE = WORK / "image.tar"
REFERENCE = WORK / "reference.json"
POLICY = WORK / "policy.toml"
SECONDS = 300
"""How long an attack may take; killed, it has to be gone in this time too."""

HONEST = {"code": "code.good", "program": "program.good", "script": "script.good"}


@dataclass(frozen=True)
class Seen:
    """What came of an attack."""

    said: str
    evidence: frozenset[str]
    verdict: str
    findings: tuple[str, ...]

    @property
    def foreign_code_ran(self) -> bool:
        return "ran: evil" in self.said

    @property
    def absent(self) -> str:
        """What this kernel does not have, so that the attack could not be tried."""
        lines = [line for line in self.said.splitlines() if line.startswith("absent: ")]
        return lines[0] if lines else ""


def make_image() -> None:
    """The image, its reference values, and the policy that an honest run is trusted with, unless
    another module made them."""
    if POLICY.exists():
        return
    WORK.mkdir(exist_ok=True)
    tree = WORK / "tree"
    for directory in ("bin", "data", "tmp", "proc", "sys", "dev", "etc", "mnt"):
        (tree / directory).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    for program in ("attacks", "spawn"):
        shutil.copy(BUILT / program, tree / "bin")
        (tree / "bin" / program).chmod(0o755)
    put_honest_files(tree / "data")
    shutil.copy(BUILT / "code.good", tree / "etc/code")
    config = {"Cmd": ["/bin/attacks", "honest"]}
    oci.docker_save(ARCHIVE, _tar(tree), tag=f"{IMAGE}:latest", config=config)
    guest.ok("docker", "load", "-i", ARCHIVE)
    cima("reference", "image", ARCHIVE, "-o", REFERENCE)
    every = [f"CAP_{name}" for name in capabilities()]
    POLICY.write_text(
        "[config]\nallow_any_args = true\nallow_privileged = true\n"
        f"capabilities = {json.dumps(every)}\ndevices = ['/dev/*']\n"
        "mounts = [{destination = '/data'}]\n"
    )


def put_honest_files(directory: Path) -> None:
    for name, built in HONEST.items():
        shutil.copy(BUILT / built, directory / name)
        (directory / name).chmod(0o755)


def capabilities() -> list[str]:
    shown = guest.ok("setpriv", "--list-caps").split()
    return [name.upper() for name in shown if not name.startswith("cap_")]


def cima(*arguments: str | Path) -> tuple[int, str]:
    """Our command in this process: a new Python takes seconds in an emulated guest."""
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


@cache
def dockers_config(privileged: bool) -> str:
    """The OCI configuration that Docker itself makes for the image."""
    options = ("--privileged",) if privileged else ()
    command = guest.docker("runc", "-d", *options, IMAGE, "/bin/busybox", "sleep", "600")
    container = guest.ok(*command).strip()
    state = Path("/run/containerd/io.containerd.runtime.v2.task/moby", container)
    config = json.loads((state / "config.json").read_text())
    guest.ok("docker", "rm", "-f", container)
    config["hooks"] = {}
    config["linux"].pop("cgroupsPath", None)
    config["process"].pop("apparmorProfile", None)
    own = f"/containers/{container}/"
    config["mounts"] = [each for each in config["mounts"] if own not in each["source"]]
    return json.dumps(config)


@cache
def layer() -> str:
    """Docker's directory of the image's one layer."""
    shown = guest.ok("docker", "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", IMAGE)
    return shown.strip()


def new_volume(kind: Place) -> Path:
    """A file system of this kind, made and mounted."""
    at = WORK / f"volume-{kind}-{next(_numbers)}"
    at.mkdir()
    if kind == "tmpfs":
        guest.ok("mount", "-t", "tmpfs", "none", at)
        return at
    disk = at.with_suffix(".disk")
    with disk.open("wb") as file:
        file.truncate(400 << 20)
    # Blocks of a page: 6.1 has fs-verity for no others.
    options = {"ext4": ["-O", "verity", "-b", "4096"]}
    guest.ok(f"mkfs.{kind}", "-q", *options.get(kind, []), disk)
    guest.ok("mount", "-o", "loop", disk, at)
    return at


@cache
def shared_volume(kind: Place) -> Path:
    """A file system of this kind for all attacks that leave it as it is."""
    return new_volume(kind)


_numbers = iter(range(10**6))


@contextmanager
def bundle(command: list[str], rights: Rights, data: Path | None) -> Iterator[tuple[Path, str]]:
    """A bundle for the runtime over the image's layer, and a name for its container."""
    name = f"attack-{next(_numbers)}"
    directory = WORK / name
    layers = {part: directory / part for part in ("upper", "work", "rootfs")}
    for part in layers.values():
        part.mkdir(parents=True)
    options = f"lowerdir={layer()},upperdir={layers['upper']},workdir={layers['work']}"
    guest.ok("mount", "-t", "overlay", "overlay", "-o", options, layers["rootfs"])
    config: dict[str, Any] = json.loads(dockers_config(rights.startswith("privileged")))
    config["root"]["path"] = str(layers["rootfs"])
    config["process"] |= {"args": command, "terminal": False, "cwd": "/"}
    if rights == "ctr":
        config["linux"].pop("seccomp", None)
    if rights.endswith("cgroupns=host"):
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [each for each in spaces if each["type"] != "cgroup"]
    if data:
        config["mounts"].append(
            {"destination": "/data", "type": "bind", "source": str(data), "options": ["bind", "rw"]}
        )
    (directory / "config.json").write_text(json.dumps(config))
    try:
        yield directory, name
    finally:
        guest.run("umount", "-l", layers["rootfs"])


def run(directory: Path, name: str, seconds: float = SECONDS) -> str:
    """Run it to its end, or kill it, and return what it said."""
    process = subprocess.Popen(
        ["cima-runc", "run", "--bundle", directory, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
    )
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        guest.run("cima-runc", "kill", name, "KILL")
        try:
            return process.communicate(timeout=SECONDS)[0] + "\nkilled\n"
        except subprocess.TimeoutExpired:
            return "cannot be killed\n"


def fresh(place: Place) -> Path | None:
    """A new directory on such a volume, with the honest files; none for the image's own."""
    return None if place == "overlay" else filled(shared_volume(place))


@contextmanager
def fresh_volume(place: Place) -> Iterator[Path]:
    """The same on a volume that nobody else gets afterwards."""
    at = new_volume(place)
    try:
        yield filled(at)
    finally:
        guest.run("umount", "-l", at)


def filled(at: Path) -> Path:
    directory = at / str(next(_numbers))
    directory.mkdir()
    put_honest_files(directory)
    return directory


def evidence(container: str, said: str) -> frozenset[str]:
    """The kinds of evidence in a container's log."""
    found = guest.records(container)
    true = {line[6:].strip() for line in said.splitlines() if line.startswith("true: ")}
    kinds = {"true digest" for file in guest.files(found) if file.digest in true}
    for content in guest.contents(found, "violation") + guest.contents(found, "memory"):
        kinds.add(str(content.get("kind", "violation")))
        if content["denied"]:
            kinds.add("denied")
    if guest.contents(found, "lost"):
        kinds.add("lost")
    return frozenset(kinds)


def appraised(container: str) -> tuple[str, tuple[str, ...]]:
    """The verdict, and the rules that failed."""
    options = ("--reference", REFERENCE, "--policy", POLICY, "--json")
    shown = json.loads(cima("appraise", container, *options)[1])
    failed = {each["rule"] for each in shown["findings"] if each["severity"] == "fail"}
    return shown["verdict"], tuple(sorted(failed))


def attack(command: str, rights: Rights, place: Place, data: Path | None = None) -> Seen:
    """Run one container with one attack and look at what is seen of it."""
    with bundle(["/bin/attacks", *command.split()], rights, data or fresh(place)) as (
        directory,
        name,
    ):
        said = run(directory, name)
        assert name in {row["id"] for row in guest.ps()}, f"{name} was not started: {said}"
        ended = time.monotonic() + SECONDS
        while guest.row(name)["state"] != "stopped" and time.monotonic() < ended:
            time.sleep(0.1)
        verdict, findings = appraised(name)
        return Seen(said, evidence(name, said), verdict, findings)
