"""How every command of ``cima`` looks: one style of help, ``-h`` everywhere."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Group(TyperGroup):
    """A command that has commands of its own; its help tells of each the whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, wrapped where click would cut them (of :class:`click.Group`)."""
        rows = []
        for name in self.list_commands(ctx):
            found = self.get_command(ctx, name)
            if found is not None and not found.hidden:
                rows.append((name, (found.help or "").strip().partition("\n")[0]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(about: str, *, cls: type[Group] = Group) -> typer.Typer:
    """Return a command that has commands of its own; ``about`` is its help."""
    return typer.Typer(
        cls=cls,
        help=about,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_CONTEXT,
    )


def command(name: str, function: Callable[..., Any]) -> Any:
    """Return ``function`` as the command ``name``, for a group that finds its commands by name."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_CONTEXT)
    single.command(name, context_settings=_CONTEXT)(function)
    return typer.main.get_command(single)
