"""A root in a container has foreign code run under an image's digests: one attack of each kind.

tests/vm/attacks has all of them, on all file systems, with more rights, and where it is enforced.
"""

import pytest

from tests.vm.attacks import container
from tests.vm.attacks.attacks import ATTACKS, Attack

CHOSEN = {
    "stale_library",
    "stale_program",
    "changed_after_use pwrite",
    "changed_script",
    "direct_write opened",
    "execmem vdso",
    "execmod again",
    "process_memory proc_mem",
    "nameless deleted",
}


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    container.make_image()


def test_an_honest_run_is_trusted() -> None:
    seen = container.attack("honest", "docker", "overlay")
    assert (seen.verdict, seen.evidence) == ("TRUSTED", frozenset()), seen
    assert seen.said.count("ran: good") == 3, seen


@pytest.mark.parametrize(
    "attack",
    [each for each in ATTACKS if each.arguments in CHOSEN and each.place == "overlay"],
    ids=str,
)
def test_foreign_code_is_seen(attack: Attack) -> None:
    seen = container.attack(attack.arguments, attack.rights, attack.place)
    if not seen.foreign_code_ran:
        # By this kernel; that it was tried is seen all the same.
        assert "refused: " in seen.said, seen
    assert seen.evidence & attack.evidence, seen
    assert seen.verdict == "UNTRUSTED", seen
