"""JSON of others, such as images' tools, in which null stands for what is not there."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class NullIsAbsent(BaseModel):
    """An object in which null stands for a field that is not there, as to Go's encoding/json."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: inner for name, inner in value.items() if inner is not None}
