"""`cima reference`: make, sign, check and convert reference values."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from cima_runc.base import limits
from cima_runc.base.text import printable
from cima_runc.cli import files
from cima_runc.cli.app import group
from cima_runc.cli.output import note, wrote

app = group("Reference values: what a container should be.")

_Out = Annotated[Path, typer.Option("--output", "-o", help="File to write; - is standard output.")]
_STDOUT = Path("-")
T = TypeVar("T")


def _key(path: Path, load: Callable[[bytes], T]) -> T:
    return files.parsed(path, load, limit=limits.KEY_FILE)


@app.command()
def image(
    path: Annotated[
        Path, typer.Argument(help="OCI layout (directory or tar), or docker/podman save's archive.")
    ],
    *,
    output: _Out = _STDOUT,
    platform: Annotated[
        str | None, typer.Option(help="Which one of several: os/architecture[/variant].")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Which one of several: its tag.")] = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(help="Write a signed envelope; a PEM private key, P-256 or Ed25519."),
    ] = None,
    manifests: Annotated[
        Path | None, typer.Option(help="Directory to write each layer's mtree manifest into.")
    ] = None,
) -> None:
    """Make reference values from an image, which is read and not unpacked."""
    from cima_runc.verifier.reference.dsse import load_private_key, sign
    from cima_runc.verifier.reference.file import format_reference
    from cima_runc.verifier.reference.image import read_image

    key = _key(sign_key, load_private_key) if sign_key else None
    if not path.exists() and str(path) != "-":
        named = re.sub(
            r"^[a-z-]+:/+", "", str(path)
        )  # docker://debian, which Path writes otherwise
        raise files.FileError(
            f"{path}: no such file or directory",
            hint=f"an image is read from a file: docker save {named} -o image.tar, or"
            f" skopeo copy docker://{named} oci-archive:image.tar",
        )
    with files.about(path):
        read = read_image(path, platform=platform, name=name)
    for line in read.passed_over:
        note(f"passed over: {printable(line)}")
    if manifests is not None:
        files.make_directory(manifests)
        for layer, manifest in zip(read.reference.layers, read.manifests, strict=True):
            files.write(manifests / f"{layer.digest.removeprefix('sha256:')}.mtree", manifest)
    files.write(output, sign(read.reference, key) if key else format_reference(read.reference))
    wrote(output, f"cima verify or cima appraise, with --reference {output}")
    note(
        f"{printable(read.reference.name or read.reference.image_id)} "
        f"({printable(read.reference.platform)}): "
        f"{len(read.reference.layers)} layers, {len(read.reference.files)} paths"
    )


@app.command()
def host(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write; - is standard output, the default without --to-keylime.",
        ),
    ] = None,
    from_keylime: Annotated[
        Path | None,
        typer.Option(help="Keylime runtime policy to take the values from, not this host."),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Key (PEM) that must have signed the policy; may repeat."),
    ] = None,
    to_keylime: Annotated[
        Path | None, typer.Option(help="Keylime runtime policy to write the values into.")
    ] = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(help="Write a signed envelope; a PEM private key, P-256 or Ed25519."),
    ] = None,
) -> None:
    """Make reference values from this host: the services that its containers rely on now.

    Do it on a host that is known to be good, once a container has run under each engine in use.
    """
    from cima_runc.cli.services import host_reference
    from cima_runc.verifier.reference import keylime
    from cima_runc.verifier.reference.dsse import load_private_key, sign
    from cima_runc.verifier.reference.file import format_reference, read_limited

    if key and from_keylime is None:
        raise files.FileError("--key goes with --from-keylime: it is the policy's")
    own = _key(sign_key, load_private_key) if sign_key else None
    if from_keylime is not None:
        keys = [_key(one, keylime.load_key) for one in key or ()]
        policy = read_limited(from_keylime, 2 * limits.REFERENCE)
        with files.about(from_keylime):
            converted = keylime.from_keylime(policy, keys)
        reference = converted.reference
        for line in converted.left_out:
            note(f"left out: {line}")
    else:
        reference = host_reference()
    if to_keylime is not None:
        files.write(to_keylime, keylime.to_keylime(reference))
    if output is not None or to_keylime is None:
        written = sign(reference, own) if own else format_reference(reference)
        files.write(output or _STDOUT, written)
    note(f"a host: {len(reference.files)} paths")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="Signed reference values.")],
    key: Annotated[list[Path], typer.Option(help="Trusted public key in PEM form; may repeat.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write the values into.")
    ] = None,
) -> None:
    """Check the signature of reference values."""
    from cima_runc.verifier.reference.dsse import load_public_key
    from cima_runc.verifier.reference.dsse import verify as verify_envelope
    from cima_runc.verifier.reference.file import ImageReference, format_reference, read_limited

    keys = [_key(each, load_public_key) for each in key]
    with files.about(path):
        reference = verify_envelope(read_limited(path, 2 * limits.REFERENCE), keys)
    if output is not None:
        files.write(output, format_reference(reference))
    what = reference.image_id if isinstance(reference, ImageReference) else "a host"
    note(f"signature good: {what}, {len(reference.files)} paths")


@app.command()
def convert(
    path: Annotated[Path, typer.Argument(help="Reference values, of an image or a host.")],
    to_keylime: Annotated[Path, typer.Option(help="Keylime runtime policy to write.")],
) -> None:
    """Convert reference values to a Keylime runtime policy; host --from-keylime reads one."""
    from cima_runc.verifier.reference import keylime
    from cima_runc.verifier.reference.file import read_reference

    with files.about(path):
        reference = read_reference(path)
    files.write(to_keylime, keylime.to_keylime(reference))
