"""A connection to the TPM on which no call waits for ever.

The kernel's driver waits minutes for a TPM that hangs, a socket for ever; the agent's one writer
must go on meanwhile.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from tpm2_pytss import TSS2_Exception

from cima_runc.base.errors import CimaError

SHORT = frozenset({"pcr_extend", "pcr_read", "get_random", "read_clock"})
"""Commands of a few milliseconds (TCG PC Client Platform TPM Profile, 5.5.1: at most 2 s)."""
SHORT_SECONDS = 10.0
LONG_SECONDS = 100.0
"""For the others: some TPMs take a minute to make an RSA key."""

_LAYER_SHIFT = 16
_LAYERS_OF_THE_TPM = frozenset({0, 11, 12})
"""TSS2_TPM_RC_LAYER and those of resource managers; other errors are of the connection."""


class TpmError(CimaError):
    """The TPM cannot be reached, or answered with an error."""


class TpmSilentError(TpmError):
    """The TPM does not answer; what it was asked last may still happen."""


class TimedConnection:
    """A connection like ``connect()``'s, a tpm2_pytss.ESAPI, with a limit of time for each call.

    A call that takes longer raises TpmSilentError, and so does every other one, at once, until that
    one has come to its end. A connection that has failed as such is made anew with the next call;
    what handles of the TPM were known by it are not known any more.
    """

    def __init__(self, connect: Callable[[], Any], *, short: float, long: float) -> None:
        self._connect = connect
        self._connection = connect()
        self._broken = False
        self._seconds = {True: short, False: long}
        self._last: Future[Any] | None = None
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        # A daemon: a call that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name="tpm", daemon=True).start()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def method(*arguments: Any, **named: Any) -> Any:
            call = lambda: getattr(self._connection, name)(*arguments, **named)  # noqa: E731
            return self._wait(self._seconds[name in SHORT], call)

        return method

    def _wait(self, seconds: float, call: Callable[[], Any]) -> Any:
        hint = "is it there still? see dmesg"
        if self._last is not None and not self._last.done():
            raise TpmSilentError("the TPM does not answer", hint=hint)
        answer: Future[Any] = Future()
        self._last = answer
        self._calls.put((answer, call))
        try:
            return answer.result(seconds)
        except FutureTimeoutError as error:
            raise TpmSilentError(
                f"the TPM has not answered for {seconds:g} s", hint=hint
            ) from error

    def _work(self) -> None:
        while True:
            answer, call = self._calls.get()
            try:
                if self._broken:
                    self._connection.close()
                    self._connection = self._connect()
                    self._broken = False
                answer.set_result(call())
            except TSS2_Exception as error:
                self._broken = error.rc >> _LAYER_SHIFT & 0xFF not in _LAYERS_OF_THE_TPM
                answer.set_exception(error)
            except BaseException as error:
                answer.set_exception(error)
