"""A partition's records, from the agent, or from where it keeps them."""

import json
from pathlib import Path

from cima_runc.cli.output import note
from cima_runc.config import Settings
from cima_runc.ml.listing import find_note, stored_notes
from cima_runc.ml.store import Store
from cima_runc.runtime.agent_socket import AgentUnavailableError, call_agent
from cima_runc.runtime.shim_settings import socket_of_caller

_TIMEOUT_SECONDS = 60.0


def record_lines(settings: Settings, wanted: str) -> list[bytes]:
    """Return the stored records, a line each, of the container with this id or start of an id.

    Raises:
        CimaError: there is no such container, or the agent refuses.
    """
    try:
        body = json.dumps({"id": wanted}).encode("ascii")
        answer = call_agent(socket_of_caller(settings.shim), "log", body, timeout=_TIMEOUT_SECONDS)
    except AgentUnavailableError as error:
        note(f"{error}; showing what is stored")
        store = Store(Path(settings.shim.state_dir))
        return list(store.lines(find_note(stored_notes(store, None), wanted).registration))
    return answer.splitlines()
