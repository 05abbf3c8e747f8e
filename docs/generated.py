"""Pages made when the site is built: the commands' help, settings, metrics and JSON from the code,
and pictures of a terminal from what the demo printed."""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, TypeAdapter

from cima_runc import config
from cima_runc.agent import metrics as agent_metrics
from cima_runc.cli import shapes
from cima_runc.cli.main import app
from cima_runc.fleet import main as fleet_main
from cima_runc.fleet import settings as fleet_settings
from cima_runc.fleet.metrics import Metrics
from cima_runc.runtime import shim_settings

sys.path.insert(0, str(Path(__file__).parent))
import terminal

_STATUS = {
    **{"pcr_value": "", "expected_value": "", "foreign_extends": 0, "lost": 0, "missing": []},
    **{"containers": 0, "unwritten_records": 0, "trouble": None, "gaps": 0},
    "sensor": {"dropped": 0, "missed": 0, "orphans": 0},
    "kernel_log": {"lines": 0, "pcr10": {"matches_tpm": True}},
    "storage": {"mib": 0, "quota_mib": 0, "removed_unattested": 0},
    "fleet": {"url": "", "enrolled": True, "last_report_seconds": 0.0, "trouble": None},
}
"""A host's status that has all that the agent counts."""


def _sections(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield each class of settings, and the section of the file that it is."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if kind is shim_settings.ShimSettings:
            yield kind.__name__, ""
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind.__name__, f"{above}{name}"
            yield from _sections(kind, f"{above}{name}.")


_SECTIONS = dict(_sections(config.Settings))


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages (an event of MkDocs)."""
    pages = (
        ("reference/commands.md", commands_page()),
        ("reference/settings.md", settings_page()),
        ("reference/metrics.md", metrics_page()),
        *((f"reference/{name}", text) for name, text in pictures()),
    )
    for name, text in pages:
        files.append(File.generated(config, name, content=text))
    for output in (*shapes.OUTPUTS, shapes.FAILURE):
        text = json.dumps(schema_of(output), indent=1)
        files.append(File.generated(config, f"reference/{schema_name(output)}", content=text))
    json_page = files.get_file_from_path("reference/json.md")
    written = json_page.content_string
    files.remove(json_page)
    files.append(
        File.generated(config, "reference/json.md", content=written + "\n" + json_tables())
    )
    return files


def schema_name(output: shapes.Output) -> str:
    """Return the file of a command's schema, beside the page."""
    word = "error" if output is shapes.FAILURE else output.command.replace(" ", "-")
    return f"json/{word}.schema.json"


def schema_of(output: shapes.Output) -> dict[str, Any]:
    """Return the JSON Schema of what a command prints."""
    name = schema_name(output).removeprefix("json/").partition(".")[0]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:cima-runc:json:{shapes.VERSION}:{name}",
        **TypeAdapter(output.type).json_schema(mode="serialization"),
    }


def json_tables() -> str:
    """Return what each command prints: its keys, their types and what they mean."""
    parts = [f"This is version {shapes.VERSION}, as `json_version` of `cima version --json`.\n"]
    for output in (*shapes.OUTPUTS, shapes.FAILURE):
        schema = schema_of(output)
        failure = output is shapes.FAILURE
        title = "errors" if failure else f"cima {output.command} --json"
        kind = "one object a line" if output.lines else f"one {_kind(schema)}"
        parts.append(f"## {title}\n\n{kind}; [JSON Schema]({schema_name(output)})\n")
        own = schema["items"]["$ref"].rpartition("/")[2] if "items" in schema else None
        models = dict(schema.get("$defs", {}))
        first = models.pop(own) if own else schema
        if "properties" in first:
            parts += _table("", first)
        for name, model in models.items():
            if "properties" in model:
                parts += _table(name, model)
    return "\n".join(parts)


def _kind(schema: dict[str, Any]) -> str:
    return str(schema["type"]) if "type" in schema else f"object: {_type(schema)}"


def _table(name: str, model: dict[str, Any]) -> Iterator[str]:
    about = " ".join(model.get("description", "").replace("``", "`").split())
    yield f"{f'**{name}**: ' if name else ''}{about}\n"
    yield "| key | type | |\n|---|---|---|"
    required = model.get("required", [])
    for key, field in model["properties"].items():
        text = " ".join(field.get("description", "").replace("``", "`").split())
        may = "" if key in required else " May be absent."
        yield f"| `{key}` | {_type(field)} | {(text + may).strip()} |"
    if isinstance(more := model.get("additionalProperties"), dict):
        yield f"| others | {_type(more)} | |"
    yield ""


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if field.get("type") == "array":
        inner = field.get("items") or field.get("prefixItems", [{}])[0]
        return f"array of {_type(inner)}"
    return str(field.get("type", "any"))


def pictures() -> Iterator[tuple[str, str]]:
    """Yield the files that show the demo: tests/vm/test_demo.py compares its page with a run."""
    page = (Path(__file__).parent.parent / "examples/demo/README.md").read_text()
    lines = terminal.transcript(page, "./dev demo")
    yield "demo.svg", terminal.screenshot(lines, "cima-runc")
    yield "demo.cast", terminal.recording(lines)


def metrics_page() -> str:
    """Return tables of what the agent and `cima-verifier` tell Prometheus."""
    metrics = Metrics()
    metrics.refusals.labels("NonceError")
    states = {"containers": {"TRUSTED": 0}, "hosts": {"fresh": 0}, "enrolments_waiting": 0}
    backlog = {"jobs": 0, "jobs_age": 0, "deliveries": 0, "deliveries_age": 0}
    service = metrics.text(states, backlog)
    return "\n".join(
        [
            "# Metrics\n\nFor Prometheus: counts and states, never names of hosts or containers.\n",
            "## Of a host\n\n`GET /metrics` of the agent, on the loopback interface, where "
            "[`[metrics] port`](settings.md) is set.\n",
            *_metrics_table(agent_metrics.text(_STATUS)),
            "\n## Of a fleet\n\n`GET /v1/metrics` of [`cima-verifier`](../fleet/operate.md).\n",
            *_metrics_table(service),
            "",
        ]
    )


def _metrics_table(told: bytes) -> Iterator[str]:
    yield "| metric | type | labels | |\n|---|---|---|---|"
    for family in text_string_to_metric_families(told.decode()):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        shown = ", ".join(f"`{label}`" for label in labels)
        total = "_total" if family.type == "counter" else ""
        name = f"`{family.name}{total}`"
        yield f"| {name} | {family.type} | {shown} | {family.documentation} |"


def commands_page() -> str:
    """Return every command's help, as the program prints it."""
    parts = [
        "# Commands\n\nAs `cima COMMAND --help` and `cima-verifier COMMAND --help` print it. "
        "Exit status: 0 done, 1 UNTRUSTED and nothing else, 2 it could not be done.\n"
    ]
    for name, program in (("cima", app), ("cima-verifier", fleet_main.app)):
        for words, command in _commands(typer.main.get_command(program), (name,)):
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
    parts.append("## Of cima-verifier\n\n`/etc/cima/verifier.toml`, or `--config`.\n")
    parts += _service_settings()
    return "\n".join([*parts, ""])


def _service_settings() -> Iterator[str]:
    tree = ast.parse(Path(str(fleet_settings.__file__)).read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name, section in (("Settings", ""), ("Oidc", "oidc")):
        if section:
            yield f"\n### [{section}]\n\n{ast.get_docstring(classes[name]) or ''}\n"
        yield "| key | default | |\n|---|---|---|"
        for key, default, text in _fields(classes[name]):
            yield f"| `{key}` | {default} | {text} |"


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module in (config, shim_settings):
        for node in ast.parse(Path(str(module.__file__)).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in _SECTIONS:
                yield node.name, node


def _fields(tree: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id == "model_config":
            continue
        default = ast.unparse(node.value) if node.value else "none"
        if default.endswith("Settings()"):
            continue
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = str(after.value.value) if told else ""  # type: ignore[union-attr]
        plain = " ".join(text.replace("``", "`").replace("|", "\\|").split())
        yield node.target.id, f"`{default}`", plain
