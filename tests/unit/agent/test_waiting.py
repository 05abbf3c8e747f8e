from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.agent.attester import Attester
from cima_runc.agent.waiting import TooManyError, WaitingRoom, beat_seconds, until_beat
from cima_runc.config import Settings
from cima_runc.evidence.request import Asker, Request
from cima_runc.ml.listing import NoSuchContainerError


def request(container: str = "c") -> Request:
    return Request(boot_log=False, container=container, host="none", nonce=b"n" * 16, since=None)


def test_at_most_eight_wait_for_one_container() -> None:
    room = WaitingRoom[bytes]()
    for at in range(8):
        room.add(request(), Asker.OUTSIDE, f"s{at}")
    with pytest.raises(TooManyError):
        room.add(request(), Asker.OUTSIDE, None)
    room.add(request("other"), Asker.OUTSIDE, None)
    assert len(room.take()) == 9
    room.add(request(), Asker.OUTSIDE, None)
    assert len(room.take()) == 1


def test_fewer_from_one_source_but_root() -> None:
    room = WaitingRoom[bytes]()
    for at in range(4):
        room.add(request(f"c{at}"), Asker.OUTSIDE, "s")
    with pytest.raises(TooManyError):
        room.add(request("another"), Asker.OUTSIDE, "s")
    for at in range(20):
        room.add(request(f"r{at}"), Asker.OUTSIDE, None)


def test_no_more_than_there_are_places() -> None:
    room = WaitingRoom[bytes]()
    for at in range(1024):
        room.add(request(f"c{at}"), Asker.OUTSIDE, None)
    with pytest.raises(TooManyError):
        room.add(request("another"), Asker.OUTSIDE, None)


class NoContainers:
    """A writer that has none."""

    def latest(self, _: str) -> None:
        return None


@pytest.mark.parametrize("gone", [0, 1])
def test_who_went_away_spoils_no_answer_of_those_who_wait_with_him(gone: int) -> None:
    attester = Attester(
        settings=Settings(), writer=cast(Any, NoContainers()), tpm=None, commit=lambda: None
    )
    answers = [attester.ask(request(f"c{at}"), source=None) for at in range(2)]
    assert answers[gone].cancel()
    attester.serve()
    # It was a fault of ours, InvalidStateError, and said so in the agent's log.
    assert isinstance(answers[1 - gone].exception(0), NoSuchContainerError)


def test_who_goes_away_while_he_is_answered_is_too_late() -> None:
    room = WaitingRoom[bytes]()
    answer = room.add(request(), Asker.OUTSIDE, None)
    (taken,) = room.take()
    assert not answer.cancel()
    taken.answer.set_result(b"evidence")


@given(st.floats(0, 1e9), st.sampled_from([1 << n for n in range(10, 16)]))
def test_beats_are_even_and_set_by_the_slots_alone(now: float, slots: int) -> None:
    wait = until_beat(now, slots)
    beat = beat_seconds(slots)
    assert 0 < wait <= beat
    assert abs((now + wait) / beat - round((now + wait) / beat)) < 1e-6
    assert beat_seconds(2 * slots) == 2 * beat
