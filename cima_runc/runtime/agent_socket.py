"""The framing on the agent's unix socket, and its blocking client.

A request is a line ``VERB LENGTH`` and LENGTH bytes; an answer is a line ``ok LENGTH`` or
``error LENGTH`` and LENGTH bytes. One request a connection. The verbs ``prestart``, ``poststart``
and ``poststop`` carry the hook's state as the runtime wrote it; every other body is JSON.
Standard library only: the hook client uses it.
"""

import socket

from cima_runc.base import limits
from cima_runc.base.errors import CimaError

USERS_SUFFIX = ".users"
"""Added to the agent's socket path: where users other than root have their containers measured."""

HEADER = 64
"""Bytes of a header line at most, the newline counted."""


class AgentUnavailableError(CimaError):
    """Nobody answers on the agent's socket."""

    exit_code = 2

    def __init__(
        self, what: str, *, hint: str = "start it with: systemctl start cima-agent"
    ) -> None:
        super().__init__(what, hint=hint)


class AgentRefusedError(CimaError):
    """The agent answered that it will not."""


def frame(word: str, body: bytes) -> bytes:
    """Return a request's or an answer's bytes."""
    return f"{word} {len(body)}\n".encode("ascii") + body


def parse_header(line: bytes, *, limit: int) -> tuple[str, int]:
    """Return (word, length) of a header line.

    Raises:
        CimaError: not a header, or a length above ``limit``.
    """
    word, _, length = line.rstrip(b"\n").partition(b" ")
    if not word.isalpha() or not length.isdigit() or len(line) > HEADER:
        raise CimaError("a message on the agent's socket has no proper header")
    if int(length) > limit:
        raise CimaError(f"a message on the agent's socket has more than {limit} bytes")
    return word.decode("ascii"), int(length)


def call_agent(path: str, verb: str, body: bytes, *, timeout: float) -> bytes:
    """Send one request to the agent's socket at ``path``, return the answer's body.

    ``timeout`` is in seconds, for each step.

    Raises:
        AgentUnavailableError: no agent there, or it does not answer in time.
        AgentRefusedError: the agent's own words of why not.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(timeout)
        try:
            channel.connect(path)
        except OSError as error:
            if path.endswith(USERS_SUFFIX):
                raise AgentUnavailableError(
                    f"no agent measures your containers here ({path}: {error.strerror})",
                    hint="root lets a group: users.group in /etc/cima/config.toml",
                ) from error
            raise AgentUnavailableError(
                f"the agent cima-agent is not running ({path}: {error.strerror})"
            ) from error
        try:
            channel.sendall(frame(verb, body))
            with channel.makefile("rb") as answers:
                line = answers.readline(HEADER + 1)
                if not line:
                    raise AgentUnavailableError("the agent cima-agent closed the connection")
                word, length = parse_header(line, limit=limits.REPLY)
                answer = answers.read(length)
        except OSError as error:
            reason = error.strerror or "no answer in time"
            raise AgentUnavailableError(
                f"the agent cima-agent does not answer ({path}: {reason})"
            ) from error
    if len(answer) != length:
        raise AgentUnavailableError("the agent cima-agent closed the connection")
    if word != "ok":
        raise AgentRefusedError(answer.decode("utf-8", "replace"))
    return answer
