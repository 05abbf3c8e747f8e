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


def test_a_disk_that_is_mounted_once_more_spoils_nothing_of_others(image: None) -> None:
    """It may be the host's own: who has its device mounts it, to look at it or to trim it."""
    with container.fresh_volume("ext4") as shared:
        done = container.attack("mounted_again", "privileged", "ext4", shared)
        assert done.said == "mounted again\n", done
        seen = container.attack("honest", "docker", "ext4", shared)
    assert seen.said.count("ran: good") == 3, seen
    assert (seen.verdict, seen.evidence) == ("TRUSTED", frozenset()), seen


def test_a_remount_of_a_file_system_that_others_use_spoils_nothing_of_theirs(image: None) -> None:
    """It may be the host's own, by way of a file that the engine mounts in the container."""
    with container.fresh_volume("ext4") as shared:
        done = container.attack("mounted_anew", "privileged", "ext4", shared)
        assert done.said == "mounted anew\n", done
        seen = container.attack("honest", "docker", "ext4", shared)
    assert seen.said.count("ran: good") == 3, seen
    assert (seen.verdict, seen.evidence) == ("TRUSTED", frozenset()), seen
