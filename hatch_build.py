"""Makes two wheels: a host's, with what is not Python compiled, and a verifier's for any machine.

For Linux on x86-64 the sensor, the launcher and the hooks are compiled. The sensor lands beside
its source, for an editable installation; the programs land in ``build/native``; all of it goes
into the wheel. With ``CIMA_WHEEL=any`` in the environment, or on another machine, nothing is
compiled, and the wheel holds what a verifier needs: no agent, no sensor, nothing that changes an
engine's settings.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MACHINE = ("Linux", "x86_64")

HOST_FILES = {
    "build/native/cima-runc": "bin/cima-runc",
    "native/prepare.py": "libexec/cima/prepare.py",
    "hooks/hook.py": "libexec/cima/hook.py",
    "examples/install.sh": "share/cima/install.sh",
    "examples/ima-policy": "share/cima/ima-policy",
    "examples/cima-agent.service": "share/cima/cima-agent.service",
    "examples/cima-agent.socket": "share/cima/cima-agent.socket",
    "build/native/prestart": "libexec/cima/hooks/prestart",
    "build/native/settled": "libexec/cima/hooks/settled",
    "build/native/poststart": "libexec/cima/hooks/poststart",
    "build/native/poststop": "libexec/cima/hooks/poststop",
}
"""Where a host's files that are no modules go, below the prefix of the installation."""
HOST_SCRIPTS = {"native/cima-agent": "cima-agent"}
NOT_THE_VERIFIERS = (
    "/cima_runc/agent",
    "/cima_runc/doctor",
    "/cima_runc/engines",
    "/cima_runc/sensor",
)


@dataclass(frozen=True)
class Artifact:
    """A file that ``command`` makes: source and target are added to it, as ``-o TARGET SOURCE``."""

    target: str
    source: str
    command: tuple[str, ...]
    needs: str
    """The Debian packages to install where it cannot be made."""


_MUSL = "/usr/lib/x86_64-linux-musl"
_STATIC_C = (
    *("musl-gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"),
    *("-fPIE", "-fstack-protector-strong", "-fcf-protection", "-s"),
    *("-static", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker,-z,relro,-z,now,-z,noexecstack"),
    *(f"{_MUSL}/rcrt1.o", f"{_MUSL}/crti.o", f"{_MUSL}/crtn.o"),
)
"""Static, so that no LD_ variable of the caller reaches them; position-independent; with musl,
since glibc asks the processor what it can do before main(), which takes 0.6 ms in a guest."""


def _hook(stage: str) -> Artifact:
    return Artifact(
        target=f"build/native/{stage}",
        source="hooks/hook.c",
        command=(*_STATIC_C, f'-DSTAGE="{stage}"'),
        needs="gcc musl-tools",
    )


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
    Artifact(
        target="build/native/cima-runc",
        source="native/cima-runc.c",
        command=_STATIC_C,
        needs="gcc musl-tools",
    ),
    _hook("prestart"),
    _hook("settled"),
    _hook("poststart"),
    _hook("poststop"),
)


class CustomBuildHook(BuildHookInterface):
    """Makes :data:`ARTIFACTS` and puts them into the wheel, or leaves out what is a host's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get("CIMA_WHEEL", "host")
        if wanted not in ("any", "host"):
            raise SystemExit(f"CIMA_WHEEL is {wanted!r}: it is any or host")
        if wanted == "any" or (platform.system(), platform.machine()) != MACHINE:
            if version != "editable":
                self.build_config.target_config["exclude"] = list(NOT_THE_VERIFIERS)
            return
        root = Path(self.root)
        for artifact in ARTIFACTS:
            compile_artifact(root, artifact)
            if artifact.target.startswith("cima_runc/"):
                build_data["artifacts"].append(f"/{artifact.target}")
        build_data["shared_data"] |= {str(root / file): to for file, to in HOST_FILES.items()}
        build_data["shared_scripts"] |= {str(root / file): to for file, to in HOST_SCRIPTS.items()}
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"


def compile_artifact(root: Path, artifact: Artifact) -> None:
    """Make one artifact below ``root``; ends the build with the compiler's own words."""
    install = f"install what building takes: apt install {artifact.needs}"
    if shutil.which(artifact.command[0]) is None:
        raise SystemExit(f"{artifact.command[0]} is not installed; {install}")
    (root / artifact.target).parent.mkdir(parents=True, exist_ok=True)
    command = [*artifact.command, "-o", artifact.target, artifact.source]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        advice = f"; {install}" if "file not found" in done.stderr else ""
        raise SystemExit(f"{done.stderr}{artifact.target} could not be compiled{advice}")
