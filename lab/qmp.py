"""QEMU's monitor, as far as freezing needs it. Source: QEMU Machine Protocol Specification."""

import json
import socket
import time
from typing import Any

from machine import GuestError

SECONDS = 60.0


class Monitor:
    """A conversation over this end of a socket pair whose other end QEMU has."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel
        self._socket.settimeout(SECONDS)
        self._answers = channel.makefile("r")
        self._answers.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give a command and return QEMU's answer; an underscore stands for a dash."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        text = json.dumps({"execute": command, "arguments": named}) + "\n"
        try:
            self._socket.sendall(text.encode())
            for line in self._answers:
                answer = json.loads(line)
                if "error" in answer:
                    raise GuestError(f"QEMU refuses {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise GuestError(f"QEMU's monitor broke at {command}: {error}") from None
        raise GuestError(f"QEMU ended at {command}")

    def wait_for_migration(self, seconds: float) -> None:
        """Return when the state has gone out or come in."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = self.ask("query-migrate")
            if state.get("status") == "completed":
                return
            if state.get("status") == "failed":
                raise GuestError(f"QEMU's state did not get across: {state.get('error-desc', '')}")
            time.sleep(0.02)
        raise GuestError(f"QEMU's state did not get across in {seconds:.0f} s")
