"""``cima configure``: makes cima-runc one of an engine's runtimes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cima_runc.cli.output import note
from cima_runc.config import load_settings
from cima_runc.engines.change import Changes
from cima_runc.engines.containerd import CONTAINERD
from cima_runc.engines.crio import CRIO
from cima_runc.engines.docker import DOCKER
from cima_runc.engines.engine import EngineError, Wish
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
) -> None:
    """Make cima-runc a runtime of an engine; restarts nothing."""
    chosen = ENGINES[engine.value]
    changes = Changes(Path("/"), Path(load_settings().shim.state_dir) / "configure")
    if remove:
        change = changes.removing(chosen)
    else:
        launcher = runtime or installation.launcher()
        if not launcher.is_absolute() or not launcher.is_file():
            raise EngineError(f"{launcher} is no program", hint="name it with --runtime")
        file = file.absolute() if file is not None else None
        change = changes.adding(
            chosen, Wish(str(launcher), set_as_default, _low_level() == "crun", file)
        )
    if not change.needed:
        note(f"{chosen.name} is configured so already")
        return
    typer.echo(change.diff())
    if dry_run:
        note("nothing was changed")
        return
    try:
        changes.check(chosen, change)
        changes.make(chosen, change)
    except OSError as error:
        raise EngineError(
            f"{error.filename or change.path}: {error.strerror}", hint="run it as root"
        ) from error
    note(f"wrote {change.path}" if change.then is not None else f"removed {change.path}")
    note(f"for {chosen.name} to see it: {chosen.apply_hint}")
    if not remove:
        note(f"then: {chosen.try_hint}")
    if set_as_default and chosen.not_covered:
        note(f"not measured all the same: {chosen.not_covered}")


def _low_level() -> str:
    """Return the name of the runtime that the launcher becomes; empty where there is none."""
    from cima_runc.runtime.shim import ShimError, find_runtime

    try:
        found = find_runtime(load_settings().shim.runtimes, str(installation.launcher()))
    except (ShimError, OSError):
        return ""
    return Path(found).name
