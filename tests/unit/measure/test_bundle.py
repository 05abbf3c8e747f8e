"""A bundle's configuration is taken only where all that is made of it can be read again."""

import json

import pytest

from cima_runc.base import limits
from cima_runc.base.jsonio import JsonError
from cima_runc.measure.bundle import parse_config
from cima_runc.ml.contents import Config
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import parse_line


def nested(levels: int) -> bytes:
    value: dict[str, object] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return json.dumps(value).encode()


@pytest.mark.parametrize("levels", range(limits.CONFIG_DEPTH, limits.JSON_DEPTH + 2))
def test_what_is_taken_can_be_read_again(levels: int) -> None:
    """A record that nobody can read is no record: the next agent would know nothing of the
    container, and watch it no more. Kind: a limit on what comes in that is as high as the one on
    what it is wrapped in."""
    try:
        config = parse_config(nested(levels))
    except JsonError:
        assert levels > limits.CONFIG_DEPTH
        return
    record = Partition("box").add(Config(config=config), {})
    assert parse_line(record.to_line()) == record
    # A report or an evidence has it further down.
    assert levels <= limits.CONFIG_DEPTH
