"""What a verifier is shown of a stored record, and what not.

The kernel's numbering of its log, and process numbers, tell of what others do on the host.
"""

import json
from collections.abc import Callable
from typing import Any

_META = b',"meta":'
_SHOWN_META = ("time", "uid", "missing")


def disclosed_line(
    line: bytes, *, shared: bool = False, has_line: Callable[[bytes], bool] = lambda _: False
) -> bytes:
    """Return a stored record as the owner gets it: the measured part byte for byte, less ``meta``.

    Of ``meta`` stay time, uid and missing sources; the number of the kernel's log line (which
    counts everybody's lines, and is an old one where another container ran the same file) becomes
    ``in_kernel_log``: whether there is one. In a partition that containers share the time goes
    too: it is when the first of them was started.

    The kernel logs a file just after the sensor has seen it, sometimes long after: of a record that
    was made without its line, ``has_line`` is asked again, with the record.
    """
    # ``meta`` is the last field, and none of its own keys is called so.
    at = line.rindex(_META)
    meta: dict[str, Any] = json.loads(line[at + len(_META) : -1])
    shown = {key: meta[key] for key in _SHOWN_META if key in meta}
    if shared:
        shown.pop("time", None)
    if "ima_line" in meta:
        shown["in_kernel_log"] = meta["ima_line"] is not None or has_line(line)
    return line[:at] + _META + json.dumps(shown, separators=(",", ":")).encode("ascii") + b"}"


def kernel_log_index(line: bytes) -> int | None:
    """Return the number of the kernel's log line that a stored record speaks of, None without."""
    at = line.rindex(_META)
    index = json.loads(line[at + len(_META) : -1]).get("ima_line")
    return index if isinstance(index, int) else None


def with_kernel_line(line: bytes, template: str, data: str) -> bytes:
    """Return a disclosed record with the kernel's own line beside ``meta``.

    ``template`` is the line's template's name, ``data`` the base64 of its template data.
    """
    shown = {"template": template, "data": data}
    return line[:-1] + b',"line":' + json.dumps(shown, separators=(",", ":")).encode("ascii") + b"}"
