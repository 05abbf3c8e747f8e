import subprocess

import pytest

from tests.vm import guest


@pytest.fixture(scope="session")
def image() -> str:
    """The image in Docker, Podman and containerd."""
    tree = guest.make_tree()
    archive = subprocess.run(
        ["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE, check=True
    ).stdout
    guest.ok("docker", "import", "-", guest.IMAGE, stdin=archive)
    guest.ok("podman", "import", "-", guest.IMAGE, stdin=archive)
    guest.ok("sh", "-c", f"docker save {guest.IMAGE} -o /root/image.tar")
    guest.ok("ctr", "image", "import", "/root/image.tar")
    return guest.IMAGE
