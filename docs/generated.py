"""Pages made from the code when the site is built: the commands' help, and the settings."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from cima_runc import config
from cima_runc.cli.main import app
from cima_runc.runtime import shim_settings

_SECTIONS = {
    "ShimSettings": "",
    "ImaSettings": "ima",
    "SensorSettings": "sensor",
    "EnforcementSettings": "enforcement",
    "LimitSettings": "limits",
    "TpmSettings": "tpm",
    "RootfsSettings": "rootfs",
    "BindingSettings": "binding",
    "StorageSettings": "storage",
    "AttestationSettings": "attestation",
    "HttpsSettings": "attestation.https",
    "UsersSettings": "users",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages (an event of MkDocs)."""
    for name, text in (("commands", commands_page()), ("settings", settings_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def commands_page() -> str:
    """Return every command's help, as the program prints it."""
    parts = [
        "# Commands\n\nAs `cima COMMAND --help` prints it. Exit status: 0 done, 1 UNTRUSTED "
        "and nothing else, 2 it could not be done.\n"
    ]
    for words, command in _commands(typer.main.get_command(app), ("cima",)):
        context = command.make_context(" ".join(words), [], resilient_parsing=True)
        parts.append(f"## {' '.join(words)}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(found: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, found
    for name in getattr(found, "list_commands", lambda _: [])(None):
        yield from _commands(found.get_command(None, name), (*words, name))


def settings_page() -> str:
    """Return a table of every setting: its key, type and default, and its docstring."""
    parts = [
        "# Settings\n\n`/etc/cima/config.toml`. Without the file the defaults hold. A key that is "
        "not known, or a value that is not allowed, is an error that names both.\n\n"
        "`cima reload` (or `systemctl reload cima-agent`, or SIGHUP) has it read again: "
        "what can be taken up at once is in force then, and what takes a restart is named. A file "
        "that holds what is not allowed changes nothing.\n"
    ]
    for name, tree in sorted(_classes(), key=lambda one: list(_SECTIONS).index(one[0])):
        section = _SECTIONS[name]
        parts.append(f"## {f'[{section}]' if section else 'At the top'}\n")
        parts.append(f"{ast.get_docstring(tree) or ''}\n\n| key | default | |\n|---|---|---|")
        parts += [f"| `{key}` | {default} | {text} |" for key, default, text in _fields(tree)]
        parts.append("")
    return "\n".join(parts)


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module in (config, shim_settings):
        for node in ast.parse(Path(str(module.__file__)).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in _SECTIONS:
                yield node.name, node


def _fields(tree: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        default = ast.unparse(node.value) if node.value else "none"
        if default.endswith("Settings()"):
            continue
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = str(after.value.value) if told else ""  # type: ignore[union-attr]
        plain = " ".join(text.replace("``", "`").replace("|", "\\|").split())
        yield node.target.id, f"`{default}`", plain
