"""A unix socket of the agent's at a path, which nobody reaches before its mode is right."""

import os
import shutil
import socket
import tempfile
from pathlib import Path


def bind_private(
    path: Path, kind: socket.SocketKind, *, mode: int = 0o600, group: int | None = None
) -> socket.socket:
    """Return a socket bound to ``path``, in place of what is there, in one step.

    It is made in a directory that only its owner may enter, and moved when it has its ``group``
    and ``mode``; the process's umask, which all threads share, is left alone.

    Raises:
        OSError: it cannot be made.
    """
    channel = socket.socket(socket.AF_UNIX, kind)
    building = tempfile.mkdtemp(prefix=".", dir=path.parent)
    try:
        made = os.path.join(building, "s")
        channel.bind(made)
        if group is not None:
            os.chown(made, -1, group)
        os.chmod(made, mode)
        os.replace(made, path)
    except OSError:
        channel.close()
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return channel
