import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import process_tree as tree
from support.ima_log import WrittenLog

from cima_runc.agent.core import Core
from cima_runc.agent.host_services import HostServices
from cima_runc.agent.index import Container
from cima_runc.agent.runs import Runs
from cima_runc.agent.writer import Writer
from cima_runc.cpcr.table import Table
from cima_runc.ima.template import Func, unpack_cima_ng
from cima_runc.measure import file_digest
from cima_runc.ml.lines import Lines
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import IMA_TEMPLATE, Record, template_data
from cima_runc.ml.store import Store
from cima_runc.verifier.reference.host import files_of_services

HOST, CONTAINERS = 10, 11


class Agent:
    """HostServices with all that they write to, and a container that relies on ``runc``."""

    def __init__(self, directory: Path, log: WrittenLog | None) -> None:
        self.store = Store(directory / "state")
        self.store.prepare()
        self.core = Core(Table())
        runs = Runs(self.store, Lines(self.store.root / "lines"))
        self.writer = Writer(self.core, self.store, runs, None, lambda registration: None)
        self._next = max(self.store.registrations(), default=0)
        self.services = HostServices(
            boot_id="boot",
            host_pcr=HOST,
            writer=self.writer,
            digests=self.store.root / "digests.json",
            kernel_log=log.log if log else None,
            new_number=self._number,
            new_secret=lambda: os.urandom(32),
        )

    def _number(self) -> int:
        self._next += 1
        return self._next

    def register(self, pid: int) -> int:
        number = self.services.register(self.services.look_at(pid))
        assert number is not None
        self.settle()
        return number

    def settle(self) -> None:
        assert self.services.wait_until_hashed(60)
        self.services.collect()
        self.writer.write()

    def look_again(self, number: int, pid: int) -> None:
        self.services.take_again(self.services.look_again({number: pid}))
        self.settle()

    def take_over(self) -> None:
        for number in self.store.registrations():
            note = self.store.read_note(number)
            partition = Partition.restore(note.id, self.store.records(number))
            container = Container(note, self.store.read_secret(number), partition)
            self.writer.restore(container)
            self.services.restore(container, self.store.records(number))

    def records(self, number: int) -> list[Record]:
        return list(self.store.records(number))


def files(records: list[Record]) -> dict[bytes, set[tuple[bytes, Func, int]]]:
    found: dict[bytes, set[tuple[bytes, Func, int]]] = {}
    for record in records:
        if record.content_type == IMA_TEMPLATE:
            digest, path, _, func = unpack_cima_ng(template_data(record.content))
            found.setdefault(path, set()).add((digest, func, record.meta["ima_line"]))
    return found


def contents(records: list[Record], kind: str) -> list[Any]:
    return [record.content for record in records if record.content.get("type") == kind]


def unmeasured(records: list[Record], path: Path) -> list[Any]:
    return [c for c in contents(records, "unmeasured") if c["path_hex"] == bytes(path).hex()]


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    (tmp_path / "ima").mkdir()
    return WrittenLog(tmp_path / "ima")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[tree.Tree]:
    with tree.container(tmp_path, "some-parent") as found:
        yield found


def test_what_the_kernel_measured_and_what_it_did_not(
    tmp_path: Path, log: WrittenLog, box: tree.Tree
) -> None:
    runc, parent = tmp_path / "runc", tmp_path / "some-parent"
    log.append(CONTAINERS, digest(runc), bytes(runc))
    line = log.append(HOST, digest(runc), bytes(runc))
    log.append(CONTAINERS, digest(parent), bytes(parent))
    agent = Agent(tmp_path, log)
    number = agent.register(box.first)
    records = agent.records(number)
    assert files(records)[bytes(runc)] == {(digest(runc), Func.BPRM_CHECK, line)}
    assert bytes(parent) not in files(records)
    (shown,) = unmeasured(records, parent)
    assert shown["digest"] == digest(parent).hex()
    assert shown["role"] == "ancestor"
    assert "PCR 10" in shown["reason"]
    services = contents(records, "service")
    assert {(c["role"], c["path"], c["digest"]) for c in services} >= {
        ("runtime", str(runc), digest(runc).hex()),
        ("ancestor", str(parent), digest(parent).hex()),
    }
    assert {c["role"] for c in services} >= {"agent"}
    golden = files_of_services(records)
    assert golden[bytes(runc)] == {digest(runc)}
    assert golden[bytes(parent)] == {digest(parent)}


def test_a_file_follows_no_earlier_than_its_digest(
    tmp_path: Path, log: WrittenLog, box: tree.Tree
) -> None:
    runc = tmp_path / "runc"
    agent = Agent(tmp_path, log)
    number = agent.register(box.first)
    assert unmeasured(agent.records(number), runc)
    line = log.append(HOST, digest(runc), bytes(runc))
    agent.look_again(number, box.first)
    assert files(agent.records(number))[bytes(runc)] == {(digest(runc), Func.BPRM_CHECK, line)}


def test_the_same_services_are_one_partition_and_no_new_record(
    tmp_path: Path, log: WrittenLog, box: tree.Tree
) -> None:
    agent = Agent(tmp_path, log)
    number = agent.register(box.first)
    before = agent.records(number)
    assert agent.register(box.first) == number
    agent.look_again(number, box.first)
    assert agent.records(number) == before
    with tree.container(tmp_path, "another-parent") as other:
        assert agent.register(other.first) != number
    assert agent.records(number) == before


def test_an_upgrade_is_added_to_the_same_partition(tmp_path: Path, log: WrittenLog) -> None:
    agent = Agent(tmp_path, log)
    runc = tree.program(tmp_path, "runc")
    log.append(HOST, digest(runc), bytes(runc))
    with tree.container(tmp_path, "some-parent") as box:
        number = agent.register(box.first)
    old = digest(runc)
    tree.replace(runc)
    log.append(HOST, digest(runc), bytes(runc))
    with tree.container(tmp_path, "some-parent") as box:
        assert agent.register(box.first) == number
    found = {measured for measured, _, _ in files(agent.records(number))[bytes(runc)]}
    assert found == {old, digest(runc)}


def test_a_daemon_upgraded_under_a_running_container_is_added(
    tmp_path: Path, log: WrittenLog
) -> None:
    address = str(tmp_path / "containerd.sock")
    shim = ("containerd-shim-runc-v2", "-namespace", "moby", "-address", address)
    dockerd = tree.program(tmp_path, "dockerd")
    agent = Agent(tmp_path, log)
    with tree.listening(Path(address)), tree.container(tmp_path, *shim) as box:
        log.append(HOST, digest(dockerd), bytes(dockerd))
        with tree.running(dockerd, "read x", "--containerd", address):
            number = agent.register(box.first)
        old = digest(dockerd)
        tree.replace(dockerd)
        log.append(HOST, digest(dockerd), bytes(dockerd))
        with tree.running(dockerd, "read x", "--containerd", address):
            agent.look_again(number, box.first)
    found = {measured for measured, _, _ in files(agent.records(number))[bytes(dockerd)]}
    assert found == {old, digest(dockerd)}


def test_another_agent_goes_on(tmp_path: Path, log: WrittenLog, box: tree.Tree) -> None:
    log.append(HOST, digest(tmp_path / "runc"), bytes(tmp_path / "runc"))
    first = Agent(tmp_path, log)
    number = first.register(box.first)
    before = first.records(number)
    second = Agent(tmp_path, log)
    second.take_over()
    assert second.register(box.first) == number
    assert second.records(number) == before
    container = second.core.get(number)
    assert container is not None
    assert container.partition.count == len(before)
    assert container.note.kind == "dependencies"


def test_another_agent_hashes_nothing_again(
    tmp_path: Path, log: WrittenLog, box: tree.Tree
) -> None:
    first = Agent(tmp_path, log)
    seen = first.services.look_at(box.first)
    assert seen.handles
    seen.close()
    number = first.register(box.first)
    second = Agent(tmp_path, log)
    second.take_over()
    assert not second.services.look_at(box.first).handles
    assert second.register(box.first) == number
    assert second.records(number) == first.records(number)


def test_without_the_kernels_log_all_is_unmeasured(tmp_path: Path, box: tree.Tree) -> None:
    agent = Agent(tmp_path, None)
    records = agent.records(agent.register(box.first))
    assert not files(records)
    assert "log is missing" in unmeasured(records, tmp_path / "runc")[0]["reason"]


def test_what_cannot_be_found_stops_nothing_and_is_said(tmp_path: Path, log: WrittenLog) -> None:
    gone = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(gone, 0)
    agent = Agent(tmp_path, log)
    look = agent.services.look_at(gone)
    assert str(gone) in look.error
    assert agent.services.register(look) is None
    with tree.container(tmp_path, "containerd-shim-runc-v2", "-address", "/none") as box:
        records = agent.records(agent.register(box.first))
    missing = [c for c in contents(records, "unmeasured") if c["role"] == "containerd"]
    assert len(missing) == 1
    assert "no process listens" in missing[0]["reason"]


def test_no_descriptor_is_left_open(tmp_path: Path, log: WrittenLog, box: tree.Tree) -> None:
    agent = Agent(tmp_path, log)
    number = agent.register(box.first)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        agent.register(box.first)
        agent.look_again(number, box.first)
        agent.services.look_at(box.first).close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), RuntimeError()])
def test_a_file_that_is_not_hashed_is_a_record_whatever_went_wrong(
    tmp_path: Path,
    log: WrittenLog,
    box: tree.Tree,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Nobody looks at what the thread that hashes raises. Kind: a failure that nobody is told of
    leaves out what was measured."""
    number = 0

    def sha256(handle: int) -> Any:
        nonlocal number
        number += 1
        if number == 2:
            raise error
        return file_digest.sha256(handle)

    monkeypatch.setattr("cima_runc.agent.host_services.sha256", sha256)
    agent = Agent(tmp_path, log)
    seen = agent.services.look_at(box.first)
    paths = {file.path for service in seen.chain.services for file in service.files}
    seen.close()
    records = agent.records(agent.register(box.first))
    left_out = contents(records, "unmeasured")
    shown = {bytes.fromhex(c["path_hex"]) for c in left_out if c["path_hex"]}
    assert paths <= files(records).keys() | shown
    assert any(type(error).__name__ in c["reason"] for c in left_out)
