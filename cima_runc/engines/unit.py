"""The command line by which systemd starts a service, from its unit and drop-in files.

Without systemctl: it must be known of a service that does not run, and for another root directory.

Source: systemd.unit(5), systemd.service(5), systemd.exec(5).
"""

import glob
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cima_runc.base import limits

_DIRECTORIES = (
    *("etc/systemd/system.control", "run/systemd/system.control", "run/systemd/transient"),
    *("etc/systemd/system", "run/systemd/system"),
    *("usr/local/lib/systemd/system", "usr/lib/systemd/system"),
)
"""The first one that has a file of a name hides the others."""
_LIB = "lib/systemd/system"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+)|\$)")


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
    for kind in (unit.rpartition(".")[2], unit):
        for directory in reversed(directories):
            # One that leads to /dev/null hides those of its name, and says nothing itself.
            drop_ins |= {path.name: path for path in (directory / f"{kind}.d").glob("*.conf")}
    command, said_by = "", None
    environment = _Environment(root)
    for path in [*([main] if main else []), *(drop_ins[name] for name in sorted(drop_ins))]:
        for key, value in _service(path):
            if key == "ExecStart":
                # An empty one takes back what came before; of several the first is the daemon.
                command = value if not value or not command else command
                said_by = path
            else:
                environment.take(key, value)
    prefix = command[: len(command) - len(command.lstrip(_PREFIXES))]
    split = _split(command.removeprefix(prefix))
    if "@" in prefix:
        del split[1:2]  # the name that it is given for its own
    values, files = environment.values()
    words: list[str] = []
    used = [said_by] if said_by is not None else []
    for word in split:
        names = [first or second for first, second in _VARIABLE.findall(word)]
        used += [files[name] for name in names if name in files]
        value = _VARIABLE.sub(lambda match: _value_of(match, values), word.replace("%%", "%"))
        # A word that is one $NAME is split, and goes where it is empty.
        whole = word.startswith("$") and word[1:2] not in {"{", "$"}
        words += _split(value) if whole else [value]
    return Command(tuple(words), tuple(dict.fromkeys(used)))


_PREFIXES = "@-:+!|"


def _value_of(match: re.Match[str], values: dict[str, str]) -> str:
    return "$" if match[0] == "$$" else values.get(match[1] or match[2], "")


class _Environment:
    """What a unit says of its service's environment; what files say goes over what it says itself.

    An empty setting takes back all of its kind.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own: dict[str, str] = {}
        self._files: list[str] = []
        self._unset: set[str] = set()

    def take(self, key: str, value: str) -> None:
        """Take a line of the unit, whatever it is of."""
        if key == "Environment":
            self._own = self._own | _assignments(_split(value)) if value else {}
        elif key == "EnvironmentFile":
            self._files = [*self._files, value.lstrip("-").lstrip("/")] if value else []
        elif key == "UnsetEnvironment":
            self._unset = self._unset | set(_split(value)) if value else set()

    def values(self) -> tuple[dict[str, str], dict[str, Path]]:
        """Return the variables, and the files that set some of them."""
        values, said_by = dict(self._own), dict[str, Path]()
        for pattern in self._files:
            below = f"{glob.escape(str(self._root))}/{pattern}"
            for file in map(Path, sorted(glob.glob(below)) if pattern else ()):
                found = dict(_variables(file))
                values |= found
                said_by |= dict.fromkeys(found, file)
        kept = {name: value for name, value in values.items() if name not in self._unset}
        return kept, said_by


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
    for line in _continued(path, " "):
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]" and "=" in stripped:
            key, _, value = stripped.partition("=")
            found.append((key.strip(), value.strip()))
    return found


def _continued(path: Path, between: str) -> Iterator[str]:
    """Yield the lines, those that end in a backslash with what follows; comments are none, also
    where they stand in the midst of one."""
    before: list[str] = []
    for line in _lines(path):
        if line.lstrip().startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            before.append(line[:-1])
            continue
        yield between.join([*before, line])
        before = []
    if before:
        yield between.join(before)


def _assignments(words: Iterable[str]) -> dict[str, str]:
    return {
        name: value
        for name, equals, value in (word.partition("=") for word in words)
        if equals and _NAME.fullmatch(name)
    }


_NAME = re.compile(r"[A-Za-z_]\w*")


def _variables(file: Path) -> Iterator[tuple[str, str]]:
    """Yield what a file of assignments says; a value without quotes goes to the line's end."""
    for line in _continued(file, ""):
        name, _, value = (part.strip() for part in line.partition("="))
        if not _NAME.fullmatch(name):
            continue
        yield name, " ".join(_split(value)) if value[:1] in {'"', "'"} else value


def _split(text: str) -> list[str]:
    with suppress(ValueError):
        return shlex.split(text)
    return text.split()


def _lines(path: Path) -> list[str]:
    with suppress(OSError), path.open("rb") as file:
        text = file.read(limits.ENGINE_SETTINGS).decode("utf-8-sig", "replace")
        return [line.removesuffix("\r") for line in text.split("\n")]
    return []
