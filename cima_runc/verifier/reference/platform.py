"""Which of an image's platforms is asked for.

Names are normalised as containerd does, so that `arm64/v8` is `arm64` and `linux/arm` `arm/v7`.
Source: https://github.com/containerd/platforms (database.go, normalizeOS and normalizeArch).
"""

from collections.abc import Sequence
from typing import TypeVar

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.verifier.reference.null_is_absent import GoObject

_T = TypeVar("_T")

_ARCHITECTURES = {
    "i386": "386",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
}
_VARIANTS = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}


_KNOWN_ARCHITECTURES = frozenset(
    {
        *_ARCHITECTURES,
        *("386", "amd64", "arm", "arm64", "armel", "armhf", "loong64", "loongarch64", "mips"),
        *("mips64", "mips64le", "mipsle", "ppc", "ppc64", "ppc64le", "riscv", "riscv64"),
        *("s390", "s390x", "sparc", "sparc64", "wasm"),
    }
)
"""What is an architecture where it stands alone (isKnownArch, and what is normalised to one)."""


class PlatformError(CimaError):
    """A platform is not of its form."""


class Platform(GoObject):
    """An operating system, an architecture and perhaps a variant of it."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def normalised(self) -> "Platform":
        """Return the one name of the platform, of the several that it has."""
        system = {"macos": "darwin"}.get(self.os.lower(), self.os.lower())
        architecture, variant = self.architecture.lower(), self.variant.lower()
        if architecture in {"armhf", "armel"}:
            architecture, variant = "arm", {"armhf": "v7", "armel": "v6"}[architecture]
        architecture = _ARCHITECTURES.get(architecture, architecture)
        variant = _VARIANTS.get((architecture, variant), variant)
        return Platform(os=system, architecture=architecture, variant=variant)

    def completed(self, other: "Platform | None") -> "Platform":
        """Return this platform with what ``other`` says of it besides: a variant, most often."""
        if other is None:
            return Platform(os=self.os, architecture=self.architecture, variant=self.variant)
        return Platform(
            os=self.os or other.os,
            architecture=self.architecture or other.architecture,
            variant=self.variant or other.variant,
        )


def parse_platform(text: str) -> Platform:
    """Read `os/architecture`, perhaps with a variant, or one of both alone: Linux's architecture.

    Raises:
        PlatformError: not one.
    """
    parts = text.split("/")
    if len(parts) > 3 or not all(parts):
        raise PlatformError(
            f"not a platform: {printable(text[:200])}", hint="write it as linux/arm64"
        )
    if len(parts) == 1 and text.lower() in _KNOWN_ARCHITECTURES:
        parts = ["linux", text]
    return Platform(**dict(zip(("os", "architecture", "variant"), parts, strict=False)))


def fitting(images: Sequence[tuple[Platform, _T]], wanted: Platform | None) -> list[_T]:
    """Return the images for ``wanted``: those of that very platform, or else, where no variant is
    asked for, those of any variant. None asks for nothing.
    """
    if wanted is None:
        return [image for _, image in images]
    normal = [(platform.normalised(), image) for platform, image in images]
    asked = wanted.normalised()
    exact = [image for platform, image in normal if platform == asked]
    if exact or wanted.variant:
        return exact
    return [
        image
        for platform, image in normal
        if platform.os == asked.os
        and (not wanted.architecture or platform.architecture == asked.architecture)
    ]
