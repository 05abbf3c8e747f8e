"""Findings that are kept where there is no room for all."""

import pytest

from cima_runc.fleet.appraisal import _OF_ANY, _OF_RUNS, _OF_SERVICES
from cima_runc.fleet.findings import FINDINGS, _ranked
from cima_runc.verifier.result import Finding

MANY = [Finding(severity="warn", what=f"{at}", rule="dependency.unmeasured") for at in range(2_000)]


@pytest.mark.parametrize("rule", sorted(_OF_ANY | _OF_RUNS | _OF_SERVICES))
def test_what_withholds_trust_is_not_left_out_for_want_of_room(rule: str) -> None:
    """Kind: a limit on what is shown is one on what decides."""
    withholds = Finding(severity="warn", what="it is not proved", rule=rule)
    fails = Finding(severity="fail", what="it is another", rule="dependency.changed")
    kept = _ranked([*MANY, withholds, fails])[:FINDINGS]
    assert kept[0] == fails
    assert withholds in kept
    assert kept[1] == MANY[0]
