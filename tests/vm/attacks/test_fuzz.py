"""Files that change, and change their names, at random, while they are used."""

import re

import pytest

from tests.vm import guest
from tests.vm.attacks import container
from tests.vm.attacks.attacks import ALL, Place

pytestmark = pytest.mark.debian()  # every attack takes minutes a release: --everything

STEPS = 300
USE = re.compile(r"^use: (\S+) true: ([0-9a-f]{64})$", re.M)


@pytest.fixture(scope="module")
def image() -> None:
    guest.run("modprobe", "-a", "loop", "xfs", "btrfs")
    container.make_image()


@pytest.mark.parametrize("place", ALL)
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.debian()) for n in (2, 3, 4))]
)
def test_no_digest_but_of_what_was_used(image: None, place: Place, seed: int) -> None:
    command = ["/bin/attacks", "fuzz_names", str(seed), str(STEPS)]
    with container.bundle(command, "docker", container.fresh(place)) as (directory, name):
        said = container.run(directory, name)
    assert said.splitlines()[-1] == "done", said[-2000:]
    used = {(path.encode(), digest) for path, digest in USE.findall(said)}
    assert len(used) > STEPS / 20
    found = guest.records(name)
    recorded = {
        (file.path, file.digest) for file in guest.files(found) if file.path.startswith(b"/data/")
    }
    assert recorded <= used, recorded - used
    unstable = {
        bytes.fromhex(content["path_hex"])
        for content in guest.contents(found, "violation")
        if content.get("path_hex")
    }
    # A file that changed in use is named by the last component of its path.
    unseen = {
        (path, digest)
        for path, digest in used - recorded
        if not {path, path.rpartition(b"/")[2]} & unstable
    }
    assert not unseen, unseen
