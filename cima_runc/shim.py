"""The shim ``cima-runc``: what engines call instead of runc.

For ``create``, ``run`` and ``restore`` it adds our hooks to the bundle's configuration; then, and
for everything else at once, it becomes runc. Trusted for nothing: the agent checks what matters.
Standard library only, and little of it: it runs several times in a container's life.
"""

import os
import sys
from typing import NoReturn

from cima_runc import limits
from cima_runc.errors import CimaError
from cima_runc.runc_args import STARTING, RuncArgs, parse_runc_args
from cima_runc.shim_settings import ShimSettings, read_settings_file, shim_settings_of

_SEARCH_PATH = (*("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"),)
"""Where a runtime is looked for; never the caller's PATH."""


class ShimError(CimaError):
    """The container cannot be started under measurement."""


def main(argv: list[str], *, own_path: str, hooks_dir: str) -> NoReturn:
    """Prepare the bundle if ``argv`` (with the program's name first) starts a container; be runc.

    ``own_path`` is the shim's file, ``hooks_dir`` the directory of our hooks. Exits with 1 and one
    line in the engine's log and on standard error where the container cannot be measured.
    """
    args = parse_runc_args(argv[1:])
    try:
        settings = shim_settings_of(read_settings_file())
        runtime = find_runtime(settings.runtimes, own_path)
        if args.command in STARTING:
            for bundle, name in _configurations(args):
                inject_hooks(bundle, name, settings, hooks_dir)
        os.execv(runtime, [os.path.basename(runtime), *argv[1:]])  # noqa: S606
    except OSError as error:
        _report(args, f"{error.filename or 'runtime'}: {error.strerror}")
    except CimaError as error:
        _report(args, str(error))
    sys.exit(1)


def find_runtime(candidates: tuple[str, ...], own_path: str) -> str:
    """Return the absolute path of the first low-level runtime that is there and is not the shim.

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
    places = [(bundle, name) for bundle in args.bundles for name in args.config_names]
    if len(places) == 1:
        return places
    # An option that we do not know: what may be the configuration gets the hooks.
    found = [place for place in places if os.path.exists(os.path.join(*place))]
    return found or places[:1]


def inject_hooks(bundle: str, name: str, settings: ShimSettings, hooks_dir: str) -> None:
    """Add our hooks to the configuration ``name`` in the directory ``bundle``, all or nothing.

    A configuration that is missing is left to the runtime, which says so in its own words.

    Raises:
        ShimError: it cannot be read or written.
        JsonError, HooksError: it is not an OCI configuration.
    """
    import json

    from cima_runc import oci_hooks
    from cima_runc.jsonio import load_object

    path = os.path.join(bundle, name)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(limits.CONFIG_JSON + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ShimError(f"{path} cannot be read: {error.strerror}") from error
    config = load_object(raw, what=path, limit=limits.CONFIG_JSON)
    oci_hooks.inject(
        config,
        hooks_dir=hooks_dir,
        create_stage=settings.hook_stage,
        timeout_seconds=settings.hook_timeout_seconds,
        env=[
            f"CIMA_SOCKET={settings.socket}",
            f"CIMA_STATE_DIR={settings.state_dir}",
            f"CIMA_ON_AGENT_UNAVAILABLE={settings.on_agent_unavailable}",
            f"CIMA_TIMEOUT={settings.hook_timeout_seconds}",
        ],
    )
    text = json.dumps(config, ensure_ascii=False, separators=(",", ":"))
    encoded = text.encode("utf-8", "surrogatepass")
    try:
        _replace(path, encoded, status)
    except OSError as error:
        raise ShimError(
            f"our hooks cannot be written to {path}: {error.strerror}",
            hint="the bundle's directory must be writable and have room",
        ) from error


def _replace(path: str, data: bytes, like: os.stat_result) -> None:
    temporary = f"{path}.cima-{os.getpid()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchown(handle, like.st_uid, like.st_gid)
            os.fchmod(handle, like.st_mode & 0o7777)
            os.fsync(handle)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _report(args: RuncArgs, line: str) -> None:
    """Say ``line`` where runc would: on standard error, and in the engine's log in its format."""
    from cima_runc.text import printable

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
