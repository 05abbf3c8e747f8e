"""How the runtime that is making a container was called, as the kernel shows it.

The process that a hook names is the runtime's child, also where CRIU made it for the runtime
(libcontainer/criu_linux.go: ``RstSibling``; libcriu's ``criu_restore_child``).
"""

from contextlib import suppress

from cima_runc.base.errors import CimaError
from cima_runc.measure.command_line import command_line
from cima_runc.measure.host_services import ancestors_of
from cima_runc.measure.procfs import flag_value
from cima_runc.runtime.runc_args import parse_runc_args

_CRIU = "swrk"
"""CRIU's command by which a runtime has it work for it (criu/crtools.c)."""


def is_without_cgroups(pid: int) -> bool:
    """Whether crun, which makes this process, was told to leave it in the cgroup that it is in.

    So does Podman with --cgroups=disabled.
    """
    return flag_value(_runtime_of(pid), "cgroup-manager") == "disabled"


def is_restored(pid: int) -> bool:
    """Whether this process is being restored from a checkpoint.

    Then it never executes what the configuration says: CRIU, which it is a copy of, fills it with
    what files of the checkpoint hold.
    """
    return parse_runc_args(_runtime_of(pid)[1:]).restores or _command_of(pid)[1:2] == [_CRIU]


def _runtime_of(pid: int) -> list[str]:
    with suppress(OSError, CimaError, StopIteration):
        return _command_of(next(ancestors_of(pid)))
    return []


def _command_of(pid: int) -> list[str]:
    with suppress(OSError):
        return command_line(pid)
    return []
