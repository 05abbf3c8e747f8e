"""Runs the agent again and again in fresh processes, without the seconds that imports take here.

Started with the installation's Python, it holds the agent's socket, as systemd would, and forks an
agent for each line on its standard input, whose process id it prints. What is forked is the agent
itself, from its main() on.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from cima_runc.agent import main

SOCKET = Path("/run/cima/agent.sock")


def listen() -> socket.socket:
    SOCKET.parent.mkdir(exist_ok=True)
    SOCKET.unlink(missing_ok=True)
    channel = socket.socket(socket.AF_UNIX)
    channel.bind(str(SOCKET))
    SOCKET.chmod(0o600)
    channel.listen(1024)
    return channel


def agent(channel: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(channel.fileno(), 3)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    sys.argv = ["cima-agent", "--log-level", "warning"]
    os._exit(main.main())


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
    listening = listen()
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            agent(listening)
        print(pid, flush=True)
