"""``cima configure``: makes cima-runc one of an engine's runtimes."""

import errno
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cima_runc.cli import context
from cima_runc.cli.configure_fleet import fleet_change, write_fleet
from cima_runc.cli.output import note, print_json
from cima_runc.engines.change import Change, Changes
from cima_runc.engines.containerd import CONTAINERD
from cima_runc.engines.crio import CRIO
from cima_runc.engines.docker import DOCKER
from cima_runc.engines.engine import Engine, EngineError, Wish
from cima_runc.engines.podman import PODMAN
from cima_runc.runtime import installation

ENGINES = {engine.name: engine for engine in (DOCKER, CONTAINERD, PODMAN, CRIO)}
"""The engines that we know, by name."""


class Target(StrEnum):
    """The engines that we know, and the fleet's service."""

    docker = "docker"
    containerd = "containerd"
    podman = "podman"
    crio = "crio"
    fleet = "fleet"


def configure(
    engine: Annotated[Target, typer.Argument(help="The engine, or the fleet's service.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the change only.")] = False,
    set_as_default: Annotated[
        bool, typer.Option("--set-as-default", help="Measure every container from now on.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Put the engine's settings back as they were.")
    ] = False,
    runtime: Annotated[
        Path | None, typer.Option(help="The launcher, where it is not beside this program.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="The engine's file, where it is elsewhere, or k3s's template (*.tmpl)."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="fleet: where the service is, https://...", metavar="URL")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="fleet: authorities for its certificate (PEM).")
    ] = None,
    join_token_file: Annotated[
        Path | None, typer.Option(help="fleet: file of the token that this host joins with.")
    ] = None,
    service_key: Annotated[
        str | None,
        typer.Option(help="fleet: the service's owner's key: it reads containers that name it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make cima-runc a runtime of an engine, or have the host report to its fleet's service.

    Restarts nothing.
    """
    fleet = {
        "url": url,
        "ca": None if ca is None else str(ca.absolute()),
        "join_token_file": None if join_token_file is None else str(join_token_file.absolute()),
        "service_key": service_key,
    }
    given = {key: value for key, value in fleet.items() if value is not None}
    if remove and (set_as_default or runtime is not None):
        raise EngineError("--remove takes no --runtime and no --set-as-default")
    if remove and given:
        raise EngineError(f"--remove takes no --{next(iter(given)).replace('_', '-')}")
    if engine is Target.fleet:
        if runtime is not None or file is not None or set_as_default:
            raise EngineError("--runtime, --file and --set-as-default are of engines")
        change = fleet_change(given, remove=remove)
        written = change.needed and not dry_run
        if written:
            write_fleet(change)
        steps = _Steps("fleet", "systemctl restart cima-agent", "cima status")
    else:
        if given:
            raise EngineError(f"--{next(iter(given)).replace('_', '-')} is of the fleet's service")
        chosen = ENGINES[engine.value]
        changes = Changes(Path("/"), Path(context.settings().shim.state_dir) / "configure")
        change = (
            changes.removing(chosen, file and file.absolute())
            if remove
            else _adding(changes, chosen, runtime, set_as_default, file)
        )
        written = change.needed and not dry_run
        if written:
            _make(changes, chosen, change)
        steps = _Steps(chosen.name, chosen.apply_hint, chosen.try_hint)
        if set_as_default and chosen.not_covered:
            note(f"not measured all the same: {chosen.not_covered}")
    _print(change, steps, written=written, remove=remove, as_json=as_json)


@dataclass(frozen=True)
class _Steps:
    """What follows a change."""

    name: str
    apply_hint: str
    try_hint: str


def _adding(
    changes: Changes, chosen: Engine, runtime: Path | None, set_as_default: bool, file: Path | None
) -> Change:
    launcher = runtime or installation.launcher()
    if not launcher.is_absolute():
        raise EngineError(f"{launcher} is no absolute path", hint="engines want one")
    if not launcher.is_file() or not os.access(launcher, os.X_OK):
        raise EngineError(f"{launcher} is no program", hint="name it with --runtime")
    file = file.absolute() if file is not None else None
    return changes.adding(chosen, Wish(str(launcher), set_as_default, _low_level() == "crun", file))


def _print(change: Change, steps: _Steps, *, written: bool, remove: bool, as_json: bool) -> None:
    if as_json:
        follow = [steps.apply_hint] if remove else [steps.apply_hint, steps.try_hint]
        shown = {"engine": steps.name, "path": str(change.path), "changed": change.needed}
        print_json(
            {**shown, "written": written, "diff": change.diff(), "next": follow if written else []}
        )
        return
    if not change.needed:
        already = f"{steps.name} is configured so already, in {change.path}"
        note(f"nothing of cima-runc's is in {change.path}" if remove else already)
        return
    typer.echo(change.diff())
    if not written:
        note("nothing was changed")
        return
    note(f"wrote {change.path}" if change.then is not None else f"removed {change.path}")
    note(f"for {steps.name} to see it: {steps.apply_hint}")
    if not remove:
        note(f"then: {steps.try_hint}")


def _make(changes: Changes, engine: Engine, change: Change) -> None:
    try:
        changes.check(engine, change)
        changes.make(engine, change)
    except OSError as error:
        raise EngineError(
            f"{error.filename or change.path}: {error.strerror}", hint=_hint_of(error)
        ) from error


def _hint_of(error: OSError) -> str:
    """Return what helps against it: root can do nothing about a file system without writing."""
    if error.errno == errno.EROFS:
        return "set it where the system makes that file from; --dry-run shows the change"
    return "run it as root" if os.geteuid() else ""


def _low_level() -> str:
    """Return the name of the runtime that the launcher becomes; empty where there is none."""
    from cima_runc.runtime.shim import ShimError, find_runtime

    try:
        found = find_runtime(context.settings().shim.runtimes, str(installation.launcher()))
    except (ShimError, OSError):
        return ""
    return Path(found).name
