"""``cima``: what people type. Each command's module is imported when it is wanted, and no other."""

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cima_runc import __version__
from cima_runc.base.errors import CimaError
from cima_runc.cli import context
from cima_runc.cli.output import fail
from cima_runc.runtime.shim_settings import SETTINGS_FILE

_COMMANDS = {
    "ps": ("containers", "ps"),
    "log": ("containers", "log"),
    "doctor": ("doctor", "doctor"),
    "status": ("containers", "status"),
    "show": ("show", "show"),
    "configure": ("configure", "configure"),
    "keygen": ("attest", "keygen"),
    "enroll": ("attest", "enroll_app"),
    "attest": ("attest", "attest"),
    "verify": ("verify", "verify"),
    "reference": ("reference", "app"),
    "policy": ("policy", "app"),
    "appraise": ("appraise", "appraise"),
}
"""Each command's module below :mod:`cima_runc.cli`, and what there is the command."""


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        found = getattr(import_module(f"cima_runc.cli.{module}"), name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(cmd_name)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
    help="Measured containers: what ran in them, and the registers that say so.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cima-runc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    config: Annotated[str, typer.Option(help="Settings file.")] = SETTINGS_FILE,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.choose(config)


def main() -> None:
    """Run ``cima``; an error ends with its own exit status."""
    try:
        app(standalone_mode=True)
    except CimaError as error:
        fail(error)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
