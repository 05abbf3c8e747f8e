"""Our own hooks in an OCI configuration: put in by the shim, taken out by the measurement.

Standard library only: the shim uses it. Source: OCI runtime specification, config.md, "POSIX-
platform Hooks".
"""

from typing import Any

from cima_runc.base.errors import CimaError

NAMES = ("prestart", "settled", "poststart", "poststop")
"""The programs there. ``prestart`` registers a container, ``settled`` has its root filesystem
looked at again after others' hooks."""

CREATE_STAGES = ("createRuntime", "prestart")
"""Stages in which a container may be registered: in the runtime's namespaces, before pivot_root,
and a failure stops the container."""


class HooksError(CimaError):
    """The configuration's hooks are not what the specification says."""


def digest(config: dict[str, Any]) -> str:
    """Return what tells this configuration, without our hooks, from any other: hex SHA-256.

    No hooks have one form: what is empty, or null, went when ours were taken out.
    """
    import hashlib
    import json

    hooks = config.get("hooks")
    if isinstance(hooks, dict):
        hooks = {stage: entries for stage, entries in hooks.items() if entries}
    others = {key: value for key, value in config.items() if key != "hooks"}
    text = json.dumps(
        others | ({"hooks": hooks} if hooks else {}), sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def inject(
    config: dict[str, Any],
    *,
    hooks_dir: str,
    create_stage: str,
    timeout_seconds: int | None,
    env: list[str],
) -> None:
    """Put our hooks into ``config`` in place, each once.

    The one that registers comes first of all, in the earliest stage that has any hook, so that
    whatever others' hooks run in the container is seen. Where there are such, another comes last,
    since they may have changed its files. ``timeout_seconds`` None: the hooks limit themselves.

    ``env`` is set explicitly: a hook without one inherits its runtime's environment, parts of
    which an image can choose.

    Raises:
        HooksError: ``hooks`` is not an object of lists, or stands there in another spelling.
    """
    remove(config, hooks_dir=hooks_dir)
    hooks = config.get("hooks")
    if hooks is None:
        hooks = config["hooks"] = {}
    first = "prestart" if hooks.get("prestart") else create_stage
    last = "createRuntime" if hooks.get("createRuntime") else create_stage
    others = any(hooks.get(stage) for stage in CREATE_STAGES)
    for stage, name in (
        (first, "prestart"),
        *([(last, "settled")] if others else []),
        ("poststart", "poststart"),
        ("poststop", "poststop"),
    ):
        if hooks.get(stage) is None:
            hooks[stage] = []
        entry: dict[str, Any] = {"path": f"{hooks_dir}/{name}", "args": [name], "env": list(env)}
        if timeout_seconds is not None:
            entry["timeout"] = timeout_seconds
        hooks[stage].insert(0 if name == "prestart" else len(hooks[stage]), entry)


def has_others(config: dict[str, Any]) -> bool:
    """Whether ``config``, ours taken out, has hooks that run before the container's process."""
    hooks = config.get("hooks")
    return isinstance(hooks, dict) and any(hooks.get(stage) for stage in CREATE_STAGES)


def remove(config: dict[str, Any], *, hooks_dir: str) -> None:
    """Take our hooks out of ``config`` in place, and what they leave empty with them.

    Raises:
        HooksError: ``hooks`` is not an object of lists, or stands there in another spelling.
    """
    _refuse_other_spellings(config, {"hooks"})
    hooks = config.get("hooks")
    if hooks is None:
        return
    if not isinstance(hooks, dict):
        raise HooksError("config.json: hooks is not an object")
    _refuse_other_spellings(hooks, {"poststart", "poststop", *CREATE_STAGES})
    ours = False
    for stage in list(hooks):
        entries = hooks[stage]
        if entries is None:
            continue
        if not isinstance(entries, list):
            raise HooksError("config.json: a stage of hooks is not a list")
        kept = [entry for entry in entries if not _is_ours(entry, hooks_dir)]
        if len(kept) < len(entries):
            ours = True
            if kept:
                hooks[stage] = kept
            else:
                del hooks[stage]
    if ours and not hooks:
        del config["hooks"]


def _is_ours(entry: object, hooks_dir: str) -> bool:
    path = entry.get("path") if isinstance(entry, dict) else None
    return isinstance(path, str) and path.rpartition("/")[0] == hooks_dir


def _refuse_other_spellings(value: dict[str, Any], names: set[str]) -> None:
    # Go reads "Hooks" as "hooks": a second spelling could take our hooks out of what runc sees.
    folded = {name.casefold() for name in names}
    for key in value:
        if key not in names and key.casefold() in folded:
            raise HooksError("config.json: hooks stand there in an unusual spelling, refused")
