"""What a host may fill a record with takes no more to appraise than it is: never its square."""

import hashlib
import time
import tomllib
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cima_runc.base import limits
from cima_runc.ima.template import Func
from cima_runc.measure.config_summary import ConfigSummary, Hook, Mount
from cima_runc.measure.oci_config import hidden_value
from cima_runc.ml.contents import (
    AnyContent,
    Config,
    File,
    Measured,
    Memory,
    RegisterV1,
)
from cima_runc.verifier.appraisal import References, compare
from cima_runc.verifier.completeness import completeness
from cima_runc.verifier.errors import VerificationError
from cima_runc.verifier.pattern import matches
from cima_runc.verifier.policy import ConfigPolicy, Policy, RootfsPolicy
from cima_runc.verifier.reference.file import ImageReference, ReferenceConfig, ReferenceFile
from cima_runc.verifier.result import Check, Finding, Refusal
from cima_runc.verifier.rules import engines
from cima_runc.verifier.rules.config import ConfigRule
from cima_runc.verifier.rules.image_files import ImageFiles
from cima_runc.verifier.rules.looked_at import LookedAt
from cima_runc.verifier.rules.mounts import EngineMounts
from cima_runc.verifier.rules.rootfs import RootfsRule

DIRECTORY = ReferenceFile(type="dir", mode="0755", uid=0, gid=0, layer=0)


def image(files: dict[str, ReferenceFile] | None = None) -> ImageReference:
    return ImageReference(
        platform="linux/amd64",
        image_id="sha256:" + "0" * 64,
        config=ReferenceConfig(),
        layers=(),
        files=files or {"/bin": DIRECTORY.model_copy(update={"type": "link", "link": "usr/bin"})},
    )


@contextmanager
def seconds(most: float) -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < most


def test_many_files_among_many_mounts() -> None:
    config = {"mounts": [{"destination": f"/bin/{n}", "type": "tmpfs"} for n in range(3_000)]}
    ran = [
        File(hashlib.sha256(bytes([n % 256])).digest(), b"/usr/bin/%d/x" % n, 1, Func.BPRM_CHECK)
        for n in range(3_000)
    ]
    register = RegisterV1(
        id="a",
        boot_id="",
        registration=1,
        cgroup="",
        namespaces={},
        dependencies=None,
        missing=(),
    )
    contents: list[AnyContent] = [register, Config(config=config), *ran]
    records = [Measured(at, one) for at, one in enumerate(contents)]
    with seconds(15):
        found = [one.rule for one in compare(records, References(image=image()), Policy())]
    assert found.count("file.mounted") == len(ran)


def test_the_last_mount_that_a_file_lies_on_is_named() -> None:
    mounts = [{"destination": at, "type": "tmpfs", "source": at} for at in ("/a/b", "/a", "/a/b/c")]
    records = [
        Measured(1, Config(config={"mounts": mounts})),
        Measured(2, File(bytes(32), b"/a/b/x", 1, Func.BPRM_CHECK)),
        Measured(3, File(bytes(32), b"/a/b/c", 1, Func.BPRM_CHECK)),
        Measured(4, File(bytes(32), b"/ab", 1, Func.BPRM_CHECK)),
    ]
    found = [one for one in compare(records, References(image=image()), Policy()) if one.record]
    assert [one.what.partition(" of ")[0] for one in found if one.rule == "file.mounted"] == [
        "/a/b/x was executed from the mount /a",
        "/a/b/c was executed from the mount /a/b/c",
    ]


@pytest.mark.parametrize("where", ["cwd", "mount"])
def test_a_path_of_many_directories(where: str) -> None:
    deep = "/a" * 12_000
    mounts = (Mount(destination=deep),) if where == "mount" else ()
    config = ConfigSummary(cwd=deep if where == "cwd" else "/", mounts=mounts)
    reference = image()
    tracemalloc.start()
    try:
        with seconds(5):
            RootfsRule(reference, ImageFiles(reference), config, RootfsPolicy(), 2)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_path_that_leads_through_links_again_and_again() -> None:
    link = {"type": "link", "link": "/l/" + "a/" * 8_000}
    files = ImageFiles(image({"/l": DIRECTORY.model_copy(update=link)}))
    with seconds(5):
        assert files.real("/l/x") == "/l/x"


def test_many_places_in_a_large_image() -> None:
    files = ImageFiles(image({f"/usr/lib/{n}": DIRECTORY for n in range(50_000)}))
    with seconds(5):
        assert not any(files.has_below(f"/run/secrets/{n}") for n in range(2_000))
        assert not any(files.has_program_in(f"/usr/lib/{n}") for n in range(2_000))
    assert files.has_below("/usr")


def test_an_engine_of_many_directories_and_many_that_share() -> None:
    numbers = range(400)
    engine = {
        "name": "podman",
        "cri": False,
        "roots": [f"/data/{n}" for n in range(16)],
        "states": [],
        "kubelets": [],
        "shares": [f"other{n}" for n in numbers],
        "redirected": [],
    }
    source = "/data/7/overlay-containers/other9/userdata/hosts"
    mounts = [
        Mount(destination="/etc/hosts", source=source, from_host=True),
        *(Mount(destination="/etc/hosts", source="/x", from_host=True) for n in numbers),
    ]
    register = {"engine": engine, "line": "", "id": "own"}
    with seconds(5):
        found = EngineMounts(register, ConfigSummary(mounts=tuple(mounts)))
        assert [found.makes(mount) for mount in mounts[:2]] == [True, False]
        assert not any(found.makes(mount) for mount in mounts[1:])


def comparisons(monkeypatch: pytest.MonkeyPatch, engine: dict[str, Any], source: str) -> int:
    """How often a path is compared with a pattern, and how many patterns there are for it."""
    seen = []

    def counted(pattern: str, path: bytes) -> bool:
        seen.append(pattern)
        return matches(pattern, path)

    mounts = tuple(
        Mount(destination=at, source=source, from_host=True) for at in ("/x", "/etc/hosts")
    )
    annotations = {
        "io.kubernetes.cri.sandbox-id": "sandbox",
        "io.kubernetes.cri.sandbox-uid": "pod",
        "io.kubernetes.cri.container-name": "app",
    }
    config = ConfigSummary(mounts=mounts, kubernetes=tuple(annotations.items()))
    found = EngineMounts({"engine": engine, "line": "", "id": "own"}, config)
    with monkeypatch.context() as patched:
        patched.setattr("cima_runc.verifier.rules.mounts.matches", counted)
        assert [found.makes(mount) for mount in mounts] == [False, False]
    assert len(set(seen)) <= 64
    return len(seen)


@pytest.mark.parametrize("name", ["docker", "podman", "containerd", "cri-o"])
def test_directories_in_one_another_cost_no_more_than_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Kind: a mount was compared with all that its engine has: 16 MiB of such took half an hour."""
    nested = ["/d" * n for n in range(1, 17)]
    source = "/d" * 16 + "/e/f"

    def count(directories: list[str], source: str = source, shares: tuple[str, ...] = ()) -> int:
        kinds = ("roots", "states", "kubelets")
        engine = {"name": name, "cri": name in engines.CRI, "shares": list(shares)}
        engine |= dict.fromkeys(kinds, directories)
        return comparisons(monkeypatch, engine, source)

    one = count(nested[-1:])
    assert 0 < one < 100
    assert count(nested) == one
    shares = tuple(f"o{n}" for n in range(600))
    assert count(nested, source + "".join(f"/{each}" for each in shares), shares) <= one
    assert count([f"/d{n}" for n in range(16)]) < one


def test_of_directories_in_one_another_the_innermost_counts() -> None:
    engine = {"name": "docker", "roots": ["/data", "/data/containers/own"]}
    register = {"engine": engine, "line": "", "id": "own"}
    for source, is_made in (
        ("/data/containers/own/containers/own/hosts", True),
        ("/data/containers/own/hosts", False),
        ("/data/containers/ownx/hosts", False),
        ("/data/containers/own", False),
    ):
        mount = Mount(destination="/etc/hosts", source=source, from_host=True)
        found = EngineMounts(register, ConfigSummary(mounts=(mount,)))
        assert found.makes(mount) is is_made, source


@pytest.mark.parametrize("many", [17, 5_000])
def test_an_engine_of_more_than_any_has_is_none(many: int) -> None:
    engine = {"name": "podman", "roots": [f"/data/{n}" for n in range(many)]}
    mount = Mount(
        destination="/etc/hosts",
        source="/data/7/overlay-containers/own/userdata/hosts",
        from_host=True,
    )
    config = ConfigSummary(mounts=(mount,))
    assert not EngineMounts({"engine": engine, "line": "", "id": "own"}, config).makes(mount)


SECRET = b"s" * 32


def findings(config: ConfigSummary, image_config: ReferenceConfig | None = None) -> list[Finding]:
    rule = ConfigRule(config, image_config or ReferenceConfig(), ConfigPolicy(), 2, secret=SECRET)
    return list(rule.check())


def test_many_file_systems_of_the_kernel_and_many_paths_that_are_hidden() -> None:
    mounts = [Mount(destination=f"/sys{n}", type="sysfs") for n in range(2_000)]
    masked = tuple(f"/proc/{n}" for n in range(10_000))
    config = ConfigSummary(mounts=tuple(mounts), masked_paths=(*masked, "/sys7/", "/sys"))
    with seconds(4):
        found = findings(config)
    writable = [one.path for one in found if one.rule == "config.kernel_settings"]
    assert writable == [one.destination for one in mounts if one.destination != "/sys7"]


def test_many_values_of_what_names_a_home_and_many_mounts() -> None:
    mounts = [Mount(destination=f"/mnt/{n}") for n in range(2_000)]
    env = [("HOME", hidden_value(SECRET, one.destination)) for one in mounts]
    config = ConfigSummary(cwd="/app", mounts=tuple(mounts), hidden_env=tuple(env))
    files = ImageFiles(image())
    looked_at = LookedAt(config, files, ReferenceConfig(), sets_home=False, secret=SECRET)
    with seconds(4):
        found = {looked_at.by_what(f"/run/secrets/{n}", "/run/secrets") for n in range(2_000)}
    assert found == {""}
    assert looked_at.by_what("/mnt/7/x", "/mnt/7/x").startswith("HOME is not known")
    assert looked_at.by_what("/mnt/x", "/mnt").startswith("HOME is not known")


@pytest.mark.parametrize("cwd", ["/x" + ":a" * 2_000, "/x" + ":a" * 500_000])
def test_a_directory_that_is_many(cwd: str) -> None:
    """Each of them would be relative to all of it."""
    env = (("PATH", hidden_value(SECRET, cwd)),)
    config = ConfigSummary(cwd=cwd, hidden_env=env)
    values = ReferenceConfig(env=("PATH",), env_values={"PATH": "/bin"})
    looked_at = LookedAt(config, ImageFiles(image()), values, sets_home=False, secret=SECRET)
    tracemalloc.start()
    try:
        with seconds(4):
            assert looked_at.by_what("/run/secrets/x", "/run/secrets")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_many_variables_that_load_code() -> None:
    names = [f"BASH_FUNC_{n}" for n in range(8_000)]
    config = ConfigSummary(
        env=tuple(names), hidden_env=tuple((name, hidden_value(SECRET, "x")) for name in names)
    )
    values = ReferenceConfig(env=tuple(names), env_values=dict.fromkeys(names, "x"))
    with seconds(3):
        found = findings(config, values)
    assert "config.env" not in {one.rule for one in found}


def test_a_long_source_and_many_that_share() -> None:
    shares = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(1_000)]
    engine = {"name": "podman", "roots": ["/data"], "states": [], "shares": shares}
    mount = Mount(destination="/a", source=f"/data/{shares[7]}" + "/x" * 1_900, from_host=True)
    found = EngineMounts({"engine": engine, "line": "", "id": "own"}, ConfigSummary())
    with seconds(2):
        keys = [found.allowing(mount) for _ in range(5)]
    assert f"/data/\\i{'/x' * 1_900}" in keys[0]


def test_of_many_mounts_that_are_refused_the_policy_is_told_of_those_that_are_kept() -> None:
    mounts = tuple(Mount(destination=f"/a{n}", type="tmpfs") for n in range(1_100))
    found = [one for one in findings(ConfigSummary(mounts=mounts)) if one.rule == "config.mount"]
    assert [one.path for one in found] == [one.destination for one in mounts]
    assert ["destination" in one.next for one in found] == [True] * 1_000 + [False] * 100


# What one finding shows has an end, and says so.


def test_a_text_without_end() -> None:
    long = "a" * 1_000_000
    found = Finding(severity="fail", what=long, path=long, got=long, expected=long, next=long)
    for text in (found.what, found.path, found.got, found.expected, found.next):
        assert len(text) == limits.FINDING_TEXT
        assert text.endswith("aa ... (cut)")
    assert Finding.model_validate(found.model_dump()) == found
    longest = "\\xff" * 4_095
    assert Finding(severity="fail", what="", path=longest).path == longest


def test_a_refusal_and_a_step_without_end() -> None:
    long = "a" * 1_000_000
    refused = Refusal.of(VerificationError(long, expected=long, found=long, hint=long))
    shown = (refused.what, refused.expected, refused.found, refused.hint)
    for text in (*shown, Check(step="records", done=True, detail=long).detail):
        assert len(text) == limits.FINDING_TEXT


def test_a_program_of_a_long_path() -> None:
    memory = Memory(
        kind="execmem",
        program_path_hex=b"/a" * 20_000,
        program_digest=None,
        mntns=1,
        denied=False,
    )
    found = [one for one in completeness([Measured(1, memory)], Policy()) if one.path]
    assert [len(one.path) for one in found] == [limits.FINDING_TEXT]


def test_what_a_cut_text_says_of_the_policy_is_no_policy() -> None:
    mount = Mount(destination="/a" * 10_000, type="tmpfs")
    found = [one for one in findings(ConfigSummary(mounts=(mount,))) if one.path[:2] == "/a"]
    [key] = [one.next.partition("[config] ")[2] for one in found]
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(key)


def test_a_long_path_that_many_findings_say() -> None:
    names = tuple(f"BASH_FUNC_{n}" for n in range(400))
    config = ConfigSummary(hooks=(Hook(stage="startContainer", path="/x" * 150_000, env=names),))
    tracemalloc.start()
    try:
        assert len([one for one in findings(config) if one.rule == "config.env"]) == len(names)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_many_files_on_a_mount_of_a_long_name() -> None:
    long = "/" * 300_000 + "usr/bin"
    mount = {"destination": long, "type": "bind", "source": long, "options": ["bind"]}
    contents: list[AnyContent] = [Config(config={"mounts": [mount]})]
    contents += [File(bytes(32), b"/usr/bin/%d" % n, 1, Func.BPRM_CHECK) for n in range(400)]
    records = [Measured(at, one) for at, one in enumerate(contents, 1)]
    tracemalloc.start()
    try:
        found = [one.rule for one in compare(records, References(image=image()), Policy())]
        assert found.count("file.mounted") == 400
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
