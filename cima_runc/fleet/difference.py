"""What a new version of a policy would change: it is tried, and the trial is rolled back."""

import hashlib
import time
from typing import Any

from sqlalchemy import Connection, func, insert, select

from cima_runc.base.text import printable
from cima_runc.fleet import clock, verdicts
from cima_runc.fleet.appraisal import Pcrs
from cima_runc.fleet.changes import NotFoundError
from cima_runc.fleet.database import Database
from cima_runc.fleet.judge import Judge
from cima_runc.fleet.schema import Appraisal, Container, Host, Policy, new_uid, table_of
from cima_runc.fleet.schema import Verdict as VerdictRow
from cima_runc.fleet.values import ValuesCache
from cima_runc.verifier.policy import parse_policy

_CONTAINER, _HOST, _POLICY = table_of(Container), table_of(Host), table_of(Policy)
_ACTOR = "a trial"
_SECONDS = 40.0
"""How long one comparison may take: who asks waits for it."""


class _TriedError(Exception):
    """The end of a trial: nothing of it stays."""


def difference(database: Database, pcrs: Pcrs, name: str, text: str) -> dict[str, Any]:
    """Return which verdicts the next version of the policy ``name`` would change.

    Each container's is appraised as it would be, in a transaction of its own that is rolled back:
    hosts wait no longer than for the appraisal of one. What there is no time for is counted.

    Raises:
        NotFoundError, PolicyError: there is no such policy, or this is none.
    """
    parse_policy(text.encode("utf-8", "surrogatepass"))
    appraised = table_of(Appraisal).c
    with database.read() as connection:
        newest = connection.execute(
            select(func.max(_POLICY.c.version)).where(_POLICY.c.name == name)
        ).scalar()
        if newest is None:
            raise NotFoundError(f"there is no policy {name}", hint="cima fleet policies")
        rows = connection.execute(
            select(_CONTAINER.c.id, _CONTAINER.c.host)
            .join(appraised.container.table, appraised.container == _CONTAINER.c.id)
            .where(
                appraised.mode == "enforce",
                appraised.policy.startswith(f"{name}@", autoescape=True),
                _CONTAINER.c.kind == "container",
                _CONTAINER.c.forgotten.is_(False),
            )
            .order_by(_CONTAINER.c.id)
        ).all()
    changes, looked_at, until = [], 0, time.monotonic() + _SECONDS
    for row in rows:
        if time.monotonic() > until:
            break
        looked_at += 1
        found: list[dict[str, Any]] = []
        try:
            with database.write() as connection:
                # A cache of its own: the number of the row that is rolled back will be another
                # policy's.
                _try(
                    connection,
                    Judge(ValuesCache(), pcrs),
                    name,
                    text,
                    container=row.id,
                    host=row.host,
                    found=found,
                )
                raise _TriedError
        except _TriedError:
            changes += found
    left_out = len(rows) - looked_at
    return {"policy": name, "containers": looked_at, "left_out": left_out, "changes": changes}


def _try(
    connection: Connection,
    judge: Judge,
    name: str,
    text: str,
    *,
    container: int,
    host: int,
    found: list[dict[str, Any]],
) -> None:
    of_host = connection.execute(select(_HOST).where(_HOST.c.id == host).with_for_update())
    host_row = of_host.mappings().first()
    of_container = connection.execute(select(_CONTAINER).where(_CONTAINER.c.id == container))
    row = of_container.mappings().first()
    if host_row is None or row is None:
        return
    last = connection.execute(
        select(func.max(_POLICY.c.version)).where(_POLICY.c.name == name)
    ).scalar_one()
    now = clock.now()
    connection.execute(
        insert(_POLICY).values(
            uid=new_uid(),
            name=name,
            version=last + 1,
            sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
            content=text,
            created=now,
            created_by=_ACTOR,
        )
    )
    (after,) = judge.judge(connection, [dict(row)], dict(host_row), {}, now)
    deadline = verdicts.deadline_of(dict(row), dict(host_row), now)
    shown = [
        verdicts.effective(verdict, deadline, has_ended=row["has_ended"], now=now).value
        for verdict in (row["verdict"], after.value)
    ]
    if shown[0] == shown[1]:
        return
    history = table_of(VerdictRow).c
    why = connection.execute(
        select(history.why)
        .where(history.container == container)
        .order_by(history.id.desc())
        .limit(1)
    ).scalar()
    found.append(
        {
            "uid": row["uid"],
            "container": printable(row["name"]),
            "host": host_row["ak_name"],
            "before": shown[0],
            "after": shown[1],
            "why": why or "",
        }
    )
