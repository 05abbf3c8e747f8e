"""What a host may fill a record with takes no more to appraise than it is: never its square."""

import hashlib
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cima_runc.ima.template import Func
from cima_runc.measure.config_summary import ConfigSummary, Mount
from cima_runc.ml.contents import AnyContent, Config, File, Measured, RegisterV1
from cima_runc.verifier.appraisal import References, compare
from cima_runc.verifier.policy import Policy, RootfsPolicy
from cima_runc.verifier.reference.file import ImageReference, ReferenceConfig, ReferenceFile
from cima_runc.verifier.rules.image_files import ImageFiles
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
        "roots": [f"/data/{n}" for n in range(250)],
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


def test_an_engine_of_more_than_any_has_is_none() -> None:
    engine = {"name": "podman", "roots": [f"/data/{n}" for n in range(5_000)]}
    mount = Mount(
        destination="/etc/hosts",
        source="/data/7/overlay-containers/own/userdata/hosts",
        from_host=True,
    )
    config = ConfigSummary(mounts=(mount,))
    assert not EngineMounts({"engine": engine, "line": "", "id": "own"}, config).makes(mount)
