"""The root of every error that cima-runc raises on purpose.

Each module that fails in a way of its own derives from :class:`CimaError` beside the code that
raises it. An error is shown to a person as one line that says what happened, and one that says
what to do next.
"""

from cima_runc.base.text import printable


class CimaError(Exception):
    """Something went wrong that a person can do something about.

    ``what`` is one line: what happened, with what was found and what was expected.
    ``hint`` is one line: what to do next, or empty where nothing can be done.
    """

    exit_code = 2
    """The exit status of a command that ends with this error; 1 says UNTRUSTED and nothing else."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        line = f"{self.what}; {self.hint}" if self.hint else self.what
        return printable(line)


class UsageError(CimaError):
    """The command line is not one that the program takes."""
