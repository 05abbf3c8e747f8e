"""JSON of images as their tools, which are written in Go, read it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class GoJson(BaseModel):
    """An object in which null stands for a field that is not there, as in Go's encoding/json."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: inner for name, inner in value.items() if inner is not None}
