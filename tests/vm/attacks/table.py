#!/usr/bin/env python3
"""The table of attacks in docs/threat-model.md, made from what was seen of them in guests.

table.py    writes it into the page
"""

import json
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(CHECKOUT)]

from tests.vm.attacks.attacks import ATTACKS, Attack  # noqa: E402

SEEN = Path(__file__).parent / "seen"
PAGE = CHECKOUT / "docs/threat-model.md"
BEGIN, END = "<!-- attacks: made by tests/vm/attacks/table.py -->\n", "<!-- attacks: end -->"
RELEASES = {"12": "Debian 12", "13": "Debian 13", "forky": "forky"}

Kept = dict[str, dict[str, dict[str, object]]]


def seen() -> dict[str, Kept]:
    """What was seen, by release, attack and mode."""
    found = {}
    for release in RELEASES:
        path = SEEN / f"{release}.json"
        if path.exists():
            found[release] = json.loads(path.read_text())
    return found


def in_words(outcome: dict[str, object] | None) -> str:
    """One outcome, as a cell of the table says it."""
    if outcome is None:
        return "not tried"
    if "absent" in outcome:
        return "no such thing"
    evidence = outcome["evidence"]
    assert isinstance(evidence, list)
    if not outcome["ran"]:
        if not evidence:
            return "refused by the kernel"
        return "denied" if set(evidence) & {"denied", "guard"} else f"{in_order(evidence)}, not run"
    return in_order(evidence) or "**nothing**"


def in_order(evidence: list[object]) -> str:
    """Kinds of evidence, as they are kept."""
    return ", ".join(map(str, evidence))


def has_enforced(kept: Kept) -> bool:
    """Whether a release was tried where it enforces."""
    return any("enforced" in outcomes for outcomes in kept.values())


def heading(release: str, kept: Kept) -> str:
    """The release, and whether it was seen recording alone."""
    return RELEASES[release] + ("" if has_enforced(kept) else ", recording")


def cell(kept: Kept, attack: Attack) -> str:
    """What one release shows: where it records, and where it enforces."""
    outcomes = kept.get(str(attack), {})
    recorded, enforced = (in_words(outcomes.get(mode)) for mode in ("recorded", "enforced"))
    if recorded == enforced or not has_enforced(kept):
        return recorded
    return f"{recorded}; {enforced}"


def table(found: dict[str, Kept]) -> str:
    """The table, in Markdown; one line for each attack, its places together where they agree."""
    names = [heading(release, kept) for release, kept in found.items()]
    lines = [f"| attack | where | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for attack in ATTACKS:
        cells = [cell(kept, attack) for kept in found.values()]
        if all(each == "not tried" for each in cells):
            continue
        where = attack.place + ("" if attack.rights == "docker" else f" ({attack.rights})")
        rows.setdefault((attack.what, *cells), []).append(where)
    for (what, *cells), places in rows.items():
        lines.append(f"| {what} | {', '.join(places)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with the table as it has to be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + table(seen()) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
