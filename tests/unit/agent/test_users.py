import asyncio
from pathlib import Path

import pytest

from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.users import UserServer
from cima_runc.config import parse_settings
from cima_runc.runtime.shim_settings import SettingsError


def start_and_stop(tmp_path: Path, **users: str) -> list[tuple[str, int]]:
    """What is in the socket's directory while the server runs: name and mode."""

    async def run() -> list[tuple[str, int]]:
        settings = parse_settings({"socket": f"{tmp_path}/agent.sock", "users": users})
        server = UserServer(CurrentSettings(settings), None)  # type: ignore[arg-type]
        await server.serve(settings.users.group)
        found = [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()]
        server.stop()
        return found

    return asyncio.run(run())


def test_off_by_default(tmp_path: Path) -> None:
    assert start_and_stop(tmp_path) == []


def test_a_group_gets_a_socket(tmp_path: Path) -> None:
    import grp
    import os

    own = grp.getgrgid(os.getegid()).gr_name
    assert start_and_stop(tmp_path, group=own) == [("agent.sock.users", 0o660)]
    assert list(tmp_path.iterdir()) == []


def test_a_group_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such group"):
        start_and_stop(tmp_path, group="no-such-group")
