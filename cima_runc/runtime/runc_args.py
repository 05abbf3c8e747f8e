"""runc's command line, as far as the shim has to read it.

Two parsers read these command lines: Go's ``flag`` (runc; ``-bundle X``, and ``urfave/cli`` takes
options after the container's id too) and GNU's ``argp`` (crun; ``--bund X`` and ``-bX``). Where
both read the same, the line is certain. Where they may differ, every directory that may be the
bundle counts as one: a container must not start unmeasured because we read its line otherwise.

``native/runc_args.h`` decides in the same way, without a Python; a test holds them together.
Source: main.go, create.go, run.go, restore.go of runc 1.1 to 1.3; crun.c, run.c of crun 1.8.
Standard library only.
"""

from dataclasses import dataclass

RESTORE = "restore"
STARTING = frozenset({"create", "run", RESTORE})
"""The commands that read config.json and start a container."""

ENDING = frozenset({"--help", "-h", "--version", "-v"})
"""Options that make every runtime answer and end."""
GLOBAL_VALUES = frozenset(
    {
        *("--log", "--log-format", "--log-level", "--root", "--criu", "--rootless"),
        "--cgroup-manager",
    }
)
GLOBAL_FLAGS = frozenset({"--debug", "--systemd-cgroup"})
COMMAND_VALUES = frozenset(
    {
        *("-b", "--bundle", "-f", "--config", "--console-socket", "--pid-file", "--preserve-fds"),
        *("--pidfd-socket", "--image-path", "--work-path", "--parent-path"),
        *("--manage-cgroups-mode", "--empty-ns", "--lsm-profile", "--lsm-mount-context"),
        *("--status-fd", "--page-server"),
    }
)
COMMAND_FLAGS = frozenset(
    {
        *("--no-pivot", "--no-new-keyring", "--no-subreaper", "--detach", "-d", "--keep"),
        *("--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks", "--auto-dedup"),
        *("--lazy-pages", "--link-remap"),
    }
)


@dataclass(frozen=True)
class RuncArgs:
    """What the shim knows of a command line."""

    starts: bool
    """Whether it may start a container."""
    certain: bool
    """Whether every option is known, so that there is one bundle and no doubt."""
    log: str | None
    """The value of ``--log``."""
    log_format: str
    """The value of ``--log-format``, ``text`` without one."""
    bundles: tuple[str, ...] = ()
    """The bundle's directory, relative to the working directory; in doubt all that may be it."""
    config_names: tuple[str, ...] = ()
    """The configuration's name in the bundle; crun's ``--config`` can change it."""
    restores: bool = False
    """Whether it may start it from a checkpoint."""


@dataclass(frozen=True)
class _Options:
    found: list[tuple[str, str]]
    rest: list[str]
    certain: bool
    ending: bool

    def last(self, *names: str) -> str | None:
        values = [value for name, value in self.found if name in names]
        return values[-1] if values else None


def parse_runc_args(args: list[str]) -> RuncArgs:
    """Read runc's arguments (without the program's own name). Never fails: runc judges them."""
    options = _options(args, GLOBAL_VALUES, GLOBAL_FLAGS)
    if not options.certain:
        options.found.extend(_logs(args))
    log = options.last("--log") or None
    log_format = options.last("--log-format") or "text"
    rest = options.rest
    if options.certain:
        starts = not options.ending and bool(rest) and rest[0] in STARTING
    else:
        starts = not STARTING.isdisjoint(args)
    if not starts:
        return RuncArgs(False, options.certain, log, log_format)
    if options.certain:
        options = _options(rest[1:], COMMAND_VALUES, COMMAND_FLAGS)
        if options.certain and options.ending:
            return RuncArgs(False, True, log, log_format)
        if options.certain and len(options.rest) != 1 and not _any_option(options.rest):
            return RuncArgs(False, True, log, log_format)  # it takes one id: every runtime refuses
        if options.certain and len(options.rest) == 1:
            bundle = options.last("-b", "--bundle") or "."
            name = options.last("-f", "--config") or "config.json"
            restores = rest[0] == RESTORE
            return RuncArgs(True, True, log, log_format, (bundle,), (name,), restores)
    found = (_any_bundle(args), _any_config(args))
    return RuncArgs(True, False, log, log_format, *found, RESTORE in args)


def _options(args: list[str], with_value: frozenset[str], flags: frozenset[str]) -> _Options:
    """Read options up to the first plain argument, or the first option that is not known."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(args):
        arg = args[at]
        if arg == "--":
            return _Options(found, args[at + 1 :], True, False)
        if len(arg) < 2 or not arg.startswith("-"):
            break
        if arg in ENDING:
            return _Options(found, [], True, True)
        name, equals, value = arg.partition("=")
        if name in with_value and (name.startswith("--") or not equals):
            if not equals:
                at += 1
                value = args[at] if at < len(args) else "-"
                # urfave/cli moves what looks like an option away from the one before it, and
                # what takes a value for one runtime may be a flag for another.
                if value.startswith("-") or value in STARTING:
                    return _Options(found, [], False, False)
            found.append((name, value))
        elif arg not in flags:
            return _Options(found, [], False, False)
        at += 1
    return _Options(found, args[at:], True, False)


def _any_option(args: list[str]) -> bool:
    return any(arg.startswith("-") for arg in args)


def _logs(args: list[str]) -> list[tuple[str, str]]:
    found = []
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        if name in {"-log", "--log", "-log-format", "--log-format"}:
            found.append(("--" + name.lstrip("-"), value if equals else following))
    return found


def _any_bundle(args: list[str]) -> tuple[str, ...]:
    found = ["."]
    for arg in args:
        found += [arg, arg.partition("=")[2], *_attached(arg, "b")]
    return tuple(dict.fromkeys(value for value in found if value))


def _any_config(args: list[str]) -> tuple[str, ...]:
    found = ["config.json"]
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        if arg.startswith("-") and len(arg) > 1:
            if "config".startswith(name.lstrip("-")) or arg.endswith("f"):
                found.append(value if equals else following)
            found += _attached(arg, "f")
    return tuple(dict.fromkeys(value for value in found if value))


def _attached(arg: str, option: str) -> list[str]:
    """Return what ``-XoVALUE`` may mean as the value of the one-letter ``option``."""
    if not arg.startswith("-") or arg.startswith("--"):
        return []
    return [arg[at + 1 :] for at in range(1, len(arg)) if arg[at] == option]
