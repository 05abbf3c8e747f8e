"""What a runtime tells a hook about the container, on the hook's standard input.

Source: OCI runtime specification, runtime.md, "State". runc and crun add fields of their own.
"""

import re
from dataclasses import dataclass
from typing import Any

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object

_ID = re.compile(r"[A-Za-z0-9_+,.\-]+", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PID_MAX = 2**31 - 1


class HookStateError(CimaError):
    """The state that the hook got is not one that we accept."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the hook's state is refused: {what}")


@dataclass(frozen=True)
class HookState:
    """The fields of the state that we use."""

    id: str
    """The container's id, as runc allows it: letters, digits and ``_+,.-``."""
    bundle: str
    """Absolute path of the bundle."""
    pid: int = 0
    """The container's first process, in the agent's pid namespace; 0 where there is none."""
    config: str = ""
    """Absolute path of the configuration; the bundle's config.json where nothing else was told."""
    config_sha256: str | None = None
    """What the launcher made of it (:func:`cima_runc.runtime.oci_hooks.digest`)."""


def qualified(container_id: str, uid: int) -> str:
    """Return the id by which the agent knows a user's container: that of one not root's is his own.

    No runtime allows a slash in an id, so that no container of root's is meant by it.
    """
    return f"{uid}/{container_id}" if uid else container_id


def parse_hook_state(raw: bytes) -> HookState:
    """Parse what a hook got from the runtime, with what it tells of its configuration before it.

    That is ``BUNDLE NUL CONFIGURATION NUL DIGEST NUL``, from the environment that the launcher gave
    to the hook: crun may have read another file than config.json, and says in some user namespaces
    that the bundle is ``/``.

    Raises:
        HookStateError: not JSON, or a field is missing or not what the specification says.
    """
    *before, raw = raw.split(b"\0", 3)
    value = load_object(raw, what="the hook's state", limit=limits.HOOK_STATE)
    if "bundle" not in value and "bundlePath" in value:
        value["bundle"] = value["bundlePath"]  # runc before 1.0
    told, config = None, ""
    if before:
        texts = [_decoded(each) for each in before]
        if len(texts) != 3:
            raise HookStateError("it is not told with all that belongs")
        value["bundle"], config, told = texts
    bundle = _checked_path("bundle", value.get("bundle"))
    return HookState(
        id=_checked_id(value.get("id")),
        bundle=bundle,
        pid=_checked_pid(value.get("pid", 0)),
        config=_checked_path("config", config) if before else f"{bundle}/config.json",
        config_sha256=_checked_digest(told),
    )


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HookStateError("a path of the configuration is not UTF-8") from error


def _checked_digest(value: str | None) -> str | None:
    if value is not None and not _DIGEST.fullmatch(value):
        raise HookStateError("config_sha256: it is not a digest in hexadecimal")
    return value


def _checked_id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value) or value in {".", ".."}:
        raise HookStateError("id: a container id holds letters, digits and _+,.- only")
    if len(value) > limits.CONTAINER_ID:
        raise HookStateError(f"id: it has more than {limits.CONTAINER_ID} characters")
    return value


def _checked_path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise HookStateError(f"{name}: it is not an absolute path")
    if len(value) > limits.PATH:
        raise HookStateError(f"{name}: it has more than {limits.PATH} characters")
    return value


def _checked_pid(value: Any) -> int:
    # A bool is an int in Python, and none in JSON.
    if type(value) is not int or not 0 <= value <= _PID_MAX:
        raise HookStateError(f"pid: it is not a whole number from 0 to {_PID_MAX}")
    return value
