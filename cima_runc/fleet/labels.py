"""Labels of hosts: policies are assigned by them, so that they are alike whoever gives them."""

import re
from collections.abc import Mapping

from cima_runc.base.errors import CimaError

_LABEL = re.compile(r"[ -~]{1,253}")
_LABELS = 64


class LabelsError(CimaError):
    """Labels are not such as can be."""


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels of a host as they are kept.

    Raises:
        LabelsError: they are not such as can be.
    """
    fits = all(_LABEL.fullmatch(one) for pair in labels.items() for one in pair)
    if len(labels) > _LABELS or not fits:
        raise LabelsError(f"a label is 1 to 253 ASCII characters, and there are {_LABELS} at most")
    return dict(labels)
