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
