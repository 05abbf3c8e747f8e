"""What is shown of containers: the same whether the agent or the state directory is asked."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cima_runc.base import clock
from cima_runc.base.errors import CimaError
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote, Store, StoreError


class NoSuchContainerError(CimaError):
    """No container, or more than one, is meant."""


def container_row(note: ContainerNote, partition: Partition) -> dict[str, Any]:
    """Return a registered container as ``cima ps --json`` prints it."""
    return {
        "id": note.id,
        "cpcr": partition.cpcr.hex(),
        "count": partition.count,
        "mntns": note.mntns,
        "cgroup": note.cgroup,
        "state": note.state,
        "bundle": note.bundle,
        "started": note.started,
        "ended": note.ended,
        "registration": note.registration,
        "pid": note.pid,
        "kind": note.kind,
        "dependencies": note.dependencies,
        "uid": note.uid,
    }


def with_unmeasured(rows: list[dict[str, Any]], store: Store) -> list[dict[str, Any]]:
    """Return ``rows`` and the containers that started unmeasured, in the order of their start."""
    return sorted([*rows, *_unmeasured_rows(store)], key=lambda row: str(row["started"]))


def _unmeasured_rows(store: Store) -> Iterator[dict[str, Any]]:
    """Yield the containers that started without the agent since the host booted."""
    booted = _boot_time()
    for when, state in store.unmeasured():
        if when >= booted:
            yield {
                "id": state.id,
                "cpcr": None,
                "count": 0,
                "mntns": None,
                "cgroup": None,
                "state": "unmeasured",
                "bundle": state.bundle,
                "started": clock.at(when),
                "ended": None,
                "registration": None,
                "pid": state.pid,
                "kind": "container",
                "dependencies": None,
                "uid": 0,
            }


def stored_notes(
    store: Store,
    boot_id: str | None,
    on_damaged: Callable[[int, StoreError], None] = lambda *_: None,
) -> list[ContainerNote]:
    """Return the stored notes of this boot's registrations, of all boots' where it is None, oldest
    first; not those that are damaged, as by a loss of power, which ``on_damaged`` is told of."""
    found = []
    for registration in store.registrations():
        try:
            note = store.read_note(registration)
        except StoreError as error:
            on_damaged(registration, error)
            continue
        if boot_id is None or note.boot_id == boot_id:
            found.append(note)
    return sorted(found, key=_age)


def _age(note: ContainerNote) -> tuple[str, int]:
    """What tells of two notes which is the older; a registration's number, which is random, does
    not."""
    return note.started, note.run or 0


def find_note(notes: Iterable[ContainerNote], wanted: str) -> ContainerNote:
    """Return the latest registration with the id ``wanted``, or with the only id that begins so;
    ``notes`` are in their order.

    A registration's number means that one. A partition of dependencies is meant only by its whole
    id.

    Raises:
        NoSuchContainerError: there is none, several ids begin so, or several containers of that
            id live: runtimes allow that below different ``--root``s.
    """
    notes = list(notes)
    by_id = {note.id: note for note in notes}
    if wanted in by_id:
        return _only(by_id[wanted], notes)
    numbered = [note for note in notes if str(note.registration) == wanted]
    if numbered:
        return numbered[0]
    containers = [note for note in by_id.values() if note.kind == "container"]
    matching = [note for note in containers if wanted and note.id.startswith(wanted)]
    if len(matching) == 1:
        return _only(matching[0], notes)
    if matching:
        names = ", ".join(note.id for note in matching[:5])
        raise NoSuchContainerError(f"{wanted} may be {names}", hint="give more of the id")
    raise NoSuchContainerError(f"no container {wanted} is registered", hint="see cima ps")


def _only(found: ContainerNote, notes: Iterable[ContainerNote]) -> ContainerNote:
    """Return ``found``, unless it lives and another one of its id does."""
    same = [note for note in notes if note.id == found.id and note.boot_id == found.boot_id]
    living = [note for note in same if note.state != "stopped"]
    if len({note.bundle for note in living}) < 2 or found not in living:
        return found
    each = "; ".join(f"registration {note.registration}, bundle {note.bundle}" for note in living)
    raise NoSuchContainerError(
        f"{found.id} is {len(living)} containers: {each}",
        hint="give the registration's number in place of the id",
    )


def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _boot_time() -> int:
    """Return when the host booted, in ns since 1970 (``btime`` of proc(5) stat)."""
    for line in Path("/proc/stat").read_bytes().splitlines():
        if line.startswith(b"btime "):
            return int(line.split()[1]) * 1_000_000_000
    return 0
