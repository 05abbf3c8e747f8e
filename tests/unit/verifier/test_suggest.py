import itertools
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.verifier.appraised import Box, image, upper

from cima_runc.ima.template import Func
from cima_runc.measure.config_summary import ALL_CAPABILITIES
from cima_runc.measure.mtree import Entry
from cima_runc.measure.oci_config import hidden_value
from cima_runc.ml.contents import Engine, ViolationKind
from cima_runc.verifier.appraisal import References, appraise
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import ImageReference
from cima_runc.verifier.suggest import suggest
from cima_runc.verifier.toml import quoted


@pytest.fixture(name="reference", scope="module")
def _reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


def test_nothing_is_suggested_for_an_honest_run(reference: ImageReference) -> None:
    text = suggest(Box.honest(reference).records(), References(reference))
    assert parse_policy(text.encode()) == Policy()
    assert all(not line or line.startswith("#") for line in text.splitlines())


NAMES = ["kexec-cmdline", "(unreachable)/bin/sh", "*\x1b'", "\\x", "é", "data", "/a/*\n"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_absolute_paths(reference: ImageReference, name: str) -> None:
    """Kind: what is suggested cannot be read as a policy, and allows nothing then."""
    box = Box.honest(reference)
    box.files.append((name.encode(), b"\x11" * 32, Func.BPRM_CHECK))
    box.config["mounts"] += [
        {"destination": name, "type": "tmpfs", "source": "tmpfs"},
        {"destination": f"{name}2", "type": "", "source": "none"},
    ]
    box.config["linux"]["devices"] = [{"path": name, "type": "c", "major": 10, "minor": 7}]
    box.config["process"]["env"].append(f"BASH_FUNC_{name}%%=00")
    assert len(box.failed()) == 5
    text = suggest(box.records(), References(reference))
    assert box.failed(text) == []
    box.files.append((f"{name}/x".encode(), b"\x11" * 32, Func.BPRM_CHECK))
    (found,) = box.failed(text)
    assert found.rule in {"file.added", "file.mounted"}


def overlay(*options: str) -> dict[str, Any]:
    made = {"destination": "/models", "type": "overlay", "source": "overlay"}
    return made | {"options": list(options)}


KEPT = f"/srv/containers/overlay-containers/{'c' * 64}/userdata/overlay/"


def test_what_an_overlay_is_made_of(reference: ImageReference) -> None:
    """Kind: a mount is allowed by its name, and what is in it is another's."""
    box = Box.honest(reference)
    podman = Engine(name="podman", roots=("/srv/containers",))
    box.register = {"id": "c" * 64, "engine": podman.model_dump(mode="json")}
    upper_of = f"upperdir={KEPT}2938475610/upper"
    mounts = box.config["mounts"] = box.config["mounts"][:2]
    mounts.append(overlay("lowerdir=/srv/a:/srv/b", upper_of, f"workdir={KEPT}2938475610/work"))
    text = suggest(box.records(), References(reference))
    assert box.failed(text) == []
    assert "c" * 64 not in text
    (found,) = box.failed()
    assert box.failed(f"[config]\n{found.next.partition('[config] ')[2]}") == []
    for good in (
        ["lowerdir=/srv/b:/srv/a", upper_of.replace("2938475610", "1029384756")],
        ["lowerdir+=/srv/a", "lowerdir+=/srv/b", upper_of],
        ["lowerdir=/srv/a"],
    ):
        mounts[-1] = overlay(*good)
        assert box.failed(text) == []
    for bad in (
        ["lowerdir=/srv/evil"],
        ["lowerdir=/srv/a:/srv/evil"],
        ["lowerdir=/srv/a::/srv/evil"],
        ["lowerdir=/srv/a", "lowerdir+=/srv/evil"],
        ["lowerdir=/srv/a", "datadir+=/srv/evil"],
        ["lowerdir=/srv/a", "upperdir=/srv/evil"],
        ["lowerdir=/srv/a/../evil"],
        ["ro"],
        [],
    ):
        mounts[-1] = overlay(*bad)
        assert [each.rule for each in box.failed(text)] == ["config.mount"], bad


def strange(reference: ImageReference) -> Box:
    """A container that breaks every rule that a policy can allow."""
    box = Box.honest(reference)
    box.files.append((b"/tmp/it's *\xff\n", b"\x11" * 32, Func.BPRM_CHECK))
    box.files.append((b"/app/script", b"\x22" * 32, Func.BPRM_CHECK))
    box.files.append((b"/app/script", b"\x33" * 32, Func.BPRM_CHECK))
    seen = dict.fromkeys(("func", "digest", "path_hex", "mntns", "inode", "device"))
    violation = {"type": "violation", "denied": False, "reason": "r"} | seen
    memory = {"type": "memory", "mntns": 7, "denied": False, "program_digest": None}
    box.more += [
        {"type": "lost", "count": 1, "reason": "r"},
        violation,
        violation | {"kind": "unstable", "why": "w"},
        memory | {"kind": "execmem", "program_path_hex": b"/usr/bin/no'de".hex()},
        memory | {"kind": "execstack", "program_path_hex": b"/usr/bin/no'de".hex()},
    ]
    box.missing = ["ima"]
    entry = Entry(b"new*", "file", 0o644, 0, 0, size=1, sha256=b"\x44" * 32)
    box.rootfs["layers"][2] = upper(entry) | {"changed_count": 1, "changed": ["./new"]}
    process, linux = box.config["process"], box.config["linux"]
    process["args"] = ["/bin/sh", "-c", "echo 'it''s' \"x\"\n\x7f\U0001f600"]
    process["user"] = {"uid": 1000, "gid": 5}
    process["cwd"] = "/it's"
    process["env"] = ["LD_PRELOAD=00", "HOME=11"]
    process["capabilities"] = {"bounding": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}
    linux["namespaces"] = [
        {"type": "mount"},
        {"type": "pid", "path": "/proc/1/ns/pid"},
        {"type": "ipc"},
        {"type": "network"},
    ]
    linux["devices"] = [{"path": "/dev/kvm", "type": "c"}]
    linux["maskedPaths"] = []
    box.config["annotations"] = {"run.oci.handler": "krun"}
    box.config["mounts"] += [
        {"destination": "/data", "type": "bind", "source": "/srv/a*", "options": ["ro"]},
        {"destination": "/usr/share", "type": "tmpfs", "source": "tmpfs"},
    ]
    return box


def test_the_run_is_trusted_with_what_is_suggested(reference: ImageReference) -> None:
    box = strange(reference)
    assert len({finding.rule for finding in box.failed()}) >= 15
    text = suggest(box.records(), References(reference))
    assert box.failed(text) == []
    assert box.appraise(text).verdict == Verdict.TRUSTED
    # Another file than the one that ran, at the same path, is still refused.
    box.files.append((b"/app/script", b"\x55" * 32, Func.BPRM_CHECK))
    assert [finding.rule for finding in box.failed(text)] == ["file.changed"]


@pytest.mark.parametrize("path", [None, ""])
def test_memory_of_a_program_without_a_path(reference: ImageReference, path: str | None) -> None:
    """As CRIU's in a container that it restores: what is suggested is a policy all the same."""
    box = strange(reference)
    box.missing = ["memory"]
    memory = {"type": "memory", "mntns": 7, "denied": False, "program_digest": None}
    box.more.append(memory | {"kind": "execmem", "program_path_hex": path})
    text = suggest(box.records(), References(reference))
    assert "Its memory came from a checkpoint" in text
    (finding,) = box.failed(text)
    assert finding.rule == "records.memory" and "without a path" in finding.path
    tolerated = "[[memory]]\nprogram = '**'\nkinds = ['execmem']\n"
    assert finding.next == "see cima status"  # of every program is more than was seen
    assert box.failed(text + tolerated) == []


def as_file(hint: str) -> str:
    """Return the policy that a finding offers in one line."""
    table, _, keys = hint.partition("in the policy: ")[2].partition(" ")
    return f"{table}\n" + re.sub(r", (?=[a-z_0-9]+ = )", "\n", keys) + "\n"


BIND = {"type": "bind", "options": ["rbind"]}
UUID = "44444444-2222-3333-4444-555555555555"
TIME = "2024_01_01_00_00_00"
MOUNTS = [
    ({"type": "tmpfs", "source": "tmpfs"}, BIND | {"source": "/home/eve"}),
    ({"type": "tmpfs", "source": "tmpfs"}, {"type": "ext4", "source": "/dev/sdb"}),
    (BIND | {"source": "/srv/app"}, BIND | {"source": "/srv/other"}),
    # The source of an overlay is any word: its layers are in the options.
    (
        BIND | {"source": "/srv/app"},
        {"type": "overlay", "source": "/srv/app", "options": ["lowerdir=/home/eve:/"]},
    ),
    (BIND | {"source": "relative"}, {"type": "tmpfs", "source": "relative"}),
    ({"type": "ext4", "source": "/dev/sdb"}, {"type": "ext4", "source": "/dev/sdc"}),
    ({"type": "ext4", "source": "/dev/sdb"}, BIND | {"source": "/dev/sdb"}),
    # The container was called as a directory of its host is.
    (BIND | {"source": "/srv/webserver/conf"}, BIND | {"source": "/srv/eve/conf"}),
    (BIND | {"source": "conf"}, BIND | {"source": "evil"}),
    ({"type": "nfs4", "source": "nas:/models"}, {"type": "nfs4", "source": "evil:/models"}),
    ({"type": "9p", "source": "share"}, {"type": "9p", "source": "other"}),
    # A volume whose name looks like what engines name at random.
    (
        BIND | {"source": "/srv/c/volumes/20240101/_data"},
        BIND | {"source": "/srv/c/volumes/x/_data"},
    ),
    # One without a name is another kind than those with one, and a claim's than others.
    *(
        (
            BIND | {"source": f"/srv/c/volumes/{random}/_data"},
            BIND | {"source": f"/srv/c/volumes/{other}/_data"},
        )
        for random in ("a" * 64, f"pvc-{UUID}", UUID, "kube-api-access-abcde", f"..{TIME}.123")
        for other in ("eve", "postgres-of-another", "a" * 63, f"pvc-{'x' * 36}", "pvc-eve")
    ),
    # What has a digest in its name is that image, or that layer, and no other.
    *(
        (BIND | {"source": source.format("a" * 64)}, BIND | {"source": source.format("b" * 64)})
        for source in (
            "/srv/c/image-volumes/sandbox/{}",
            "/srv/c/overlay/{}/merged",
            "/srv/c/overlay2/{}/diff",
            "/srv/c/containers/{}/mounts/secrets/x",
        )
    ),
    (
        {
            "type": "overlay",
            "source": "o",
            "options": [f"lowerdir=/srv/c/overlay/{'a' * 64}/merged"],
        },
        {
            "type": "overlay",
            "source": "o",
            "options": [f"lowerdir=/srv/c/overlay/{'b' * 64}/merged"],
        },
    ),
    # The local path provisioner's: a claim is a namespace and a name.
    *(
        (BIND | {"source": f"/opt/pvc-{UUID}_shop_db-0"}, BIND | {"source": f"/opt/{other}"})
        for other in (
            f"pvc-{UUID}_evil_db-0",
            f"pvc-{UUID}_shop_db-1",
            f"pvc-{UUID}_shop_db-0_x",
            f"pvc-{UUID}",
            "pvc-eve_shop_db-0",
        )
    ),
    (
        BIND | {"source": "/srv/c/volumes/v/_data/pods/a/containers/b/key"},
        BIND | {"source": "/srv/c/volumes/v/_data/pods/a/containers/b/other"},
    ),
]


@pytest.mark.parametrize(("mount", "other"), MOUNTS)
def test_no_other_mount_is_let_in_by_what_is_suggested(
    reference: ImageReference, mount: dict[str, Any], other: dict[str, Any]
) -> None:
    box = Box.honest(reference)
    box.register = {
        **{"id": "webserver", "line": "0" * 64, "run": 1, "previous": None},
        "engine": Engine(name="containerd", roots=("/srv/c",)).model_dump(mode="json"),
    }
    box.config["mounts"] = [{"destination": "/app", **mount}]
    (refused,) = box.failed()
    text = suggest(box.records(), References(reference))
    hint = "[config]\nmounts = " + refused.next.partition("mounts = ")[2]
    assert box.failed(text) == box.failed(hint) == []
    box.config["mounts"] = [{"destination": "/app", **other}]
    for policy in (text, hint):
        assert [finding.rule for finding in box.failed(policy)] == ["config.mount"]


ALL = sorted(ALL_CAPABILITIES)
EVERY_DEVICE = {"devices": [{"allow": True, "access": "rwm"}]}
SEEN = {
    "nothing hidden": (
        {"maskedPaths": []},
        [{"maskedPaths": [], "resources": EVERY_DEVICE}, {"maskedPaths": [], "capabilities": ALL}],
    ),
    "all devices": (
        {"resources": EVERY_DEVICE},
        [
            {"maskedPaths": [], "resources": EVERY_DEVICE},
            {"resources": EVERY_DEVICE, "capabilities": ALL},
        ],
    ),
    "both": (
        {"maskedPaths": [], "resources": EVERY_DEVICE},
        [{"maskedPaths": [], "resources": EVERY_DEVICE, "capabilities": ALL}],
    ),
    "privileged": ({"maskedPaths": [], "resources": EVERY_DEVICE, "capabilities": ALL}, []),
    "an annotation": (
        {"annotations": {"run.oci.handler": "krun"}},
        [{"annotations": {"run.oci.handler": "wasm"}}],
    ),
    "a pipe": (
        {"devices": [{"path": "/dev/x", "type": "p"}]},
        [{"devices": [{"path": "/dev/x", "type": "b", "major": 8, "minor": 0}]}],
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_nothing_is_let_in_that_was_not_seen(reference: ImageReference, name: str) -> None:
    """Kind: a key is wider than what it was suggested for."""

    def box_of(changes: dict[str, Any]) -> Box:
        box = Box.honest(reference)
        for key, value in changes.items():
            if key == "annotations":
                box.config[key] = value
            elif key == "capabilities":
                box.config["process"][key] = {"bounding": value}
            else:
                box.config["linux"][key] = value
        return box

    seen, others = SEEN[name]
    text = suggest(box_of(seen).records(), References(reference))
    refused = {one.rule: one.next for one in box_of(seen).failed()}
    assert box_of(seen).failed(text) == []
    if "config.privileged" in refused:
        keys = refused["config.privileged"].partition("in the policy: ")[2]
        assert keys.removeprefix("[config] ").split(", ")[0] in text
    for other in others:
        assert box_of(other).failed(text) != []


KINDS = sorted({*get_args(ViolationKind)} - {"denied"})


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_kind_of_violation_is_let_in(reference: ImageReference, kind: str) -> None:
    box = Box.honest(reference)
    violation = {"type": "violation", "denied": False, "reason": "r", "why": "w"}
    violation |= dict.fromkeys(("func", "digest", "path_hex", "mntns", "inode", "device"))
    box.more = [violation | {"kind": kind}]
    text = suggest(box.records(), References(reference))
    (refused,) = box.failed()
    hint = refused.next.partition("in the policy: ")[2]
    assert box.failed(text) == box.failed(hint) == []
    for other in {*KINDS} - {kind}:
        box.more = [violation | {"kind": other}]
        assert box.failed(text) and box.failed(hint)


@pytest.mark.parametrize("func", ["FILE_CHECK", "BPRM_CHECK", "MMAP_CHECK", None])
def test_a_file_without_a_digest_lets_no_other_in(
    reference: ImageReference, func: str | None
) -> None:
    """As a read leaves it on Linux 6.1: neither the whole kind, nor what has a digest."""
    box = Box.honest(reference)
    record = {
        **{"type": "violation", "kind": "unstable", "denied": False, "reason": "r", "mntns": 7},
        **{"why": "no-digest-kept", "func": func, "inode": "1", "device": "0:40"},
        **{"path_hex": b"/app/it's *".hex(), "digest": None},
    }
    box.more = [record]
    text = suggest(box.records(), References(reference))
    (refused,) = box.failed()
    hint = as_file(refused.next)
    for policy in (text, hint):
        assert "allow_violations" not in policy
        assert box.appraise(policy).verdict == Verdict.TRUSTED
    own = reference.files["/usr/bin/busybox"].sha256
    changes: list[dict[str, Any]] = [
        {"digest": own, "why": "written-since"},
        {"digest": own, "func": "BPRM_CHECK"},
        {"digest": "55" * 20},
        {"why": "written-since"},
        {"path_hex": b"/app/it's another".hex()},
        {"path_hex": None},
        {"kind": "guard"},
    ]
    if func is not None:
        changes += [{"func": other} for other in (*{"FILE_CHECK", "BPRM_CHECK"} - {func}, None)]
    for change in changes:
        box.more = [record | change]
        assert box.failed(text) and box.failed(hint), change
    # A line of old, for records that have a digest.
    old = "[[unstable]]\npath = '/app/**'\nwhy = ['no-digest-kept']\n"
    box.more = [record]
    assert box.failed(old)
    box.more = [record | {"digest": own, "path_hex": b"/app/x".hex(), "func": "FILE_CHECK"}]
    assert [one.rule for one in box.failed(old)] == ["file.added"]


def test_a_digest_that_cannot_be_compared_opens_no_kind(reference: ImageReference) -> None:
    box = Box.honest(reference)
    record = {
        **{"type": "violation", "kind": "unstable", "denied": False, "reason": "r", "mntns": 7},
        **{"why": "writer", "func": "BPRM_CHECK", "inode": "1", "device": "0:40"},
        **{"path_hex": b"/app/old".hex(), "digest": "55" * 20},
    }
    box.more = [record]
    text = suggest(box.records(), References(reference))
    assert "# Not allowed here" in text and box.failed(text)
    (refused,) = box.failed()
    assert refused.next == "see cima status"


@pytest.mark.parametrize("missing", [["ima"], ["sensor"], ["ima", "sensor"]])
def test_only_what_was_missing_may_be_missing(
    reference: ImageReference, missing: list[str]
) -> None:
    box = Box.honest(reference)
    box.missing = missing
    text = suggest(box.records(), References(reference))
    assert box.failed(text) == []
    box.missing = ["ima", "sensor"]
    assert len(box.failed(text)) == 2 - len(missing)


def test_files_that_nothing_vouches_for_are_named_one_by_one(reference: ImageReference) -> None:
    """So that the policy does not let in what reaches for the sensor, too."""
    box = Box.honest(reference)
    record = {
        **{"type": "violation", "kind": "unstable", "denied": False, "reason": "r", "mntns": 7},
        **{"why": "server-can-answer-twice", "func": "BPRM_CHECK", "inode": "1", "device": "0:40"},
        "path_hex": b"/usr/bin/busybox".hex(),
        "digest": reference.files["/usr/bin/busybox"].sha256,
    }
    box.more = [record, record | {"path_hex": b"/opt/mine".hex(), "digest": "55" * 32}]
    text = suggest(box.records(), References(reference))
    assert "allow_violations" not in text
    assert box.appraise(text).verdict == Verdict.TRUSTED
    for change in ({"kind": "guard"}, {"why": "writer"}, {"digest": "66" * 32}):
        box.more = [record, record | change]
        assert box.failed(text)


def test_every_key_is_explained(reference: ImageReference) -> None:
    lines = suggest(strange(reference).records(), References(reference)).splitlines()
    for before, line in itertools.pairwise(lines):
        key = line.partition(" = ")[0]
        if (
            key.isidentifier()
            and " = " in line
            and key not in {"path", "sha256", "program", "kinds", "why"}
        ):
            assert before.startswith("#"), line


def test_a_root_that_was_not_measured(reference: ImageReference) -> None:
    box = Box.honest(reference)
    box.rootfs |= {"mode": "off", "layers": []}
    assert box.failed(suggest(box.records(), References(reference))) == []
    box = Box.honest(reference)
    box.rootfs |= {"filesystem": "tree"}
    assert box.failed(suggest(box.records(), References(reference))) == []
    box = Box.honest(reference)
    del box.rootfs["layers"][2]["manifest"]
    box.rootfs["layers"][2]["entries"] = 9
    assert box.failed(suggest(box.records(), References(reference))) == []


def test_what_no_policy_allows_is_said(reference: ImageReference) -> None:
    box = Box.honest(reference)
    box.rootfs["layers"][0]["digest"] = "sha256:" + "1" * 64
    text = suggest(box.records(), References(reference))
    assert "# Not allowed by any policy: layer 0" in text
    assert [finding.rule for finding in box.failed(text)] == ["rootfs.layer"]


def test_without_an_image_every_file_is_listed(reference: ImageReference) -> None:
    box = Box.honest(reference)
    policy = parse_policy(suggest(box.records(), References()).encode())
    assert [each.path for each in policy.files] == [
        "/app/script",
        "/usr/bin/busybox",
        "/usr/lib/lib.so",
    ]
    assert policy.config.args == (("/app/script", "now"),)


SECRET = b"s" * 32
POD = "11111111-2222-3333-4444-555555555555"


def with_env(reference: ImageReference, **values: str) -> Box:
    """A container of a pod with its token, whose environment somebody set."""
    box = Box.honest(reference)
    kubelet = "/var/lib/kubelet"
    engine = Engine(name="containerd", cri=True, kubelets=(kubelet,))
    box.register = {"id": "c" * 64, "engine": engine.model_dump(mode="json")}
    box.config["annotations"] = {"io.kubernetes.cri.sandbox-uid": POD}
    token = f"{kubelet}/pods/{POD}/volumes/kubernetes.io~projected/kube-api-access-abcde"
    box.config["mounts"] = [
        BIND | {"destination": "/var/run/secrets/kubernetes.io/serviceaccount", "source": token}
    ]
    env = [f"{name}={hidden_value(SECRET, value)}" for name, value in values.items()]
    box.config["process"]["env"] = env
    return box


def fails(box: Box, policy: str) -> list[str]:
    """What a verifier finds, who has the secret."""
    found = appraise(
        box.records(), References(box.image), parse_policy(policy.encode()), secret=SECRET
    ).findings
    return [one.rule for one in found if one.severity == "fail"]


def test_a_known_value_opens_nothing(reference: ImageReference) -> None:
    """Kind: what is suggested was not seen as who verifies sees it, with the values."""
    box = with_env(reference, PATH="/bin", HOME="/tmp")
    assert fails(box, "") == []
    text = suggest(box.records(), References(reference), SECRET)
    assert parse_policy(text.encode()) == Policy()
    for other in ("/var/run/secrets/kubernetes.io/serviceaccount", "/var/run", "/nobody/knows"):
        assert fails(with_env(reference, PATH="/bin", HOME=other), text) == ["config.mount"]
    # Without the secret it could lead there.
    text = suggest(box.records(), References(reference))
    assert box.failed(text) == [] and "serviceaccount" in text


def test_another_value_of_the_images_own_variable(reference: ImageReference) -> None:
    config = reference.config.model_copy(
        update={"env": ("PATH", "PYTHONPATH"), "env_values": {"PATH": "/bin", "PYTHONPATH": "/app"}}
    )
    image_ = reference.model_copy(update={"config": config})
    box = with_env(image_, PATH="/bin", PYTHONPATH="/srv")
    assert fails(box, "") == ["config.env"]
    text = suggest(box.records(), References(image_), SECRET)
    assert "env = ['PYTHONPATH']" in text and fails(box, text) == []
    box = with_env(image_, PATH="/bin", PYTHONPATH="/app")
    assert "env" not in suggest(box.records(), References(image_), SECRET)


@given(st.text())
def test_strings_come_back(text: str) -> None:
    assert tomllib.loads(f"x = {quoted(text)}") == {"x": text}


def test_a_lone_surrogate_is_still_toml() -> None:
    assert tomllib.loads(f"x = {quoted(chr(0xD800))}") == {"x": "?"}


def test_the_file_is_written_where_it_is_wanted(reference: ImageReference, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from cima_runc.cli.main import app

    records = tmp_path / "records.jsonl"
    found = strange(reference).records()
    records.write_bytes(b"".join(record.to_line() + b"\n" for record in found))
    out = tmp_path / "policy.toml"
    runner = CliRunner()
    ran = runner.invoke(app, ["policy", "suggest", "--records", str(records), "-o", str(out)])
    assert ran.exit_code == 0, ran.output
    ran = runner.invoke(app, ["policy", "check", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "config.allow_unmasked: True" in ran.output
    assert runner.invoke(app, ["policy", "suggest"]).exit_code == 1
