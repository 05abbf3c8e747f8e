"""A proxy in front of swtpm that answers wrongly, late, or not at all.

It speaks what tpm2-tss's TCTI ``swtpm`` speaks: bare commands on one socket (TPM 2.0 Library
Part 1, "Command/Response Structure"), and swtpm's control channel on the other, passed through.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

RETRY = 0x922
FAILURE = 0x101
_ERROR = struct.Struct(">HII")
_NO_SESSIONS = 0x8001


class TpmProxy:
    """Passes commands on; ``plan(number)`` says what becomes of the command of that number.

    None: it is passed on. "retry", "failure": the answer is that error and the TPM hears nothing.
    "silent": neither. "lost": the TPM does it, its answer gets lost. "closed": the connection ends.
    """

    def __init__(self, directory: Path, upstream: str) -> None:
        self.tcti = f"swtpm:path={directory}/proxy"
        self.count = 0
        self.plan: Callable[[int], str | None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None
        self._upstream = upstream
        self._listeners = [
            self._listen(directory / "proxy", "", self._commands),
            self._listen(directory / "proxy.ctrl", ".ctrl", self._control),
        ]

    def reset(self) -> None:
        self.count = 0
        self.plan = lambda number: None
        self.after = lambda number: None

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _listen(
        self, path: Path, suffix: str, work: Callable[[socket.socket, socket.socket], None]
    ) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(8)

        def one(near: socket.socket) -> None:
            with near, socket.socket(socket.AF_UNIX) as far:
                far.connect(self._upstream + suffix)
                with suppress(OSError):
                    work(near, far)
                with suppress(OSError):
                    far.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(near,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return listener

    def _commands(self, near: socket.socket, far: socket.socket) -> None:
        while command := _message(near):
            number = self.count
            self.count += 1
            match self.plan(number):
                case None:
                    far.sendall(command)
                    answer = _message(far)
                    self.after(number)
                    near.sendall(answer)
                case "retry":
                    near.sendall(_ERROR.pack(_NO_SESSIONS, _ERROR.size, RETRY))
                case "failure":
                    near.sendall(_ERROR.pack(_NO_SESSIONS, _ERROR.size, FAILURE))
                case "lost":
                    far.sendall(command)
                    _message(far)
                case "closed":
                    return
                case _:
                    pass  # silent

    def _control(self, near: socket.socket, far: socket.socket) -> None:
        def back() -> None:
            with suppress(OSError):
                while data := far.recv(4096):
                    near.sendall(data)

        threading.Thread(target=back, daemon=True).start()
        while data := near.recv(4096):
            far.sendall(data)


def _message(channel: socket.socket) -> bytes:
    """One command or answer, or nothing where the other side has gone."""
    head = _exactly(channel, 10)
    if not head:
        return b""
    return head + _exactly(channel, int.from_bytes(head[2:6], "big") - 10)


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data


@contextmanager
def tpm_proxy(directory: Path, tcti: str) -> Iterator[TpmProxy]:
    """A proxy in front of the swtpm that ``tcti`` names."""
    proxy = TpmProxy(directory, tcti.partition("path=")[2])
    try:
        yield proxy
    finally:
        proxy.close()
