"""The OCI configuration as it is measured: without our hooks, environment values hidden.

Source: design, section 5; OCI runtime specification, config.md; RFC 8785.
"""

import copy
import hmac
from collections.abc import Iterable, Iterator
from typing import Any

from cima_runc.runtime import oci_hooks

_EXACT = 2**53 - 1
"""The largest integer that every JSON reader keeps exact (RFC 8785, 3.2.2.3; RFC 7493)."""


def measured_config(config: dict[str, Any], *, secret: bytes, hooks_dir: str) -> dict[str, Any]:
    """Return what the ``config`` record holds of ``config``, which stays as it is.

    - Our own hooks are taken out.
    - Each environment value (of the process and of other hooks) is replaced by the lower-case
      hexadecimal HMAC-SHA256(secret, value): who knows the secret can check a value that he
      expects, nobody can read one.
    - An integer beyond 2^53-1 (such as RLIM_INFINITY) becomes its decimal string, since JSON
      readers do not agree on it as a number.

    Raises:
        oci_hooks.HooksError: the hooks are not what the specification says.
    """
    measured: dict[str, Any] = copy.deepcopy(config)
    oci_hooks.remove(measured, hooks_dir=hooks_dir)
    process = measured.get("process")
    if isinstance(process, dict):
        _hide_env(process, secret)
    hooks = measured.get("hooks")
    if isinstance(hooks, dict):
        for entries in hooks.values():
            for entry in entries or []:
                if isinstance(entry, dict):
                    _hide_env(entry, secret)
    exact: dict[str, Any] = _exact_integers(measured)
    return exact


def hidden_value(secret: bytes, value: str) -> str:
    """Return what stands in the ``config`` record for the environment value ``value``."""
    return hmac.digest(secret, value.encode("utf-8"), "sha256").hex()


def env_pairs(env: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of an environment; an entry without ``=`` sets none."""
    for name, equals, value in (item.partition("=") for item in env):
        if equals:
            yield name, value


def _hide_env(holder: dict[str, Any], secret: bytes) -> None:
    env = holder.get("env")
    if not isinstance(env, list):
        return
    hidden = []
    for item in env:
        if isinstance(item, str):
            name, equals, value = item.partition("=")
            hidden.append(name + equals + hidden_value(secret, value) if equals else name)
        else:
            hidden.append(item)
    holder["env"] = hidden


def _exact_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _exact_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact_integers(item) for item in value]
    if type(value) is int and abs(value) > _EXACT:
        return str(value)
    return value
