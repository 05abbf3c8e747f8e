"""What a verifier is shown of records and of the host's log, and what he is not.

The kernel's numbering of its log, and process numbers, tell of what others do on the host; a line
of the host's log tells what the host runs. What is measured is shown as it is, or only hashed.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from cima_runc.ima.entry import Entry

Disclosure = Literal["none", "redacted", "full"]
"""How much of the host's log: nothing, template hashes of all but the dependencies, all of it."""

_META = b',"meta":'
_SHOWN_META = ("time", "uid", "missing")


def disclosed_line(line: bytes) -> bytes:
    """Return a stored record as the owner gets it: the measured part byte for byte, less ``meta``.

    Of ``meta`` stay time, uid and missing sources; the number of the kernel's log line (which
    counts everybody's lines, and is an old one where another container ran the same file) becomes
    ``in_kernel_log``: whether there is one.
    """
    # ``meta`` is the last field, and none of its own keys is called so.
    at = line.rindex(_META)
    meta: dict[str, Any] = json.loads(line[at + len(_META) : -1])
    shown = {key: meta[key] for key in _SHOWN_META if key in meta}
    if "ima_line" in meta:
        shown["in_kernel_log"] = meta["ima_line"] is not None
    return line[:at] + _META + json.dumps(shown, separators=(",", ":")).encode("ascii") + b"}"


def host_entries(
    entries: Iterable[Entry],
    *,
    full: bool,
    dependency: Callable[[Entry], bool],
) -> Iterator[str | dict[str, Any]]:
    """Yield the host log's ``entries`` (of one PCR) as evidence shows them.

    An entry that is not shown is the hexadecimal SHA-256 that it extended the PCR with.
    """
    for entry in entries:
        if full or dependency(entry):
            yield {
                "template": entry.template.decode("ascii", "replace"),
                "data": entry.data.hex(),
                "violation": entry.violation,
            }
        else:
            yield entry.extends("sha256").hex()
