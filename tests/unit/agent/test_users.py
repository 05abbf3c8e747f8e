import asyncio
import grp
import os
from pathlib import Path
from typing import Any, Never

import pytest

from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.request import StoredBody
from cima_runc.agent.users import UserServer
from cima_runc.config import parse_settings
from cima_runc.ml.listing import NoSuchContainerError
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import Store
from cima_runc.runtime.shim_settings import SettingsError
from tests.unit.agent.test_retention import a_note


def start_and_stop(tmp_path: Path, **users: str) -> list[tuple[str, int]]:
    """What is in the socket's directory while the server runs: name and mode."""

    async def run() -> list[tuple[str, int]]:
        settings = parse_settings({"socket": f"{tmp_path}/agent.sock", "users": users})
        server = UserServer(CurrentSettings(settings), None, Store(tmp_path))  # type: ignore[arg-type]
        await server.serve(settings.users.group)
        found = [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()]
        server.stop()
        return found

    return asyncio.run(run())


def test_off_by_default(tmp_path: Path) -> None:
    assert start_and_stop(tmp_path) == []


def test_a_group_gets_a_socket(tmp_path: Path) -> None:
    own = grp.getgrgid(os.getegid()).gr_name
    assert start_and_stop(tmp_path, group=own) == [("agent.sock.users", 0o660)]
    assert list(tmp_path.iterdir()) == []


def test_a_group_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such group"):
        start_and_stop(tmp_path, group="no-such-group")


def test_root_has_no_business_there(tmp_path: Path) -> None:
    """Who is root in a container without other users is root here, and could end and read all."""

    async def run() -> bytes:
        group = grp.getgrgid(os.getegid()).gr_name
        settings = parse_settings({"socket": f"{tmp_path}/agent.sock", "users": {"group": group}})
        server = UserServer(CurrentSettings(settings), None, Store(tmp_path))  # type: ignore[arg-type]
        await server.serve(group)
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/agent.sock.users")
        writer.write(b"ps 0\n")
        answer = await reader.read()
        writer.close()
        server.stop()
        return answer

    if os.geteuid() != 0:
        pytest.skip("takes root")
    assert b"root may not ask here" in asyncio.run(run())


def test_what_is_stored_is_looked_through_beside_the_writer(tmp_path: Path) -> None:
    """Who asks for names that are not there must not keep the writer from others' containers."""
    store = Store(tmp_path)
    store.prepare()
    for number, uid in ((1, 1000), (2, 1001)):
        note = a_note(number, id=f"{uid}/box", uid=uid, boot_id="earlier")
        store.create(note, bytes(32))
        content = {"type": "exit", "reason": f"of {uid}"}
        store.append(number, [Partition(note.id).add(content, {})])
        store.sync()
    (tmp_path / "containers/00000003").mkdir()
    (tmp_path / "containers/00000003/container.json").write_text("damaged")
    asked = []

    async def submit(work: object, turn: object = None) -> Never:
        asked.append(work)
        raise NoSuchContainerError("no container box is registered")

    async def go() -> None:
        settings = CurrentSettings(parse_settings({"socket": f"{tmp_path}/agent.sock"}))
        server = UserServer(settings, submit, store)
        body = await server._question("log", b'{"id":"box"}', 1000)
        assert isinstance(body, StoredBody)
        assert b"of 1000" in b"".join(body.chunks())
        body.close()
        with pytest.raises(NoSuchContainerError):
            await server._question("log", b'{"id":"other"}', 1000)
        assert len(asked) == 2

    asyncio.run(go())


def test_nobody_stands_behind_all_that_one_user_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: one queue for all, in which whoever asks more has more places."""
    answered: list[int] = []

    def look_through(_: Store, __: bytes, uid: int) -> bytes:
        answered.append(uid)
        return b""

    async def knows_none(_: object) -> Never:
        raise NoSuchContainerError("none")

    async def run() -> None:
        settings = parse_settings({"socket": f"{tmp_path}/agent.sock"})
        server = UserServer(CurrentSettings(settings), knows_none, Store(tmp_path))
        asked = [server._question("log", b"{}", uid) for uid in (1000, 1000, 1000, 1000, 1001)]
        await asyncio.gather(*asked)

    monkeypatch.setattr("cima_runc.agent.users.stored_log", look_through)
    asyncio.run(run())
    assert sorted(answered) == [1000] * 4 + [1001]
    assert answered.index(1001) == 1


def test_of_one_users_ends_one_waits_for_the_writer(tmp_path: Path) -> None:
    """Kind: whoever asks more has more of a time that is everybody's."""
    waiting: list[int] = []
    most: list[int] = []

    async def run() -> None:
        settings = parse_settings({"socket": f"{tmp_path}/agent.sock"})
        server = UserServer(CurrentSettings(settings), submit, Store(tmp_path))
        caller: Any = None
        ends = [server._do("poststop", b"{}", uid, caller) for uid in [1000] * 9 + [1001]]
        await asyncio.gather(*ends)

    async def submit(_: object, __: object = None) -> Any:
        waiting.append(1)
        most.append(len(waiting))
        await asyncio.sleep(0.001)
        waiting.pop()

    asyncio.run(run())
    assert len(most) == 10 and max(most) == 2


def test_what_one_user_is_refused_does_not_fill_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The journal drops lines above its rate. Kind: one room for all, which one fills."""
    uids = [1000] * 200 + [1001]
    monkeypatch.setattr("cima_runc.agent.users.peer_uid", lambda _: uids.pop(0))

    async def run() -> None:
        group = grp.getgrgid(os.getegid()).gr_name
        settings = parse_settings({"socket": f"{tmp_path}/agent.sock", "users": {"group": group}})
        server = UserServer(CurrentSettings(settings), None, Store(tmp_path))  # type: ignore[arg-type]
        await server.serve(group)
        while uids:
            reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/agent.sock.users")
            writer.write(b"nonsense 0\n")
            assert (await reader.read()).startswith(b"error ")
            writer.close()
        server.stop()

    caplog.set_level("DEBUG")
    asyncio.run(run())
    lines = [one.getMessage() for one in caplog.records if one.name == "cima-agent"]
    assert sum("nonsense of user 1001" in line for line in lines) == 1
    assert 60 <= sum("user 1000" in line for line in lines) <= 65
