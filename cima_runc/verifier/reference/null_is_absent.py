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


class GoObject(NullIsAbsent):
    """The same of what programs in Go read: a field's name may be written in any case.

    Of several names that are one to Go, what stands last counts.
    """

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        names = [field.alias or name for name, field in cls.model_fields.items()]
        known = {name.casefold(): name for name in names}
        there = {name: inner for name, inner in value.items() if inner is not None}
        return {known.get(name.casefold(), name): inner for name, inner in there.items()}
