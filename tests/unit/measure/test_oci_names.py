import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cima_runc.measure.bundle import parse_config
from cima_runc.measure.oci_names import SpellingError, refuse_other_spellings

CONFIG: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "env": ["A=b"], "cwd": "/"},
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "h",
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["ro"]}],
    "hooks": {"createContainer": [{"path": "/bin/true", "args": ["true"], "timeout": 3}]},
    "annotations": {"Process": "a person's own word", "type": "x", "TYPE": "y"},
    "linux": {
        "sysctl": {"net.ipv4.Limit": "1"},
        "resources": {"unified": {"memory.High": "1"}, "memory": {"limit": 1}},
        "rdma": {"Path": {"hcaHandles": 1}},
        "namespaces": [{"type": "mount"}],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
        },
    },
    "anotherRuntimesOwn": {"Anything": 1},
}


def _fields(value: Any, free: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
    """Every name that a runtime reads, with the object that it stands in."""
    if isinstance(value, list):
        for each in value:
            yield from _fields(each)
    elif isinstance(value, dict):
        for name, inner in list(value.items()):
            if not free and name != "anotherRuntimesOwn":
                yield value, name
            if name not in {"annotations", "sysctl", "unified", "anotherRuntimesOwn"}:
                yield from _fields(inner, free=name == "rdma")


def test_what_engines_write_is_taken() -> None:
    assert parse_config(json.dumps(CONFIG).encode()) == CONFIG


@pytest.mark.parametrize("spell", [str.upper, str.capitalize, str.swapcase])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
def test_no_name_of_the_specification_is_spelt_otherwise(spell: Any, beside: bool) -> None:
    """runc reads it, and takes the last of two; what is measured would be the other."""
    count = len(list(_fields(CONFIG)))
    assert count > 30
    for number in range(count):
        config = copy.deepcopy(CONFIG)
        holder, name = list(_fields(config))[number]
        other = spell(name)
        if other == name:
            continue
        holder[other] = holder[name]
        if not beside:
            del holder[name]
        with pytest.raises(SpellingError, match="unusual spelling"):
            refuse_other_spellings(config)


@pytest.mark.parametrize("name", ["proce\u017fs", "hoo\u212as"])
def test_letters_that_go_folds_count_too(name: str) -> None:
    with pytest.raises(SpellingError):
        refuse_other_spellings({name: {}})
