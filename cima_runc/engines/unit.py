"""The command line by which systemd starts a service, from its unit and drop-in files.

Without systemctl: it must be known of a service that does not run, and for another root directory.

Source: systemd.unit(5), systemd.service(5), systemd.exec(5).
"""

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cima_runc.base import limits

_DIRECTORIES = (
    *("etc/systemd/system", "run/systemd/system"),
    *("usr/local/lib/systemd/system", "usr/lib/systemd/system"),
)
"""The first one that has a file of a name hides the others."""
_LIB = "lib/systemd/system"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


_SHELL = re.compile(r"[0-9]*[;&|<>]")
"""How what ends a command's arguments begins, in a shell."""


@dataclass(frozen=True)
class Command:
    """What a unit starts."""

    argv: tuple[str, ...] = ()
    """The program first; empty where there is no such unit."""
    files: tuple[Path, ...] = ()
    """The file, or the files, that say so: the last one that set the command, and environments."""


def command_of(unit: str, root: Path) -> Command:
    """Return what the unit, such as ``docker.service``, starts below ``root``."""
    directories = [root / each for each in (*_DIRECTORIES, _LIB)]
    main = next((each / unit for each in directories if (each / unit).is_file()), None)
    drop_ins: dict[str, Path] = {}
    for directory in reversed(directories):
        # One that leads to /dev/null hides those of its name, and says nothing itself.
        drop_ins |= {path.name: path for path in (directory / f"{unit}.d").glob("*.conf")}
    command, said_by = "", None
    environment: dict[str, str] = {}
    environments: dict[str, Path] = {}
    for path in [*([main] if main else []), *(drop_ins[name] for name in sorted(drop_ins))]:
        for key, value in _service(path):
            if key == "ExecStart":
                # An empty one takes back what came before; of several the first is the daemon.
                command = value if not value or not command else command
                said_by = path
            elif key == "Environment":
                environment |= _assignments(value)
            elif key == "EnvironmentFile":
                file = root / value.lstrip("-").lstrip("/")
                more = _assignments("\n".join(_lines(file)))
                environment |= more
                environments |= dict.fromkeys(more, file)
    words: list[str] = []
    used = [said_by] if said_by is not None else []
    for word in _split(command.lstrip("@-:+!|")):
        names = [first or second for first, second in _VARIABLE.findall(word)]
        used += [environments[name] for name in names if name in environments]
        value = _VARIABLE.sub(lambda match: environment.get(match[1] or match[2], ""), word)
        # A word that is one $NAME is split, and goes where it is empty.
        words += _split(value) if word.startswith("$") and word[1:2] != "{" else [value]
    return Command(tuple(words), tuple(dict.fromkeys(used)))


def flags_of(command: Command, program: str) -> tuple[str, ...]:
    """Return what ``program`` is given, which the command is or which a shell in it becomes.

    None where neither is so: a script may do what it likes.
    """
    for words in (list(command.argv), *map(_split, command.argv[1:])):
        names = ["" if word.startswith("-") else word.rpartition("/")[2] for word in words]
        if program in names:
            given = words[names.index(program) + 1 :]
            end = next((at for at, word in enumerate(given) if _SHELL.match(word)), len(given))
            return tuple(given[:end])
    return ()


def _service(path: Path) -> list[tuple[str, str]]:
    found, section = [], ""
    for line in "\n".join(_lines(path)).replace("\\\n", " ").split("\n"):
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]" and "=" in stripped and stripped[0] not in "#;":
            key, _, value = stripped.partition("=")
            found.append((key.strip(), value.strip()))
    return found


def _assignments(text: str) -> dict[str, str]:
    found = {}
    for line in text.split("\n"):
        if line.lstrip().startswith(("#", ";")):
            continue
        for word in _split(line):
            name, equals, value = word.partition("=")
            if equals:
                found[name] = value
    return found


def _split(text: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(text)
    return text.split()


def _lines(path: Path) -> list[str]:
    with suppress(OSError), path.open("rb") as file:
        return file.read(limits.ENGINE_SETTINGS).decode("utf-8", "replace").splitlines()
    return []
