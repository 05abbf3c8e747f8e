"""What ``cima appraise`` found last of a container, kept beside its records: it goes with them."""

import os
from pathlib import Path

from pydantic import ValidationError

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.durable import replace_file
from cima_runc.cli.shapes import LastVerdict
from cima_runc.ml.store import Store


def keep(state_dir: str, registration: int, verdict: LastVerdict) -> bool:
    """Write it down durably, in place of an earlier one; return whether this user may.

    Raises:
        OSError: the disk does not take it.
    """
    store = Store(Path(state_dir))
    if not os.access(store.root, os.W_OK) or not store.holds(registration):
        return False
    raw = verdict.model_dump_json().encode("utf-8") + b"\n"
    replace_file(store.verdict_path(registration), raw)
    return True


def read(state_dir: str, registration: int | None) -> LastVerdict | None:
    """Return it; None where there is none, or none that this user may read."""
    if registration is None:
        return None
    path = Store(Path(state_dir)).verdict_path(registration)
    try:
        return LastVerdict.model_validate_json(read_bounded(path, limits.VERDICT))
    except (OSError, ValidationError):
        return None
