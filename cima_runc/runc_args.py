"""runc's command line, as far as the shim has to read it.

Standard library only. Source: main.go, create.go, run.go and restore.go of runc 1.1 to 1.3, which
parse with Go's ``flag`` rules: ``-name`` is ``--name``, a value may follow after ``=`` or as the
next argument, options end at the first plain argument or at ``--``.
"""

from dataclasses import dataclass

STARTING = frozenset({"create", "run", "restore"})
"""The commands that read config.json and start a container."""

_GLOBAL_VALUES = frozenset(
    {"log", "log-format", "log-level", "root", "criu", "rootless", "cgroup-manager"}
)
_COMMAND_VALUES = frozenset(
    {
        *("b", "bundle", "f", "config", "console-socket", "pid-file", "preserve-fds"),
        *("pidfd-socket", "image-path", "work-path", "parent-path", "manage-cgroups-mode"),
        *("empty-ns", "lsm-profile", "lsm-mount-context", "status-fd", "page-server"),
    }
)


@dataclass(frozen=True)
class RuncArgs:
    """What the shim knows of a command line."""

    command: str | None
    """The command, or None where there is none."""
    log: str | None
    """The value of ``--log``."""
    log_format: str
    """The value of ``--log-format``, ``text`` without one."""
    bundles: tuple[str, ...]
    """The bundle's directory, relative to the working directory. Where an option is not known it
    cannot be told whether it takes a value: then every directory that may be the bundle."""
    config_names: tuple[str, ...]
    """The configuration's name in the bundle; crun's ``--config`` can change it."""


def parse_runc_args(args: list[str]) -> RuncArgs:
    """Read runc's arguments (without the program's own name). Never fails: runc judges them."""
    options, rest, _ = _options(args, _GLOBAL_VALUES)
    command = rest[0] if rest else None
    log = _last(options, "log")
    log_format = _last(options, "log-format") or "text"
    if command not in STARTING:
        return RuncArgs(command, log, log_format, (), ())
    options, plain, unknown = _options(rest[1:], _COMMAND_VALUES)
    bundles = _values(options, "b", "bundle")[-1:] or ["."]
    configs = _values(options, "f", "config")[-1:] or ["config.json"]
    if unknown:
        later, _, _ = _options([a for a in plain if a != "--"], _COMMAND_VALUES, intermixed=True)
        bundles = [*_values(options, "b", "bundle"), *_values(later, "b", "bundle"), "."]
        configs = [*_values(options, "f", "config"), *_values(later, "f", "config"), "config.json"]
    return RuncArgs(
        command, log, log_format, tuple(dict.fromkeys(bundles)), tuple(dict.fromkeys(configs))
    )


def _options(
    args: list[str], with_value: frozenset[str], *, intermixed: bool = False
) -> tuple[list[tuple[str, str]], list[str], bool]:
    """Return the options with their values, what follows them, and whether one was not known."""
    options: list[tuple[str, str]] = []
    unknown = False
    at = 0
    while at < len(args):
        arg = args[at]
        at += 1
        if arg == "--":
            break
        if len(arg) < 2 or not arg.startswith("-"):
            if intermixed:
                continue
            at -= 1
            break
        name, equals, value = arg.lstrip("-").partition("=")
        if not equals and name in with_value:
            value = args[at] if at < len(args) else ""
            at += 1
        elif name not in with_value and name not in _FLAGS:
            unknown = True
        options.append((name, value))
    return options, args[at:], unknown


_FLAGS = frozenset(
    {
        *("debug", "systemd-cgroup", "help", "h", "version", "v", "no-pivot", "no-new-keyring"),
        *("detach", "d", "keep", "no-subreaper", "tcp-established", "ext-unix-sk", "shell-job"),
        *("file-locks", "auto-dedup", "lazy-pages", "link-remap"),
    }
)


def _values(options: list[tuple[str, str]], *names: str) -> list[str]:
    return [value for name, value in options if name in names and value]


def _last(options: list[tuple[str, str]], name: str) -> str | None:
    values = _values(options, name)
    return values[-1] if values else None
