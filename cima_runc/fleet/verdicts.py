"""Verdicts as they are now: what was found, and the time.

That a verdict is STALE follows from the host's deadline wherever it is read, so that no process has
to live for it. Source: fleet, section 5.
"""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import and_
from sqlalchemy.sql.elements import ColumnElement

from cima_runc.cpcr.status import Status
from cima_runc.evidence import report_nonce
from cima_runc.evidence.fields import as_tuples
from cima_runc.fleet.appraisal import HostFacts
from cima_runc.fleet.schema import Container, Host, table_of
from cima_runc.ml import contents
from cima_runc.ml.contents import Measured
from cima_runc.ml.records import parse_fields
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.kernel_line import take_line

_CONTAINER, _HOST = table_of(Container), table_of(Host)


SKEW = round(report_nonce.SKEW * 1000)
"""Milliseconds that the clocks of the service's processes may differ."""


def is_late(now: int) -> ColumnElement[bool]:
    """Return the condition on ``host`` that its last report proves nothing any more at ``now``.

    Nor does one from the future: the clock was set back, and the deadline with it says nothing.
    """
    return (_HOST.c.deadline < now) | (_HOST.c.quoted > now + SKEW)


def is_fresh(host: Mapping[str, Any], now: int) -> bool:
    """Whether a host's row says that its last report proves something at ``now``."""
    deadline, quoted = host["deadline"], host["quoted"]
    return None not in {deadline, quoted} and deadline >= now and quoted <= now + SKEW


def effective(verdict: str, deadline: int | None, *, has_ended: bool, now: int) -> Verdict:
    """Return a verdict as it is now.

    :func:`is_stale` says the same of rows, and why.
    """
    kept = Verdict(verdict)
    if kept is Verdict.UNTRUSTED or has_ended:
        return kept
    return Verdict.STALE if deadline is None or deadline < now else kept


def is_stale(now: int, verdict: ColumnElement[Any] = _CONTAINER.c.verdict) -> ColumnElement[bool]:
    """Return the condition on ``container`` and ``host`` that a verdict is STALE at ``now``.

    What was TRUSTED or UNKNOWN and was not proved again in time is STALE. UNTRUSTED stays: a
    partition only grows. An ended container's verdict is of what ran, which was proved to its end.
    Of a boot that is over nothing is proved again, nor of a host that is no longer enrolled. Where
    nothing at all is known of a host's freshness, as after a restore, UNKNOWN stays UNKNOWN.
    """
    late = is_late(now) | (_HOST.c.deadline.is_(None) & (verdict != Verdict.UNKNOWN.value))
    other_boot = _CONTAINER.c.boot_id != _HOST.c.boot_id
    return and_(
        verdict != Verdict.UNTRUSTED.value,
        _CONTAINER.c.has_ended.is_(False),
        late | other_boot | (_HOST.c.state != "enrolled"),
    )


def deadline_of(container: Mapping[str, Any], host: Mapping[str, Any], now: int) -> int | None:
    """Return until when a container's verdict holds; None: it does not hold.

    Of a boot that is over nothing is proved again, nor of a host that is no longer enrolled, nor by
    a quote from the future.
    """
    if host["state"] != "enrolled" or container["boot_id"] != host["boot_id"]:
        return None
    deadline: int | None = host["deadline"]
    return deadline if is_fresh(host, now) else None


def facts_of(host: Mapping[str, Any]) -> HostFacts | None:
    """Return what a host's row, or that of a boot that is over, says that its last report proved;
    None before the first."""
    if host["status"] is None:
        return None
    log = host["log"] or {}
    return HostFacts(
        status=Status.model_validate(as_tuples(host["status"])),
        pcrs={int(pcr): bytes.fromhex(value) for pcr, value in host["pcrs"].items()},
        lines=host["log_lines"],
        aggregate=log.get("aggregate", "another"),
        violations=log.get("violations", 0),
        disclosure=log.get("disclosure", "redacted"),
        violated=tuple(bytes.fromhex(path) for path in log.get("violated", ())),
        is_hidden="hidden" in log,
        moved=tuple(log.get("moved", ())),
        has_boot_log=host["has_boot_log"],
    )


def measured_line(raw: bytes) -> Measured:
    """Return a stored record as rules look at it."""
    return measured_with_line(raw)[0]


def measured_with_line(raw: bytes) -> tuple[Measured, bytes | None]:
    """Return a stored record, and the data of the kernel's line that came with it."""
    value, line = take_line(json.loads(raw))
    return contents.measured(parse_fields(value)), line
