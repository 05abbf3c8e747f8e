"""Output that nobody reads to its end, as of ``cima verify … | head -1``."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nobody_reads_on(status: int) -> Iterator[None]:
    """End the process with ``status`` where what it has to say cannot be written any more.

    The library behind commands ends with 1 then, which says UNTRUSTED, as an error of ours does
    that nobody takes; 0 would say TRUSTED.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit) as ended:
        if isinstance(ended, SystemExit) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        # Nothing more may be written when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(status)
