"""Bytes that others chose, made safe for a terminal, a log line or an error message.

Standard library only: the shim and the hook client use it too.
"""


def printable(raw: bytes | str) -> str:
    r"""Return ``raw`` as one line of printable text, everything else as ``\xNN`` escapes.

    Bytes are read as UTF-8; what is not UTF-8, and every control, format, separator (but for
    the plain space) or unassigned character, is escaped, and a backslash is doubled, so that the
    original can be told from the result.
    """
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape(char) for char in text)


def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    raw = char.encode(
        "utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    )
    return "".join(f"\\x{byte:02x}" for byte in raw)
