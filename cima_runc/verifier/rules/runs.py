"""Earlier runs of the container's line: each seen to its end, and none that was not trusted."""

from collections.abc import Iterator

from cima_runc.base.text import printable
from cima_runc.ml.contents import Previous
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.result import Finding
from cima_runc.verifier.state import Remembered
from cima_runc.verifier.steps.replayed import Continued, Run

_KEY = "start it under a new name; to tolerate it, in the policy: allow_restarts = true"


def check_runs(continued: Continued, policy: Policy, identity: bytes | None) -> Iterator[Finding]:
    """Yield what is to be said of the runs before the last, and of how the last one stands.

    ``identity`` is that of the reference values and the policy, None where there are none.
    """
    replayed = continued.replayed
    remembered, first, last = replayed.recalled.remembered, replayed.runs[0], replayed.last
    for run in replayed.runs:
        if run.after_exit:
            yield Finding(
                severity="fail",
                rule="runs.after_exit",
                what=f"run {run.number} has {run.after_exit} records after its end",
                run=run.number,
            )
        if run is not last:
            yield from _end_of(run, policy)
    if not _begins_seen(continued):
        yield _not_seen(first, policy)
    if continued.standing == "forgotten" and remembered is not None:
        yield _finding(
            policy,
            "runs.forgotten",
            f"the host tells of the container as if its run {remembered.run}, registration "
            f"{remembered.registration}, which was seen, had not been",
            remembered.run,
        )
    if remembered is not None:
        yield from _untrusted(replayed.runs, remembered, policy, identity)
    if last.number > 1:
        ended = [
            f"run {run.number} ended: {printable(run.ended or 'not written down')}"
            for run in replayed.runs[:-1]
        ]
        said = "; ".join(ended[-8:])
        what = f"this is run {last.number} of the container" + (f"; {said}" if said else "")
        yield Finding(severity="info", rule="runs.restarted", what=what, run=last.number)
    if last.ended is not None:
        yield Finding(
            severity="warn",
            rule="runs.ended",
            what=f"the container has ended ({printable(last.ended)}): this is of what ran, not of "
            "something that runs",
            run=last.number,
        )


def are_earlier_seen(continued: Continued) -> bool:
    """Whether all runs before the last one were seen, or vouched for, to their ends."""
    ends = all(run.ended is not None for run in continued.replayed.runs[:-1])
    return ends and continued.standing != "forgotten" and _begins_seen(continued)


def are_hidden_good(continued: Continued, identity: bytes) -> bool:
    """Whether the runs that are not shown were found to be good by the same values."""
    first, remembered = continued.replayed.runs[0], continued.replayed.recalled.remembered
    if not first.since and first.previous is None:
        return True
    if remembered is None or continued.standing != "continues":
        return False
    if remembered.earlier_good_with != identity:
        return False
    hides_part = first.since and first is not continued.replayed.last
    hides_all = first.number > remembered.run
    return remembered.good_with == identity or not (hides_part or hides_all)


def _begins_seen(continued: Continued) -> bool:
    """Whether what came before the oldest run that is shown was seen to its end."""
    first, remembered = continued.replayed.runs[0], continued.replayed.recalled.remembered
    if not first.since and first.previous is None:
        return True
    return remembered is not None and continued.standing == "continues" and remembered.earlier_seen


def _end_of(run: Run, policy: Policy) -> Iterator[Finding]:
    if run.ended is None:
        yield _finding(
            policy,
            "runs.end_not_seen",
            f"run {run.number}, registration {run.registration}, has no end written down",
            run.number,
        )


def _not_seen(first: Run, policy: Policy) -> Finding:
    before = first.previous
    if isinstance(before, Previous):
        what = (
            f"run {before.run}, registration {before.registration}, ended after {before.count} "
            f"records ({printable(before.reason or 'not written down')}), and is not shown"
        )
        return _finding(policy, "runs.not_seen", what, before.run)
    if before == "lost":
        what = f"the host has lost what came before run {first.number}"
        return _finding(policy, "runs.lost", what, first.number)
    what = f"what came before run {first.number} was not seen to its end"
    return _finding(policy, "runs.not_seen", what, first.number)


def _untrusted(
    runs: tuple[Run, ...], remembered: Remembered, policy: Policy, identity: bytes | None
) -> Iterator[Finding]:
    """Yield that an earlier run was found untrusted: by the same values, that does not heal."""
    number, last = remembered.untrusted_run, runs[-1]
    shown = any(one.number == number and not one.since for one in runs)
    if number is None or (shown and remembered.untrusted_with != identity):
        return
    if number < last.number:
        yield _finding(policy, "runs.untrusted", f"run {number} was found UNTRUSTED", number)
    elif not shown:
        yield Finding(
            severity="fail",
            rule="runs.untrusted",
            what=f"run {number} was found UNTRUSTED by what is not shown now",
            run=number,
            next="ask for the whole of it",
        )


def _finding(policy: Policy, rule: str, what: str, run: int) -> Finding:
    return Finding(
        severity="warn" if policy.allow_restarts else "fail",
        rule=rule,
        what=what,
        run=run,
        next="" if policy.allow_restarts else _KEY,
    )
