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


def test_a_users_containers_of_layers_unpacked_into_a_mount_are_known(tmp_path: Path) -> None:
    layout = oci.Layout()
    layout.image(
        oci.archive(oci.directory("d"), oci.member("d/old")),
        oci.archive(oci.directory("d"), oci.member("d/.wh..wh..opq")),
        oci.archive(oci.member("c")),
    )
    reference = read_image(layout.write_directory(tmp_path / "image")).reference
    usual = [layer.digest for layer in reference.layers]
    assert [layer.rootless_digests is None for layer in reference.layers] == [True, False, True]
    found = reference.layers[1].rootless_digests
    assert found is not None and list(found) == ["mounted"]
    mounted = [usual[0], found["mounted"], usual[2]]
    assert {layers_key(usual), layers_key(mounted)} <= keys_of(reference)
