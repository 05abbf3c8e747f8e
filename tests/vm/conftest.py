"""What all guest tests share, which of them one release is enough for, and what is said of them."""

import json
import platform
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm import guest
from tests.vm.again import command_again

if TYPE_CHECKING:
    from cima_runc.sensor.loader import Sensor

REPORT = Path("/run/cima-lab/tests.json")
"""[test, begun, ended] of each, in seconds since 1970, for whoever started the guest."""

_ran: list[tuple[str, float, float]] = []
_BEGUN = pytest.StashKey[float]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that the guest of the other release runs."""
    if is_everything(config):
        return
    here = release()
    marks = {item: item.get_closest_marker("debian") for item in items}
    elsewhere = [item for item, mark in marks.items() if mark and here not in mark.args]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


def is_everything(config: pytest.Config) -> bool:
    """Whether this guest runs what one release is enough for, too."""
    return bool(config.getoption("--everything"))


def release() -> str:
    """What the lab calls this guest's release; testing has no number yet."""
    about = platform.freedesktop_os_release()
    return about.get("VERSION_ID", about["VERSION_CODENAME"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note when each test began and ended."""
    begun = item.stash[_BEGUN] = time.time()
    try:
        return (yield)
    finally:
        _ran.append((item.nodeid, begun, time.time()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the agent logged while a test failed, and how to run that test again."""
    report = yield
    if report.failed:
        command = ["journalctl", "--no-pager", "-o", "short-precise", "-u", "cima-agent"]
        # What is wrong in a test often began with what was prepared for it.
        begun = item.stash.get(_BEGUN, call.start)
        log = guest.run(*command, f"--since=@{begun - 1:.0f}", f"--until=@{call.stop + 1:.0f}")
        report.sections.append(("the agent's log of its time", log.out or log.err))
        again = command_again(release(), item.nodeid, everything=is_everything(item.config))
        report.sections.append(("the command that runs it again, alone", again))
    return report


def pytest_sessionfinish() -> None:
    """Leave the report."""
    if REPORT.parent.is_dir():
        REPORT.write_text(json.dumps(_ran))


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Hooks that wait for an agent which is slow here."""
    with guest.Settings():
        yield


@pytest.fixture(scope="module")
def sensor() -> "Iterator[Sensor]":
    """A sensor of the tests' own, beside the agent's."""
    from cima_runc.sensor.loader import Sensor

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
    guest.load_image()
    return guest.IMAGE
