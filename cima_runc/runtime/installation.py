"""Where the running installation has its launcher and its hooks."""

import sys
from pathlib import Path


def prefix() -> Path:
    """Return the directory that the package was installed below: /opt/cima by install.sh."""
    return Path(sys.prefix).resolve()


def launcher() -> Path:
    """Return the program that engines call."""
    return prefix() / "bin/cima-runc"


def hooks_dir() -> Path:
    """Return the directory of the programs that the runtime calls."""
    return prefix() / "libexec/cima/hooks"
