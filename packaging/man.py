"""Writes a manual page for each command, from the text of its own help: ``man.py DIRECTORY``."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from cima_runc import __version__
from cima_runc.cli.main import app

_SEE_ALSO = ".SH SEE ALSO\n.BR cima (1)\n"
_STATUS = """.SH EXIT STATUS
.TP
0
Done; of verify and appraise: TRUSTED.
.TP
1
UNTRUSTED, and nothing else.
.TP
2
It could not be done, or could not be verified.
"""

_PROGRAMS = {
    "cima-runc": (
        "OCI runtime that measures every container",
        "Takes the arguments of runc(8). Puts its hooks into the bundle that create, run or restore"
        " names, and becomes runc or crun, whichever the settings name first. Engines call it: "
        "docker run --runtime=cima-runc, podman --runtime=cima-runc, or a containerd handler that "
        "cima configure writes.",
    ),
    "cima-agent": (
        "measurement agent of cima-runc",
        "Registers containers, measures their configuration and root filesystem, keeps their logs, "
        "binds their registers into the TPM, and answers requests for evidence. The unit "
        "cima-agent.service runs it; its settings are in /etc/cima/config.toml.",
    ),
}


def main() -> None:
    """Write all pages."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for words, found in commands(typer.main.get_command(app), ("cima",)):
        (directory / f"{'-'.join(words)}.1").write_text(page(words, found))
    for name, (what, text) in _PROGRAMS.items():
        body = f"{_head(name, 8, what)}.SH SYNOPSIS\n.B {_roff(name)}\n.RI [ arguments ]\n"
        (directory / f"{name}.8").write_text(f"{body}.SH DESCRIPTION\n{_roff(text)}\n{_SEE_ALSO}")


def commands(found: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command with the words that name it."""
    yield words, found
    for name in getattr(found, "list_commands", lambda _: [])(None):
        yield from commands(found.get_command(None, name), (*words, name))


def page(words: tuple[str, ...], found: Any) -> str:
    """Return a command's page."""
    name = " ".join(words)
    text = re.sub(r"\s*\n\s*\n\s*", "\n.PP\n", _roff(found.help or "").strip())
    context = found.make_context(name, [], resilient_parsing=True)
    usage = " ".join(found.collect_usage_pieces(context))
    lines = [_head("-".join(words), 1, (found.help or "").strip().partition("\n")[0])]
    lines += [f".SH SYNOPSIS\n.B {_roff(name)}\n{_roff(usage)}\n", f".SH DESCRIPTION\n{text}\n"]
    records = [one for p in found.get_params(context) if (one := p.get_help_record(context))]
    if records:
        lines.append(".SH OPTIONS\n")
        lines += [f".TP\n.B {_roff(left)}\n{_roff(right)}\n" for left, right in records]
    if found.epilog:
        lines.append(".SH EXAMPLES\n")
        examples = [line.strip() for line in found.epilog.splitlines()[2:]]
        lines.append(".nf\n" + "".join(f"{_roff(line)}\n" for line in examples) + ".fi\n")
    inner = [(one, found.get_command(None, one)) for one in _names(found)]
    if inner:
        lines.append(".SH COMMANDS\n")
        for one, command in inner:
            about = (command.help or "").strip().partition("\n")[0]
            lines.append(f".TP\n.BR {_roff('-'.join((*words, one)))} (1)\n{_roff(about)}\n")
    return "".join([*lines, _STATUS, "" if len(words) == 1 else _SEE_ALSO])


def _names(found: Any) -> list[str]:
    names: list[str] = getattr(found, "list_commands", lambda _: [])(None)
    return names


def _head(name: str, section: int, what: str) -> str:
    title = f'.TH {name.upper()} {section} "" "cima-runc {__version__}"\n'
    return f"{title}.SH NAME\n{_roff(name)} \\- {_roff(what.rstrip('.'))}\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in ".'" else line for line in escaped.splitlines())


if __name__ == "__main__":
    main()
