"""What goes with the process that it belongs to, however that ends: locks, files, children."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def held(path: Path, flags: int = LOCK_FILE, *, wait: bool = True) -> Iterator[int]:
    """Hold what is at the path, opened with the flags; yield a descriptor.

    Who holds it may remove it. So who has waited for it looks whether it is still there: otherwise
    another one would hold what was made there since.

    Raises:
        BlockingIOError: another holds it, and it is not waited for.
        FileNotFoundError: it is not there, or no more, and the flags do not make it.
    """
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Yield a temporary directory, having removed those whose process was killed."""
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # it is held, or another user's, or gone
            remove(old)
    with ExitStack() as stack:
        yield _new(prefix, stack)


def _new(prefix: str, stack: ExitStack) -> Path:
    while True:
        made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
        directory = Path(stack.enter_context(made))
        # Until it is held, another process may take it for one that was left.
        with suppress(FileNotFoundError):
            stack.enter_context(held(directory, DIRECTORY))
            return directory


def remove(directory: Path) -> None:
    """Remove a directory that nobody holds.

    Raises:
        BlockingIOError: somebody does.
        FileNotFoundError: it is gone.
    """
    with held(directory, DIRECTORY, wait=False):
        shutil.rmtree(directory, ignore_errors=True)


def bound(command: list[str], number: str) -> list[str]:
    """Return the command for a child that gets this signal when the thread that starts it ends.

    The kernel says nothing of a parent that was gone before it was asked to: the child looks.
    """
    look = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return ["setpriv", "--pdeathsig", number, "sh", "-c", look, "sh", *command]
