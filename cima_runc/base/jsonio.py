"""JSON objects from outside, read with a limit on size and on depth.

Standard library only: the shim and the hook client use it too.
"""

import codecs
import json
from typing import Any, NoReturn

from cima_runc.base import limits
from cima_runc.base.errors import CimaError


class JsonError(CimaError):
    """The text is not a JSON object that we accept."""


class JsonTooLargeError(JsonError):
    """The text is larger than it may be."""


class JsonTooDeepError(JsonError):
    """The text is nested deeper than it may be."""


def load_object(
    raw: bytes, *, what: str, limit: int, depth: int = limits.JSON_DEPTH
) -> dict[str, Any]:
    """Parse ``raw`` (UTF-8 JSON, RFC 8259) as one object; integers of any size stay exact.

    ``what`` names the input in errors; ``limit`` is its largest size in bytes, ``depth`` how many
    levels of nesting it may have.

    Raises:
        JsonTooLargeError, JsonTooDeepError: larger than ``limit``, deeper than a limit of ours.
        JsonError: not UTF-8, not JSON, not an object, a duplicate key, NaN or Infinity, or a
            number that no double holds.
    """
    if len(raw) > limit:
        raise JsonTooLargeError(f"{what} has more than {limit} bytes")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise JsonTooDeepError(f"{what} is nested too deep") from error
    except json.JSONDecodeError as error:
        if raw.startswith(codecs.BOM_UTF8):
            where = ": it begins with a byte order mark (BOM)"
        else:
            at = f"in line {error.lineno}, column {error.colno}"
            where = f": {error.msg} {at}" if error.pos else ""
        raise JsonError(f"{what} is not JSON{where}") from error
    except UnicodeDecodeError as error:
        raise JsonError(f"{what} is not JSON: it is not UTF-8") from error
    except ValueError as error:
        raise JsonError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise JsonError(f"{what} is not a JSON object")
    if _depth(value) > depth:
        raise JsonTooDeepError(f"{what} is nested deeper than {depth} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers differ in which of two equal keys wins, so a text with both means two things.
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _depth(value: object) -> int:
    deepest = 0
    level = [value]
    while level:
        deepest += 1
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(v for v in item.values() if isinstance(v, dict | list))
            elif isinstance(item, list):
                below.extend(v for v in item if isinstance(v, dict | list))
        level = below
    return deepest
