import os
from typing import Any

import pytest

from cima_runc.agent.rights import bounding_set, device_of_root, rights_of, root_device

ROOT = b"/run/containerd/rootfs"
OVERLAY = b"80 29 0:55 / %s rw,relatime shared:1 - overlay overlay rw,lowerdir=/l,upperdir=/u\n"
HOST = b"29 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n"


def config(names: Any, **more: Any) -> dict[str, Any]:
    return {"process": {"capabilities": {"bounding": names}}, **more}


@pytest.mark.parametrize(
    ("names", "bits"),
    [
        ([], 0),
        (["CAP_CHOWN"], 1),
        (["CAP_KILL", "CAP_SYS_ADMIN"], 1 << 5 | 1 << 21),
        (["CAP_CHECKPOINT_RESTORE"], 1 << 40),
        (["CAP_CHOWN", "CAP_OF_LATER"], None),
        (None, None),
    ],
)
def test_capabilities_are_the_kernel_s_bits(names: Any, bits: int | None) -> None:
    assert bounding_set(config(names)) == bits


@pytest.mark.parametrize("broken", [{}, {"process": None}, {"process": {"capabilities": []}}])
def test_a_configuration_without_capabilities(broken: dict[str, Any]) -> None:
    assert bounding_set(broken) is None


def test_the_device_is_that_of_the_overlay_at_the_root() -> None:
    assert root_device(HOST + OVERLAY % ROOT, ROOT) == 55


@pytest.mark.parametrize(
    "mountinfo",
    [
        HOST,
        HOST + OVERLAY % b"/run",
        OVERLAY % ROOT + HOST.replace(b" / / ", b" / %s " % ROOT),
        b"x\n",
    ],
)
def test_no_device_where_the_root_is_no_overlay(mountinfo: bytes) -> None:
    assert root_device(mountinfo, ROOT) is None


def test_seccomp_and_memory() -> None:
    filtered = rights_of(config([], linux={"seccomp": {}}), 1, None, deny_memory=False)
    assert (filtered.seccomp, filtered.deny_memory, filtered.flags()) == (False, False, 1)
    filters = {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}}}
    assert rights_of(config(None, **filters), 1, 55, deny_memory=True).flags() == 2 | 8


def test_a_users_file_system_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent asks: a server of files that hangs would stop all containers."""

    def asked(path: object) -> str:
        raise AssertionError(f"{path} is looked at")

    monkeypatch.setattr("os.path.realpath", asked)
    shown = config([], root={"path": "/home/one/./root"})
    assert device_of_root(shown, "/home/one", 1, uid=1000) is None


def test_a_mount_table_that_is_too_large_is_not_read_through() -> None:
    """Kind: how long everybody waits is one container's to say."""
    shown = config([], root={"path": "/"})
    assert device_of_root(shown, "/", os.getpid(), limit=10) is None
