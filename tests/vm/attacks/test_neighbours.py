"""What one container does to the sensor harms no other one's log."""

import subprocess

import pytest

from tests.vm import guest
from tests.vm.attacks import container

pytestmark = pytest.mark.debian()  # every attack takes minutes a release: --everything

THREADS, MIB, SECONDS = 300, 8, 20
"""More uses that wait for their digest than a container has room for."""


@pytest.fixture(scope="module")
def image() -> None:
    container.make_image()


def test_a_crowd_that_has_files_hashed_loses_nobody_elses_events(image: None) -> None:
    command = ["/bin/attacks", "crowd", str(THREADS), str(MIB), str(SECONDS)]
    with container.bundle(command, "docker", container.fresh("tmpfs")) as (directory, name):
        crowd = subprocess.Popen(
            ["cima-runc", "run", "--bundle", directory, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == "crowded\n"
        beside = [container.attack("honest", "docker", "tmpfs") for _ in range(3)]
        crowd.communicate(timeout=600)
    for seen in beside:
        assert seen.said.count("ran: good") == 3, seen
        assert (seen.verdict, seen.evidence) == ("TRUSTED", frozenset()), seen
    assert guest.status()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        # The host's own, by way of a file that the engine mounts in the container.
        ("mounted_anew", "mounted anew\n"),
        # Who has its device mounts it once more, to look at it or to trim it.
        ("mounted_again", "mounted again\n"),
    ],
)
def test_a_mount_of_a_file_system_that_others_use_spoils_nothing_of_theirs(
    image: None, program: str, said: str
) -> None:
    with container.fresh_volume("ext4") as shared:
        done = container.attack(program, "privileged", "ext4", shared)
        assert done.said == said, done
        seen = container.attack("honest", "docker", "ext4", shared)
    assert seen.said.count("ran: good") == 3, seen
    assert (seen.verdict, seen.evidence) == ("TRUSTED", frozenset()), seen
