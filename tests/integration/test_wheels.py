"""The verifier's wheel: of no machine, without a host's parts, and whole all the same."""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


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
        "cima_runc.measure.dependencies", "cima_runc.measure.engine",
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


def test_as_a_user_who_is_not_root(wheels: dict[str, Path], tmp_path: Path) -> None:
    """pip installs it with its dependencies, and no compiler is wanted."""
    # Below pytest's own directory nobody but its owner may look.
    with tempfile.TemporaryDirectory() as place:
        prefix = Path(place)
        prefix.chmod(0o755)
        venv.create(prefix, with_pip=True, symlinks=True)
        pip = [prefix / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        without_compiler = {**os.environ, "PATH": f"{prefix}/bin:/nowhere", "CC": "/nowhere/cc"}
        command = [*pip, "--only-binary", ":all:", wheels["any"]]
        subprocess.run(command, check=True, env=without_compiler)
        made = subprocess.run(
            [prefix / "bin/cima", "reference", "image", tmp_path / "none.tar"],
            capture_output=True, text=True, check=False,
            user=65534 if os.geteuid() == 0 else None,
        )  # fmt: skip
    assert made.returncode == 2 and "none.tar" in made.stderr, made.stderr
