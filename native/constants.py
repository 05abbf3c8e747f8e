"""Writes native/constants.h: what the launcher, the hooks and the sensor have from the Python.

    python native/constants.py [--check]

The Python modules say what each value means. ``--check`` writes nothing; exit status 1 says that
the header is not what they make.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from cima_runc.agent import bundles, held
from cima_runc.base import limits
from cima_runc.runtime import runc_args, shim, shim_settings
from cima_runc.sensor import events, options, tables

HEADER = Path(__file__).with_name("constants.h")
_WIDTH = 96

TEXTS = {
    "SETTINGS_FILE": shim_settings.SETTINGS_FILE,
    "COMPANION_FILE": shim_settings.COMPANION_FILE,
    "COMPANION_MAGIC": shim_settings.COMPANION_MAGIC,
    "BUNDLES_SUFFIX": bundles.SUFFIX,
    "HELD_SUFFIX": held.SUFFIX,
    "RESTORE_COMMAND": runc_args.RESTORE,
}
NUMBERS = {
    "SAID_WHY": shim.SAID_WHY,
    "HOOK_STATE": limits.HOOK_STATE,
    "PATH_SIZE": limits.PATH,
    "NAME_PATTERNS_MAX": limits.NAME_PATTERNS,
    "NAME_PATTERN_SIZE": options.PATTERN_BYTES,
    "DIGEST_SIZE": max(events.DIGEST_SIZES),
    "WATCHED_MAX": tables.WATCHED_MAX,
    "EVER_WATCHED_MAX": tables.EVER_WATCHED_MAX,
    "REGISTRATIONS_MAX": tables.REGISTRATIONS_MAX,
    "CLASSES": tables.CLASSES,
    "LAYERS": tables.LAYERS,
    "EVENT_SIZE": events.HEADER.size,
    "WATCHED_SIZE": tables.WATCHED.size,
    "REGISTRATION_SIZE": tables.ROW.size,
    "SETTINGS_SIZE": options.SETTINGS_SIZE,
}
LISTS = {
    "STARTING_COMMANDS": runc_args.STARTING,
    "ENDING_OPTIONS": runc_args.ENDING,
    "GLOBAL_VALUE_OPTIONS": runc_args.GLOBAL_VALUES,
    "GLOBAL_FLAG_OPTIONS": runc_args.GLOBAL_FLAGS,
    "COMMAND_VALUE_OPTIONS": runc_args.COMMAND_VALUES,
    "COMMAND_FLAG_OPTIONS": runc_args.COMMAND_FLAGS,
}
ENUMERATIONS: dict[str, dict[str, int]] = {
    "func": {member.name: member.value for member in events.Func},
    "kind": {member.name: member.value for member in events.Kind},
    # BPF alone would be too short a name beside libbpf's.
    "why": {
        "BPF_CALL" if member is events.Why.BPF else str(member.name): number
        for number, member in enumerate(events.Why)
    },
    "registration_flag": {str(member.name): member.value for member in tables.Flag},
}


def header() -> str:
    """Return the header's text."""
    lines = [
        "/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */",
        "/* Written by native/constants.py: change the Python that a value comes from. */",
        "#ifndef CIMA_CONSTANTS_H",
        "#define CIMA_CONSTANTS_H",
        "",
        *(f'#define {name} "{text}"' for name, text in TEXTS.items()),
        "",
        *(f"#define {name} {number}" for name, number in NUMBERS.items()),
    ]
    for name, found in LISTS.items():
        lines += [
            "",
            f"#define {name} \\",
            *_wrapped((f'"{each}"' for each in sorted(found)), " \\"),
        ]
    for name, members in ENUMERATIONS.items():
        each = (f"{member} = {value}" for member, value in members.items())
        lines += ["", f"enum {name} {{", *_wrapped(each, ""), "};"]
    return "\n".join([*lines, "", "#endif", ""])


def _wrapped(items: Iterable[str], end: str) -> list[str]:
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > _WIDTH - 10:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{item}"
    return [f"\t{line},{end}" for line in lines[:-1]] + [f"\t{lines[-1]}"]


def main(arguments: list[str]) -> int:
    """Write the header, or look whether it is as it would be written."""
    if arguments == ["--check"]:
        if HEADER.read_text("ascii") == header():
            return 0
        print("native/constants.h is out of date: python native/constants.py", file=sys.stderr)
        return 1
    HEADER.write_text(header(), "ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
