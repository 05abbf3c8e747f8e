"""Restarts, reboots and rollbacks: what is remembered, and what the runs of a line say of it.

Kind: a container that begins with a clean sheet, because nobody asks what it was before.
"""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from cima_runc.evidence.request import Since
from cima_runc.ml.contents import Config, File, Measured
from cima_runc.verifier.appraisal import References
from cima_runc.verifier.enrolled import parse_enrolled_ak
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.expectation import Expectation
from cima_runc.verifier.policy import parse_policy
from cima_runc.verifier.result import Finding, Result
from cima_runc.verifier.state import Remembered, StateDirectory
from cima_runc.verifier.verify import Appraisal, verify
from tests.support.forger import Edits, ForgedRun, Forger

SH = (b"/bin/sh", b"sh")
INTRUDER = (b"/tmp/x", b"intruder")


def drift(records: Any, *_: object) -> list[Finding]:
    """What runs in /tmp is not the image's."""
    return [
        Finding(severity="fail", rule="file.added", what="drift", record=number)
        for number, content in records
        if isinstance(content, File) and content.path.startswith(b"/tmp/")
    ]


def anything(records: Any, *_: object) -> list[Finding]:
    return []


class Watched:
    """A container on a made-up host, and a verifier that remembers."""

    def __init__(self, directory: Path) -> None:
        self.host = Forger()
        self.memory = StateDirectory(directory)
        self.policy = ""
        self.appraisal: Appraisal | None = Appraisal(drift, References(), b"r" * 32)

    def look(
        self,
        *,
        since: bool = False,
        runs: list[ForgedRun] | None = None,
        edits: Edits | None = None,
        container: str | None = "",
        called: str = "",
    ) -> Result:
        """``called``: the container that is asked for, and answered, whatever is shown."""
        nonce = os.urandom(32)
        request = self.host.request(nonce)
        if runs is not None:
            request["container"] = runs[-1].partition.name
        if called:
            request["container"] = called
        asked: Since | None = None
        if since:
            asked = self.memory.since_of(request["container"])
            assert asked is not None
            request["since"] = asked.model_dump(mode="json")
        self.host.clock["clock"] += 1
        raw = self.host.evidence(request, edits, runs=runs)
        wanted = Expectation(
            nonce=nonce,
            ak=parse_enrolled_ak(self.host.pem()),
            container=request["container"] if container == "" else container,
            since=asked,
            policy=parse_policy(self.policy.encode()),
        )
        return verify(raw, wanted, memory=self.memory, appraisal=self.appraisal)

    def remembered(self) -> Remembered:
        found = self.memory.recall(self.host.name, bytes.fromhex(self.host.line), "box")
        assert found is not None
        return found


@pytest.fixture(name="watched")
def _watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def rules(result: Result, severity: str = "fail") -> set[str]:
    assert result.refusal is None, result.refusal
    return {finding.rule for finding in result.findings if finding.severity == severity}


def trusted(result: Result) -> bool:
    assert result.refusal is None, result.refusal
    return result.verdict == Verdict.TRUSTED


def refused(result: Result) -> str:
    assert result.refusal is not None, result.findings
    assert result.verdict != Verdict.TRUSTED
    return result.refusal.error


def said(result: Result) -> str:
    return "\n".join(finding.what for finding in result.findings)


# -- one run --------------------------------------------------------------------------------------


def test_first_seen_then_continued(watched: Watched) -> None:
    run = watched.host.start(SH)
    result = watched.look()
    assert trusted(result)
    assert result.facts is not None
    assert result.facts.first_seen
    steps = {check.step: check for check in result.checks}
    assert steps["clock"].done
    assert steps["clock"].detail == "nothing is remembered to compare it with"
    assert not {"host.booted", "host.tpm_restarted"} & {each.rule for each in result.findings}
    assert (steps["continuity"].done, steps["continuity"].detail) == (False, "first seen")
    run.partition.file(b"/bin/id", b"id")
    result = watched.look(since=True)
    assert trusted(result)
    assert result.facts is not None
    assert not result.facts.first_seen
    assert (result.facts.since, result.facts.count) == (4, 5)
    (continuity,) = [check.detail for check in result.checks if check.step == "continuity"]
    assert continuity == "continues run 1 at record 4"
    assert not any("nothing is remembered" in line for line in result.not_proved)


def test_nothing_new_is_as_good_as_before(watched: Watched) -> None:
    """Finding 4: evidence that begins where it ends was UNTRUSTED, and forgot what was good."""
    watched.host.start(SH)
    assert trusted(watched.look())
    for _ in range(3):
        assert trusted(watched.look(since=True))
        assert watched.remembered().good_with == b"r" * 32


def test_what_was_untrusted_stays_so_in_the_same_run(watched: Watched) -> None:
    run = watched.host.start(SH, INTRUDER)
    result = watched.look()
    assert rules(result) == {"file.added"}
    # A run is named where it is another than the one that the evidence is of.
    assert {each.run for each in result.findings if each.rule == "file.added"} == {None}
    run.partition.file(b"/bin/id", b"id")
    assert rules(watched.look(since=True)) == {"runs.untrusted"}
    assert rules(watched.look()) == {"file.added"}
    # Only other values, and all of the records, make it good.
    watched.appraisal = Appraisal(anything, References(), b"s" * 32)
    assert rules(watched.look(since=True)) == {"runs.untrusted"}
    assert trusted(watched.look())
    assert trusted(watched.look(since=True))


def test_other_values_do_not_take_the_word_of_earlier_ones(watched: Watched) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.appraisal = Appraisal(drift, References(), b"s" * 32)
    result = watched.look(since=True)
    assert result.verdict == Verdict.UNKNOWN
    assert "records.before" in rules(result, "warn")
    assert trusted(watched.look())


def test_records_that_are_gone_are_a_rollback(watched: Watched) -> None:
    run = watched.host.start(SH, (b"/bin/id", b"id"))
    assert trusted(watched.look())
    dropped = run.partition.records.pop()
    assert refused(watched.look()) == "RollbackError"
    run.partition.file(b"/bin/other", b"other")
    assert refused(watched.look()) == "RollbackError"
    run.partition.records[-1:] = [dropped]
    assert trusted(watched.look())


def test_records_are_continued_from_what_is_remembered_alone(watched: Watched) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    early = Edits(owner=lambda owner: owner["runs"][0].update(since=2))
    assert refused(watched.look(edits=early)) == "NotRememberedError"
    inner = Edits(owner=lambda owner: owner["request"]["since"].update(inner="00" * 32))
    assert refused(watched.look(since=True, edits=inner)) == "RequestError"


def test_what_runs_first_is_judged_with_the_configuration(watched: Watched) -> None:
    """An engine's init that ran after the first look was drift: nobody knew of its mount."""

    def engines(records: Any, *_: object) -> list[Finding]:
        knows = any(isinstance(content, Config) for _, content in records)
        return [] if knows else drift(records)

    watched.appraisal = Appraisal(engines, References(), b"r" * 32)
    run = watched.host.start()
    assert trusted(watched.look())
    run.partition.file(*INTRUDER)
    assert trusted(watched.look(since=watched.memory.since_of("box") is not None))
    assert watched.memory.since_of("box") is not None


def test_a_run_is_not_continued_under_another_id(watched: Watched) -> None:
    """Whose it is says the first record, which is not shown again."""
    watched.host.start(SH)
    assert trusted(watched.look())
    new = {"since": watched.remembered().count, "records": []}
    same = Edits(owner=lambda owner: owner["runs"][0].update(new))
    assert trusted(watched.look(edits=same))
    other = Edits(owner=lambda owner: owner["runs"][0].update(new, id="other"))
    assert refused(watched.look(called="other", edits=other)) == "RunError"
    assert watched.remembered().container == "box"


def test_a_since_that_did_not_fit_is_answered_with_the_whole(watched: Watched) -> None:
    run = watched.host.start(SH)
    assert trusted(watched.look())
    whole = Edits(owner=lambda owner: owner["runs"].__setitem__(0, run.part()))
    assert trusted(watched.look(since=True, edits=whole))


# -- restarts -------------------------------------------------------------------------------------


def test_a_restart_does_not_launder(watched: Watched) -> None:
    """Finding 1: what ran before a restart was forgotten with it."""
    run = watched.host.start(SH, INTRUDER)
    assert not trusted(watched.look())
    run.end()
    clean = watched.host.start(SH)
    for runs in (None, [clean]):  # with the run before, and as if the host had it no more
        result = watched.look(runs=runs)
        assert result.verdict == Verdict.UNTRUSTED
        assert "runs.untrusted" in rules(result)
        assert "run 1 was found UNTRUSTED" in said(result)
        # It is the one that heals by nothing but its own records, found good by other values.
        assert watched.remembered().untrusted_run == 1
        assert "continues run 1" not in " ".join(check.detail for check in result.checks)
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look(runs=[clean]))
    # Allowed for once is not healed.
    assert watched.remembered().untrusted_run == 1
    watched.policy = ""
    assert "run 1 was found UNTRUSTED" in said(watched.look(runs=[clean]))
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look())


def test_nor_does_one_between_two_looks(watched: Watched) -> None:
    run = watched.host.start(SH)
    assert trusted(watched.look())
    run.partition.file(*INTRUDER)
    run.end()
    watched.host.start(SH)
    result = watched.look()
    assert rules(result) == {"file.added"}
    (found,) = [finding for finding in result.findings if finding.rule == "file.added"]
    assert found.run == 1
    watched.look(since=False)


def test_nor_does_one_that_is_asked_about_from_before(watched: Watched) -> None:
    run = watched.host.start(SH)
    assert trusted(watched.look())
    run.partition.file(*INTRUDER)
    run.end()
    watched.host.start(SH)
    assert rules(watched.look(since=True)) == {"file.added"}


def test_an_honest_restart_is_trusted_and_said(watched: Watched) -> None:
    run = watched.host.start(SH)
    assert trusted(watched.look())
    run.end("docker restart")
    watched.host.start(SH)
    result = watched.look(since=True)
    assert trusted(result)
    assert "runs.restarted" in rules(result, "info")
    assert "run 1 ended: docker restart" in said(result)
    assert result.facts is not None
    assert result.facts.run == 2
    assert trusted(watched.look(since=True))


def test_two_restarts_between_two_looks(watched: Watched) -> None:
    for number in range(3):
        run = watched.host.start(SH)
        if number < 2:
            run.end()
    result = watched.look()
    assert trusted(result)
    assert "run 1 ended: it ended; run 2 ended: it ended" in said(result)
    watched.host.runs[1].partition.records.insert(4, watched.host.runs[1].partition.records[3])
    assert refused(watched.look()) == "RecordRepeatedError"


def test_a_run_that_is_not_shown_was_not_seen(watched: Watched) -> None:
    for _ in range(2):
        watched.host.start(SH).end()
    last = watched.host.start(SH)
    assert rules(watched.look(runs=[last])) == {"runs.not_seen"}
    # It does not become good by being asked again.
    assert "runs.not_seen" in rules(watched.look(runs=[last]))
    assert rules(watched.look(since=True, runs=[last])) == {"runs.not_seen", "runs.untrusted"}


def test_runs_that_were_seen_need_not_be_shown_again(watched: Watched) -> None:
    first = watched.host.start(SH)
    assert trusted(watched.look())
    first.end()
    assert trusted(watched.look())  # seen to its end
    second = watched.host.start(SH)
    assert trusted(watched.look(runs=[second]))
    assert trusted(watched.look(runs=[second]))
    second.end()
    third = watched.host.start(SH)
    result = watched.look(runs=[third])
    assert rules(result) == {"runs.not_seen"}
    assert "run 2" in said(result)
    for _ in range(2):
        watched.host.runs[-1].end()
        watched.host.start(SH)
    # What is remembered is the run before the one before, of which nothing is said.
    assert rules(watched.look(runs=watched.host.runs[-1:])) >= {"runs.not_seen"}


def test_runs_that_are_not_shown_were_found_good_by_other_values(watched: Watched) -> None:
    first = watched.host.start(SH)
    first.end()
    assert trusted(watched.look())
    second = watched.host.start(SH)
    assert trusted(watched.look(runs=[second]))
    watched.appraisal = Appraisal(drift, References(), b"s" * 32)
    for _ in range(2):  # it is not learned from having been said once
        assert watched.look(runs=[second]).verdict == Verdict.UNKNOWN
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look(runs=[second]))
    watched.policy = ""
    assert trusted(watched.look()), "all of them are shown"
    assert trusted(watched.look(runs=[second]))


def test_every_run_that_was_seen_is_remembered(watched: Watched) -> None:
    runs = []
    for _ in range(4):
        runs.append(watched.host.start(SH))
        watched.look(runs=runs[-1:])
        runs[-1].end()
        watched.look(runs=runs[-1:])
        assert watched.remembered().earlier == tuple(
            run.previous()["registration"] for run in runs[:-1]
        )
    for old in runs[:-1]:
        assert refused(watched.look(runs=[old])) == "RollbackError"


@pytest.mark.parametrize("change", [{"run": 1}, {"count": 4}, {"cpcr": "00" * 32}])
def test_what_is_said_of_the_run_that_is_remembered(
    watched: Watched, change: dict[str, Any]
) -> None:
    """By the run after it, where the remembered one is not shown again."""
    watched.host.start(SH).end()
    second = watched.host.start(SH)
    assert trusted(watched.look())
    second.end()
    assert trusted(watched.look())
    third = watched.host.start(SH, register={"previous": second.previous() | change})
    assert refused(watched.look(runs=[third])) in {"RollbackError", "RunError"}


def test_a_run_without_an_end_was_not_seen_to_it(watched: Watched) -> None:
    watched.host.start(SH)
    watched.host.reboot()
    watched.host.start(SH)
    result = watched.look()
    assert rules(result) == {"runs.end_not_seen"}
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look())


def test_nor_was_one_that_the_next_says_went_no_further(watched: Watched) -> None:
    """It is remembered as it then was, and nobody has written down that it ended there."""
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.reboot()
    second = watched.host.start(SH)
    assert rules(watched.look(runs=[second])) == {"runs.not_seen"}


def test_what_is_allowed_is_not_healed_by_what_came_after_it(watched: Watched) -> None:
    """The rest of an untrusted run is good, and the run as a whole was not shown."""
    run = watched.host.start(SH, INTRUDER)
    assert not trusted(watched.look())
    run.partition.file(b"/bin/id", b"id")
    run.end()
    watched.host.start(SH)
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look(since=True))
    assert watched.remembered().untrusted_run == 1
    watched.policy = ""
    assert rules(watched.look(since=True)) == {"runs.untrusted"}


def test_nothing_heals_by_being_compared_with_nothing(watched: Watched) -> None:
    run = watched.host.start(SH, INTRUDER)
    assert not trusted(watched.look())
    watched.appraisal, appraisal = None, watched.appraisal
    assert watched.look().verdict == Verdict.UNKNOWN
    assert watched.remembered().untrusted_run == 1
    watched.appraisal = appraisal
    run.partition.file(b"/bin/id", b"id")
    assert rules(watched.look(since=True)) == {"runs.untrusted"}


def test_a_run_that_was_not_shown_is_good_when_it_is(watched: Watched) -> None:
    """That it was not seen is of the evidence, not of what ran."""
    for _ in range(2):
        watched.host.start(SH).end()
    last = watched.host.start(SH)
    assert rules(watched.look(runs=[last])) == {"runs.not_seen"}
    assert watched.remembered().untrusted_run == 3
    assert trusted(watched.look())


def test_an_earlier_run_that_was_allowed_was_not_found_good(watched: Watched) -> None:
    watched.host.start(SH, INTRUDER).end()
    second = watched.host.start(SH)
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look())
    watched.policy = ""
    assert not trusted(watched.look(runs=[second]))


def test_of_many_runs_the_latest_are_remembered(watched: Watched) -> None:
    for _ in range(67):
        watched.host.start().end()
    assert trusted(watched.look())
    known = [run.registration for run in watched.host.runs]
    assert watched.remembered().earlier == tuple(known[-65:-1])


def test_a_run_must_say_what_the_one_before_came_to(watched: Watched) -> None:
    watched.host.start(SH).end()
    for field, value in (
        ("count", 4),
        ("cpcr", "00" * 32),
        ("reason", "another"),
        ("registration", 1),
        ("boot_id", "another"),
        ("run", 0),
    ):
        previous = watched.host.runs[0].previous() | {field: value}
        watched.host.start(SH, register={"previous": previous})
        error = "RecordShapeError" if field == "run" else "RunError"
        assert refused(watched.look()) == error
        watched.host.runs.pop()
    for other in (None, "lost", "gone"):
        watched.host.start(SH, register={"previous": other})
        assert refused(watched.look()) in {"RunError", "RecordShapeError"}
        watched.host.runs.pop()


def test_what_comes_after_an_end(watched: Watched) -> None:
    run = watched.host.start(SH)
    run.end()
    run.partition.file(b"/bin/id", b"id")
    assert rules(watched.look()) == {"runs.after_exit"}
    other = Watched(watched.memory._root / "other")
    run = other.host.start(SH)
    run.end()
    assert trusted(other.look())
    run.partition.file(b"/bin/id", b"id")
    assert rules(other.look(since=True)) == {"runs.after_exit"}


def test_what_came_after_the_end_that_was_seen(watched: Watched) -> None:
    """And is not shown, but is counted by the run after it."""
    first = watched.host.start(SH)
    first.end()
    assert trusted(watched.look())
    first.partition.file(*INTRUDER)
    second = watched.host.start(SH)
    assert rules(watched.look(runs=[second])) == {"runs.not_seen"}


def test_an_ended_run_is_shown_as_ended(watched: Watched) -> None:
    watched.host.start(SH).end("deleted")
    result = watched.look()
    assert trusted(result)
    assert result.facts is not None
    assert result.facts.ended == "deleted"
    assert rules(result, "warn") >= {"runs.ended"}
    assert watched.look(since=True).facts.ended == "deleted"  # type: ignore[union-attr]


@pytest.mark.parametrize("reason", ["gelöscht", "a\nb\x1b[1m", "\U0001f600"])
def test_an_end_in_any_words(watched: Watched, reason: str) -> None:
    """What the host says of an end is remembered in its own words."""
    watched.host.start(SH).end(reason)
    assert trusted(watched.look())
    assert watched.remembered().ended == reason
    assert trusted(watched.look(since=True))


def test_what_nobody_thought_of_is_no_traceback(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.host.start(SH)
    monkeypatch.setattr(watched.memory, "remember", lambda _: 1 // 0)
    printed: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.lastResort, "handle", printed.append)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert refused(watched.look()) == "UnexpectedError"
    assert not printed


def test_a_run_of_another_container(watched: Watched) -> None:
    watched.host.start(SH, name="another")
    assert refused(watched.look(called="box")) == "RunError"
    assert trusted(watched.look(called="another"))


def test_what_the_host_has_lost(watched: Watched) -> None:
    watched.host.start(SH).end()
    lost = watched.host.start(SH, register={"previous": "lost"})
    assert rules(watched.look(runs=[lost])) == {"runs.lost"}
    assert rules(watched.look(runs=[lost])) == {"runs.lost"}


def test_a_line_that_the_host_has_forgotten(watched: Watched) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.runs.clear()
    watched.host.start(SH)
    result = watched.look()
    assert rules(result) == {"runs.forgotten"}
    assert (False, "what is remembered is not on the chain") in {
        (check.done, check.detail) for check in result.checks
    }
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look())


def test_a_run_of_the_same_number_is_not_the_one_before(watched: Watched) -> None:
    """A line that went another way: its first run is not the one that is remembered."""
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.runs.clear()
    watched.host.start(SH).end()
    second = watched.host.start(SH)
    assert rules(watched.look(runs=[second])) == {"runs.forgotten", "runs.not_seen"}


def test_an_older_run_of_the_line_is_a_rollback(watched: Watched) -> None:
    """A relay that asks for the container that was there before, which ended clean."""
    old = watched.host.start(SH, name="before")
    old.end()
    watched.host.start(SH, INTRUDER, name="after")
    assert not trusted(watched.look())
    assert refused(watched.look(runs=[old])) == "RollbackError"
    assert refused(watched.look(runs=[old], container=None)) == "RollbackError"
    watched.policy = "allow_restarts = true"
    assert refused(watched.look(runs=[old])) == "RollbackError"


def test_made_anew_under_another_id_it_is_the_same_line(watched: Watched) -> None:
    """docker rm, and docker run with the same io.cima.name; or a CRI container's restart."""
    watched.host.start(SH, INTRUDER, name="before").end()
    assert not trusted(watched.look())
    watched.host.start(SH, name="after")
    assert "runs.untrusted" in rules(watched.look())


def test_another_line_is_another(watched: Watched) -> None:
    watched.host.start(SH, INTRUDER)
    assert not trusted(watched.look())
    watched.host.line = "aa" * 32
    watched.host.runs.clear()
    watched.host.start(SH)
    result = watched.look()
    assert trusted(result)
    assert result.facts is not None
    assert result.facts.first_seen


def test_adopted_from_version_1(watched: Watched) -> None:
    run = watched.host.start(SH)
    register = dict(run.partition.records[0]["content"])
    for key in ("line", "run", "previous"):
        del register[key]
    run.partition.records.clear()
    run.partition.add(register)
    run.partition.file(*SH)
    run.partition.file(b"/bin/id", b"id")
    assert refused(watched.look()) == "RunError"
    adopted = {"type": "adopted", "line": watched.host.line, "run": 1, "previous": "lost"}
    run.partition.add(adopted)
    result = watched.look()
    assert rules(result) == {"runs.lost"}
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look())
    assert trusted(watched.look(since=True))
    run.partition.add(adopted)
    assert refused(watched.look(since=True)) == "RunError"
    assert refused(watched.look()) == "RunError"


# -- the TPM and the host's status ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"reset": 4, "restart": 9}, "ResetCountError"),
        ({"restart": 1}, "RestartCountError"),
        ({"clock": 5}, "ClockError"),
    ],
)
def test_counters_do_not_go_back(watched: Watched, changes: dict[str, int], error: str) -> None:
    watched.host.clock["restart"] = 2
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.clock |= changes
    assert refused(watched.look()) == error
    watched.policy = "require_safe_clock = false"
    watched.host.clock["safe"] = 0
    assert refused(watched.look()) == error


def clock_of(result: Result) -> str:
    (detail,) = [check.detail for check in result.checks if check.step == "clock"]
    return detail


def test_a_quote_of_the_same_time_is_not_earlier(watched: Watched) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.clock["clock"] -= 1
    result = watched.look()
    assert trusted(result)
    assert clock_of(result) == "the same start of the TPM, not earlier"


def test_a_tpm_that_was_restarted_is_not_the_same_boot_later(watched: Watched) -> None:
    """Finding 5: restartCount was not looked at."""
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.clock["restart"] += 1
    watched.host.clock["clock"] = 1
    result = watched.look(since=True)
    assert refused(result) == "RebootedError"
    assert result.verdict == Verdict.STALE
    result = watched.look()
    assert trusted(result)
    assert "host.tpm_restarted" in rules(result, "warn")
    assert clock_of(result) == "the TPM has started again since, without a reset"


def test_after_a_reboot_the_whole_is_asked_for(watched: Watched) -> None:
    watched.host.clock["restart"] = 5
    watched.host.start(SH).end("reboot")
    assert trusted(watched.look())
    watched.host.reboot()  # a reset begins the counts of restarts anew
    watched.host.clock["clock"] = 1
    watched.host.start(SH)
    assert refused(watched.look(since=True)) == "RebootedError"
    result = watched.look()
    assert trusted(result)
    assert clock_of(result) == "the host has booted since"
    assert "host.booted" in rules(result, "info")


def test_two_quotes_of_one_moment_tell_the_same_of_the_host(watched: Watched) -> None:
    troubled(watched, "gaps", 2)
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.clock["clock"] -= 1
    troubled(watched, "gaps", 1)
    assert refused(watched.look()) == "StatusError"


@pytest.mark.parametrize("name", ["foreign", "gaps"])
def test_counts_of_troubles_do_not_go_back(watched: Watched, name: str) -> None:
    """Finding 6: they were covered by nothing, and compared with nothing."""
    hour = "2026-01-01T13:00:00Z"
    last = {"foreign": {"kind": "changed", "time": hour}}.get(
        name, {"kind": "disk", "since": hour, "until": hour}
    )
    watched.host.status[name] = {"count": 3, "last": [last] * 3}
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.status[name] = {"count": 2, "last": [last] * 2}
    assert refused(watched.look()) == "StatusError"
    watched.host.reboot()
    watched.host.runs[-1].boot_id = watched.host.boot_id
    watched.host.runs.clear()
    watched.host.start(SH)
    watched.policy = "allow_restarts = true"
    assert trusted(watched.look())  # another boot has counts of its own


# -- the TPM and the boot are the host's, whichever container shows them -------------------------


def troubled(watched: Watched, name: str, count: int) -> None:
    hour = "2026-01-01T13:00:00Z"
    last = {"kind": "disk", "since": hour, "until": hour}
    if name == "foreign":
        last = {"kind": "changed", "time": hour}
    watched.host.status[name] = {"count": count, "last": [last] * count}


def another_container(watched: Watched) -> None:
    """The next evidence is of another container on the same host."""
    watched.host.line = os.urandom(32).hex()
    watched.host.runs.clear()
    watched.host.start(SH)


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"reset": 4, "restart": 9}, "ResetCountError"), ({"restart": 1}, "RestartCountError")],
)
def test_starts_do_not_go_back_whichever_container_asks(
    watched: Watched, changes: dict[str, int], error: str
) -> None:
    watched.host.clock["restart"] = 2
    watched.host.start(SH)
    assert trusted(watched.look())
    another_container(watched)
    result = watched.look()
    assert trusted(result)
    assert result.facts is not None and result.facts.first_seen
    watched.host.clock |= changes | {"clock": 99_999}
    another_container(watched)
    assert refused(watched.look()) == error


@pytest.mark.parametrize("name", ["foreign", "gaps"])
def test_troubles_are_counted_by_host(watched: Watched, name: str) -> None:
    troubled(watched, name, 3)
    watched.host.start(SH)
    assert trusted(watched.look())
    another_container(watched)
    troubled(watched, name, 2)
    assert refused(watched.look()) == "StatusError"
    # What was made before, and is verified after, could not know of them.
    watched.host.clock["clock"] -= 100
    assert trusted(watched.look())
    another_container(watched)
    watched.host.clock["clock"] += 100
    assert refused(watched.look()) == "StatusError"
    watched.host.reboot()
    another_container(watched)
    assert trusted(watched.look())  # another boot has counts of its own


def test_the_first_value_is_the_hosts(watched: Watched) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    another_container(watched)
    watched.host.status["initial"] = "11" * 32
    assert refused(watched.look()) == "StatusError"
    watched.host.status["initial"] = None
    assert refused(watched.look()) == "StatusError"
    troubled(watched, "foreign", 1)  # its journal was lost
    assert trusted(watched.look())


def test_a_journal_that_was_lost_knows_no_other_first_value(watched: Watched) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    troubled(watched, "foreign", 1)
    watched.host.status["initial"] = "11" * 32
    assert refused(watched.look()) == "StatusError"


@pytest.mark.parametrize("name", ["foreign", "gaps"])
def test_hibernation_is_in_the_midst_of_a_boot(watched: Watched, name: str) -> None:
    """The TPM is reset, the boot's id and what was counted in it stay."""
    troubled(watched, name, 2)
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.clock |= {"reset": 6, "clock": 1}
    troubled(watched, name, 1)
    assert refused(watched.look()) == "StatusError"
    troubled(watched, name, 3)
    result = watched.look()
    assert trusted(result)
    assert "host.tpm_restarted" in rules(result, "warn")
    assert "host.booted" not in rules(result, "info")


def test_what_an_earlier_verifier_remembered_is_of_lines_alone(
    watched: Watched, tmp_path: Path
) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    (host,) = tmp_path.glob("*.host")
    host.unlink()
    assert trusted(watched.look(since=True))
    assert host.exists()
    host.unlink()
    watched.host.clock["reset"] -= 1
    assert refused(watched.look()) == "ResetCountError"


def test_foreign_extends_fail_where_the_policy_says_so(watched: Watched) -> None:
    hour = "2026-01-01T13:00:00Z"
    watched.host.status["foreign"] = {"count": 1, "last": [{"kind": "zero", "time": hour}]}
    watched.host.start(SH)
    result = watched.look()
    assert trusted(result)
    assert "host.foreign" in rules(result, "warn")
    watched.policy = "allow_foreign_extends = false"
    assert rules(watched.look()) == {"host.foreign"}
    # What was not TRUSTED as a whole is remembered as good by nothing.
    assert watched.remembered().good_with is None


def test_the_first_value_of_the_binding_pcr_does_not_change(watched: Watched) -> None:
    watched.host.start(SH)
    assert trusted(watched.look())
    watched.host.status["initial"] = "11" * 32
    assert refused(watched.look()) == "StatusError"
    watched.host.status["initial"] = None
    assert refused(watched.look()) == "StatusError"
    hour = "2026-01-01T13:00:00Z"
    watched.host.status["foreign"] = {"count": 1, "last": [{"kind": "journal", "time": hour}]}
    assert trusted(watched.look())


def test_boot_pcrs_are_said_to_be_unknown_or_compared(watched: Watched) -> None:
    watched.host.start(SH)
    assert "host.pcrs_unknown" in rules(watched.look(), "warn")
    good = watched.host.pcrs[7].hex()
    watched.policy = f"boot_pcrs = [7]\n[pcr_values]\n7 = ['{good}']"
    watched.host.pcrs = {7: watched.host.pcrs[7]}
    result = watched.look()
    assert trusted(result)
    assert "host.pcrs_unknown" not in rules(result, "warn")
    for values in (f"7 = ['{'11' * 32}']", "7 = []", f"7 = ['{good}']\n8 = ['{good}']"):
        watched.policy = f"boot_pcrs = [7]\n[pcr_values]\n{values}"
        assert rules(watched.look()) == {"host.pcr"}


def test_measured_is_what_the_rules_are_given(watched: Watched) -> None:
    seen: list[Any] = []
    secrets: list[bytes] = []

    def keep(
        records: Any, references: Any, policy: Any, dependencies: Any, secret: bytes
    ) -> list[Finding]:
        seen.append((records, dependencies))
        secrets.append(secret)
        return []

    watched.appraisal = Appraisal(keep, References(), b"r" * 32)
    watched.host.start(SH).end()
    watched.host.start(SH)
    assert trusted(watched.look())
    (first, none), (second, services) = seen
    assert (len(first), len(second)) == (5, 4)
    assert none is None
    assert services == ()
    assert all(isinstance(record, Measured) for record in first)
    assert secrets == [run.secret for run in watched.host.runs]
