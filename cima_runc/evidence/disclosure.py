"""What a verifier is shown of records and of the host's log, and what he is not.

The kernel's numbering of its log, and process numbers, tell of what others do on the host.
"""

import json
from typing import Any, Literal

Disclosure = Literal["none", "redacted", "full"]
"""How much of the host's log: nothing; the hash of each line, which is all that replaying needs
(the dependencies stand in a partition of their own); all of it."""

_META = b',"meta":'
_SHOWN_META = ("time", "uid", "missing")


def disclosed_line(line: bytes, *, shared: bool = False) -> bytes:
    """Return a stored record as the owner gets it: the measured part byte for byte, less ``meta``.

    Of ``meta`` stay time, uid and missing sources; the number of the kernel's log line (which
    counts everybody's lines, and is an old one where another container ran the same file) becomes
    ``in_kernel_log``: whether there is one. In a partition that containers share the time goes
    too: it is when the first of them was started.
    """
    # ``meta`` is the last field, and none of its own keys is called so.
    at = line.rindex(_META)
    meta: dict[str, Any] = json.loads(line[at + len(_META) : -1])
    shown = {key: meta[key] for key in _SHOWN_META if key in meta}
    if shared:
        shown.pop("time", None)
    if "ima_line" in meta:
        shown["in_kernel_log"] = meta["ima_line"] is not None
    return line[:at] + _META + json.dumps(shown, separators=(",", ":")).encode("ascii") + b"}"
