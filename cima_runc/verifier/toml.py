"""Strings of a policy, as they stand in TOML."""

import json
from collections.abc import Sequence


def array(values: Sequence[str]) -> str:
    """Return a TOML array of strings on one line."""
    return "[" + ", ".join(map(quoted, values)) + "]"


def quoted(text: str) -> str:
    """Return a TOML string, of printable characters: a literal one where it can be."""
    if "'" not in text and text.isprintable():
        return f"'{text}'"
    # A basic string's escapes are JSON's, but for surrogates, and DEL must be escaped.
    json_text = json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in json_text)
