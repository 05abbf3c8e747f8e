"""The agent's listening socket: systemd's, which outlives the agent, or one of its own."""

import os
import socket
import stat
from pathlib import Path

from cima_runc.agent.private_socket import bind_private
from cima_runc.base.errors import CimaError

_FIRST_HANDLE = 3
"""The first descriptor that systemd passes (sd_listen_fds(3))."""


class Listener:
    """The socket at ``path``, for root only."""

    def __init__(self, path: str) -> None:
        """Take systemd's socket, or make one.

        Raises:
            CimaError: another agent listens there, or others than root may change what is there.
        """
        self._path = Path(path)
        self._inode: int | None = None
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            if os.environ.get("LISTEN_FDS") != "1":
                raise CimaError("systemd passes more than one socket")
            self.channel = socket.socket(fileno=_FIRST_HANDLE)
            return
        self._look_at_directory()
        self._look_for_another()
        # Put in place of a stale one in one step: hooks that wait find always one of them.
        self.channel = bind_private(self._path, socket.SOCK_STREAM)
        self._inode = self._path.lstat().st_ino

    def remove(self) -> None:
        """Remove the socket's file, if it is ours: not systemd's, and not one put in its place."""
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass

    def _look_at_directory(self) -> None:
        directory = self._path.parent
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = directory.lstat()
        others = stat.S_IMODE(found.st_mode) & 0o022
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or others:
            raise CimaError(
                f"{directory} is not a directory that only root may change",
                hint="put the socket elsewhere, or mend the directory's owner and mode",
            )

    def _look_for_another(self) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except OSError:
                return
        raise CimaError(f"an agent listens on {self._path} already", hint="stop it first")
