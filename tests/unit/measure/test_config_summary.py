import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.measure.config_summary import ALL_CAPABILITIES, ConfigSummary, Mount, summarize

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)

CONFIG: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "terminal": True,
        "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
        "args": ["/bin/sh", "-c", "x"],
        "env": ["PATH=aa", "NAME", "EMPTY="],
        "cwd": "/work",
        "capabilities": {
            "bounding": ["CAP_SYS_ADMIN", "CAP_CHOWN"],
            "effective": ["CAP_CHOWN"],
            "ambient": ["CAP_NET_ADMIN"],
        },
        "noNewPrivileges": True,
        "apparmorProfile": "docker-default",
    },
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": "/var/lib/docker/containers/abc/hosts",
            "options": ["rbind", "rprivate"],
        },
        {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]},
        {"destination": "/none", "type": "none", "source": "/etc", "options": ["bind"]},
        {
            "destination": "/etc/hostname",
            "type": "bind",
            "source": "/var/lib/docker/containers/../../../../etc/shadow",
        },
    ],
    "hooks": {"prestart": [{"path": "/proc/7/exe", "args": ["setkey"]}]},
    "linux": {
        "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/run/n"}],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{}, {}]},
        "devices": [{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}],
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "sysctl": {"net.ipv4.ip_forward": "1", "Path": "odd, but free"},
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "memory": {"limit": 1000},
            "cpu": {"shares": 512, "quota": -1},
            "pids": {"limit": 0},
        },
    },
}


def changed(path: str, value: Any) -> ConfigSummary:
    config = copy.deepcopy(CONFIG)
    holder = config
    *above, last = path.split(".")
    for key in above:
        holder = holder[key]
    holder[last] = value
    return summarize(config)


def test_what_matters() -> None:
    found = summarize(CONFIG)
    assert found.args == ("/bin/sh", "-c", "x")
    assert (found.user.uid, found.user.gid, found.user.additional_gids) == (5, 6, (7,))
    assert found.env == ("PATH", "NAME", "EMPTY")
    assert found.capabilities.beyond_default == ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
    assert found.host_namespaces == ("cgroup", "ipc", "user", "uts")
    assert [(n.type, n.path) for n in found.joined_namespaces] == [("network", "/run/n")]
    assert found.read_only_root and found.no_new_privileges and found.terminal
    assert found.seccomp is not None and found.seccomp.rules == 2
    assert found.devices[0].path == "/dev/kvm" and not found.all_devices
    assert found.hooks[0].stage == "prestart" and found.hooks[0].args == ("setkey",)
    assert found.resources.model_dump(exclude_none=True) == {
        "memory_bytes": 1000,
        "cpu_shares": 512,
    }
    assert not found.privileged
    assert not found.misspelt


def test_mounts_from_the_host() -> None:
    mounts = {mount.destination: mount for mount in summarize(CONFIG).mounts}
    assert not mounts["/proc"].from_host
    assert mounts["/etc/hosts"].from_host
    assert mounts["/data"].from_host
    assert mounts["/data"].read_only and not mounts["/none"].read_only
    assert mounts["/none"].from_host


def privileged() -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    config["process"]["capabilities"]["bounding"] = [*ALL_CAPABILITIES, "CAP_BPF"]
    del config["linux"]["seccomp"]
    del config["linux"]["maskedPaths"]
    config["linux"]["resources"]["devices"].append({"allow": True, "access": "rwm"})
    return config


def test_privileged_is_all_of_it() -> None:
    assert summarize(privileged()).privileged
    assert summarize(privileged()).all_devices
    confined: list[tuple[str, Any]] = [
        ("seccomp", {"defaultAction": "SCMP_ACT_ERRNO"}),
    ]
    for key, value in confined:
        config = privileged()
        config["linux"][key] = value
        assert not summarize(config).privileged
    config = privileged()
    config["process"]["capabilities"]["bounding"].remove("CAP_SYS_RAWIO")
    assert not summarize(config).privileged
    config = privileged()
    config["linux"]["maskedPaths"] = ["/proc/kcore"]
    assert summarize(config).privileged, "all devices are enough"
    config["linux"]["resources"]["devices"].append({"allow": False})
    assert not summarize(config).privileged


@pytest.mark.parametrize(
    ("rules", "everything"),
    [
        ([{"allow": True}], True),
        ([{"allow": True, "type": "a", "access": "rwm", "major": -1, "minor": -1}], True),
        ([{"allow": True, "type": "c", "access": "rwm"}], True),
        ([{"allow": True, "type": "c", "access": "m"}, {"allow": True, "type": "b"}], True),
        ([{"allow": True, "type": "c", "access": "m"}], False),
        ([{"allow": True, "type": "c", "major": 1}], False),
        # Of both kinds, runc takes no notice of numbers and access.
        ([{"allow": True, "major": 1}], True),
        ([{"allow": True, "type": "a", "access": "m"}], True),
        ([{"allow": True, "access": "m"}], True),
        ([{"allow": True, "type": "a", "major": 1, "minor": 3, "access": "r"}], True),
        ([{"allow": True, "type": "a", "access": "m"}, {"allow": False}], False),
        ([{"allow": True, "access": "r"}], True),
        ([{"allow": True, "access": "rw"}, {"allow": False, "access": "w"}], True),
        ([{"allow": True, "access": "rw"}, {"allow": False, "access": "rw"}], False),
        ([{"allow": True}, {"allow": False}], False),
        ([{"allow": False}, {"allow": True}], True),
        ([{"allow": True, "type": "b", "major": str(2**53)}], False),
        ([{"allow": True}, {"allow": False, "major": str(2**53)}], True),
    ],
)
def test_devices(rules: list[Any], everything: bool) -> None:
    assert changed("linux.resources.devices", rules).all_devices == everything


@pytest.mark.parametrize("resources", [None, {}, {"devices": None}, {"devices": []}])
@pytest.mark.parametrize("spaces", [[], [{"type": "user"}]])
@pytest.mark.parametrize(
    ("number", "hosts"), [(0xEFFFFFFD, True), (4026532200, False), (None, None)]
)
def test_where_no_rule_says_which_devices(
    resources: Any, spaces: list[Any], number: int | None, hosts: bool | None
) -> None:
    """crun limits none then. Podman writes none for a user namespace, where nobody makes a node."""
    config = copy.deepcopy(CONFIG)
    config["linux"] |= {"resources": resources, "namespaces": spaces}
    found = summarize(config, {"mnt": 1} | ({} if number is None else {"user": number}))
    assert found.all_devices is (not spaces if hosts is None else hosts)


def test_integers_that_are_measured_as_text_are_integers() -> None:
    large = str(2**53)
    user = changed("process.user", {"uid": large, "gid": large, "additionalGids": [large]}).user
    assert (user.uid, user.gid, user.additional_gids) == (2**53, 2**53, (2**53,))
    device = {"path": "/dev/x", "type": "b", "major": large, "minor": large}
    (found,) = changed("linux.devices", [device]).devices
    assert (found.major, found.minor) == (2**53, 2**53)
    rules = changed("linux.resources.devices", [{"allow": True, "type": "b", "major": large}])
    assert [str(rule) for rule in rules.device_rules] == [f"b {large}:*"]
    resources = {"memory": {"limit": large}, "pids": {"limit": "-1"}}
    limits = changed("linux.resources", resources).resources
    assert (limits.memory_bytes, limits.pids) == (None, None)


@pytest.mark.parametrize("paths", [[], [""], [None], ["proc/kcore"], "/proc/kcore", None])
def test_what_is_no_path_hides_nothing(paths: Any) -> None:
    found = changed("linux.maskedPaths", paths)
    assert found.masked_paths == ()
    assert changed("linux.readonlyPaths", paths).read_only_paths == ()


@pytest.mark.parametrize("default", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"])
@pytest.mark.parametrize("rule", [None, "SCMP_ACT_ALLOW", "SCMP_ACT_LOG"])
def test_a_filter_that_logs_at_most_is_none(default: str, rule: str | None) -> None:
    rules = [] if rule is None else [{"names": ["mount"], "action": rule}]
    filter_ = {"defaultAction": default, "syscalls": rules}
    assert changed("linux.seccomp", filter_).seccomp is None
    kills = [*rules, {"names": ["mount"], "action": "SCMP_ACT_ERRNO"}]
    found = changed("linux.seccomp", filter_ | {"syscalls": kills}).seccomp
    assert found is not None and found.rules == len(kills)


def test_a_filter_that_filters_nothing_is_none() -> None:
    assert changed("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW"}).seccomp is None
    assert changed("linux.seccomp", None).seccomp is None


def test_the_hosts_namespace_joined_by_a_path() -> None:
    found = summarize(CONFIG, {"pid": 0xEFFFFFFC, "mnt": 5, "net": 6})
    assert "pid" in found.host_namespaces
    assert "pid" not in summarize(CONFIG, {"pid": 4026532000}).host_namespaces


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("Process", "Process"),
        ("linux.maskedpaths", "maskedpaths"),
        ("process.ENV", "ENV"),
        ("hooks.createcontainer", "createcontainer"),
        ("Annotations", "Annotations"),
        ("linux.seccomp.Action", "Action"),
        ("process\0", "process\0"),
        ("process.args\0x", "args\0x"),
    ],
)
def test_a_spelling_that_only_runtimes_read_is_told(path: str, key: str) -> None:
    assert changed(path, {}).misspelt == (key,)


def test_what_is_no_text_among_texts_is_an_empty_one_as_runtimes_have_it() -> None:
    assert changed("process.args", ["app", "-f", None, "x"]).args == ("app", "-f", "", "x")
    assert changed("process.args", [7, "x"]).args == ("", "x")


@given(json_values, st.sampled_from(sorted(CONFIG["linux"])), st.sampled_from(sorted(CONFIG)))
def test_any_value_is_summed_up(value: Any, inner: str, outer: str) -> None:
    for path in (f"linux.{inner}", outer, "process.capabilities", "linux.resources.devices"):
        found = changed(path, value)
        assert ConfigSummary.model_validate_json(found.model_dump_json()) == found


def test_what_runc_proposes(tmp_path: Path) -> None:
    if shutil.which("runc") is None:
        pytest.skip("takes runc")
    subprocess.run(["runc", "spec", "--bundle", str(tmp_path)], check=True)
    found = summarize(json.loads((tmp_path / "config.json").read_text()))
    assert found.args == ("sh",)
    assert found.capabilities.beyond_default == ()
    assert found.seccomp is None and not found.privileged
    assert set(found.host_namespaces) <= {"user", "cgroup"}
    assert not any(mount.from_host for mount in found.mounts)
    assert found.masked_paths and found.read_only_paths


@pytest.mark.parametrize(
    ("options", "read_only"),
    [
        ([], False),
        (["rbind", "ro"], True),
        (["rbind", "rro"], True),
        (["ro", "rw"], False),
        (["rw", "ro"], True),
        (["rro", "rw"], True),
        (["ro", "rrw"], False),
        (["rrw", "rro"], True),
        (["ronly"], False),
    ],
)
def test_the_last_word_says_whether_a_mount_is_writable(
    options: list[str], read_only: bool
) -> None:
    assert Mount(destination="/x", options=tuple(options)).read_only is read_only
