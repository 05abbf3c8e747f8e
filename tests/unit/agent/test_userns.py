import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cima_runc.agent import userns

SLEEP = ["sh", "-c", "echo up; exec sleep 60"]
UNSHARE = ["unshare", "--user", "--map-root-user"]


@contextmanager
def namespace(kind: str, *command: str) -> Iterator[int]:
    """Yield a descriptor of a namespace of the process that ``command`` becomes."""
    with subprocess.Popen([*command, *SLEEP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("takes user namespaces")
        handle = os.open(f"/proc/{process.pid}/ns/{kind}", os.O_RDONLY)
        try:
            yield handle
        finally:
            os.close(handle)
            process.kill()


def as_user(uid: int) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("takes root")
    return ["setpriv", f"--reuid={uid}", "--regid=100", "--clear-groups"]


def test_the_owner_is_who_made_it() -> None:
    with namespace("user", *as_user(4321), *UNSHARE) as made:
        outer = userns.outermost(made)
        assert os.fstat(outer).st_ino == os.fstat(made).st_ino
        assert userns.owner(outer) == 4321
        os.close(outer)


def test_of_nested_ones_the_outermost_counts() -> None:
    with namespace("user", *as_user(4321), *UNSHARE, *UNSHARE) as made:
        outer = userns.outermost(made)
        assert os.fstat(outer).st_ino != os.fstat(made).st_ino
        assert userns.owner(outer) == 4321
        os.close(outer)


def test_a_mount_namespace_is_owned_by_a_user_namespace() -> None:
    with namespace("mnt", *as_user(4321), *UNSHARE, "--mount") as made:
        around = userns.around(made)
        assert userns.owner(around) == 4321
        os.close(around)


def test_our_own_is_nobodys() -> None:
    own = os.open("/proc/self/ns/user", os.O_RDONLY)
    with pytest.raises(userns.UserNamespaceError):
        userns.outermost(own)
    os.close(own)
