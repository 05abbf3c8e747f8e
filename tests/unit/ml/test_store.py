import os
import stat
from pathlib import Path

import pytest

from cima_runc.ml.listing import NoSuchContainerError, find_note, stored_notes
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote, Store, StoreError


def a_note(registration: int = 1, container_id: str = "box") -> ContainerNote:
    return ContainerNote(
        registration=registration,
        id=container_id,
        boot_id="boot",
        mntns=7,
        cgroup="/box",
        pid=3,
        start_ticks=4,
        bundle="/bundle",
        slot=5,
        started="now",
        state="created",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.prepare()
    made.create(a_note(), b"s" * 32)
    return made


def test_everything_is_for_root_only(store: Store) -> None:
    store.append(1, [Partition("box").add({"type": "exit"}, {})])
    for path in [store.root, *store.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_notes_secrets_and_records_come_back(store: Store) -> None:
    record = Partition("box").add({"type": "exit"}, {})
    store.append(1, [record])
    store.sync()
    again = Store(store.root)
    assert again.registrations() == [1]
    assert again.read_note(1) == a_note()
    assert again.read_secret(1) == b"s" * 32
    assert list(again.records(1)) == [record]


def test_a_cut_off_record_is_not_one(store: Store) -> None:
    partition = Partition("box")
    first, second = (partition.add({"type": "exit"}, {}) for _ in range(2))
    store.append(1, [first, second])
    store.close_partition(1)
    path = store.root / "containers/00000001/records.jsonl"
    os.truncate(path, path.stat().st_size - 5)
    assert list(store.records(1)) == [first]
    store.append(1, [second])
    assert list(store.records(1)) == [first, second]


def test_a_full_disk_leaves_no_part_of_a_record(store: Store) -> None:
    partition = Partition("box")
    first = partition.add({"type": "exit"}, {})
    store.append(1, [first])
    store.close_partition(1)
    path = store.root / "containers/00000001/records.jsonl"
    if os.getuid() != 0:
        pytest.skip("only root can make a file immutable")
    size = path.stat().st_size
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
        with pytest.raises(OSError, match="large"):
            store.append(1, [partition.add({"type": "exit"}, {})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.stat().st_size == size


def test_a_note_that_is_not_ours_is_refused(store: Store) -> None:
    path = store.root / "containers/00000001/container.json"
    for text in ("{}", '{"registration":1}', "\xff"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(StoreError):
            store.read_note(1)
    (store.root / "containers/00000001/secret").write_bytes(b"short")
    with pytest.raises(StoreError):
        store.read_secret(1)


def test_a_removal_that_was_cut_short_leaves_no_run_without_its_records(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is killed in it. Kind: of what belongs together, a part is left."""
    store.append(1, [Partition("box").add({"type": "exit"}, {})])
    store.close_partition(1)

    def killed(directory: Path, **_: object) -> None:
        (directory / "records.jsonl").unlink()

    monkeypatch.setattr("cima_runc.ml.store.shutil.rmtree", killed)
    store.discard(1)
    monkeypatch.undo()
    again = Store(store.root)
    again.prepare()
    assert stored_notes(again, None) == []
    assert again.registrations() == []


@pytest.mark.parametrize("left", [b"", bytes(512)])
def test_a_note_that_a_crash_left_empty_is_the_one_that_was_durable(
    store: Store, left: bytes
) -> None:
    """On XFS a file that was put in another's place without a flush may come out so. Kind: what was
    durable is taken the place of by what is not."""
    store.append(1, [Partition("box").add({"type": "exit"}, {})])
    store.sync()
    store.write_note(a_note().model_copy(update={"state": "stopped", "ended": "later"}))
    (store.root / "containers/00000001/container.json").write_bytes(left)
    again = Store(store.root)
    again.prepare()
    assert stored_notes(again, None) == [a_note()]
    assert len(list(again.records(1))) == 1


def test_unmeasured_containers_are_listed_whatever_their_state_says(store: Store) -> None:
    directory = store.root / "unmeasured"
    (directory / "100-1.json").write_text('{"id":"free","pid":5,"bundle":"/b"}')
    (directory / "200-2.json").write_text("nonsense")
    (directory / "strange").write_text("{}")
    found = [(when, state.id) for when, state in store.unmeasured()]
    assert found == [(100, "free"), (200, "unreadable")]


def test_a_container_is_found_by_its_id_or_by_how_it_begins() -> None:
    notes = [a_note(1, "abc"), a_note(2, "abd"), a_note(3, "ab"), a_note(4, "abc")]
    assert find_note(notes, "abc").registration == 4
    assert find_note(notes, "abd").registration == 2
    assert find_note(notes, "ab").registration == 3
    for wanted in ("", "a", "x"):
        with pytest.raises(NoSuchContainerError):
            find_note(notes, wanted)


def test_two_containers_of_one_id() -> None:
    """Runtimes allow that below different --roots: it is said, and each can be named."""
    first = a_note(1, "same").model_copy(update={"bundle": "/a", "state": "running"})
    second = a_note(2, "same").model_copy(update={"bundle": "/b"})
    for wanted in ("same", "sa"):
        with pytest.raises(NoSuchContainerError, match=r"2 containers.* 1, .*/a.* 2, .*/b"):
            find_note([first, second], wanted)
    assert find_note([first, second], "1") == first
    assert find_note([first, second], "2") == second
    ended = first.model_copy(update={"state": "stopped"})
    assert find_note([ended, second], "same") == second
    later = a_note(3, "same").model_copy(update={"state": "stopped"})
    assert find_note([first, later], "same") == later


def test_the_latest_of_what_is_stored_is_the_latest(store: Store) -> None:
    """Numbers of registrations are random. One that is damaged hides no other."""
    started = {7: "2026-01-01", 3: "2026-01-03", 5: "2026-01-02", 9: "2025-12-31"}
    for number, day in started.items():
        note = a_note(number, "many").model_copy(update={"started": f"{day}T00:00:00.000Z"})
        store.create(note, bytes(32))
    store.create(a_note(8, "damaged"), bytes(32))
    (store.root / "containers/00000008/container.json").write_bytes(b"")
    notes = [note for note in stored_notes(store, None) if note.id == "many"]
    assert [note.registration for note in notes] == [9, 7, 5, 3]
    assert find_note(notes, "many").registration == 3
    assert stored_notes(store, "another boot") == []
