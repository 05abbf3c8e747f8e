"""A root in a container has foreign code run: whatever he does, something is seen of it.

Each attack is tried on a host that records, and on one that enforces. What is seen is kept in
`seen/`, from which the table in docs/threat-model.md is made. Some of them are tried in each run of
the tests: test_foreign_code.py.
"""

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.attacks import container, given_away
from tests.vm.attacks.attacks import ALL, ATTACKS, OPEN, Attack, Place, Rights, went_unseen
from tests.vm.attacks.container import Seen

pytestmark = pytest.mark.debian()  # all of them take half an hour a release: --everything

SEEN = Path(__file__).parent / "seen"
KEPT = SEEN / f"{platform.freedesktop_os_release().get('VERSION_ID', 'forky')}.json"
MODES = {"enforced": '[enforcement]\nenforce = true\nmemory = "deny"\n', "recorded": ""}
REFERENCES = Path("/etc/cima/references")


@pytest.fixture(scope="module")
def image() -> None:
    guest.run("modprobe", "-a", "loop", "xfs", "btrfs")
    # For huge pages that are executable.
    Path("/proc/sys/vm/nr_hugepages").write_text("8")
    container.make_image()


@pytest.fixture(scope="module", params=list(MODES))
def mode(image: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """How the host is set: it records what runs, or it enforces."""
    REFERENCES.mkdir(parents=True, exist_ok=True)
    reference = REFERENCES / "attacks.json"
    reference.write_bytes(container.REFERENCE.read_bytes())
    with guest.Settings(MODES[request.param]):
        guest.restart_agent()
        yield request.param
    reference.unlink()


@pytest.fixture(scope="module")
def kept(image: None) -> dict[str, dict[str, object]]:
    """What was seen, by attack and mode."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


@pytest.fixture(autouse=True)
def written_down(kept: dict[str, dict[str, object]]) -> Iterator[None]:
    """After each: the next may be the kernel's end."""
    yield
    SEEN.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def owner() -> str:
    """The user whose files IMA measures when they are read: ours."""
    lines = Path("/etc/passwd").read_text().splitlines()
    return next(line.split(":")[2] for line in lines if line.startswith("cima:"))


def attacked(attack: Attack) -> Seen:
    if attack.spoils_its_volume:
        with container.fresh_volume(attack.place) as data:
            return attacked_on(attack, data)
    return attacked_on(attack, container.fresh(attack.place))


def attacked_on(attack: Attack, data: Path | None) -> Seen:
    command = attack.arguments.format(owner=owner())
    if attack.name == "stale_from_neighbour":
        container.attack("stale_from_neighbour prime", attack.rights, attack.place, data)
    if attack.name == "lower_by_handle":
        data = container.WORK / "beside-the-layers"
        data.mkdir(exist_ok=True)
    if attack.name == "foreign_namespace":
        data = container.WORK / "namespaces"
        with given_away.namespaces(data):
            return container.attack(command, attack.rights, attack.place, data)
    return container.attack(command, attack.rights, attack.place, data)


HONEST: list[tuple[Rights, Place]] = [
    ("ctr", "overlay"),
    ("privileged", "overlay"),
    *(("docker", place) for place in ALL),
]


@pytest.mark.parametrize(("rights", "place"), HONEST)
def test_an_honest_run_is_trusted(mode: str, rights: Rights, place: Place) -> None:
    seen = container.attack("honest", rights, place)
    assert (seen.verdict, seen.evidence) == ("TRUSTED", frozenset()), seen
    assert seen.said.count("ran: good") == 3, seen


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_an_attack_is_seen(mode: str, attack: Attack, kept: dict[str, dict[str, object]]) -> None:
    seen = attacked(attack)
    if seen.absent:
        assert not seen.foreign_code_ran, seen
        kept.setdefault(str(attack), {})[mode] = {"absent": seen.absent}
        pytest.skip(seen.absent)
    assert "failed: " not in seen.said, seen
    outcome = outcome_of(attack, seen)
    kept.setdefault(str(attack), {})[mode] = outcome
    if not seen.foreign_code_ran and not seen.evidence:
        assert "refused: " in seen.said, f"neither did it run nor was it refused: {seen}"
        return  # by the kernel, or by a limit of the container's
    got_through = went_unseen(outcome) or (
        mode == "enforced" and seen.foreign_code_ran and not attack.runs_where_enforced
    )
    if got_through and attack.arguments in OPEN:
        pytest.xfail("known to get through")
    assert not got_through, seen


def outcome_of(attack: Attack, seen: Seen) -> dict[str, object]:
    """What is kept of an attack that could be tried."""
    return {
        "evidence": sorted(seen.evidence & (attack.evidence | {"denied"})),
        "ran": seen.foreign_code_ran,
        "verdict": seen.verdict,
    }
