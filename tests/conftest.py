import sys

import pytest
from hypothesis import settings

# Machines that run this are slow and shared: how long an example takes says nothing.
settings.register_profile("cima", deadline=None)
settings.load_profile("cima")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything",
        action="store_true",
        help="run slow searches at full length, and in guests what one release is enough for",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Keep what was counted before the process is told to end.

    A worker of pytest-xdist has five seconds from then on, and on a busy machine its last
    collection of garbage alone can take longer.
    """
    # Where nothing counts it need not be installed: a guest of packages has pytest alone.
    coverage = sys.modules.get("coverage")
    counting = coverage.Coverage.current() if coverage is not None else None
    if counting is not None:
        counting.save()
