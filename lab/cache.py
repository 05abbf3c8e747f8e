"""What is kept between runs: layers, each whole or not there, under the hash of its origins.

As a program, for a release and names of layers, each with how many of it to keep: removes others.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from held import held

CACHE = Path(
    os.environ.get("CIMA_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cima-runc"
)

MINUTES = 120
"""How long a layer of the shell's is kept for: several checkouts share the cache."""


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
    with held(_beside(layer, "lock")):
        yield


@contextmanager
def making(layer: Path) -> Iterator[Path]:
    """Yield a directory to make the layer in; it becomes the layer if the block ends well."""
    new = _beside(layer, "new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        new.rename(layer)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def prune(prefix: str, newest: int, minutes: float) -> None:
    """Remove layers of that name that nobody used for so long, but for the newest ones.

    Using a layer sets its time. What a guest has open stays readable to it. What is beside no layer
    goes too: its lock, what was made of it by a process that was killed, and the log of that, which
    somebody may want to read, after as long.
    """
    layers = {CACHE / each.name.partition(".")[0] for each in CACHE.glob(f"{prefix}-*")}
    before = time.time() - 60 * minutes
    for number, layer in enumerate(sorted(layers, key=_used, reverse=True)):
        # What is held is being made, or looked at.
        with suppress(BlockingIOError), held(_beside(layer, "lock"), wait=False):
            shutil.rmtree(_beside(layer, "new"), ignore_errors=True)
            if number >= newest and _used(layer) < before:
                shutil.rmtree(layer, ignore_errors=True)
            if _used(_beside(layer, "log")) < before:
                _beside(layer, "log").unlink(missing_ok=True)
            if not layer.is_dir():
                _beside(layer, "lock").unlink()


def _beside(layer: Path, what: str) -> Path:
    return Path(f"{layer}.{what}")


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


if __name__ == "__main__":
    release, *words = sys.argv[1:]
    for name, newest in zip(words[::2], words[1::2], strict=True):
        prune(f"{name}-{release}", int(newest), MINUTES)
