"""What containers may be compared with is found by their layers, whoever unpacked these."""

from pathlib import Path

from support import oci

from cima_runc.fleet.values import keys_of, layers_key
from cima_runc.verifier.reference.image import read_image


def test_a_users_containers_of_an_image_with_devices_are_known(tmp_path: Path) -> None:
    """Only one of its layers has some; Docker unpacks both without containerd's differences."""
    layout = oci.Layout()
    layout.image(
        oci.archive(oci.directory("tmp", 0o1777), oci.member("a")),
        oci.archive(oci.member("tmp/b"), oci.member("null", kind=b"3", device=(1, 3))),
    )
    reference = read_image(layout.write_directory(tmp_path / "image")).reference
    below, above = reference.layers
    assert below.rootless_digests is None
    found = above.rootless_digests
    assert found is not None and found["docker"] == found["podman"] != found["containerd"]
    rootless = {layers_key([below.digest, digest]) for digest in found.values()}
    roots = {layers_key([below.digest, digest]) for digest in above.digests}
    assert keys_of(reference) == rootless | roots
    assert len(rootless) == len(roots) == 2
