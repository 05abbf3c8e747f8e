"""Compiles what is not Python when the package is built: the sensor, for the kernel's BPF.

Each artifact lands beside its source, for an editable installation, and goes into the wheel, which
is then one for this platform only.
"""

import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MACHINE = "x86_64"


@dataclass(frozen=True)
class Artifact:
    """A file that ``command`` makes: source and target are added to it, as ``-o TARGET SOURCE``."""

    target: str
    source: str
    command: tuple[str, ...]
    needs: str
    """The Debian packages to install where it cannot be made."""


ARTIFACTS = (
    Artifact(
        target="cima_runc/sensor/sensor.bpf.o",
        source="cima_runc/sensor/sensor.bpf.c",
        command=(
            *("clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"),
            *("-D__TARGET_ARCH_x86", "-c"),
        ),
        needs="clang libbpf-dev",
    ),
)


class CustomBuildHook(BuildHookInterface):
    """Makes :data:`ARTIFACTS` and puts them into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        if platform.machine() != MACHINE:
            raise SystemExit(f"cima-runc runs on {MACHINE} only, this is {platform.machine()}")
        root = Path(self.root)
        for artifact in ARTIFACTS:
            compile_artifact(root, artifact)
            build_data["artifacts"].append(f"/{artifact.target}")
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"


def compile_artifact(root: Path, artifact: Artifact) -> None:
    """Make one artifact below ``root``; ends the build with the compiler's own words."""
    install = f"install what building takes: apt install {artifact.needs}"
    if shutil.which(artifact.command[0]) is None:
        raise SystemExit(f"{artifact.command[0]} is not installed; {install}")
    command = [*artifact.command, "-o", artifact.target, artifact.source]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        advice = f"; {install}" if "file not found" in done.stderr else ""
        raise SystemExit(f"{done.stderr}{artifact.target} could not be compiled{advice}")
