"""Prepares the bundle for the launcher ``cima-runc`` and tells it which runtime to become."""

import os
import sys

_PREFIX = os.path.realpath(__file__).removesuffix("/libexec/cima/prepare.py")
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
sys.path.insert(0, f"{_PREFIX}/lib/{_PYTHON}/site-packages")

from cima_runc.runtime.shim import main  # noqa: E402

sys.exit(
    main(sys.argv, own_path=f"{_PREFIX}/bin/cima-runc", hooks_dir=f"{_PREFIX}/libexec/cima/hooks")
)
