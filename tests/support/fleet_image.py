"""An image that containers of simulated hosts are of, and a policy that takes these."""

from pathlib import Path

from cima_runc.ml import contents
from cima_runc.verifier.reference.file import ImageReference, format_reference
from cima_runc.verifier.reference.image import read_image
from support import oci
from tests.support.fleet_host import FleetHost

SHELL, LIBRARY = b"shell", b"library"
VARIABLE = ("NODE_OPTIONS", "--require=/bin/tool")
"""One that the image sets, and that makes programs load code."""
POLICY = """
[config]
allow_privileged = true
host_namespaces = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
"""


def image(root: Path, *, name: str = "image", layer: bytes = b"one") -> ImageReference:
    """A shell, a library, and a file that tells one image from another."""
    archive = oci.archive(
        oci.directory("bin"),
        oci.directory("lib"),
        oci.member("bin/sh", SHELL, mode=0o755),
        oci.member("bin/tool", b"tool", mode=0o755),
        oci.member("lib/lib.so", LIBRARY),
        oci.member("version", layer),
    )
    layout = oci.Layout()
    layout.image(archive, config={"Cmd": ["/bin/sh"], "Env": [f"{VARIABLE[0]}={VARIABLE[1]}"]})
    return read_image(layout.write_directory(root / name)).reference


def reference_file(reference: ImageReference) -> bytes:
    """The same as ``cima reference image`` writes it."""
    return format_reference(reference)


def start(
    host: FleetHost,
    name: str,
    reference: ImageReference,
    owners: tuple[str, ...] = (),
    services: int | None = None,
) -> int:
    """Start a container of the image on a simulated host; it runs its shell."""
    number = host.start(name, owners, services=services)
    layers = tuple(
        contents.Layer(
            kind="lower",
            digest=layer.digest,
            entries=layer.entries,
            files=layer.files,
            bytes=layer.bytes,
            changed=(),
            changed_count=0,
        )
        for layer in reference.layers
    )
    host.add(
        number,
        contents.Rootfs(
            mode="full",
            format="cima-layer-1",
            filesystem="overlay",
            reason="",
            root=contents.RootAttributes(mode="0755", uid=0, gid=0),
            layers=layers,
        ),
    )
    host.run(number, b"/bin/sh", SHELL)
    return number
