"""What is printed has the keys that are documented, and no others."""

import json

import pytest

from cima_runc.cli import shapes
from cima_runc.cli.shapes import OUTPUTS, UndocumentedError, check

DIAGNOSIS = {"check": "ima", "state": "ok", "what": "there", "next": ""}


def test_a_key_that_no_shape_has_is_refused() -> None:
    check(("doctor", "--json"), json.dumps([DIAGNOSIS]))
    for wrong in (DIAGNOSIS | {"more": 1}, DIAGNOSIS | {"state": "fine"}, {"check": "ima"}):
        with pytest.raises(UndocumentedError):
            check(("doctor", "--json"), json.dumps([wrong]))


def test_an_error_is_of_every_command() -> None:
    error = {"error": {"kind": "NoSettings", "what": "it is not there", "hint": ""}}
    for output in OUTPUTS:
        check((*output.command.split(), "--json"), json.dumps(error, indent=2))
    with pytest.raises(UndocumentedError):
        check(("ps", "--json"), json.dumps({"error": {"what": "it"}}, indent=2))


def test_a_command_without_a_shape_is_refused() -> None:
    with pytest.raises(UndocumentedError):
        check(("completion", "bash"), "{}")


def test_every_command_that_prints_json_has_a_shape() -> None:
    from unit.cli.test_main import ALL

    with_json = {
        " ".join(words)
        for words, found in ALL
        if any("--json" in parameter.opts for parameter in found.params)
    }
    assert with_json == {output.command for output in shapes.OUTPUTS}
