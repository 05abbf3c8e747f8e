"""What a check finds that is not as it must be."""

from cima_runc.base.errors import CimaError


class UnfitError(CimaError):
    """Something that a check looks at is not as it must be."""


def some(names: list[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
