"""The hook client: hands the runtime's state to the agent, and fails where the agent does.

Standard library only, and little of it. Its settings come in its environment, which the shim set.
"""

import os
import sys
import time
from contextlib import suppress

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.runtime.agent_socket import AgentRefusedError, AgentUnavailableError, call_agent

UNMEASURED_DIR = "unmeasured"
"""Directory below the state directory: one file for each container that started unmeasured."""

_NOTED_WITHIN_NS = 3600 * 10**9
"""How long before its last hook a start may have been noted; hooks have minutes."""


def main(stage: str) -> int:
    """Run the hook ``stage`` (a name of oci_hooks.NAMES) and return its exit status."""
    state = sys.stdin.buffer.read(limits.HOOK_STATE + 1)
    path = os.environ.get("CIMA_SOCKET", "/run/cima/agent.sock")
    timeout = int(os.environ.get("CIMA_TIMEOUT", "60"))
    try:
        # A little before the runtime's own limit, so that the reason is told and not just a kill.
        call_agent(path, stage, _with_config(state), timeout=max(timeout - 1, 0.5))
    except AgentUnavailableError as error:
        if stage in {"poststart", "poststop"}:
            # The container runs or is gone: there is nothing left to stop.
            _log(f"{stage}: {error}")
            return 0
        if os.environ.get("CIMA_ON_AGENT_UNAVAILABLE") != "allow":
            print(f"cima-runc: {printable(str(error))}", file=sys.stderr)
            return 1
        if stage == "settled":
            return _go_on_unmeasured(state, str(error))
        return _start_unmeasured(state, str(error))
    except AgentRefusedError as error:
        print(f"cima-runc: the agent refuses: {printable(error.what)}", file=sys.stderr)
        return 1
    except CimaError as error:
        print(f"cima-runc: {error}", file=sys.stderr)
        return 1
    return 0


def _with_config(state: bytes) -> bytes:
    """Return the request's body: which configuration the hook came in, before the state."""
    names = ("CIMA_BUNDLE", "CIMA_CONFIG", "CIMA_CONFIG_SHA256")
    told = [os.fsencode(os.environ.get(name, "")) for name in names]
    return b"\0".join([*told, state]) if all(told) else state


def _start_unmeasured(state: bytes, reason: str) -> int:
    """Let the container start, after a note that it is not measured has become durable."""
    directory = _unmeasured_dir()
    note = f"{directory}/{time.time_ns()}-{os.getpid()}.json"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        handle = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(handle, "wb") as file:
            file.write(state)
            file.flush()
            os.fsync(handle)
    except OSError as error:
        print(
            f"cima-runc: {printable(reason)}; and that the container is not measured cannot be "
            f"noted: {printable(directory)}: {error.strerror}",
            file=sys.stderr,
        )
        return 1
    _log(f"container started unmeasured, noted in {note}: {reason}")
    return 0


def _go_on_unmeasured(state: bytes, reason: str) -> int:
    """Let a container start that is noted as unmeasured; any other one was registered, and its
    record would hold a root filesystem that others' hooks have changed since."""
    if _is_noted(state):
        _log(f"settled: {reason}")
        return 0
    print(
        f"cima-runc: {printable(reason)}; and the container is registered already: it cannot start"
        " unmeasured",
        file=sys.stderr,
    )
    return 1


def _is_noted(state: bytes) -> bool:
    """Whether this very start is noted: the same container's first process, not long ago."""
    wanted = _identity(state)
    directory = _unmeasured_dir()
    since = time.time_ns() - _NOTED_WITHIN_NS
    try:
        names = sorted(os.listdir(directory), reverse=True)
    except OSError:
        return False
    for name in names:
        when = name.partition("-")[0]
        if not when.isdigit() or int(when) < since:
            continue
        with suppress(OSError), open(f"{directory}/{name}", "rb") as file:
            if wanted is not None and _identity(file.read(limits.HOOK_STATE + 1)) == wanted:
                return True
    return False


def _identity(state: bytes) -> tuple[object, object] | None:
    """Return id and first process of a state; None where it is none."""
    from cima_runc.base.jsonio import load_object

    try:
        value = load_object(state, what="the hook's state", limit=limits.HOOK_STATE)
    except CimaError:
        return None
    return value.get("id"), value.get("pid")


def _unmeasured_dir() -> str:
    return f"{os.environ.get('CIMA_STATE_DIR', '/var/lib/cima')}/{UNMEASURED_DIR}"


def _log(line: str) -> None:
    import syslog

    syslog.openlog("cima-runc", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_WARNING, printable(line))
