"""``cima reload``: the agent reads its settings again."""

import json
from typing import Annotated

import typer

from cima_runc.cli import context
from cima_runc.cli.output import note, print_json
from cima_runc.runtime.agent_socket import call_agent

_TIMEOUT_SECONDS = 60.0


def reload(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Have the agent read its settings again.

    Limits, binding, storage, users, time-outs and what else a running agent can take up are in
    force when this returns; what takes a restart is named. Where the file holds what is not
    allowed, all is as before.
    """
    socket = context.settings().shim.socket
    answer = json.loads(call_agent(socket, "reload", b"{}", timeout=_TIMEOUT_SECONDS))
    if as_json:
        print_json(answer)
        return
    for key in answer["in_force"]:
        typer.echo(f"{key} is in force")
    if not answer["in_force"]:
        note("nothing has changed that a running agent takes up")
    for key in answer["take_a_restart"]:
        note(f"{key} takes a restart: systemctl restart cima-agent")
