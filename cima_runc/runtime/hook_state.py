"""What a runtime tells a hook about the container, on the hook's standard input.

Source: OCI runtime specification, runtime.md, "State". runc and crun add fields of their own.
"""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object

_ID = re.compile(r"[A-Za-z0-9_+,.\-]+", re.ASCII)


class HookStateError(CimaError):
    """The state that the hook got is not one that we accept."""


class HookState(BaseModel):
    """The fields of the state that we use; others are let through."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: Annotated[str, Field(max_length=limits.CONTAINER_ID)]
    """The container's id, as runc allows it: letters, digits and ``_+,.-``."""
    pid: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The container's first process, in the agent's pid namespace; 0 where there is none."""
    bundle: Annotated[str, Field(max_length=limits.PATH)]
    """Absolute path of the bundle."""

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str) -> str:
        if not _ID.fullmatch(value) or value in {".", ".."}:
            raise ValueError("a container id holds letters, digits and _+,.- only")
        return value

    @field_validator("bundle")
    @classmethod
    def _check_bundle(cls, value: str) -> str:
        if not value.startswith("/") or "\0" in value:
            raise ValueError("the bundle is not an absolute path")
        return value


def qualified(container_id: str, uid: int) -> str:
    """Return the id by which the agent knows a user's container: that of one not root's is his own.

    No runtime allows a slash in an id, so that no container of root's is meant by it.
    """
    return f"{uid}/{container_id}" if uid else container_id


def parse_hook_state(raw: bytes) -> HookState:
    """Parse the JSON that a runtime wrote to a hook.

    Raises:
        HookStateError: not JSON, or a field is missing or not what the specification says.
    """
    value = load_object(raw, what="the hook's state", limit=limits.HOOK_STATE)
    if "bundle" not in value and "bundlePath" in value:
        value["bundle"] = value["bundlePath"]  # runc before 1.0
    try:
        return HookState.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HookStateError(f"the hook's state is refused: {field}: {first['msg']}") from error
