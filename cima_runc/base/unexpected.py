"""What a command tells of an error that nobody thought of."""

import os
import traceback

from cima_runc.base.errors import CimaError


class UnexpectedError(CimaError):
    """What nobody thought of."""


def unexpected(error: Exception, program: str) -> CimaError:
    """Return what a program tells of an error that nobody thought of: the system's word, or that it
    is a fault of its own. Its traceback is printed where ``CIMA_TRACEBACK`` wants it."""
    if os.environ.get("CIMA_TRACEBACK"):
        traceback.print_exception(error)
    what = str(error) or type(error).__name__
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return UnexpectedError(f"{name}{error.strerror or what}")
    return UnexpectedError(
        f"a fault in {program} itself: {type(error).__name__}: {what}",
        hint="CIMA_TRACEBACK=1 in the environment shows where; please report it",
    )
