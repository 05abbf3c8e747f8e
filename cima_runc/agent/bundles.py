"""Prepares bundles for the launcher ``cima-runc``, which is faster here than in a new Python.

One packet a connection (SOCK_SEQPACKET): the directory of the launcher's hooks, a NUL and the
bundle's absolute path, which nobody but root may write (native/bundle_guard.h); and with it
(SCM_RIGHTS) the open bundle directory, so that no path can mean another one in our mount
namespace. The answer is ``ok DEVICE INODE`` of the file that is the configuration now, or ``no``:
then the launcher does it with a Python of its own, which also says why where it cannot be done.
"""

import errno
import logging
import os
import socket
import stat
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

from cima_runc.agent.private_socket import bind_private
from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.runtime.shim import find_runtime, inject_hooks, timeout_of
from cima_runc.runtime.shim_settings import (
    ShimSettings,
    identity_of,
    read_settings_file,
    shim_settings_of,
    write_companion,
)

_log = logging.getLogger(__name__)

SUFFIX = ".bundles"
"""Added to the agent's socket path."""
_SECONDS = 2.0
"""How long the launcher waits, and we for it."""
_BACKLOG = 128
_PASSING = frozenset(
    {errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM}
)
"""By which accept(2) fails once, and not for good."""
_PAUSE_SECONDS = 0.1
_NEVER = ""


class BundleServer:
    """Answers launchers in a thread of its own, so that no other work of the agent delays them."""

    def __init__(self, agent_socket: str, hooks_dir: str) -> None:
        self._settings = ShimSettings()
        self._read_at: str | None = _NEVER
        self._timeout: int | None = None
        self._hooks_dir = hooks_dir
        self._path = Path(agent_socket + SUFFIX)
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Listen, for root only; where that cannot be, launchers use Pythons of their own."""
        try:
            self._listener = bind_private(self._path, socket.SOCK_SEQPACKET)
            self._listener.listen(_BACKLOG)
        except OSError as error:
            _log.warning("bundles are left to launchers: %s: %s", self._path, error)
            return
        with suppress(CimaError, OSError):
            self._shim_settings()
        threading.Thread(
            target=self._serve, args=(self._listener,), name="bundles", daemon=True
        ).start()

    def stop(self) -> None:
        """Listen no more; launchers then use Pythons of their own."""
        self._path.unlink(missing_ok=True)
        if self._listener is None:
            return
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                channel, _ = listener.accept()
            except OSError as error:
                if error.errno not in _PASSING:
                    return
                # Without this thread every launcher would wait in vain.
                time.sleep(_PAUSE_SECONDS)
                continue
            with channel, suppress(OSError):
                channel.settimeout(_SECONDS)
                channel.send(self._answer(channel))

    def _answer(self, channel: socket.socket) -> bytes:
        words, handles, _, _ = socket.recv_fds(channel, 2 * limits.PATH, 1)
        try:
            if len(handles) != 1:
                raise CimaError("a launcher sent no directory")
            found = self._prepare(channel, words, handles[0])
        except (CimaError, OSError) as error:
            _log.info("a bundle is left to the launcher: %s", error)
            return b"no"
        except Exception:
            # A mistake of ours. Without this thread every launcher would wait in vain.
            _log.exception("a bundle is left to the launcher")
            return b"no"
        finally:
            for handle in handles:
                os.close(handle)
        return b"ok %d %d" % (found.st_dev, found.st_ino)

    def _prepare(self, channel: socket.socket, words: bytes, directory: int) -> os.stat_result:
        hooks_dir, _, bundle = words.partition(b"\0")
        credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("iII", credentials)
        if uid != 0:
            raise CimaError(f"user {uid} may not ask the agent")
        if os.fsdecode(hooks_dir) != self._hooks_dir:
            raise CimaError("it is the launcher of another installation")
        config = os.stat("config.json", dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(config.st_mode):
            raise CimaError("config.json is not a regular file")
        settings = self._shim_settings()
        return inject_hooks(
            directory,
            "config.json",
            settings,
            self._hooks_dir,
            bundle=os.fsdecode(bundle),
            timeout_seconds=self._timeout,
        )

    def _timeout_of(self, settings: ShimSettings) -> int | None:
        # The runtime that the launcher becomes: it looks in the same way.
        runtime = find_runtime(settings.runtimes, os.path.join(self._hooks_dir, "prestart"))
        return timeout_of(runtime, settings)

    def _shim_settings(self) -> ShimSettings:
        """Return what the launcher's own Python would read at this moment."""
        identity = identity_of()
        if identity is None or identity != self._read_at:
            self._settings = shim_settings_of(read_settings_file())
            self._timeout = self._timeout_of(self._settings)
            # The companion is not written for a file that may yet change unseen.
            if write_companion(identity, self._settings):
                self._read_at = identity
        return self._settings
