"""What is kept between runs: layers, each whole or not there, under the hash of its origins."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = Path(
    os.environ.get("CIMA_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cima-runc"
)


def key(*parts: str | bytes) -> str:
    """Return 16 hexadecimal digits that stand for the parts."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:16]


@contextmanager
def locked(layer: Path) -> Iterator[None]:
    """Hold the layer's lock, so that one process makes it and others wait."""
    layer.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{layer}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def making(layer: Path) -> Iterator[Path]:
    """Yield a directory to make the layer in; it becomes the layer if the block ends well."""
    new = Path(f"{layer}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        new.rename(layer)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def prune(prefix: str, newest: int, minutes: float) -> None:
    """Remove layers of that name that nobody used for so long, but for the newest ones.

    Using a layer sets its time. What a guest has open stays readable to it.
    """
    layers = [each for each in CACHE.glob(f"{prefix}-*") if each.is_dir()]
    layers.sort(key=lambda layer: layer.stat().st_mtime, reverse=True)
    for layer in layers[newest:]:
        if time.time() - layer.stat().st_mtime > 60 * minutes:
            # What is being made now has the times of what is unpacked into it.
            lock = Path(f"{str(layer).removesuffix('.new')}.lock")
            with lock.open("w") as held, suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(layer, ignore_errors=True)
                lock.unlink(missing_ok=True)
