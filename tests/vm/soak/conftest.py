import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the whole size, as ./dev soak runs it")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run at full size."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest, full: bool) -> bool:
    """Whether a search that is slow runs in more than the size for every run."""
    return full or bool(request.config.getoption("--everything"))
