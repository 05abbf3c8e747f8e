"""What the hook programs become where the agent cannot be reached."""

import os
import sys

_PREFIX = os.path.realpath(__file__).removesuffix("/libexec/cima/hook.py")
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
sys.path.insert(0, f"{_PREFIX}/lib/{_PYTHON}/site-packages")

from cima_runc.runtime.hook import main  # noqa: E402

sys.exit(main(sys.argv[1]))
