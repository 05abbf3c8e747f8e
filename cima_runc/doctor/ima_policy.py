"""The IMA policy: whether the rules that we need are those that the kernel has.

A kernel built with CONFIG_IMA_READ_POLICY shows what is in force. Debian's do not; there the file
that systemd loads early in the boot is looked at, and whether it was changed since.

Source: Documentation/ABI/testing/ima_policy; systemd, src/core/ima-setup.c.
"""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cima_runc.base import limits
from cima_runc.base.bounded import read_bounded
from cima_runc.base.text import printable
from cima_runc.doctor.finding import UnfitError

FILE = Path("/etc/ima/ima-policy")
_SHOWN = "policy"
"""In IMA's directory of securityfs."""

_SECONDS = 120.0
"""How long the look-up of a file system's UUID may take on a busy host."""

Rule = frozenset[str]


@dataclass(frozen=True)
class Policy:
    """Rules, and from where."""

    rules: tuple[Rule, ...]
    where: str
    loaded: bool
    """Whether they are known to be what the kernel has."""


def look(directory: Path, wanted: Path, owner: int, uuid: str, file: Path = FILE) -> str:
    """Check that every rule of ``wanted`` is in force, for the file system with this UUID.

    ``directory``: IMA's, of securityfs. ``owner``: of our files. An empty ``uuid`` is not known.

    Raises:
        UnfitError: a rule is missing, or one before it takes away what it measures, or the kernel
            has not read the file since it was changed.
        OSError: nothing can be read.
    """
    policy = in_force(directory, file)
    ours = tuple(_of_owner(rule, owner) for rule in rules_of(wanted.read_text()))
    missing = [rule for rule in ours if not any(_same(rule, one, uuid) for one in policy.rules)]
    if missing:
        raise UnfitError(
            f"{policy.where} lacks the rule: {_shown(missing[0])}",
            hint=f"merge {wanted} into {file}, and reboot",
        )
    last = max(at for at, one in enumerate(policy.rules) for rule in ours if _same(rule, one, uuid))
    for one in policy.rules[:last]:
        if "dont_measure" in one and not any(_same(rule, one, uuid) for rule in ours):
            raise UnfitError(
                f"{policy.where} has, before rules of ours: {_shown(one)}",
                hint="the first rule that fits counts: see that it takes no program away",
            )
    if not policy.loaded:
        raise UnfitError(
            f"{file} was changed since the kernel read a policy",
            hint="reboot: the kernel takes one policy in a boot",
        )
    return f"{len(ours)} rules of ours are in {policy.where}"


def in_force(directory: Path, file: Path) -> Policy:
    """Return the kernel's policy, or the file's where the kernel shows none.

    Raises:
        UnfitError: there is neither.
        OSError: the file cannot be read.
    """
    try:
        shown = read_bounded(directory / _SHOWN, limits.SETTINGS)
    except OSError:
        shown = b""
    if shown:
        return Policy(rules_of(shown.decode("utf-8", "replace")), "the kernel's policy", True)
    try:
        text = read_bounded(file, limits.SETTINGS).decode("utf-8", "replace")
        changed = file.stat().st_mtime
    except FileNotFoundError as error:
        raise UnfitError(f"{file} is not there", hint="install.sh --policy, and reboot") from error
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return Policy(rules_of(text), str(file), changed < booted)


def rules_of(text: str) -> tuple[Rule, ...]:
    """Return each rule as its words; the kernel does not show them in the order they came in."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(frozenset(line.split()) for line in lines if line and not line.startswith("#"))


def uuid_of(path: Path) -> str:
    """Return the UUID of the file system that holds ``path``; empty where it has none."""
    command = ["findmnt", "--noheadings", "--output", "UUID", "--target", str(path)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip()


def _of_owner(rule: Rule, owner: int) -> Rule:
    return frozenset(f"fowner={owner}" if word.startswith("fowner=") else word for word in rule)


def _same(rule: Rule, other: Rule, uuid: str) -> bool:
    """Whether the other is our rule; it may say which file system our files are on."""
    if rule == other:
        return True
    more = other - rule
    return rule < other and more <= {f"fsuuid={uuid}"} and bool(uuid)


def _shown(rule: Rule) -> str:
    """The action first, as it is written."""
    words = sorted(rule, key=lambda word: ("=" in word, not word.startswith("func="), word))
    return printable(" ".join(words))
