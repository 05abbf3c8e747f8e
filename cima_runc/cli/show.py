"""``cima show``: what a container was configured to be, as it was measured."""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.jsonio import load_object
from cima_runc.base.text import printable
from cima_runc.cli import context, files
from cima_runc.cli.output import note, print_json
from cima_runc.cli.records import record_lines
from cima_runc.config import Settings
from cima_runc.measure.config_summary import NOT_SHOWN, ConfigSummary, Mount, Resources, summarize
from cima_runc.measure.oci_config import hidden_value
from cima_runc.ml.records import IMA_TEMPLATE, Record, parse_line
from cima_runc.ml.store import Store
from cima_runc.verifier.rules.config import device_rules_beyond
from cima_runc.verifier.rules.mounts import EngineMounts

_PATHS_SHOWN = 3
"""Of one service's files that are unmeasured for the same reason; --json prints all."""


class ShowError(CimaError):
    """There is nothing to show."""


def show(
    container: Annotated[str, typer.Argument(metavar="ID", help="Id, or how it begins.")],
    env: Annotated[
        bool, typer.Option("--env", help="Show the values of environment variables too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a container was configured to be: its rights, mounts, layers, dependencies."""
    settings = context.settings()
    records = [parse_line(line) for line in record_lines(settings, container)]
    found = {str(record.content.get("type")): record.content for record in reversed(records)}
    if "register" not in found or "config" not in found:
        raise ShowError(f"{container} has no measured configuration", hint="see cima log")
    register = found["register"]
    summary = summarize(found["config"]["config"], register.get("namespaces"))
    relied_on = _dependencies(settings, register)
    values = _values(settings, register, found["config"]["config"]) if env else None
    if as_json:
        shown = {
            "id": register["id"],
            "registration": register["registration"],
            "config": {
                **summary.model_dump(mode="json", exclude=set(NOT_SHOWN)),
                "privileged": summary.privileged,
                "capabilities_beyond_default": summary.capabilities.beyond_default,
            },
            "rootfs": found.get("rootfs"),
            "dependencies": relied_on,
        }
        if values is not None:
            shown["env"] = [
                {"name": value.name, "value": value.value, "measured": value.measured}
                for value in values
            ]
        print_json(shown)
    else:
        pairs = [
            ("container", f"{register['id']}, registration {register['registration']}"),
            *config_lines(summary, EngineMounts(register, summary)),
            *_engine_lines(register),
            *rootfs_lines(found.get("rootfs")),
            *dependency_lines(relied_on),
            *_env_lines(summary, values),
        ]
        last = ""
        for head, text in pairs:
            typer.echo(printable(f"{head if head != last else '':18} {text}").rstrip())
            last = head
    if values is not None and not all(value.measured for value in values):
        note("the bundle's environment is not the one that was measured")


# -- the configuration ---------------------------------------------------------------------------


def config_lines(summary: ConfigSummary, engine: EngineMounts) -> Iterator[tuple[str, str]]:
    """Yield (heading, text), not yet printable; a heading comes again for each line under it."""
    if summary.misspelt:
        yield "misspelt keys", f"{_list(summary.misspelt)}: what follows may not be what holds"
    yield "privileged", "YES" if summary.privileged else "no"
    yield "command", shlex.join(summary.args)
    user = summary.user
    groups = f", groups {_list(map(str, user.additional_gids))}" if user.additional_gids else ""
    name = f" ({user.username})" if user.username else ""
    mapped = ", mapped to others on the host" if summary.id_maps else ""
    yield "user", f"{user.uid}:{user.gid}{name}{groups}{mapped}"
    yield "directory", summary.cwd
    capabilities = summary.capabilities
    yield "bounding", _list(map(_short, capabilities.bounding)) or "none"
    yield "effective", _list(map(_short, capabilities.effective)) or "none"
    yield "beyond default", _list(map(_short, capabilities.beyond_default)) or "none"
    yield "host namespaces", _list(summary.host_namespaces) or "none"
    for namespace in summary.joined_namespaces:
        yield "joined namespaces", f"{namespace.type} {namespace.path}"
    seccomp = summary.seccomp
    yield (
        "seccomp",
        f"on, {seccomp.rules} rules, else {seccomp.default_action}" if seccomp else "OFF",
    )
    for answer in seccomp.answers if seccomp else ():
        yield "seccomp", f"answers calls itself: {answer}"
    yield "new privileges", "none" if summary.no_new_privileges else "allowed"
    yield "AppArmor", summary.apparmor or "none"
    yield "SELinux", summary.selinux or "none"
    yield "root", f"{'read-only' if summary.read_only_root else 'writable'}, {summary.root}"
    yield "masked paths", str(len(summary.masked_paths)) if summary.masked_paths else "NONE"
    yield "read-only paths", str(len(summary.read_only_paths) or "none")
    for mount in summary.mounts:
        yield "mounts", _mount(mount, engine)
    yield "devices", "ALL of the host's" if summary.all_devices else "none but the usual"
    for device in summary.devices:
        yield "devices", f"{device.path} {device.type} {device.major}:{device.minor}"
    for rule in device_rules_beyond(summary):
        yield "devices", f"may make and use {rule}"
    for key, value in summary.sysctl:
        yield "sysctl", f"{key}={value}"
    for hook in summary.hooks:
        yield "hooks of others", f"{hook.stage}: {hook.path} {shlex.join(hook.args)}"
    for key, value in summary.steering:
        yield "annotations", f"{key}={value}: crun does otherwise than what stands here"
    yield "limits", _resources(summary.resources)


def _engine_lines(register: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) for what called the runtime."""
    engine = register.get("engine")
    if not isinstance(engine, dict):
        return
    name = engine.get("name") or "none that is known"
    yield "engine", f"{name}, for a pod of Kubernetes" if engine.get("cri") else name
    for key, what in (
        *(("roots", "data in"), ("states", "state in"), ("kubelets", "kubelet in")),
        *(("shares", "shares namespaces with"), ("redirected", "links elsewhere at")),
    ):
        for each in engine.get(key) or []:
            yield "engine", f"{what} {each}"


def _mount(mount: Mount, engine: EngineMounts) -> str:
    access = "ro" if mount.read_only else "rw"
    if not mount.from_host:
        return f"{mount.destination} {mount.type} {access}"
    whose = "of the engine" if engine.makes(mount) else "FROM THE HOST"
    return f"{mount.destination} {access} {whose}: {mount.source}"


def _resources(resources: Resources) -> str:
    shown = resources.model_dump(exclude_none=True)
    return " ".join(f"{key}={value}" for key, value in shown.items()) or "none"


def _short(capability: str) -> str:
    return capability.removeprefix("CAP_")


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


# -- layers and dependencies -----------------------------------------------------------------------


def rootfs_lines(rootfs: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) for the content of a ``rootfs`` record."""
    if rootfs is None:
        yield "layers", "not measured"
        return
    layers = rootfs.get("layers") or []
    yield "layers", f"{rootfs.get('filesystem')}, {len(layers)}, bottom to top"
    for layer in layers:
        yield "layers", f"{layer.get('kind')} {layer.get('digest')}, {layer.get('files')} files"


def dependencies_summary(records: Iterable[Record]) -> dict[str, Any]:
    """Return how many files of services are measured, and which are not."""
    measured, services, unmeasured = 0, [], []
    for record in records:
        if record.content_type == IMA_TEMPLATE:
            measured += 1
        elif record.content.get("type") == "service":
            services.append({key: record.content[key] for key in ("role", "path", "digest")})
        elif record.content.get("type") == "unmeasured":
            shown = ("role", "path", "digest", "reason")
            unmeasured.append({key: record.content.get(key) for key in shown})
    return {"measured": measured, "services": services, "unmeasured": unmeasured}


def _dependencies(settings: Settings, register: Mapping[str, Any]) -> dict[str, Any] | None:
    number = register.get("dependencies")
    if number is None:
        return None
    partition = f"dependencies:{number}"
    lines = record_lines(settings, partition)
    return {"partition": partition, **dependencies_summary(map(parse_line, lines))}


def dependency_lines(relied_on: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) for what :func:`dependencies_summary` found; None: not known."""
    if relied_on is None:
        yield "dependencies", "NOT KNOWN"
        return
    count = f"{relied_on['measured']} files measured, {len(relied_on['unmeasured'])} not"
    yield "dependencies", f"{count}; see cima log {relied_on['partition']}"
    for service in relied_on["services"]:
        yield "services", f"{service['role']} {service['path']}"
    groups: dict[tuple[str, str], list[str]] = {}
    for file in relied_on["unmeasured"]:
        groups.setdefault((file["role"], file["reason"]), []).append(file["path"] or "")
    for (role, reason), paths in groups.items():
        yield "unmeasured", f"{role} {_some(sorted(set(paths)))}: {reason}"


def _some(paths: list[str]) -> str:
    """Return the first few, and how many there are beside them."""
    more = len(paths) - _PATHS_SHOWN
    return _list(paths[:_PATHS_SHOWN]) + (f" and {more} more files" if more > 0 else "")


# -- the environment -------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnvValue:
    """An environment variable of the bundle."""

    name: str
    value: str | None
    """None: it was measured, and the bundle has none such any more."""
    measured: bool
    """Whether this value is the measured one."""


def env_values(measured: Iterable[str], live: Iterable[str], secret: bytes) -> list[EnvValue]:
    """Compare the environment of the ``config`` record with the bundle's.

    ``measured`` are ``NAME=HMAC``, ``live`` are ``NAME=value``.
    """
    left = [item.partition("=") for item in live]
    found = []
    for item in measured:
        name, equals, hidden = item.partition("=")
        for at, (other, sign, value) in enumerate(left):
            if (other, sign) == (name, equals) and (
                not sign or hidden_value(secret, value) == hidden
            ):
                found.append(EnvValue(name, value, True))
                del left[at]
                break
        else:
            found.append(EnvValue(name, None, False))
    return found + [EnvValue(name, value, False) for name, _, value in left]


def _values(
    settings: Settings, register: Mapping[str, Any], config: Mapping[str, Any]
) -> list[EnvValue]:
    if os.geteuid() != 0:
        raise ShowError("environment values are for root only", hint="ask as root")
    store = Store(Path(settings.shim.state_dir))
    number = int(register["registration"])
    path = Path(store.read_note(number).bundle) / "config.json"
    try:
        raw = files.read(path, limit=limits.CONFIG_JSON)
    except files.FileError as error:
        raise ShowError(
            f"the bundle is gone, and values are kept nowhere else: {error.what}",
            hint="ask while the container is there",
        ) from error
    live = load_object(raw, what=str(path), limit=limits.CONFIG_JSON)
    return env_values(_env(config), _env(live), store.read_secret(number))


def _env(config: Mapping[str, Any]) -> list[str]:
    process = config.get("process")
    env = process.get("env") if isinstance(process, dict) else None
    return [item for item in env if isinstance(item, str)] if isinstance(env, list) else []


def _env_lines(summary: ConfigSummary, values: list[EnvValue] | None) -> Iterator[tuple[str, str]]:
    if values is None:
        yield "environment", _list(summary.env) or "none"
        return
    for value in values:
        if value.value is None:
            yield "environment", f"{value.name}: measured with another value than the bundle's"
        else:
            odd = "" if value.measured else "  (NOT what was measured)"
            yield "environment", f"{value.name}={value.value}{odd}"
