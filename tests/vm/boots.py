"""A host's story over two boots: each test goes on from where the one before it stopped.

A suite of such tests has all of this in its conftest.
"""

import os
from collections.abc import Iterator

import pytest

__all__ = [
    "patience",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_runtest_logreport",
    "pytest_sessionfinish",
]

BOOT = int(os.environ.get("CIMA_LAB_BOOT", "1"))
LAST_BOOT = 2
REBOOT = 75
"""The exit status that asks for a reboot, after which pytest runs again."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "boot(number): the boot that the test is for")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [item for item in items if item.get_closest_marker("boot").args != (BOOT,)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        pytest.exit(f"the story ends at {report.nodeid}:\n{report.longreprtext}", returncode=1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if BOOT < LAST_BOOT and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = REBOOT


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Settings are an administrator's here, whom the story begins with."""
    yield
