"""One request: whether who asked waits still."""

import socket

from cima_runc.agent.request import Caller


def test_who_asks_waits_until_he_closes_his_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, Caller(ours) as caller:
        theirs.sendall(b"more than was asked for")
        assert caller.waits()
        theirs.close()
        assert not caller.waits()
    assert not caller.waits()


def test_that_our_end_was_closed_says_nothing_of_him() -> None:
    """asyncio closes it at any time; the number may be another file's then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, Caller(ours) as caller:
        ours.close()
        assert caller.waits()
