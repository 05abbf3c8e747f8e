"""A partition's records, from the agent, or from where it keeps them."""

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cima_runc.base.errors import CimaError
from cima_runc.cli.engine_names import Names, all_names, names_of
from cima_runc.cli.output import note_once
from cima_runc.config import Settings
from cima_runc.ml.listing import (
    NoSuchContainerError,
    boot_id,
    container_row,
    find_note,
    stored_notes,
    with_unmeasured,
)
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import RecordError
from cima_runc.ml.store import Store, StoreError
from cima_runc.runtime.agent_socket import AgentUnavailableError, call_agent
from cima_runc.runtime.shim_settings import socket_of_caller

_TIMEOUT_SECONDS = 60.0
_FIRST = 3
"""The record of the configuration is one of the first."""


def record_lines(settings: Settings, wanted: str) -> list[bytes]:
    """Return the stored records, a line each, of the container that ``wanted`` means.

    An id, what the engine calls it, or the beginning of an id.

    Raises:
        CimaError: there is no such container, or the agent refuses.
    """
    try:
        shown = rows(settings, everything=False)
        found = called_alone(shown, wanted, settings)
    except OSError:
        shown, found = [], None
    if found:
        return _lines(settings, _only(found, shown, wanted))
    try:
        return _lines(settings, wanted)
    except CimaError as error:
        try:
            shown = rows(settings, everything=True)
            found = by_name(shown, wanted, settings)
        except OSError:
            # Names are looked up where the agent keeps its records, which only root may read.
            pass
        found = found or _unmeasured(shown, wanted)
        if found is None:
            raise
        try:
            only = _only(found, shown, wanted)
        except NoSuchContainerError as other:
            raise other from error
        return _lines(settings, only)


def _only(found: set[str], shown: Iterable[dict[str, Any]], wanted: str) -> str:
    if len(found) > 1:
        raise NoSuchContainerError(
            f"{wanted} is the name of {', '.join(sorted(found)[:5])}", hint="give an id"
        )
    (only,) = found
    if all(row["registration"] is None for row in shown if row["id"] == only):
        raise NoSuchContainerError(
            f"container {only} started without the agent and was not measured",
            hint="nothing is recorded of it; start it again while cima-agent runs",
        )
    return only


def _unmeasured(shown: Iterable[dict[str, Any]], wanted: str) -> set[str] | None:
    """Return the ids that begin so of containers that were not measured."""
    return {
        row["id"]
        for row in shown
        if row["registration"] is None and wanted and row["id"].startswith(wanted)
    } or None


def _lines(settings: Settings, wanted: str) -> list[bytes]:
    try:
        body = json.dumps({"id": wanted}).encode("ascii")
        answer = call_agent(socket_of_caller(settings.shim), "log", body, timeout=_TIMEOUT_SECONDS)
    except AgentUnavailableError as error:
        note_once(f"{error}; showing what is stored")
        store = Store(Path(settings.shim.state_dir))
        return list(store.lines(find_note(stored_notes(store, None), wanted).registration))
    return answer.splitlines()


def rows(settings: Settings, *, everything: bool) -> list[dict[str, Any]]:
    """Return what ``cima ps`` shows: of this boot from the agent, of all boots from the store."""
    store = Store(Path(settings.shim.state_dir))
    if everything:
        return _stored_rows(store, None)
    try:
        answer = call_agent(socket_of_caller(settings.shim), "ps", b"{}", timeout=_TIMEOUT_SECONDS)
    except AgentUnavailableError as error:
        note_once(f"{error}; showing what is stored")
        return _stored_rows(store, boot_id())
    shown: list[dict[str, Any]] = json.loads(answer)
    return shown


def _stored_rows(store: Store, boot: str | None) -> list[dict[str, Any]]:
    found = []
    for one in stored_notes(store, boot):
        records = store.records(one.registration)
        found.append(container_row(one, Partition.restore(one.id, records)))
    return with_unmeasured(found, store)


def names(row: dict[str, Any], settings: Settings) -> Names:
    """Return what a row's container is called; nothing where that cannot be read."""
    about = _configuration(row, settings)
    return Names() if about is None else names_of(*about)


def _configuration(
    row: dict[str, Any], settings: Settings
) -> tuple[str, str, Mapping[str, Any]] | None:
    """Return the id that a row's container's engine gave it, its bundle, and its configuration,
    empty where it was not measured; None where that cannot be read."""
    if row["registration"] is None:
        return row["id"], row["bundle"], {}
    try:
        records = Store(Path(settings.shim.state_dir)).records(row["registration"])
        for record in itertools.islice(records, _FIRST):
            config = record.content.get("config")
            if record.content.get("type") == "config" and isinstance(config, dict):
                return row["id"].rpartition("/")[2], row["bundle"], config
    except (StoreError, RecordError, OSError):
        pass
    return None


def by_name(shown: Iterable[dict[str, Any]], wanted: str, settings: Settings) -> set[str] | None:
    """Return the ids of the containers that are called ``wanted``, by whomever.

    One that lives stands for those that ended and that the same one calls so: an engine gives a
    name to one at a time. It does not for those whose name is somebody else's.
    """
    if not wanted:
        return None  # what has no name is not called so
    called: dict[str, list[dict[str, Any]]] = {}
    for row in shown:
        about = _configuration(row, settings) if row["kind"] == "container" else None
        for who, name in () if about is None else all_names(*about):
            if name == wanted:
                called.setdefault(who, []).append(row)
    found = set()
    for rows_of_one in called.values():
        living = [row for row in rows_of_one if row["state"] in ("created", "running")]
        found |= {row["id"] for row in living or rows_of_one}
    return found or None


def called_alone(
    shown: Iterable[dict[str, Any]], wanted: str, settings: Settings
) -> set[str] | None:
    """Return the ids of the containers that are called ``wanted``, as :func:`by_name` does; None
    also where that is a whole id, which is no other one's.

    Raises:
        NoSuchContainerError: others' ids begin so, or it is another one's number. Many a name is
            the beginning of an id (``db``, ``cafe``), and whoever starts a container may give it
            what another one's id begins with for a name: a verdict on one is not asked for the
            other.
    """
    shown = list(shown)
    if any(row["id"] == wanted for row in shown):
        return None
    called = by_name(shown, wanted, settings)
    short = {
        row["id"]
        for row in shown
        if row["kind"] == "container"
        and (row["id"].startswith(wanted) or str(row["registration"]) == wanted)
    }
    if called and short - called:
        named, others = (", ".join(sorted(ids)[:5]) for ids in (called, short - called))
        raise NoSuchContainerError(
            f"{wanted} is the name of {named}, and short for {others}", hint="give the whole id"
        )
    return called
