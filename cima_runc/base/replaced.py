"""A file that another takes the place of in one step: whoever opens it has the old or the new."""

import os
from contextlib import suppress

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def replace(
    path: str | os.PathLike[str],
    data: bytes,
    *,
    temporary: str | os.PathLike[str] | None = None,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    sync: bool = True,
    directory: int | None = None,
) -> os.stat_result:
    """Put ``data`` at ``path``, with ``mode`` and ``owner`` (uid, gid; None: this process's).

    It is written to ``temporary``, which must not be there (None: a name of its own beside
    ``path``), and nothing is left of that where it fails. Where ``sync``, the data is on the disk
    before the name is. ``directory`` is what the names are relative to. Returns what was made.

    Raises:
        OSError: it could not be written; what was at ``path`` is as it was.
    """
    made = f"{os.fspath(path)}.{os.urandom(8).hex()}" if temporary is None else temporary
    handle = os.open(made, _FLAGS, 0o600, dir_fd=directory)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(handle, *owner)
            os.fchmod(handle, mode)
            if sync:
                os.fsync(handle)
            status = os.fstat(handle)
        os.replace(made, path, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(made, dir_fd=directory)
        raise
    return status
