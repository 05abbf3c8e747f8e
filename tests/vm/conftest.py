"""What all guest tests share, and which of them one release is enough for."""

import platform
import subprocess
from collections.abc import Iterator

import pytest

from cima_runc.sensor.loader import Sensor
from tests.vm import guest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything", action="store_true", help="run what one release is enough for here too"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that the guest of the other release runs."""
    if config.getoption("--everything"):
        return
    here = platform.freedesktop_os_release()["VERSION_ID"]
    marks = {item: item.get_closest_marker("debian") for item in items}
    elsewhere = [item for item, mark in marks.items() if mark and here not in mark.args]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Hooks that wait for an agent which is slow here."""
    with guest.Settings():
        yield


@pytest.fixture(scope="module")
def sensor() -> Iterator[Sensor]:
    """A sensor of the tests' own, beside the agent's."""
    with Sensor.load() as loaded:
        yield loaded


@pytest.fixture
def agent_restarted_after() -> Iterator[None]:
    """The agent as it was, after a test that changes its settings or makes it lose something."""
    yield
    guest.restart_agent()


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
