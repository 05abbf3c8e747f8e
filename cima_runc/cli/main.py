"""``cima``: what people type. Each command's module is imported when it is wanted, and no other."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import typer

from cima_runc import __version__
from cima_runc.base.errors import CimaError, UsageError
from cima_runc.base.pipe import nobody_reads_on
from cima_runc.cli import context, examples
from cima_runc.cli.app import Group, command, group
from cima_runc.cli.output import CANNOT, fail, fail_unexpectedly, print_json
from cima_runc.runtime.shim_settings import SETTINGS_FILE

_COMMANDS = {
    "ps": ("containers", "ps"),
    "log": ("log", "log"),
    "show": ("show", "show"),
    "status": ("containers", "status"),
    "reload": ("reload", "reload"),
    "doctor": ("doctor", "doctor"),
    "configure": ("configure", "configure"),
    "enroll": ("attest", "enroll_app"),
    "attest": ("attest", "attest"),
    "verify": ("verify", "verify"),
    "appraise": ("appraise", "appraise"),
    "reference": ("reference", "app"),
    "policy": ("policy", "app"),
    "fleet": ("fleet", "app"),
    "keygen": ("attest", "keygen"),
    "completion": ("main", "completion"),
    "version": ("main", "version"),
}
"""Each command's module below :mod:`cima_runc.cli`, and what there is the command."""
_OF_A_HOST = frozenset({"doctor", "configure", "reload"})
"""Commands that need what a verifier's installation leaves out."""
_INTERRUPTED = 130
_COMPLETE = "_CIMA_COMPLETE"


class _Commands(Group):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        host = find_spec("cima_runc.agent") is not None
        return [name for name in _COMMANDS if host or name not in _OF_A_HOST]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            if cmd_name in _OF_A_HOST:
                raise UsageError(
                    f"cima {cmd_name} is for a host, and this is a verifier's installation",
                    hint="on a host: the package, or install.sh",
                )
            return None
        module, name = _COMMANDS[cmd_name]
        found = getattr(import_module(f"cima_runc.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            made = typer.main.get_command(found)
        else:
            made = command(cmd_name, found)
        made.name = cmd_name
        examples.give(made, (cmd_name,))
        return made


app = group("Measured containers: what ran in them, and the registers that say so.", cls=_Commands)


def version(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the version, with --json also that of what --json prints."""
    if as_json:
        from cima_runc.cli.shapes import VERSION

        print_json({"version": __version__, "json_version": VERSION})
    else:
        typer.echo(f"cima-runc {__version__}")


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")],
) -> None:
    """Print what a shell needs to complete commands and options.

    For bash: cima completion bash >/etc/bash_completion.d/cima
    """
    from typer import completion as shells

    script = shells.get_completion_script(  # type: ignore[attr-defined]
        prog_name="cima", complete_var=_COMPLETE, shell=shell
    )
    typer.echo(script)


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def _options(
    config: Annotated[
        str | None, typer.Option(help=f"Settings file, in place of {SETTINGS_FILE}.")
    ] = None,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.choose(config)


def main() -> None:
    """Run ``cima``. 0: done, 1: UNTRUSTED and nothing else, 2: it could not be done."""
    with nobody_reads_on(CANNOT):
        _main()


def _main() -> None:
    as_json = "--json" in sys.argv
    if _COMPLETE in os.environ:
        from typer import completion as shells

        shells.completion_init()  # type: ignore[attr-defined]
    try:
        _refuse_empty(sys.argv[1:])
        # Not standalone: a person's interruption would end with 1, which says UNTRUSTED.
        sys.exit(app(prog_name="cima", standalone_mode=False) or 0)
    except CimaError as error:
        fail(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_INTERRUPTED)
    except _USAGE as error:
        error.message = in_words(error.message)
        if as_json:
            fail(UsageError(error.format_message(), hint="see --help"), as_json=True)
        error.show()
        sys.exit(CANNOT)
    except Exception as error:
        fail_unexpectedly(error, as_json=as_json)


def _refuse_empty(words: list[str]) -> None:
    """An empty word is a variable that was not set: as a name it would be anybody's, as a path the
    directory that one is in."""
    for before, word in zip(["", *words], words, strict=False):
        if not word.strip():
            named = f" after {before}" if before else ""
            raise UsageError(f"an argument{named} is empty", hint="was a variable not set?")


def in_words(message: str) -> str:
    """Return what typer says of a wrong value, without the words of the library behind it."""
    plain = message.removeprefix("Value error, ").replace("Input should be", "it should be")
    return plain.partition(", unable to parse")[0]


_USAGE: Any = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")
"""The root of what is wrong with a command line; typer brings a click of its own, or uses it."""


if __name__ == "__main__":
    main()
