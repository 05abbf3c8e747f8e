"""``cima configure``: makes cima-runc one of an engine's runtimes."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cima_runc.cli import context
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


class EngineName(StrEnum):
    """The engines that we know."""

    docker = "docker"
    containerd = "containerd"
    podman = "podman"
    crio = "crio"


def configure(
    engine: Annotated[EngineName, typer.Argument(help="The engine.")],
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make cima-runc a runtime of an engine; restarts nothing."""
    chosen = ENGINES[engine.value]
    changes = Changes(Path("/"), Path(context.settings().shim.state_dir) / "configure")
    if remove and (set_as_default or runtime is not None):
        raise EngineError("--remove takes no --runtime and no --set-as-default")
    if remove:
        change = changes.removing(chosen)
    else:
        launcher = runtime or installation.launcher()
        if not launcher.is_absolute():
            raise EngineError(f"{launcher} is no absolute path", hint="engines want one")
        if not launcher.is_file() or not os.access(launcher, os.X_OK):
            raise EngineError(f"{launcher} is no program", hint="name it with --runtime")
        file = file.absolute() if file is not None else None
        change = changes.adding(
            chosen, Wish(str(launcher), set_as_default, _low_level() == "crun", file)
        )
    written = change.needed and not dry_run
    if written:
        _make(changes, chosen, change)
    if as_json:
        steps = [chosen.apply_hint] if remove else [chosen.apply_hint, chosen.try_hint]
        shown = {"engine": chosen.name, "path": str(change.path), "changed": change.needed}
        print_json(
            {**shown, "written": written, "diff": change.diff(), "next": steps if written else []}
        )
        return
    if not change.needed:
        note(f"{chosen.name} is configured so already, in {change.path}")
        return
    typer.echo(change.diff())
    if not written:
        note("nothing was changed")
        return
    note(f"wrote {change.path}" if change.then is not None else f"removed {change.path}")
    note(f"for {chosen.name} to see it: {chosen.apply_hint}")
    if not remove:
        note(f"then: {chosen.try_hint}")
    if set_as_default and chosen.not_covered:
        note(f"not measured all the same: {chosen.not_covered}")


def _make(changes: Changes, engine: Engine, change: Change) -> None:
    try:
        changes.check(engine, change)
        changes.make(engine, change)
    except OSError as error:
        raise EngineError(
            f"{error.filename or change.path}: {error.strerror}", hint="run it as root"
        ) from error


def _low_level() -> str:
    """Return the name of the runtime that the launcher becomes; empty where there is none."""
    from cima_runc.runtime.shim import ShimError, find_runtime

    try:
        found = find_runtime(context.settings().shim.runtimes, str(installation.launcher()))
    except (ShimError, OSError):
        return ""
    return Path(found).name
