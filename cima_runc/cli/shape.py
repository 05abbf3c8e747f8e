"""What all shapes of ``--json`` are made from."""

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """A frozen object that has its keys and no others."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )
