"""The shim's Python part: puts our hooks into a bundle, and says which runtime to become.

The launcher ``cima-runc`` (native/cima-runc.c) runs it where no agent answers or something is in
doubt; the agent runs :func:`inject_hooks` for the launcher where it is there. Trusted for nothing:
the agent checks what matters. Standard library only, and little of it.
"""

import errno
import os
import stat
import sys
from contextlib import suppress

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.runtime.runc_args import RuncArgs, parse_runc_args
from cima_runc.runtime.shim_settings import (
    ShimSettings,
    has_own_ids,
    identity_of,
    read_settings_file,
    shim_settings_of,
    socket_of_caller,
    write_companion,
)

_SEARCH_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where a runtime is looked for; never the caller's PATH."""


_NOT_OPENED = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
        *(errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES),
    }
)
"""What the runtime, which opens it in the same way, must meet too."""

SAID_WHY = 3
"""The exit status by which the launcher knows that the reason has been told."""


class ShimError(CimaError):
    """The container cannot be started under measurement."""


def main(argv: list[str], *, own_path: str, hooks_dir: str) -> int:
    """Prepare the bundle if ``argv`` (a program's name first) starts a container.

    Prints the runtime's absolute path on standard output and returns 0; or returns
    :data:`SAID_WHY`, after one line in the engine's log and on standard error that says why the
    container cannot be measured.
    ``own_path`` is the launcher's file, ``hooks_dir`` the directory of our hooks.
    """
    args = parse_runc_args(argv[1:])
    try:
        runtime = prepare(args, own_path=own_path, hooks_dir=hooks_dir)
    except OSError as error:
        _report(args, f"{error.filename or 'the bundle'}: {error.strerror}")
        return SAID_WHY
    except CimaError as error:
        _report(args, str(error))
        return SAID_WHY
    os.write(sys.stdout.fileno(), os.fsencode(runtime) + b"\n")
    return 0


def prepare(args: RuncArgs, *, own_path: str, hooks_dir: str) -> str:
    """Put our hooks into the bundle if ``args`` start a container; return the runtime's path.

    Raises:
        CimaError, OSError: the container cannot be measured, or there is no runtime.
    """
    before = identity_of()
    settings = shim_settings_of(read_settings_file())
    write_companion(before, settings)
    runtime = find_runtime(settings.runtimes, own_path)
    if args.restores and not _measures_restored(runtime):
        name = os.path.basename(runtime)
        raise ShimError(
            f"{name} calls no hooks when it restores a container, so that nothing of it would be"
            " measured: refused",
            hint='runtimes = ["runc"] in /etc/cima/config.toml restores it by runc',
        )
    if args.starts:
        for directory, name in _configurations(args):
            inject_at(directory, name, settings, hooks_dir, timeout_of(runtime, settings))
    return runtime


def timeout_of(runtime: str, settings: ShimSettings) -> int | None:
    """Return the limit to write into our hooks, in seconds; None for crun.

    crun waits for a hook that has a limit by a signal that it may miss, and then for all of that
    time. Ours end by themselves.
    """
    is_crun = os.path.basename(os.path.realpath(runtime)).startswith("crun")
    return None if is_crun else settings.hook_timeout_seconds


def _measures_restored(runtime: str) -> bool:
    """Whether a runtime calls prestart hooks when it restores a container.

    runc does (libcontainer/criu_linux.go, "setup-namespaces"), crun does not (libcrun's
    container.c), of others we do not know.
    """
    return os.path.basename(os.path.realpath(runtime)).startswith("runc")


def find_runtime(candidates: tuple[str, ...], own_path: str) -> str:
    """Return the absolute path of the first low-level runtime that is there and not the launcher.

    Raises:
        ShimError: there is none.
    """
    own = os.stat(own_path)
    for candidate in candidates:
        places = [candidate] if candidate[0] == "/" else [f"{d}/{candidate}" for d in _SEARCH_PATH]
        for place in places:
            try:
                found = os.stat(place)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino) and os.access(
                place, os.X_OK
            ):
                return place
    raise ShimError(
        f"no low-level runtime found, looked for {', '.join(candidates)}",
        hint="install runc, or name one in runtimes in /etc/cima/config.toml",
    )


def _configurations(args: RuncArgs) -> list[tuple[str, str]]:
    """Return (bundle, absolute path of a configuration) of each that may be read.

    crun takes another name from its own directory, not from the bundle.
    """
    places = [
        (bundle, _absolute(name if name != "config.json" else os.path.join(bundle, name)))
        for bundle in args.bundles
        for name in args.config_names
    ]
    if args.certain:
        return places
    return [(bundle, path) for bundle, path in places if os.path.isfile(path)]


def _absolute(path: str) -> str:
    """Return an absolute path; the same where the working directory is gone: runtimes say so."""
    with suppress(FileNotFoundError):
        return os.path.abspath(path)
    return path


def inject_at(
    bundle: str, path: str, settings: ShimSettings, hooks_dir: str, timeout_seconds: int | None
) -> None:
    """Add our hooks to the configuration at ``path``, absolute, for the bundle at ``bundle``.

    A bundle or a configuration that nobody can open is left to the runtime, which says so in its
    own words.

    Raises:
        CimaError, OSError: as for :func:`inject_hooks`.
    """
    try:
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_OPENED:
            return
        raise
    try:
        _refuse_foreign(path, settings)
        _refuse_foreign(os.path.abspath(bundle), settings)
        inject_hooks(
            directory,
            os.path.basename(path),
            settings,
            hooks_dir,
            bundle=os.path.realpath(bundle),
            path=path,
            timeout_seconds=timeout_seconds,
        )
    except OSError as error:
        if error.errno not in _NOT_OPENED:
            raise
    finally:
        os.close(directory)


def _refuse_foreign(path: str, settings: ShimSettings) -> None:
    """Refuse a configuration that others may write, unless it is the caller's to take back.

    Not in another user namespace, where nobody can be told from anybody.
    """
    from cima_runc.runtime.bundle_guard import foreign_part
    from cima_runc.runtime.bundle_owner import take_back

    if settings.foreign_bundles == "allow" or not has_own_ids():
        return
    foreign = foreign_part(path, os.geteuid())
    if foreign is not None and take_back(path, os.geteuid()):
        foreign = foreign_part(path, os.geteuid())
    if foreign is not None:
        raise foreign.refusal()


def inject_hooks(
    directory: int,
    name: str,
    settings: ShimSettings,
    hooks_dir: str,
    *,
    bundle: str,
    path: str | None = None,
    timeout_seconds: int | None,
) -> os.stat_result:
    """Add our hooks to the file ``name`` in the open ``directory``, all or nothing.

    Returns what fstat(2) says of the file that is there then. ``bundle`` and ``path`` (the file's,
    where it is not in the bundle) are absolute, and what the hooks tell the agent, with the digest
    of what was read: what the runtime says of a bundle need not lead to the file that it read.

    Raises:
        OSError: it cannot be opened.
        ShimError: it cannot be read or written.
        JsonError, HooksError: it is not an OCI configuration.
    """
    import json

    from cima_runc.base.jsonio import load_object
    from cima_runc.runtime import oci_hooks

    path = shown = path or os.path.join(bundle, name)

    handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with open(handle, "rb") as file:
        try:
            status = os.fstat(handle)
            raw = file.read(limits.CONFIG_JSON + 1)
        except OSError as error:
            raise ShimError(f"{shown} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ShimError(f"{shown} is not a regular file")
    config = load_object(raw, what=shown, limit=limits.CONFIG_JSON)
    for hook in (f"{hooks_dir}/{name}" for name in oci_hooks.NAMES):
        # runc says it too, once it has made the container; of poststop only when that is deleted.
        if not os.access(hook, os.X_OK):
            raise ShimError(f"the hook {hook} cannot be executed", hint="install cima-runc again")
    oci_hooks.remove(config, hooks_dir=hooks_dir)
    oci_hooks.inject(
        config,
        hooks_dir=hooks_dir,
        create_stage=settings.hook_stage,
        timeout_seconds=timeout_seconds,
        env=[
            *(f"CIMA_BUNDLE={bundle}", f"CIMA_CONFIG={path}"),
            f"CIMA_CONFIG_SHA256={oci_hooks.digest(config)}",
            f"CIMA_SOCKET={socket_of_caller(settings)}",
            f"CIMA_STATE_DIR={settings.state_dir}",
            f"CIMA_ON_AGENT_UNAVAILABLE={settings.on_agent_unavailable}",
            f"CIMA_TIMEOUT={settings.hook_timeout_seconds}",
        ],
    )
    data = json.dumps(config, separators=(",", ":")).encode("ascii")
    if data == raw:
        return status
    try:
        return _replace(directory, name, data, status)
    except OSError as error:
        raise ShimError(
            f"our hooks cannot be written to {shown}: {error.strerror}",
            hint="the bundle's directory must be writable and have room",
        ) from error


def _replace(directory: int, name: str, data: bytes, like: os.stat_result) -> os.stat_result:
    from cima_runc.base.replaced import replace

    # An engine's bundle is in memory, where writing it through costs nothing; one on disk is a
    # person's.
    return replace(
        name,
        data,
        temporary=f"{name}.cima-{os.urandom(8).hex()}",
        mode=like.st_mode & 0o7777,
        owner=(like.st_uid, like.st_gid),
        directory=directory,
    )


def _report(args: RuncArgs, line: str) -> None:
    """Say ``line`` where runc would: on standard error, and in the engine's log in its format."""
    from cima_runc.base.text import printable

    line = "cima-runc: " + printable(line)
    print(line, file=sys.stderr)
    if args.log is None:
        return
    import json
    import time

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if args.log_format == "json":
        entry = json.dumps({"level": "error", "msg": line, "time": now})
    else:
        quoted = json.dumps(line, ensure_ascii=False)
        entry = f'time="{now}" level=error msg={quoted}'
    try:
        with open(args.log, "a", encoding="utf-8") as file:
            file.write(entry + "\n")
    except OSError as error:
        print(f"cima-runc: {printable(args.log)}: {error.strerror}", file=sys.stderr)
