"""The verifier's wheel: of no machine, without a host's parts, and whole all the same."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_host import simulated_host, tampered
from support import oci

from cima_runc import __version__
from cima_runc.tpm.structures import parse_public
from cima_runc.verifier.enrolled import enrolled_ak_file

TOP = Path(__file__).resolve().parents[2]
NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in ("any", "host"):
        directory = tmp_path_factory.mktemp(kind)
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory],
            cwd=TOP, check=True, capture_output=True, env={**os.environ, "CIMA_WHEEL": kind},
        )  # fmt: skip
        [made[kind]] = directory.glob("*.whl")
    return made


def test_the_verifiers_wheel_has_no_binary_and_nothing_of_a_host(wheels: dict[str, Path]) -> None:
    assert wheels["any"].name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheels["any"]) as archive:
        names = archive.namelist()
        assert all(archive.read(name)[:4] != b"\x7fELF" for name in names)
    assert not [name for name in names if name.startswith(("cima_runc/agent", "cima_runc/sensor"))]
    assert not [name for name in names if ".data/" in name or name.endswith((".c", ".h", ".o"))]


def test_the_hosts_wheel_has_its_programs(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["host"]) as archive:
        names = {name.partition(".data/")[2] for name in archive.namelist()}
    hooks = {f"data/libexec/cima/hooks/{name}" for name in ("prestart", "poststart", "poststop")}
    assert names >= hooks | {"data/bin/cima-runc", "scripts/cima-agent"}


def test_a_verifier_without_what_a_host_needs(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Each module is imported where neither tpm2-pytss nor psutil can be."""
    prefix = tmp_path / "venv"
    venv.create(prefix, symlinks=True)
    [packages] = (prefix / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheels["any"]) as archive:
        archive.extractall(packages)
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "others.pth").write_text(libraries + "\n")
    code = """
import importlib, pkgutil, sys
sys.modules["tpm2_pytss"] = sys.modules["psutil"] = None
import cima_runc
assert cima_runc.__file__.startswith(sys.prefix), cima_runc.__file__
left = {"cima_runc.tpm." + n for n in
        "activation device keys quote call_timeouts nv state trouble swtpm".split()} | {
        "cima_runc.measure.host_services", "cima_runc.measure.engine",
        "cima_runc.cli.configure", "cima_runc.cli.configure_fleet", "cima_runc.cli.doctor"}
for found in pkgutil.walk_packages(cima_runc.__path__, "cima_runc."):
    if found.name == "cima_runc.fleet.migrations.env":
        continue  # alembic runs it
    if found.name.startswith(("cima_runc.tpm.", "cima_runc.measure", "cima_runc.cli.")) and (
        found.name in left):
        continue
    importlib.import_module(found.name)
    print(found.name)
"""
    ran = subprocess.run(
        [prefix / "bin/python3", "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert {"cima_runc.verifier.verify", "cima_runc.verifier.enrol"} <= set(ran.stdout.split())
    shown = subprocess.run(
        [prefix / "bin/python3", "-I", "-m", "cima_runc.cli.main", "--help"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    commands = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert "verify" in commands and not commands & {"configure", "doctor"}
    refused = subprocess.run(
        [prefix / "bin/python3", "-I", "-m", "cima_runc.cli.main", "doctor"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "cima doctor is for a host" in refused.stderr


PLATFORMS = {
    "Debian": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "arm64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    "macOS": ("macosx_11_0_arm64", "macosx_12_0_arm64"),
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
OF_RELEASES = {"12": "3.11", "13": "3.13", "forky": "3.14"}
"""The Python of each release, which has no other."""
COMPILERS = ("cc", "gcc", "c++", "clang", "rustc", "cargo", "make")

TRY = """
set -eu
for tool in $COMPILERS; do if command -v "$tool"; then exit 90; fi; done
[ "$(id -u)" != 0 ]
python=$1
"$python" -m venv "$2"
"$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \\
    --find-links "$3/wheels-$4" "$3/$5"
cd "$2"
cima=bin/cima
verify="verify --nonce $NONCE --ak $3/ak.pem --json"
status() { "$@" && echo 0 || echo $?; }
"$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
$cima version
status $cima $verify "$3/evidence.json" >true
status $cima $verify "$3/tampered.json" >tampered
tail -n 1 true tampered
$cima reference image "$3/image.tar" -o image.json >&2
head -n -1 true | sed 's/^/verdict: /'
sed 's/^/reference: /' image.json
"""


def pip(*words: str | Path, python: str, platform: str) -> str:
    """Run pip for an interpreter and a machine that need not be here; nothing may be compiled."""
    platforms = [word for each in PLATFORMS[platform] for word in ("--platform", each)]
    command = [
        *(sys.executable, "-m", "pip", *words, "--disable-pip-version-check"),
        *("--only-binary", ":all:", "--python-version", python, "--implementation", "cp"),
        *platforms,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def given(wheels: dict[str, Path]) -> Iterator[Path]:
    """A directory that everybody may read: the wheel, evidence and what it is verified with."""
    with tempfile.TemporaryDirectory(prefix="cima-wheels-") as directory:
        root = Path(directory)
        shutil.copy(wheels["any"], root)
        (root / "host").mkdir()
        with simulated_host(root / "host") as host:
            host.start("plain")
            raw = host.evidence("plain", NONCE)
            public = host.attester.attestation_key().public
        shutil.rmtree(root / "host")
        (root / "ak.pem").write_bytes(enrolled_ak_file(parse_public(public)))
        (root / "evidence.json").write_bytes(raw)
        (root / "tampered.json").write_bytes(tampered(raw, owner__blind="5e" * 32))
        layout = oci.Layout()
        layout.image(oci.archive(oci.member("bin/tool", b"tool", mode=0o755)), config={})
        with tarfile.open(root / "image.tar", "w") as archive:
            archive.add(layout.write_directory(root / "image"), ".")
        yield root
        subprocess.run(["chmod", "-R", "u+rwX", root], check=True)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", ["arm64", "macOS"])
def test_nothing_is_compiled_on_other_machines(
    platform: str, python: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """All that pip would install there is built already."""
    words = ("install", "--dry-run", "--target", tmp_path, wheels["any"])
    told = pip(*words, python=python, platform=platform)
    assert "cryptography-" in told.splitlines()[-1], told


@pytest.mark.parametrize("where", [*OF_RELEASES, "3.12"])
def test_as_a_user_who_is_not_root(where: str, wheels: dict[str, Path], given: Path) -> None:
    """pip installs it, and it verifies and makes reference values, as on this machine.

    In the file system of each release, without compilers; with 3.12, which none has, where this
    machine has it.
    """
    version = OF_RELEASES.get(where, where)
    (given / f"wheels-{version}").mkdir(exist_ok=True)
    words = ("download", "--quiet", "--dest", given / f"wheels-{version}", wheels["any"])
    pip(*words, python=version, platform="Debian")
    subprocess.run(["chmod", "-R", "a+rX", given], check=True)
    tell = ["env", f"NONCE={NONCE.hex()}", "sh", "-c", TRY, "sh"]
    if where in OF_RELEASES:
        variables = [f"COMPILERS={' '.join(COMPILERS)}", "TMPDIR=/tmp"]
        words = ["/usr/bin/python3", "/tmp/venv", "/given", version, wheels["any"].name]
        command = [TOP / "lab/in_tree.sh", where, "nobody", given, "env", *variables, *tell, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        done = on_this_machine(version, tell, wheels["any"].name, given)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == version
    assert lines[1] == f"cima-runc {__version__}"
    assert [line for line in lines if line in ("0", "1", "2")] == ["2", "1"], done.stdout
    assert shown(lines, "verdict: ") == here(given, "verify")
    assert shown(lines, "reference: ") == here(given, "reference")


def on_this_machine(
    version: str, tell: list[str], wheel: str, given: Path
) -> subprocess.CompletedProcess[str]:
    """Run it with an interpreter of that version, if there is one, as somebody else than root."""
    elsewhere = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    found = [Path(sys.executable)] if sys.version.startswith(f"{version}.") else elsewhere
    if not found:
        pytest.skip(f"no Python {version} on this machine")
    # It may be in root's home: who runs it can read all and is not root.
    capability = "+dac_read_search"
    nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    rights = [f"--inh-caps={capability}", f"--ambient-caps={capability}"]
    as_nobody = ["setpriv", *nobody, *rights] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="cima-venv-") as place:
        os.chmod(place, 0o777)
        words = [found[0], f"{place}/venv", given, version, wheel]
        command = [*as_nobody, "env", "COMPILERS=", *tell[1:], *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def shown(lines: list[str], mark: str) -> Any:
    text = "\n".join(line.removeprefix(mark) for line in lines if line.startswith(mark))
    return without_times(json.loads(text))


def here(given: Path, what: str) -> Any:
    """What the same gives with this checkout and its Python."""
    out = given / "own.json"
    words = {
        "verify": ["verify", "--nonce", NONCE.hex(), "--ak", given / "ak.pem", "--json",
                   given / "evidence.json"],
        "reference": ["reference", "image", given / "image.tar", "-o", out],
    }[what]  # fmt: skip
    command = [Path(sys.executable).parent / "cima", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return without_times(json.loads(done.stdout if what == "verify" else out.read_bytes()))


def without_times(value: Any) -> Any:
    """The same but for when it was made."""
    if isinstance(value, dict):
        return {
            k: without_times(v) for k, v in value.items() if k not in ("when", "created", "time")
        }
    return [without_times(each) for each in value] if isinstance(value, list) else value
