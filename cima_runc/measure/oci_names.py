"""The names of the OCI runtime configuration, in the one spelling in which all runtimes read them.

runc, whose JSON library is Go's, reads ``"Process"`` as ``"process"``, and of both the last; crun
reads the exact name alone. What is measured would then be one, and what runs the other.
Source: OCI runtime specification, config.md, config-linux.md; Go's encoding/json, Unmarshal.
"""

from typing import Any

from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable

_TEXT = """
ociVersion process root hostname domainname mounts hooks annotations linux vm
terminal consoleSize height width user args commandLine env cwd capabilities rlimits
noNewPrivileges apparmorProfile oomScoreAdj scheduler selinuxLabel ioPriority execCPUAffinity
uid gid umask additionalGids username
bounding effective inheritable permitted ambient hard soft
policy nice priority flags runtime deadline period class initial final
path readonly destination type source options uidMappings gidMappings
prestart createRuntime createContainer startContainer poststart poststop timeout
sysctl resources cgroupsPath namespaces devices netDevices seccomp rootfsPropagation
maskedPaths readonlyPaths mountLabel intelRdt memoryPolicy personality timeOffsets
containerID hostID size allow major minor access fileMode
memory cpu pids blockIO hugepageLimits network rdma unified
limit reservation swap kernel kernelTCP swappiness disableOOMKiller useHierarchy
checkBeforeUpdate shares quota burst realtimeRuntime realtimePeriod cpus mems idle
weight leafWeight weightDevice throttleReadBpsDevice throttleWriteBpsDevice
throttleReadIOPSDevice throttleWriteIOPSDevice rate pageSize classID priorities name
hcaHandles hcaObjects
defaultAction defaultErrnoRet architectures listenerPath listenerMetadata syscalls names action
errnoRet index value valueTwo op
closID schemata l3CacheSchema memBwSchema enableMonitoring enableCMT enableMBM
domain secs nanosecs mode nodes
"""
_NAMES = frozenset(_TEXT.split())
_FOLDED = frozenset(name.casefold() for name in _NAMES)
_FREE = frozenset({"annotations", "sysctl", "unified"})
"""Objects whose keys people choose, and whose values are strings."""
_FREE_KEYS = frozenset({"rdma", "netDevices", "timeOffsets"})
"""Objects whose keys people choose, and whose values are objects again."""


class SpellingError(CimaError):
    """The configuration holds a name that runtimes read differently."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"config.json: {printable(name[:100])} is a name in an unusual spelling, which one "
            "runtime reads and another does not",
            hint="spell it as the OCI specification does",
        )


def refuse_other_spellings(config: dict[str, Any]) -> None:
    """See that no name of the specification stands in ``config`` in another spelling.

    Raises:
        SpellingError: one does.
    """
    todo: list[object] = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo.extend(each for each in value if isinstance(each, dict | list))
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name not in _NAMES and name.casefold() in _FOLDED:
                    raise SpellingError(name)
                if name in _FREE_KEYS and isinstance(inner, dict):
                    todo.extend(inner.values())
                elif name not in _FREE:
                    todo.append(inner)
