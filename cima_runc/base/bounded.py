"""Files, read no further than they may be long."""

from os import PathLike


def read_bounded(path: str | bytes | PathLike[str], limit: int) -> bytes:
    """Return a file's bytes; of one that is longer than ``limit`` one byte more than that.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(limit + 1)
