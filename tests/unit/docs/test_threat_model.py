"""docs/threat-model.md says what was seen of the attacks, and nothing else."""

from tests.vm.attacks.attacks import ATTACKS, OPEN, went_unseen
from tests.vm.attacks.table import PAGE, seen, table, with_table


def test_the_table_is_what_was_seen() -> None:
    page = PAGE.read_text()
    assert with_table(page) == page, "run tests/vm/attacks/table.py"
    assert table(seen()).count("\n") > 20


def test_the_attacks_that_got_through_are_those_that_are_known_to() -> None:
    through = {
        attack.arguments
        for kept in seen().values()
        for attack in ATTACKS
        if any(map(went_unseen, kept.get(str(attack), {}).values()))
    }
    assert through == OPEN
