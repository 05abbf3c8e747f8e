"""What is wrong with a text that a model refuses, in words for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from cima_runc.base.text import printable

_SHOWN = 300
"""Characters of a place or a reason, at most: both may be the sender's."""

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known",
    "none_required": "is not null",
    "string_type": "is not a text",
    "bytes_type": "is not a text",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "set_type": "is not a list",
    "frozen_set_type": "is not a list",
    "dict_type": "is not an object with keys",
    "model_type": "is not an object with keys",
    "model_attributes_type": "is not an object with keys",
    "string_pattern_mismatch": "has not the form that it should have",
    "string_too_long": "is too long",
    "string_too_short": "is too short",
    "too_short": "has too few entries",
    "string_unicode": "is not UTF-8",
    "recursion_loop": "contains itself",
    "union_tag_not_found": "is of no kind that is known",
    "union_tag_invalid": "is of no kind that is known",
}
_OF_ALL = {"json_invalid": "it is not JSON", "json_type": "it is not JSON"}


def first_of(error: ValidationError) -> str:
    """Return the first thing that is wrong, in one printable line: where it is, and what."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] in _OF_ALL:
        return _OF_ALL[first["type"]]
    # Where there are several forms, pydantic names the one that it tried by its own function.
    parts = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    place = ".".join(parts) or "the whole"
    what = _WORDS.get(first["type"])
    if what is None:
        what = _with_limits(first["type"], first.get("ctx", {})) or _said(first["msg"])
    return printable(f"{place[:_SHOWN]} {what[:_SHOWN]}")


def first_of_request(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return the first thing that is wrong with a request, in one printable line.

    ``errors`` are those of FastAPI's RequestValidationError. Its own answer repeats what was sent,
    and fails where no JSON can be made of that.
    """
    place = ".".join(str(part) for part in errors[0]["loc"])
    return printable(f"{place}: {errors[0]['msg']}"[:_SHOWN])


def _with_limits(kind: str, limits: dict[str, object]) -> str:
    match kind:
        case "literal_error" | "enum":
            expected = str(limits["expected"])
            return f"is none of {expected}" if " or " in expected else f"is not {expected}"
        case "greater_than_equal":
            return f"is below {limits['ge']}"
        case "greater_than":
            return f"is not above {limits['gt']}"
        case "too_long":
            return f"has more than {limits['max_length']} entries"
        case "less_than_equal":
            return f"is above {limits['le']}"
        case "less_than":
            return f"is not below {limits['lt']}"
    return ""


def _said(message: str) -> str:
    """Return what a check of ours said, without pydantic's words before it."""
    said = message.removeprefix("Value error, ").replace("Input should be ", "")
    return f"is not allowed: {said}"
