"""Every rule of the appraisal: what passes, and what does not."""

import base64
import copy
import dataclasses
import hashlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import oci
from unit.verifier.appraised import BUSYBOX, NAMESPACES, Box, image, upper

from cima_runc.ima.template import Func
from cima_runc.measure.config_summary import STEERING_ANNOTATIONS
from cima_runc.measure.mtree import Entry, Type, digest, format_manifest, whiteout
from cima_runc.measure.oci_config import hidden_value
from cima_runc.measure.xattrs import ACL_ACCESS, OPAQUE
from cima_runc.ml.contents import ContentError, Engine, measured
from cima_runc.ml.partition import Partition
from cima_runc.ml.records import Record
from cima_runc.verifier.appraisal import References, appraise, compare
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy, parse_policy
from cima_runc.verifier.reference.file import HostReference, ImageReference
from cima_runc.verifier.reference.image import read_image
from cima_runc.verifier.reference.layer import entries, read_layer
from cima_runc.verifier.reference.tar import read_tar
from cima_runc.verifier.rules.engines import EMPTY_FILES, REPLACED_FILES
from cima_runc.verifier.rules.loading import LOADING, makes_load
from cima_runc.verifier.rules.looked_at import PATHS, SETTINGS
from cima_runc.verifier.suggest import suggest

OTHER = b"\x11" * 32
HASH = OTHER.hex()


@pytest.fixture(name="reference", scope="module")
def _reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


@pytest.fixture(name="box")
def _box(reference: ImageReference) -> Box:
    return Box.honest(reference)


def test_an_honest_container_is_trusted(box: Box) -> None:
    appraised = box.appraise()
    assert appraised.verdict == Verdict.TRUSTED
    assert [finding.rule for finding in appraised.findings] == ["dependencies.reference"]
    assert appraised.compared == 4


# -- files ----------------------------------------------------------------------------------------


def test_files_are_found_through_links_and_under_each_name(box: Box) -> None:
    sha256 = bytes.fromhex(box.image.files["/usr/bin/busybox"].sha256 or "")
    for path in (b"/bin/busybox", b"/usr/bin/sh", b"/bin/sh", b"/app/run", b"/app/../bin/./sh"):
        box.files.append((path, sha256, Func.BPRM_CHECK))
    assert box.failed() == []


def test_a_copy_under_another_name_is_drift(box: Box) -> None:
    sha256 = bytes.fromhex(box.image.files["/usr/bin/busybox"].sha256 or "")
    box.files.append((b"/tmp/copy", sha256, Func.BPRM_CHECK))
    (found,) = box.failed()
    assert (found.rule, found.path, found.got) == ("file.added", "/tmp/copy", sha256.hex())
    assert "drift" in found.what
    assert "content is that of the image's /usr/bin/busybox" in found.what
    assert found.record == 6


@pytest.mark.parametrize("func", list(Func))
def test_another_content_is_drift(box: Box, func: Func) -> None:
    box.files.append((b"/app/script", OTHER, func))
    (found,) = box.failed()
    assert found.rule == "file.changed"
    assert found.expected == box.image.files["/app/script"].sha256
    assert "drift" in found.what


@pytest.mark.parametrize("path", [b"/app", b"/app/loop", b"relative", b"", b"/usr/bin/busybox/x"])
def test_what_is_no_file_of_the_image_is_drift(box: Box, path: bytes) -> None:
    box.files.append((path, OTHER, Func.BPRM_CHECK))
    (found,) = box.failed()
    assert found.rule in {"file.added", "file.changed"}


def test_a_file_of_a_mount_names_the_mount(box: Box) -> None:
    bind = {"destination": "/data", "type": "bind", "source": "/srv/x", "options": ["bind"]}
    box.config["mounts"].append(bind)
    box.files.append((b"/data/tool", OTHER, Func.BPRM_CHECK))
    rules = {finding.rule: finding for finding in box.failed()}
    assert rules.keys() == {"config.mount", "file.mounted"}
    assert "/srv/x" in rules["file.mounted"].what
    assert rules["config.mount"].path == "/data"


def test_files_that_the_policy_allows_are_said_so(box: Box) -> None:
    box.files.append((b"/opt/a b\xff.so", OTHER, Func.MMAP_CHECK))
    box.files.append((b"/opt/c.so", b"\x22" * 32, Func.MMAP_CHECK))
    policy = f"[[files]]\npath = '/opt/a b\\xff.so'\nsha256 = ['{HASH}']\n"
    policy += "[[files]]\npath = '/opt/c*'\n"
    appraised = box.appraise(policy)
    assert appraised.verdict == Verdict.TRUSTED
    said = [each.what for each in appraised.findings if each.rule == "file.allowed"]
    assert "by path and digest" in said[0]
    assert "path pattern alone" in said[1]


def test_an_allowed_path_with_another_digest_is_drift(box: Box) -> None:
    box.files.append((b"/opt/c.so", b"\x22" * 32, Func.MMAP_CHECK))
    assert [x.rule for x in box.failed(f"files = [{{path = '/opt/*', sha256 = ['{HASH}']}}]")] == [
        "file.added"
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_a_digest_or_a_path_is_a_finding(
    reference: ImageReference, data: st.DataObject
) -> None:
    box = Box.honest(reference)
    number = data.draw(st.integers(0, len(box.files) - 1))
    path, sha256, func = box.files[number]
    both = bytearray(path + sha256)
    at = data.draw(st.integers(0, len(both) - 1))
    both[at] ^= data.draw(st.integers(1, 255).filter(lambda flip: both[at] ^ flip))
    changed = bytes(both[: len(path)]), bytes(both[len(path) :]), func
    box.files[number] = changed
    failed = box.failed()
    assert [finding.record for finding in failed] == [3 + number]
    assert failed[0].rule in {"file.added", "file.changed"}


def test_a_file_seen_in_two_namespaces_is_reported_once(reference: ImageReference) -> None:
    partition = Partition("box")
    records = [partition.add_file(OTHER, b"/tmp/x", mntns, Func.BPRM_CHECK, {}) for mntns in (1, 2)]
    found = list(compare([measured(r) for r in records], References(reference), Policy()))
    assert sum(finding.rule == "file.added" for finding in found) == 1


@pytest.mark.parametrize(
    ("entrypoint", "args", "is_own"),
    [
        ([""], ["/app/script", "now"], True),  # how a Dockerfile undoes a base image's
        ([""], ["/app/script"], False),
        ([""], ["", "/app/script", "now"], False),
        (["", "x"], ["/app/script", "now"], False),
        (["", "x"], ["x", "/app/script", "now"], False),
        ([], ["/app/script", "now"], True),
        (["/usr/bin/sh"], ["/app/script", "now"], False),
        (["/usr/bin/sh"], ["/usr/bin/sh", "/app/script", "now"], True),
    ],
)
def test_an_entrypoint_that_is_none(
    box: Box, entrypoint: list[str], args: list[str], is_own: bool
) -> None:
    """Kind: what an image says is compared as it is written, and engines do not take it so."""
    values = {"entrypoint": tuple(entrypoint), "cmd": ("/app/script", "now")}
    box.image = box.image.model_copy(update={"config": box.image.config.model_copy(update=values)})
    box.config["process"]["args"] = args
    assert {found.rule for found in box.failed()} == (set() if is_own else {"config.args"})


@pytest.mark.parametrize(
    ("user", "number", "is_own"),
    [
        ("app:", "33:", True),
        (":staff", ":50", False),
        ("12:", None, False),
        (":", None, False),
        ("app:", None, False),
    ],
)
def test_a_user_with_half_a_name(box: Box, user: str, number: str | None, is_own: bool) -> None:
    values = {"user": user, "user_number": number}
    box.image = box.image.model_copy(update={"config": box.image.config.model_copy(update=values)})
    box.config["process"]["user"] = {"uid": 33, "gid": 34}
    assert {found.rule for found in box.failed()} == (set() if is_own else {"config.user"})
    box.config["process"]["user"] = {"uid": 0, "gid": 50}
    assert (box.failed() == []) is (user in {":staff", ":"})


# -- the engine's init program --------------------------------------------------------------------

INIT = {
    "destination": "/sbin/docker-init",
    "type": "bind",
    "source": "/usr/bin/docker-init",
    "options": ["rbind", "ro"],
}


def with_init(box: Box) -> Box:
    box.config["mounts"].append(dict(INIT))
    box.config["process"]["args"] = ["/sbin/docker-init", "--", "/app/script", "now"]
    box.files.append((b"/sbin/docker-init", OTHER, Func.BPRM_CHECK))
    return box


def test_docker_init_is_allowed_and_said_not_to_be_compared(box: Box) -> None:
    appraised = with_init(box).appraise()
    assert appraised.verdict == Verdict.TRUSTED
    assert "file.init" in {finding.rule for finding in appraised.findings}


@pytest.mark.parametrize(
    ("at", "source"),
    [
        ("/sbin/docker-init", "/snap/docker/2932/bin/docker-init"),
        ("/sbin/docker-init", "/usr/libexec/docker-init"),
        ("/sbin/docker-init", "/usr/lib/docker/docker-init"),
        ("/sbin/docker-init", "/usr/local/libexec/docker-init"),
        ("/sbin/docker-init", "/usr/local/lib/docker/docker-init"),
        ("/sbin/docker-init", "/usr/local/libexec/docker/docker-init"),
        ("/run/podman-init", "/usr/bin/catatonit"),
        ("/run/podman-init", "/usr/local/lib/podman/catatonit"),
        ("/dev/init", "/usr/libexec/podman/catatonit"),
        ("/sbin/tini", "/usr/bin/tini"),
        ("/sbin/tini", "/usr/local/bin/tini"),
    ],
)
def test_init_programs_of_all_engines(box: Box, at: str, source: str) -> None:
    mount = INIT | {"destination": at, "source": source}
    box.config["mounts"].append(mount)
    box.config["process"]["args"] = [at, "--", "/app/script", "now"]
    box.files.append((at.encode(), OTHER, Func.BPRM_CHECK))
    assert box.failed() == []
    mount["source"] = f"/home/eve{source}"
    assert "config.mount" in {finding.rule for finding in box.failed()}


MERGED = {"/sbin": "usr/sbin", "/run": "/var/run", "/var/run": "/var/./volatile", "/dev": "usr/dev"}
"""Links of directories, as merged-/usr images have them, and more of the kind."""


@pytest.mark.parametrize(
    ("at", "named", "source"),
    [
        ("/sbin/docker-init", "/usr/sbin/docker-init", "/usr/bin/docker-init"),
        ("/sbin/tini", "/usr/sbin/tini", "/usr/bin/tini"),
        ("/run/podman-init", "/var/volatile/podman-init", "/usr/bin/catatonit"),
        ("/dev/init", "/usr/dev/init", "/usr/bin/catatonit"),
    ],
)
def test_an_init_program_below_a_directory_that_is_a_link(
    box: Box, at: str, named: str, source: str
) -> None:
    """A mount is configured by one path, and the kernel names what runs there by another."""
    image_link = box.image.files["/bin"]
    links = {path: image_link.model_copy(update={"link": to}) for path, to in MERGED.items()}
    box.image = box.image.model_copy(update={"files": box.image.files | links})
    box.config["mounts"].append(INIT | {"destination": at, "source": source})
    box.config["process"]["args"] = [at, "--", "/app/script", "now"]
    box.files.append((named.encode(), OTHER, Func.BPRM_CHECK))
    assert box.failed() == []
    # The same name, where no mount of the engine's is.
    box.files[-1] = (at.encode(), OTHER, Func.BPRM_CHECK)
    assert [finding.rule for finding in box.failed()] == ["file.added"]
    # Another mount hides the engine's: what runs is of that.
    box.files[-1] = (named.encode(), OTHER, Func.BPRM_CHECK)
    over = {"destination": str(Path(named).parent), "type": "bind", "source": "/srv"}
    box.config["mounts"].append(over | {"options": ["rbind"]})
    assert {finding.rule for finding in box.failed()} == {"config.mount", "file.mounted"}
    assert "of /srv" in next(each.what for each in box.failed() if each.rule == "file.mounted")


def test_what_ran_from_a_mount_below_a_link_is_said_to(box: Box) -> None:
    box.config["mounts"].append({"destination": "/bin/x", "type": "bind", "source": "/srv/x"})
    box.files.append((b"/usr/bin/x/y", OTHER, Func.BPRM_CHECK))
    assert {finding.rule for finding in box.failed()} == {"config.mount", "file.mounted"}


def test_only_what_ran_first_is_the_engines_init(box: Box) -> None:
    """Under a chroot, another program can have the same path."""
    box = with_init(box)
    box.files.append((b"/sbin/docker-init", b"f" * 32, Func.BPRM_CHECK))
    assert [finding.rule for finding in box.failed()] == ["file.mounted"]
    box.config["process"]["args"] = ["/app/script", "now"]
    assert [finding.rule for finding in box.failed()] == ["file.mounted", "file.mounted"]


def test_docker_init_is_compared_with_the_hosts(box: Box) -> None:
    box = with_init(box)
    box.dependencies = dependencies((b"/usr/bin/runc", OTHER))
    box.host = HostReference(files={"/usr/bin/docker-init": (HASH,), "/usr/bin/runc": (HASH,)})
    assert box.appraise().verdict == Verdict.TRUSTED
    box.host = HostReference(files={"/usr/bin/docker-init": ("2" * 64,), "/usr/bin/runc": (HASH,)})
    assert [finding.rule for finding in box.failed()] == ["file.init"]


def test_an_init_program_from_elsewhere_is_none(box: Box) -> None:
    box = with_init(box)
    box.config["mounts"][-1]["source"] = "/home/eve/docker-init"
    assert {finding.rule for finding in box.failed()} == {
        "config.mount",
        "config.args",
        "file.mounted",
    }


# -- layers ---------------------------------------------------------------------------------------


def test_a_changed_layer_is_named(box: Box) -> None:
    box.rootfs["layers"][1]["digest"] = "sha256:" + HASH
    (found,) = box.failed()
    assert found.rule == "rootfs.layer"
    assert found.path.startswith("layer 1 of 2")
    assert (found.got, found.expected) == ("sha256:" + HASH, box.image.layers[1].digest)


def test_a_layer_as_another_engine_unpacks_it_is_the_images(box: Box) -> None:
    other = box.image.layers[0].model_copy(update={"other_digests": {"podman": "sha256:" + HASH}})
    box.image = box.image.model_copy(update={"layers": (other, box.image.layers[1])})
    box.rootfs["layers"][0]["digest"] = "sha256:" + HASH
    assert box.failed() == []


def test_a_users_engine_leaves_out_devices(tmp_path: Path) -> None:
    """apko's images (Wolfi, Chainguard) have /dev/null and others as nodes."""
    own = (
        oci.member("app/script", b"#!/bin/sh\n", mode=0o755),
        oci.member("usr/bin/busybox", BUSYBOX, mode=0o755),
        oci.member("usr/lib/lib.so", b"library"),
    )
    dev = oci.directory("dev")
    null = oci.member("dev/null", kind=b"3", device=(1, 3), mode=0o666)
    layout = oci.Layout()
    layout.image(oci.archive(*own, dev, null), config={"Entrypoint": ["/app/script", "now"]})
    box = Box.honest(read_image(layout.write_directory(tmp_path / "image")).reference)
    assert box.failed() == []

    def unpacked(*members: bytes) -> str:
        tree = read_layer(read_tar(io.BytesIO(oci.archive(*members))))
        return digest(format_manifest(entries(tree)))

    (measured_layer, _upper) = box.rootfs["layers"]
    measured_layer["digest"] = unpacked(*own, dev)
    assert [each.rule for each in box.failed()] == ["rootfs.image"]  # root's engine makes them
    box.register["uid"] = 1000
    assert box.failed() == []
    for members in (
        own,
        (*own[1:], dev),
        (*own, dev, oci.member("dev/null", b"#!/bin/sh\n")),
        (*own, dev, oci.member("app/script", b"#!/bin/zz\n", mode=0o755)),
    ):
        measured_layer["digest"] = unpacked(*members)
        assert [each.rule for each in box.failed()] == ["rootfs.image"]


def test_a_users_engine_unpacks_into_a_mount(tmp_path: Path) -> None:
    """Docker before 27, and containerd: what is opaque in the archive becomes whiteouts, and a
    directory in the place of something else is opaque."""
    script = oci.member("app/script", b"#!/bin/sh\n", mode=0o755)
    layout = oci.Layout()
    layout.image(
        oci.archive(
            script,
            oci.member("usr/bin/busybox", BUSYBOX, mode=0o755),
            oci.member("usr/lib/lib.so", b"library"),
            oci.directory("cache", 0o700),
            oci.directory("cache/old"),
        ),
        oci.archive(
            oci.directory("cache", 0o711), oci.member("cache/.wh..wh..opq"), oci.directory("new")
        ),
        config={"Entrypoint": ["/app/script", "now"]},
    )
    box = Box.honest(read_image(layout.write_directory(tmp_path / "image")).reference)
    assert box.failed() == []
    new = Entry(b"new", "dir", 0o755, 0, 0)
    cache = Entry(b"cache", "dir", 0o711, 0, 0)
    measured_layer = box.rootfs["layers"][1]

    def measured(*manifest: Entry) -> list[str]:
        found = format_manifest([Entry(b".", "dir"), *manifest])
        measured_layer["digest"] = digest(found)
        return [each.rule for each in box.failed()]

    in_mount = (cache, whiteout(b"cache/old"), new)
    assert measured(*in_mount) == ["rootfs.layer"]  # root's engine does not
    box.register["uid"] = 1000
    assert measured(*in_mount) == []
    for other in ((cache, new), (whiteout(b"cache"), new), (*in_mount, whiteout(b"usr"))):
        assert measured(*other) == ["rootfs.layer"]


def test_a_device_that_hides_a_file_must_be_there(tmp_path: Path) -> None:
    """Without it a script of a lower layer would be there again, which the image does not have."""
    layout = oci.Layout()
    layout.image(
        oci.archive(oci.member("start.sh", b"old")),
        oci.archive(oci.member("start.sh", kind=b"3", device=(1, 3)), oci.member("b")),
    )
    reference = read_image(layout.write_directory(tmp_path / "image")).reference
    assert [layer.rootless_digests for layer in reference.layers] == [None, None]


def linked_etc(reference: ImageReference) -> ImageReference:
    """An image by Nix: its /etc is a link."""
    link, directory = reference.files["/bin"], reference.files["/etc"]
    own = {"/etc": link.model_copy(update={"link": "nix/etc"}), "/nix": directory}
    files = {**reference.files, **own, "/nix/etc": directory}
    return reference.model_copy(update={"files": files})


def test_docker_makes_directories_in_place_of_links(reference: ImageReference) -> None:
    """Its init layer has them, and the container's own never (moby, initlayer.Setup)."""
    box = Box.honest(linked_etc(reference))
    layers = box.rootfs["layers"]
    etc = Entry(b"etc", "dir", 0o755, 0, 0, xattrs=(OPAQUE,))
    mtab = Entry(b"etc/mtab", "link", 0o777, 0, 0, link=b"/proc/mounts")
    hosts = Entry(b"etc/hosts", "file", 0o755, 0, 0, size=0, sha256=hashlib.sha256().digest())
    layers[-1:] = [upper(etc, hosts, mtab, kind="init"), upper()]
    assert box.failed() == []
    layers[-2:] = [upper(kind="init"), upper(etc)]
    assert [each.path for each in box.failed()] == ["/etc"]
    passwd = Entry(b"etc/passwd", "file", 0o644, 0, 0, size=1, sha256=b"1" * 32)
    layers[-2:] = [upper(etc, passwd, kind="init"), upper()]
    assert [each.path for each in box.failed()] == ["/etc/passwd"]
    redirect = (("trusted.overlay.redirect", b"/app"),)
    for change in ({"mode": 0o777}, {"uid": 1}, {"gid": 1}, {"xattrs": redirect}):
        layers[-2:] = [upper(dataclasses.replace(etc, **change), kind="init"), upper()]  # type: ignore[arg-type]
        assert [each.path for each in box.failed()] == ["/etc"], change
    bin_ = dataclasses.replace(etc, path=b"bin")
    layers[-2:] = [upper(bin_, kind="init"), upper()]
    assert [each.path for each in box.failed()] == ["/bin"]


def test_podman_links_mtab_where_etc_leads(reference: ImageReference) -> None:
    """Kind: a path as configured is compared with a path as it is."""
    box = Box.honest(linked_etc(reference))
    above = (Entry(b"nix", "dir", 0o755, 0, 0), Entry(b"nix/etc", "dir", 0o755, 0, 0))
    mtab = Entry(b"nix/etc/mtab", "link", 0o777, 0, 0, link=b"/proc/mounts")
    box.rootfs["layers"][-1] = upper(*above, mtab)
    assert box.failed() == []
    for changed in (
        dataclasses.replace(mtab, link=b"/app/mounts"),
        dataclasses.replace(mtab, path=b"nix/etc/passwd"),
    ):
        box.rootfs["layers"][-1] = upper(*above, changed)
        assert [each.rule for each in box.failed()] == ["rootfs.written"]
    own = {"/nix/etc/mtab": box.image.files["/app/script"]}
    box.image = box.image.model_copy(update={"files": box.image.files | own})
    box.rootfs["layers"][-1] = upper(*above, mtab)
    assert [each.path for each in box.failed()] == ["/nix/etc/mtab"]


ZONE = "usr/share/zoneinfo/Europe/Berlin"


def with_zones(reference: ImageReference) -> ImageReference:
    """An image with tzdata: /etc/localtime is a link, some zones are others by another name."""
    file, directory = reference.files["/usr/lib/lib.so"], reference.files["/etc"]
    zones = "/usr/share/zoneinfo"
    own = {f"/{ZONE}": file, f"{zones}/Etc/UTC": file, "/etc/own": file}
    for name in ("/usr/share", zones, f"{zones}/Europe", f"{zones}/Etc"):
        own[name] = directory
    links = {
        "/etc/localtime": f"{zones}/Etc/UTC",
        f"{zones}/UTC": "Etc/UTC",
        f"{zones}/out": "/etc/own",
        f"{zones}/nowhere": "gone",
    }
    own |= {at: reference.files["/bin"].model_copy(update={"link": to}) for at, to in links.items()}
    return reference.model_copy(update={"files": reference.files | own})


def zoned(reference: ImageReference, target: str, engine: str, at: str = "etc/localtime") -> Box:
    box = Box.honest(with_zones(reference))
    box.register = {"engine": Engine(name=engine).model_dump(mode="json")}  # type: ignore[arg-type]
    box.config["mounts"] = box.config["mounts"][:2]
    etc = Entry(b"etc", "dir", 0o755, 0, 0)
    link = Entry(at.encode(), "link", 0o777, 0, 0, link=target.encode())
    box.rootfs["layers"][-1] = upper(etc, link)
    return box


@pytest.mark.parametrize("engine", ["podman", "cri-o"])
def test_a_time_zone_of_the_images(reference: ImageReference, engine: str) -> None:
    """Podman's --tz and CRI-O's timezone link to it, in the container's own layer."""
    for target in (f"../{ZONE}", "../usr/share/zoneinfo/UTC"):
        assert zoned(reference, target, engine).failed() == []
        assert [each.rule for each in zoned(reference, target, "docker").failed()] == [
            "rootfs.written"
        ]
    for target in (
        f"/{ZONE}",
        ZONE,
        f"../../{ZONE}",
        "../usr/share/zoneinfo/Mars",
        "../usr/share/zoneinfo/nowhere",
        "../usr/share/zoneinfo/out",
        "../usr/share/zoneinfo/Europe",
        "../usr/share/zoneinfo/",
        "../usr/share/zoneinfo",
        "../usr/share/zoneinfo/../../../app/script",
        f"../usr/share/zoneinfo/./{ZONE}",
        f"../usr/share/zoneinfo/../zoneinfo/{ZONE}",
        "../app/script",
        "/data/zone",
    ):
        found = zoned(reference, target, engine).failed()
        assert [each.path for each in found] == ["/etc/localtime"], target
    for at in ("etc/ld.so.preload", "etc/own", "localtime"):
        found = zoned(reference, f"../{ZONE}", engine, at).failed()
        assert [each.path for each in found] == [f"/{at}"]
    box = zoned(reference, f"../{ZONE}", engine)
    directory = {
        "/etc/localtime": reference.files["/etc"],
        "/etc/localtime/x": box.image.files["/etc/own"],
    }
    box.image = box.image.model_copy(update={"files": box.image.files | directory})
    assert "/etc/localtime" in {each.path for each in box.failed()}


def test_a_time_zone_that_the_image_does_not_have(reference: ImageReference) -> None:
    """A copy is mounted then, where the image's own link was removed."""
    box = zoned(reference, "", "podman")
    etc = Entry(b"etc", "dir", 0o755, 0, 0)
    empty = Entry(b"etc/localtime", "file", 0o755, 0, 0, size=0, sha256=hashlib.sha256().digest())
    box.rootfs["layers"][-1] = upper(etc, empty)
    assert [each.path for each in box.failed()] == ["/etc/localtime"]
    box.register |= {"id": "c" * 64}
    box.register["engine"]["states"] = ["/run/c"]
    source = f"/run/c/overlay-containers/{'c' * 64}/userdata/localtime"
    mount = {"destination": "/etc/localtime", "type": "bind", "source": source}
    box.config["mounts"].append(mount | {"options": ["bind"]})
    assert box.failed() == []
    box.rootfs["layers"][-1] = upper(etc, dataclasses.replace(empty, size=1, sha256=b"1" * 32))
    assert [each.path for each in box.failed()] == ["/etc/localtime"]
    own = dataclasses.replace(empty, path=b"etc/own")
    box.rootfs["layers"][-1] = upper(etc, own)
    assert [each.path for each in box.failed()] == ["/etc/own"]
    box.config["mounts"][-1] = mount | {"options": ["bind"], "source": "/srv/zone"}
    assert "config.mount" in {each.rule for each in box.failed()}


def test_another_image_is_said_to_be_one(box: Box) -> None:
    for layer in box.rootfs["layers"][:2]:
        layer["digest"] = "sha256:" + HASH
    (found,) = box.failed()
    assert found.rule == "rootfs.image"
    assert "another image" in found.what


@pytest.mark.parametrize(
    "change", [lambda layers: layers.pop(0), lambda layers: layers.insert(2, layers[1])]
)
def test_another_number_of_layers_is_found(
    box: Box, change: Callable[[list[dict[str, Any]]], object]
) -> None:
    change(box.rootfs["layers"])
    assert "rootfs.layers" in {finding.rule for finding in box.failed()}


@pytest.mark.parametrize(
    ("values", "rule", "policy"),
    [
        ({"mode": "off", "layers": []}, "rootfs.off", "allow_unmeasured = true"),
        ({"filesystem": "tree", "reason": "why"}, "rootfs.tree", "allow_tree = true"),
        ({"format": "cima-layer-2"}, "rootfs.format", None),
    ],
)
def test_a_root_that_cannot_be_compared(
    box: Box, values: dict[str, Any], rule: str, policy: str | None
) -> None:
    box.rootfs |= values
    assert [finding.rule for finding in box.failed()] == [rule]
    if policy is not None:
        appraised = box.appraise(f"[rootfs]\n{policy}\n")
        assert appraised.verdict == Verdict.TRUSTED
        assert rule in {finding.rule for finding in appraised.findings}


def test_files_that_change_meanwhile(box: Box) -> None:
    box.rootfs["layers"][0] |= {"changed": ["./bin/sh"], "changed_count": 1}
    (found,) = box.failed()
    assert (found.rule, found.path) == ("rootfs.changing", "./bin/sh")
    assert box.failed("[rootfs]\nallow_changing = true") == []


# -- layers of no image ---------------------------------------------------------------------------


def entry(path: str, kind: Type = "dir", **fields: Any) -> Entry:
    values: dict[str, Any] = {"mode": 0o755, "uid": 0, "gid": 0}
    if kind == "file":
        values |= {"size": 0, "sha256": b"\xe3" * 32}
    return Entry(path.encode(), kind, **(values | fields))


DOCKERS = [
    entry(".dockerenv", "file"),
    entry("dev"),
    entry("dev/console", "file"),
    entry("dev/pts"),
    entry("dev/shm"),
    entry("etc"),
    entry("etc/hostname", "file"),
    entry("etc/hosts", "file"),
    entry("etc/mtab", "link", link=b"/proc/mounts", mode=0o777),
    entry("etc/resolv.conf", "file"),
]


def test_what_engines_make_in_their_layers_is_allowed(box: Box) -> None:
    box.config["mounts"] += [
        {"destination": "/var/deep/cache", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/bin/tool", "type": "bind", "source": "/srv/tool"},
    ]
    box.config["process"]["cwd"] = "/work/x"
    box.rootfs["layers"][2:] = [
        upper(*DOCKERS, kind="init"),
        upper(
            entry("usr"),
            entry("usr/bin"),
            entry("usr/bin/tool", "file"),
            entry("var", xattrs=(OPAQUE,)),
            entry("var/deep"),
            entry("var/deep/cache"),
            entry("work"),
            entry("work/x"),
        ),
    ]
    policy = "[config]\nworking_dirs = ['/work/x']\nmounts = [{destination = '/**'}]"
    assert box.failed(policy) == []


@pytest.mark.parametrize("path", [*EMPTY_FILES, *REPLACED_FILES])
def test_an_empty_file_where_the_image_has_one(box: Box, path: str) -> None:
    """Kind: what engines make where there is nothing hides what the image has there."""
    above = [entry(one[1:]) for one in ("/etc", "/run", "/dev", "/sbin") if path.startswith(one)]
    box.rootfs["layers"][2] = upper(*above, entry(path[1:], "file"))
    assert box.failed() == []
    own = box.image.files["/usr/lib/lib.so"]
    box.image = box.image.model_copy(update={"files": {**box.image.files, path: own}})
    found = [] if path in REPLACED_FILES else [("rootfs.written", path)]
    assert [(each.rule, each.path) for each in box.failed()] == found


@pytest.mark.parametrize(
    "entries",
    [
        [entry("etc"), entry("etc/hosts", "file", size=1)],
        [entry("etc"), entry("etc/mtab", "link", link=b"/etc/passwd", mode=0o777)],
        [entry("etc"), entry("etc/ld.so.preload", "file")],
        [entry("etc", mode=0o777)],
        [entry("etc", xattrs=(OPAQUE,))],
        [entry("etc", uid=1)],
        [whiteout(b"app")],
        [entry("app"), whiteout(b"app/script")],
        [entry("app"), entry("app/script", "file", size=9, sha256=OTHER)],
        [entry("app"), entry("app/script", "link", link=b"/bin/sh", mode=0o777)],
        [entry("opt")],
        [entry("dev"), entry("dev/null", "char", device=(1, 3))],
        [entry("dev", mode=0o6755)],
        [entry(".dockerenv", "file", mode=0o4755)],
        [entry("bin")],
        [entry("usr", xattrs=(("security.capability", b"x"),))],
        [entry("run", xattrs=(("trusted.overlay.redirect", b"/app"),))],
    ],
)
@pytest.mark.parametrize("kind", ["init", "upper"])
def test_what_engines_do_not_make_is_found(box: Box, entries: list[Entry], kind: str) -> None:
    box.rootfs["layers"].insert(2, upper(*entries, kind=kind))
    (found,) = box.failed()
    assert found.rule == "rootfs.written"
    assert found.path == "/" + entries[-1].path.decode()
    assert box.failed("[rootfs]\nallow_written = ['/**']") == []


def test_a_directory_where_the_image_wants_a_volume(box: Box) -> None:
    """CRI-O makes it, and mounts nothing there."""
    box.rootfs["layers"][2] = upper(
        entry("var"), entry("var/lib"), entry("var/lib/registry", uid=1000, gid=1000)
    )
    assert [each.path for each in box.failed()] == ["/var", "/var/lib", "/var/lib/registry"]
    wants = {"config": box.image.config.model_copy(update={"volumes": ("/var/lib/registry/",)})}
    box.image = box.image.model_copy(update=wants)
    assert box.failed() == []
    box.rootfs["layers"][2] = upper(
        entry("var"), entry("var/lib"), entry("var/lib/registry"), entry("var/lib/registry/x")
    )
    assert [each.path for each in box.failed()] == ["/var/lib/registry/x"]


SECRET = {"size": 3, "sha256": OTHER, "mode": 0o400}
COPIED_IN = [
    entry("run"),
    entry("run/secrets"),
    entry("run/secrets/token", "file", **SECRET),
]


def with_engine(box: Box, name: str | None) -> Box:
    box.register["engine"] = Engine(name=name, roots=("/var/lib/docker",)).model_dump(mode="json")
    box.register["id"] = "0123abcd"
    return box


@pytest.mark.parametrize("engine", ["docker", "podman", "containerd", None])
def test_what_compose_copies_into_a_container(box: Box, engine: str | None) -> None:
    """Kind: an engine puts the same thing there in two ways, and one was known. Its secrets by
    ``environment`` lie in the container's own layer."""
    box.config["mounts"] = []
    box.rootfs["layers"][2] = upper(*COPIED_IN)
    found = {each.path for each in with_engine(box, engine).failed()}
    if engine in {"docker", "podman"}:
        assert found == set()
    else:
        assert "/run/secrets/token" in found


@pytest.mark.parametrize(
    ("entries", "at"),
    [
        ([entry("run/secrets/x", "file", **SECRET | {"mode": 0o4755})], "/run/secrets/x"),
        ([entry("run/secrets/x", "file", **SECRET | {"mode": 0o666})], "/run/secrets/x"),
        ([entry("run/secrets/x", "link", link=b"/srv", mode=0o777)], "/run/secrets/x"),
        ([entry("run/secrets/x")], "/run/secrets/x"),
        (
            [entry("run/secrets/x"), entry("run/secrets/x/y.py", "file", **SECRET)],
            "/run/secrets/x/y.py",
        ),
        ([entry("email", "file", **SECRET)], "/email"),
        ([entry("email.py", "file", **SECRET)], "/email.py"),
        ([entry("opt"), entry("opt/config", "file", **SECRET)], "/opt/config"),
        ([entry("config"), entry("config/x", "file", **SECRET)], "/config/x"),
        ([entry("app"), entry("app/config", "file", **SECRET)], "/app/config"),
        ([entry("run/secrets", xattrs=(OPAQUE,)), COPIED_IN[-1]], "/run/secrets"),
        ([entry("run/secrets", mode=0o777), COPIED_IN[-1]], "/run/secrets"),
        ([entry(".npmrc", "file", **SECRET)], "/.npmrc"),
        # A config of Compose's would be there, and so would what the container itself left.
        ([entry("app_config", "file", **SECRET)], "/app_config"),
    ],
)
def test_what_could_be_code_is_not_copied_in(box: Box, entries: list[Entry], at: str) -> None:
    box.config["mounts"] = []
    above = [each for each in COPIED_IN[:2] if entries[0].path.startswith(each.path + b"/")]
    box.rootfs["layers"][2] = upper(*above, *entries)
    found = {(each.rule, each.path) for each in with_engine(box, "docker").failed()}
    assert ("rootfs.written", at) in found


def test_what_is_copied_to_where_programs_look(box: Box) -> None:
    box.config["mounts"] = []
    box.rootfs["layers"][2] = upper(*COPIED_IN)
    box.config["process"]["cwd"] = "/run/secrets"
    found = {each.path for each in with_engine(box, "docker").failed()}
    assert "/run/secrets/token" in found
    box.config["process"]["cwd"] = "/"
    assert with_engine(box, "docker").failed() == []
    box.files.append((b"/run/secrets/token", OTHER, Func.BPRM_CHECK))
    assert [each.rule for each in with_engine(box, "docker").failed()] == ["file.added"]


def test_what_is_copied_over_the_images(box: Box) -> None:
    own = box.image.files["/usr/lib/lib.so"]
    files = {**box.image.files, "/run/secrets/token": own}
    box.image = box.image.model_copy(update={"files": files})
    box.config["mounts"] = []
    box.rootfs["layers"][2] = upper(*COPIED_IN)
    found = {each.path for each in with_engine(box, "docker").failed()}
    assert "/run/secrets/token" in found


def test_an_opaque_root_hides_the_image(box: Box) -> None:
    layer = upper()
    manifest = format_manifest([Entry(b".", "dir", xattrs=(OPAQUE,))])
    box.rootfs["layers"][2] = layer | {
        "manifest": manifest.decode(),
        "digest": digest(manifest),
    }
    (found,) = box.failed()
    assert (found.rule, found.path) == ("rootfs.written", "/")


OVER_OTHERS = {
    "opaque": [entry("app", xattrs=(OPAQUE,))],
    "removed": [whiteout(b"app")],
    "a link": [entry("app", "link", link=b"/usr/bin", mode=0o777)],
    "a file": [entry("app", "file", size=1)],
    "another directory": [entry("app", xattrs=(("trusted.overlay.redirect", b"/usr"),))],
    "an opaque one above": [entry("usr", xattrs=(OPAQUE,)), entry("usr/lib")],
}


@pytest.mark.parametrize("case", OVER_OTHERS)
def test_what_is_allowed_at_a_path_says_nothing_of_what_is_below(box: Box, case: str) -> None:
    """Kind: of what a policy allows to be written, one entry hides the image's other files."""
    at = "/" + OVER_OTHERS[case][0].path.decode()
    changed = entry(at[1:], mode=0o770)
    box.rootfs["layers"][2] = upper(changed)
    suggested = suggest(box.records(), References(box.image))
    assert box.failed(suggested) == []
    box.rootfs["layers"][2] = upper(*OVER_OTHERS[case])
    (found,) = box.failed(suggested)
    assert (found.rule, found.path) == ("rootfs.written", at) and "hides" in found.what
    assert box.failed(f"[rootfs]\nallow_written = ['{at}', '{at}/*']")[:1] == (
        [found] if at == "/usr" else []
    )
    assert box.failed(suggest(box.records(), References(box.image))) == []
    assert box.failed("[rootfs]\n" + found.next.partition("[rootfs] ")[2]) == []


def test_an_opaque_root_needs_more_than_the_roots_path(box: Box) -> None:
    manifest = format_manifest([Entry(b".", "dir", xattrs=(OPAQUE,))])
    box.rootfs["layers"][2] |= {"manifest": manifest.decode(), "digest": digest(manifest)}
    (found,) = box.failed("[rootfs]\nallow_written = ['/']")
    assert box.failed("[rootfs]\n" + found.next.partition("[rootfs] ")[2]) == []
    assert box.failed(suggest(box.records(), References(box.image))) == []


def test_the_images_own_entries_change_nothing(box: Box) -> None:
    sha256 = bytes.fromhex(box.image.files["/app/script"].sha256 or "")
    box.rootfs["layers"][2] = upper(
        entry("app"), entry("app/script", "file", size=10, sha256=sha256)
    )
    assert box.failed() == []


def test_a_manifest_must_be_that_of_the_digest(box: Box) -> None:
    box.rootfs["layers"][2]["digest"] = "sha256:" + HASH
    assert [finding.rule for finding in box.failed()] == ["rootfs.manifest"]
    box.rootfs["layers"][2]["manifest"] = "é"
    assert [finding.rule for finding in box.failed()] == ["rootfs.manifest"]


CACHED = "app/__pycache__/main.cpython-311.pyc"


@pytest.mark.parametrize(
    ("path", "mode", "named"),
    [(CACHED, 0o644, True), ("app/tool", 0o755, True), ("var/log/app.log", 0o644, False)],
)
def test_what_is_allowed_to_be_written_has_its_content(
    box: Box, path: str, mode: int, named: bool
) -> None:
    """Kind: a path is allowed, and whoever writes there chooses the code that is read from it."""
    above = [entry(path[:at]) for at in range(1, len(path)) if path[at] == "/"]

    def write(**values: Any) -> None:
        given: dict[str, Any] = {"mode": mode, "size": 3, "sha256": OTHER} | values
        box.rootfs["layers"][2] = upper(*above, entry(path, "file", **given))

    write()
    text = suggest(box.records(), References(box.image))
    assert box.failed(text) == [] and ("sha256 = [" in text) is named
    key = box.failed()[-1].next.partition("[rootfs] ")[2]
    write(sha256=bytes(32))
    assert [each.path for each in box.failed(text)] == [f"/{path}"] * named
    write(mode=mode | 0o4000)
    assert [each.path for each in box.failed(text)] == [f"/{path}"] * named
    write(xattrs=(("security.capability", b"x"),))
    assert [each.path for each in box.failed(text)] == [f"/{path}"] * named
    write(size=0, sha256=hashlib.sha256().digest())
    assert [each.path for each in box.failed(text)] == [f"/{path}"] * named
    write()
    assert f"/{path}" not in {each.path for each in box.failed("[rootfs]\n" + key)}
    # Who named the path alone has allowed whatever is there.
    patterns = "[rootfs]\nallow_written = ['/**']"
    write(mode=mode | 0o4000)
    assert box.failed(patterns) == []
    whats = [each.what for each in box.appraise(patterns).findings if each.path == f"/{path}"]
    assert [what.endswith("by path pattern alone") for what in whats] == [True]


def test_a_layer_too_large_to_be_shown(box: Box) -> None:
    del box.rootfs["layers"][2]["manifest"]
    assert box.failed() == []  # it has no entries
    box.rootfs["layers"][2]["entries"] = 100_000
    (found,) = box.failed()
    assert found.rule == "rootfs.written"
    assert box.failed("[rootfs]\nallow_written = ['**']") == []


# -- configuration --------------------------------------------------------------------------------


def process(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["process"].update(values)


def linux(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["linux"].update(values)


def mounted(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["mounts"].append(values)


ALL_DEVICES = {"devices": [{"allow": False}, {"allow": True, "access": "rwm"}]}
SPACES = ("mount", "network", "pid", "ipc", "uts")


def without(kind: str) -> list[dict[str, str]]:
    return [{"type": each} for each in SPACES if each != kind]


CONFIGS = [
    (linux(resources=ALL_DEVICES), "config.privileged", "allow_privileged = true"),
    (linux(maskedPaths=[]), "config.privileged", "allow_privileged = true"),
    (
        linux(namespaces=without("pid")),
        "config.namespace",
        "host_namespaces = ['pid','user','cgroup','time']",
    ),
    (
        linux(namespaces=without("network")),
        "config.namespace",
        "host_namespaces = ['network','user','cgroup','time']",
    ),
    (
        linux(namespaces=[*without("ipc"), {"type": "ipc", "path": "/proc/1/ns/ipc"}]),
        "config.namespace",
        "host_namespaces = ['ipc','user','cgroup','time']",
    ),
    (
        process(capabilities={"ambient": ["CAP_SYS_ADMIN"]}),
        "config.capabilities",
        "capabilities = ['CAP_SYS_ADMIN']",
    ),
    (
        mounted(destination="/data", type="bind", source="/srv", options=["rbind"]),
        "config.mount",
        "mounts = [{destination = '/data', source = '/srv'}]",
    ),
    (
        mounted(destination="/data", type="none", source="/srv", options=["bind", "ro"]),
        "config.mount",
        "mounts = [{destination = '/data', read_only = true}]",
    ),
    (
        mounted(destination="/etc/hosts", type="bind", source="/home/eve/hosts"),
        "config.mount",
        "mounts = [{destination = '/etc/hosts'}]",
    ),
    (
        mounted(destination="/usr", type="tmpfs", source="tmpfs"),
        "config.mount",
        "mounts = [{destination = '/usr'}]",
    ),
    (linux(devices=[{"path": "/dev/kvm"}]), "config.device", "devices = ['/dev/kvm']"),
    (process(args=["/bin/sh"]), "config.args", "args = [['/bin/sh']]"),
    (process(args=["/bin/sh"]), "config.args", "allow_any_args = true"),
    (process(args=None), "config.args", "allow_any_args = true"),
    (process(user={"uid": 1000, "gid": 7}), "config.user", "users = ['1000']"),
    (
        process(user={"uid": 0, "gid": 0, "x": 1}, cwd="/tmp"),
        "config.cwd",
        "working_dirs = ['/tmp']",
    ),
    (process(env=["LD_PRELOAD=00"]), "config.env", "env = ['LD_PRELOAD']"),
    (process(env=["PYTHONPATH=00"]), "config.env", "env = ['PYTHONPATH']"),
]


@pytest.mark.parametrize(("change", "rule", "policy"), CONFIGS)
def test_configuration(
    box: Box, change: Callable[[dict[str, Any]], None], rule: str, policy: str
) -> None:
    change(box.config)
    (found,) = box.failed()
    assert found.rule == rule
    assert found.next and found.expected and found.path
    assert (
        box.failed(
            "[config]\ncapabilities = ['CAP_CHOWN','CAP_KILL']\n" + policy
            if "capab" not in policy
            else "[config]\n" + policy
        )
        == []
    )


LOADED_BY = {
    "ansible": "ANSIBLE_CONFIG ANSIBLE_LIBRARY ANSIBLE_MODULE_UTILS ANSIBLE_ROLES_PATH"
    " ANSIBLE_COLLECTIONS_PATH ANSIBLE_COLLECTIONS_PATHS ANSIBLE_CALLBACK_PLUGINS",
    "ant": "ANT_ARGS ANT_OPTS",
    "apt": "APT_CONFIG",
    "awk": "AWKPATH AWKLIBPATH",
    "babel": "BABEL_CACHE_PATH",
    "bundler": "BUNDLE_GEMFILE BUNDLE_APP_CONFIG BUNDLE_BIN_PATH BUNDLE_PATH BUNDLE_USER_CONFIG"
    " BUNDLE_USER_HOME BUNDLE_USER_PLUGIN BUNDLER_ORIG_RUBYOPT BUNDLE_LOCAL__RACK",
    "bun": "BUN_INSPECT BUN_INSPECT_CONNECT_TO BUN_INSPECT_NOTIFY BUN_INSPECT_PRELOAD",
    "bootsnap": "BOOTSNAP_CACHE_DIR",
    "autoconf": "CONFIG_SITE",
    "cargo": "CARGO_BUILD_RUSTC CARGO_BUILD_RUSTC_WRAPPER CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER"
    " CARGO_BUILD_RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER"
    " CARGO_BUILD_RUSTDOC CARGO_BUILD_RUSTDOCFLAGS CARGO_ENCODED_RUSTDOCFLAGS RUSTDOCFLAGS"
    " CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER"
    " CARGO_REGISTRY_GLOBAL_CREDENTIAL_PROVIDERS CARGO_REGISTRIES_OWN_CREDENTIAL_PROVIDER"
    " RUSTDOC RUSTFLAGS",
    "chicken": "CHICKEN_REPOSITORY_PATH",
    "clojure": "CLJ_CONFIG CLJ_JVM_OPTS LEIN_JVM_OPTS",
    "cmake": "CMAKE_TOOLCHAIN_FILE",
    "composer": "COMPOSER COMPOSER_VENDOR_DIR",
    "corepack": "COREPACK_HOME",
    "cvs": "CVS_RSH",
    "dbus": "DBUS_SESSION_BUS_ADDRESS DBUS_STARTER_ADDRESS DBUS_SYSTEM_BUS_ADDRESS",
    "deno": "DENO_DIR",
    "dotnet": "DOTNET_ROOT DOTNET_ROOT_X64 DOTNET_STARTUP_HOOKS DOTNET_DiagnosticPorts"
    " COMPlus_DiagnosticPorts DOTNET_HOSTINGSTARTUPASSEMBLIES ASPNETCORE_HOSTINGSTARTUPASSEMBLIES",
    "elixir": "ELIXIR_ERL_OPTIONS ERL_FLAGS ERL_COMPILER_OPTIONS",
    "flask": "FLASK_APP",
    "gcloud": "CLOUDSDK_PYTHON CLOUDSDK_PYTHON_ARGS",
    "gdal": "GDAL_PYTHON_DRIVER_PATH GDAL_VRT_ENABLE_PYTHON",
    "gem": "GEMRC",
    "ghc": "GHC_ENVIRONMENT GHC_PACKAGE_PATH",
    "ghostscript": "GS_LIB GS_OPTIONS",
    "git": "GIT_COMMON_DIR GIT_DIR GIT_EDITOR GIT_SEQUENCE_EDITOR GITPERLLIB",
    "glib": "GI_TYPELIB_PATH GST_PLUGIN_SCANNER GST_PLUGIN_SYSTEM_PATH GTK_EXE_PREFIX"
    " GTK_IM_MODULE_FILE GDK_PIXBUF_MODULEDIR",
    "go": "GOAUTH GOCACHEPROG GOENV GOFLAGS GOROOT GOWORK",
    "google": "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES",
    "gradle": "GRADLE_OPTS",
    "groovy": "GROOVY_HOME STARTER_CONF",
    "guile": "GUILE_LOAD_PATH GUILE_LOAD_COMPILED_PATH GUILE_EXTENSIONS_PATH GUILE_SYSTEM_PATH"
    " GUILE_SYSTEM_COMPILED_PATH GUILE_SYSTEM_EXTENSIONS_PATH",
    "hg": "HGRCPATH HGEDITOR HGMERGE",
    "imagemagick": "MAGICK_CONFIGURE_PATH MAGICK_HOME",
    "ipython": "IPYTHONDIR",
    "julia": "JULIA_LOAD_PATH JULIA_DEPOT_PATH JULIA_PROJECT JULIA_BINDIR",
    "jupyter": "JUPYTER_CONFIG_DIR JUPYTER_CONFIG_PATH JUPYTER_DATA_DIR JUPYTER_PATH",
    "jython": "JYTHON_HOME JYTHON_OPTS",
    "helm": "HELM_PLUGINS",
    "kubectl": "KUBECTL_EXTERNAL_DIFF",
    "less": "LESSOPEN LESSCLOSE",
    "lisp": "CL_SOURCE_REGISTRY SBCL_HOME",
    "luarocks": "LUAROCKS_CONFIG",
    "mail": "MAILCAPS MAILRC",
    "make": "MAKEFILES MAKEFLAGS GNUMAKEFLAGS",
    "maven": "MAVEN_ARGS MAVEN_OPTS",
    "mix": "MIX_ARCHIVES MIX_BUILD_PATH MIX_BUILD_ROOT MIX_DEPS_PATH MIX_EXS MIX_HOME MIX_PATH",
    "mix release": "RELEASE_BOOT_SCRIPT RELEASE_BOOT_SCRIPT_CLEAN RELEASE_REMOTE_VM_ARGS"
    " RELEASE_SYS_CONFIG RELEASE_VM_ARGS RELEASE_VSN",
    "mono": "MONO_PATH MONO_CONFIG MONO_ENV_OPTIONS MONO_GAC_PREFIX",
    "msbuild": "CustomAfterMicrosoftCommonProps CustomAfterMicrosoftCommonTargets"
    " CustomBeforeMicrosoftCommonProps CustomBeforeMicrosoftCommonTargets DirectoryBuildPropsPath"
    " DirectoryBuildTargetsPath MSBuildExtensionsPath MSBuildSDKsPath",
    "mysql": "LIBMYSQL_PLUGINS LIBMYSQL_PLUGIN_DIR MYSQL_HOME",
    "nmap": "NMAPDIR",
    "node": "NODE_COMPILE_CACHE V8_COMPILE_CACHE_CACHE_DIR NODE_OPTIONS NODE_PATH",
    "npm": "npm_config_prefix NPM_CONFIG_ONLOAD_SCRIPT npm_config_node-gyp npm_config_node_gyp"
    " npm_config_pnpmfile NPM_CONFIG_GLOBAL_PNPMFILE",
    "ocaml": "CAML_LD_LIBRARY_PATH CAMLLIB OCAMLFIND_CONF OCAMLLIB OCAMLPATH",
    "octave": "OCTAVE_PATH OCTAVE_SITE_INITFILE OCTAVE_VERSION_INITFILE",
    "parallel": "PARALLEL_SHELL",
    "perl": "PERL5LIB PERL5OPT PERLLIB PERL5DB PERLDB_OPTS HARNESS_PERL HARNESS_PERL_SWITCHES"
    " PAR_GLOBAL_TEMP",
    "pipenv": "PIPENV_DOTENV_LOCATION PIPENV_PIPFILE",
    "psql": "PGSYSCONFDIR PSQLRC",
    "pyinstaller": "_MEIPASS2 _PYI_APPLICATION_HOME_DIR",
    "pytest": "PYTEST_ADDOPTS PYTEST_PLUGINS",
    "python": "PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONPYCACHEPREFIX PYTHON_PRESITE",
    "R": "R_PROFILE R_PROFILE_USER R_ENVIRON R_ENVIRON_USER R_LIBS R_LIBS_SITE R_LIBS_USER R_HOME"
    " R_TESTS R_DEFAULT_PACKAGES R_SCRIPT_DEFAULT_PACKAGES",
    "racket": "PLTCOMPILEDROOTS PLTUSERHOME",
    "raku": "PERL6LIB RAKULIB",
    "rebar": "REBAR_CONFIG REBAR_GLOBAL_CONFIG_DIR",
    "ripgrep": "RIPGREP_CONFIG_PATH",
    "rpm": "RPM_CONFIGDIR",
    "ruby": "RUBYLIB RUBYOPT GEM_HOME GEM_PATH RUBY_CRASH_REPORT TRUFFLERUBYOPT BUNDLER_SETUP"
    " RUBYGEMS_GEMDEPS RAKEOPT SPEC_OPTS",
    "s6-overlay": "S6_CMD_ARG0 S6_STAGE2_HOOK",
    "sbt": "SBT_OPTS",
    "shells": "CDPATH NULLCMD READNULLCMD",
    "spring": "LOADER_PATH",
    "svn": "SVN_SSH SVN_EDITOR SVN_MERGE",
    "systemd": "SYSTEMD_PROC_CMDLINE SYSTEMD_UNIT_PATH",
    "tcl": "TCLLIBPATH TCL_LIBRARY TK_LIBRARY TCL8_6_TM_PATH TCL9.0_TM_PATH",
    "tex": "TEXMFCNF",
    "ts-node": "TS_NODE_COMPILER TS_NODE_CWD TS_NODE_DIR TS_NODE_PROJECT",
    "uv": "UV_CONFIG_FILE UV_ENV_FILE UV_PROJECT UV_PROJECT_ENVIRONMENT UV_PYTHON",
    "vim": "EXINIT VIM VIMINIT VIMRUNTIME",
    "wget": "WGETRC",
    "wp": "WP_CLI_CONFIG_PATH WP_CLI_EARLY_REQUIRE WP_CLI_PACKAGES_DIR WP_CLI_PHP_ARGS",
    "xdebug": "XDEBUG_CONFIG XDEBUG_SESSION XDEBUG_TRIGGER",
    "yarn": "YARN_PLUGINS",
    "zip": "ZIPOPT",
}
"""By their manuals: what programs read before their own code, or with it. Any of them may name
``/proc/self/environ``, which holds what whoever starts the container has written."""


def test_each_of_them_is_named_once() -> None:
    names = [name for each in LOADED_BY.values() for name in each.split()]
    assert len(names) == len(set(names))
    assert not LOADING & SETTINGS and all(map(makes_load, PATHS))


@pytest.mark.parametrize("program", LOADED_BY)
def test_variables_by_which_a_program_loads_other_code(box: Box, program: str) -> None:
    for name in LOADED_BY[program].split():
        process(env=[f"{name}=00"])(box.config)
        (finding,) = box.failed()
        assert (finding.rule, finding.got) == ("config.env", name)
    harmless = ["HOME=00", "TZ=00", "DEBUG=00", "ENV=00", "APP_ENV=00", "FLASK_ENV=00"]
    harmless += [
        "ANSIBLE_FORCE_COLOR=00",
        "DOTNET_gcServer=00",
        "UV_LINK_MODE=00",
        "XDEBUG_MODE=00",
    ]
    harmless += ["S6_VERBOSITY=00", "SYSTEMD_LOG_LEVEL=00", "CREDENTIALS_DIRECTORY=00"]
    harmless += ["CARGO_TARGET_DIR=00", "CARGO_NET_OFFLINE=00", "CARGO_REGISTRY_TOKEN=00"]
    harmless += ["GOCACHE=00", "GOPROXY=00", "GOPATH=00", "YARN_CACHE_FOLDER=00", "HELM_DEBUG=00"]
    harmless += ["NPM_CONFIG_REGISTRY=00", "GIT_ASKPASS=00", "PGHOST=00", "MYSQL_HOST=00"]
    process(env=[*harmless, f"{program.upper()}_VERSION=00"])(box.config)
    assert box.failed() == []


def test_what_to_do_next_is_toml(box: Box) -> None:
    process(args=["/bin/sh", "-c", """echo 'a' "b" \x1b"""])(box.config)
    (found,) = box.failed()
    command = found.next.removeprefix("[config] args in the policy: ")
    assert box.failed(f"[config]\nargs = [{command}]") == []
    assert found.next.isprintable()


def test_a_writable_mount_is_not_a_read_only_one(box: Box) -> None:
    mounted(destination="/data", type="bind", source="/srv", options=["bind"])(box.config)
    policy = "[config]\nmounts = [{destination = '/data', read_only = true}]"
    assert [finding.rule for finding in box.failed(policy)] == ["config.mount"]


def test_the_hosts_namespace_is_known_by_its_number(box: Box) -> None:
    box.namespaces["pid"] = 0xEFFFFFFC
    (found,) = box.failed()
    assert (found.rule, found.expected) == ("config.namespace", "its own")
    assert box.failed("[config]\nhost_namespaces = ['pid','cgroup','user','time']") == []


@pytest.mark.parametrize("name", sorted(STEERING_ANNOTATIONS))
def test_annotations_by_which_crun_does_otherwise(box: Box, name: str) -> None:
    """In a virtual machine (krun) nothing that runs is seen, and every file is as in the image."""
    box.config["annotations"] = {
        "run.oci.systemd.subgroup": "x",
        "org.opencontainers.image.title": "x",
    }
    assert box.failed() == []
    box.config["annotations"][name] = "krun\n"
    (found,) = box.failed()
    assert (found.rule, found.got) == ("config.annotation", f"{name}=krun\\x0a")
    assert box.failed(f"[config]\nannotations = ['{name}']") == []


def test_stricter_policies(box: Box) -> None:
    assert {finding.rule for finding in box.failed("[config]\nhost_namespaces = []")} == {
        "config.namespace"
    }
    del box.config["linux"]["seccomp"]
    assert box.failed() == []
    assert [finding.rule for finding in box.failed("[config]\nrequire_seccomp = true")] == [
        "config.seccomp"
    ]


def run_as(box: Box, uid: int, gid: int, of_image: dict[str, str]) -> None:
    """Have it run as a user, where the image's configuration says this of it."""
    config = box.image.config.model_copy(update=of_image)
    box.image = box.image.model_copy(update={"config": config})
    box.config["process"]["user"] = {"uid": uid, "gid": gid}


@pytest.mark.parametrize(
    ("user", "uid", "ambient", "said"),
    [
        ("1000", 1000, ["CAP_SETUID", "CAP_NET_RAW", "CAP_CHOWN"], "CAP_CHOWN, CAP_SETUID"),
        ("1000:0", 1000, ["CAP_DAC_OVERRIDE"], "CAP_DAC_OVERRIDE"),
        ("1000", 1000, ["CAP_NET_BIND_SERVICE", "CAP_KILL"], ""),
        ("1000", 1000, [], ""),
        ("", 0, ["CAP_SETUID"], ""),
        ("root:0", 0, ["CAP_SETUID"], ""),
        ("0", 1000, ["CAP_SETUID"], ""),  # allowed below: the image's own user is root
    ],
)
def test_a_user_who_is_root_but_by_name(
    box: Box, user: str, uid: int, ambient: list[str], said: str
) -> None:
    """Kind: ambient capabilities that every root has make any user root; Podman's ``--cap-add``."""
    run_as(box, uid, 0, {"user": user})
    box.config["process"]["capabilities"]["ambient"] = ambient
    policy = "[config]\nusers = ['1000']\n"
    found = [each for each in box.failed(policy) if each.rule == "config.ambient"]
    assert [each.got for each in found] == ([said] if said else [])
    assert box.failed(suggest(box.records(), References(box.image))) == []
    if found:
        key = found[0].next.partition("[config] ")[2]
        assert box.failed(policy + key) == []


@pytest.mark.parametrize(
    ("user", "uid", "gid", "fits"),
    [
        ("01000", 1000, 0, True),
        ("01000:0007", 1000, 7, True),
        ("01000", 0, 0, False),
        (":7", 0, 7, True),
        (":7", 0, 0, False),
        ("00", 0, 0, True),
        ("", 0, 0, True),
        ("root", 0, 5, True),
        ("1000", 1000, 5, True),
        ("1000:1000", 1000, 1000, True),
        ("1000:1000", 1000, 0, False),
        ("www-data", 33, 33, False),
        ("www-data", 0, 0, False),
        ("1000", 0, 0, False),
    ],
)
def test_users(box: Box, user: str, uid: int, gid: int, fits: bool) -> None:
    run_as(box, uid, gid, {"user": user})
    assert (box.failed() == []) is fits


@pytest.mark.parametrize(
    ("number", "uid", "gid", "fits"),
    [
        ("33", 33, 7, True),
        ("33:50", 33, 50, True),
        ("33:50", 33, 0, False),
        ("33", 0, 33, False),
        ("33", 34, 33, False),
    ],
)
def test_users_that_the_image_names(box: Box, number: str, uid: int, gid: int, fits: bool) -> None:
    run_as(box, uid, gid, {"user": "www-data", "user_number": number})
    assert [finding.rule for finding in box.failed()] == ([] if fits else ["config.user"])


HIDING = [
    "/app/script",
    "/app",
    "//app",
    "/etc/app's *.conf",
    "/proc/../app/script",
    "/proc/self/root/app/script",
    "/proc/./thread-self/cwd/script",
    "//proc//1/root/app/script",
    "/proc/7/fd/3",
    "/sys/devices/virtual/net/lo/subsystem/../../../app/script",
    "/process",
    "/",
    "app/script",
    "./app/script",
    "proc/self/root/app",
    "/app\u00e9",
]


@pytest.mark.parametrize("path", HIDING)
def test_what_hides_the_images_files(box: Box, path: str) -> None:
    """Kind: the configuration changes what the image's files are, with no mount."""
    box.config["linux"]["maskedPaths"] += [path]
    (found,) = box.failed()
    assert found.rule == "config.masked"
    hint = found.next.partition("[config] ")[2]
    assert box.failed(f"[config]\n{hint}") == []
    assert box.failed(suggest(box.records(), References(box.image))) == []
    assert box.failed("[config]\nmasked_paths = ['/other/**']") == [found]
    box.config["linux"]["maskedPaths"] += ["/app/other"]
    assert [each.got for each in box.failed(f"[config]\n{hint}")] == ["/app/other"]


def test_a_path_that_goes_up_is_not_below_what_may_be_hidden(box: Box) -> None:
    box.config["linux"]["maskedPaths"] += ["/data/../app/script"]
    assert len(box.failed("[config]\nmasked_paths = ['/data/**']")) == 1


LED_AWAY = [
    # The pattern, a path that it stands for, and what a link of the image makes of that.
    ("/app/*", "/app/lib", {"/app/lib": "/usr/lib"}, False),
    ("/app/**", "/app/lib/deep", {"/app/lib": "../usr/lib"}, False),
    ("/app/x*/y", "/app/x1/y", {"/app/x1": "/usr"}, False),
    ("**/y", "/app/x1/y", {"/app/x1/y": "/usr/lib"}, False),
    ("/app/lib/\\i", "/app/lib/" + "0f" * 32, {"/app/lib/" + "0f" * 32: "/usr/lib"}, False),
    # Its author named the link, or it leads to what the pattern stands for all the same.
    ("/app/lib", "/app/lib", {"/app/lib": "/usr/lib"}, True),
    ("/app/lib/*", "/app/lib/x", {"/app/lib": "/usr/lib"}, True),
    ("/app/*", "/app/lib", {"/app/lib": "x"}, True),
    ("/**", "/app/lib", {"/app/lib": "/usr/lib"}, True),
    ("**", "/app/lib", {"/app/lib": "/usr/lib"}, True),
    ("/app/*", "/app/new", {}, True),
]


@pytest.mark.parametrize(("pattern", "path", "links", "stays"), LED_AWAY)
def test_a_wildcard_is_not_led_elsewhere_by_a_link(
    box: Box, pattern: str, path: str, links: dict[str, str], stays: bool
) -> None:
    """Kind: which of the paths that a policy allows is whose choice starts the container."""
    kind = box.image.files["/app/run"]
    made = {at: kind.model_copy(update={"link": to}) for at, to in links.items()}
    box.image = box.image.model_copy(update={"files": {**box.image.files, **made}})
    box.config["linux"]["maskedPaths"] += [path]
    hidden = box.failed(f"[config]\nmasked_paths = ['{pattern}']")
    assert [each.rule for each in hidden] == ["config.masked"] * (not stays)
    assert box.failed(suggest(box.records(), References(box.image))) == []
    box.config["linux"]["maskedPaths"].pop()
    box.config["mounts"].append({"destination": path, "type": "tmpfs", "source": "tmpfs"})
    mounted = box.failed(f"[config]\nmounts = [{{destination = '{pattern}'}}]")
    assert [each.rule for each in mounted] == ["config.mount"] * (not stays)
    assert box.failed(suggest(box.records(), References(box.image))) == []


def test_what_engines_hide(box: Box) -> None:
    box.config["linux"]["maskedPaths"] = [
        *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/scsi", "/proc"),
        *("/sys/firmware", "/sys/devices/virtual/powercap", "/sys/fs/selinux", "/sys/dev/block"),
        *("/sys/devices/system/cpu/cpu0/thermal_throttle", "/proc/timer_stats/", "", None),
    ]
    assert box.failed() == []


ANSWERING: list[tuple[dict[str, Any], bool]] = [
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 0}, True),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1}, False),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": None}, False),
    ({"defaultAction": "SCMP_ACT_NOTIFY"}, True),
    ({"syscalls": [{"action": "SCMP_ACT_ERRNO", "errnoRet": 0}]}, True),
    ({"syscalls": [{"action": "SCMP_ACT_ERRNO", "errnoRet": 2**16}]}, True),
    ({"syscalls": [{"action": "SCMP_ACT_ERRNO", "errnoRet": str(2**53)}]}, True),
    ({"syscalls": [{"action": "SCMP_ACT_ERRNO", "errnoRet": str(2**63)}]}, True),
    ({"syscalls": [{"action": "SCMP_ACT_ERRNO", "errnoRet": str(2**63 + 1)}]}, False),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": str(2**54)}, True),
    ({"syscalls": [{"action": "SCMP_ACT_NOTIFY"}]}, True),
    ({"syscalls": [{"action": "SCMP_ACT_TRACE"}]}, True),
    ({"defaultAction": "SCMP_ACT_TRACE", "defaultErrnoRet": 38}, True),
    ({"syscalls": [{"action": "SCMP_ACT_NOTIFY"}], "listenerPath": "/run/x"}, True),
    ({"syscalls": [{"action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}, False),
    ({"syscalls": [{"action": "SCMP_ACT_ERRNO"}]}, False),
    ({"syscalls": [{"action": "SCMP_ACT_ALLOW", "errnoRet": 0}]}, False),
    ({"syscalls": [{"action": "SCMP_ACT_KILL_PROCESS"}, {"action": "SCMP_ACT_TRAP"}]}, False),
    ({"listenerPath": "/run/x"}, False),
]


@pytest.mark.parametrize(("values", "fails"), ANSWERING)
def test_filters_that_answer_system_calls(box: Box, values: dict[str, Any], fails: bool) -> None:
    """Kind: the configuration changes what a system call does, so what the image's programs do."""
    box.config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"} | values
    assert [each.rule for each in box.failed()] == ["config.seccomp"] * fails
    assert box.failed("[config]\nallow_seccomp_answers = true") == []
    assert box.failed(suggest(box.records(), References(box.image))) == []


def grouped(box: Box, user: str, gid: int, more: list[int], groups: Any) -> Box:
    """Have it run in groups; files of the image tell members of 0, 42, 43, 44 and 50 apart."""
    run_as(box, int(user.partition(":")[0] or 0), gid, {"user": user, "user_groups": groups})
    box.config["process"]["user"]["additionalGids"] = more
    kind = box.image.files["/app/script"]
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, 5, number) for tag, number in ((1, 7), (4, 8), (8, 50), (32, 9))
    )
    files = {
        "/app/all": {"gid": 7, "mode": "0755"},
        "/app/same": {"gid": 7, "mode": "04711"},
        "/app/link": {"gid": 7, "mode": "0777", "type": "link", "sha256": None, "link": "all"},
        "/app/group": {"gid": 0, "mode": "0770"},
        "/etc/shadow": {"gid": 42, "mode": "0640"},
        "/app/less": {"gid": 43, "mode": "0705"},
        "/app/listed": {
            "gid": 44,
            "mode": "0755",
            "xattrs": {ACL_ACCESS: base64.b64encode(acl).decode()},
        },
    }
    more_files = {path: kind.model_copy(update=values) for path, values in files.items()}
    box.image = box.image.model_copy(update={"files": box.image.files | more_files})
    return box


IMAGE_GROUPS = {"0": (0, 1, 42), "1000": (1000, 50)}
GROUPS = [
    # Those of the image's user, as engines look them up, with the first one among them or not.
    ("", 0, [0, 1, 42], []),
    ("1000", 1000, [50], []),
    ("1000", 1000, [1000, 50], []),
    ("1000:0", 0, [0], []),
    ("7", 0, [0], []),  # in no passwd: engines give group 0
    # Of a pod's volumes, of devices: no file of the image knows them.
    ("1000", 1000, [50, 2000, 44000], []),
    ("", 0, [7, 2000, 2**32 - 1], []),
    ("1000", 7, [], []),
    # By these it may do something else with the image's files.
    ("1000", 1000, [0], [0]),
    ("1000", 1000, [1000, 42, 43, 44, 0], [0, 42, 43, 44]),
    ("", 0, [50], [50]),
    ("1000", 0, [], [0]),
    ("1000", 0, [0], [0]),
    ("1000:7", 7, [0], [0]),
    ("7", 42, [], [42]),
]


@pytest.mark.parametrize(("user", "gid", "more", "told"), GROUPS)
def test_groups(box: Box, user: str, gid: int, more: list[int], told: list[int]) -> None:
    """Kind: rights over the image's files that are not the image's user's."""
    box = grouped(box, user, gid, more, IMAGE_GROUPS)
    found = box.failed()
    assert [(each.rule, each.got) for each in found] == [("config.groups", str(x)) for x in told]
    assert box.failed(f"[config]\ngroups = {told}") == []
    for each in found[:1]:
        hint = each.next.partition("[config] ")[2].removesuffix(" in the policy")
        assert len(box.failed(f"[config]\n{hint}")) == len(found) - 1
    assert box.failed(suggest(box.records(), References(box.image))) == []


def test_a_user_that_the_policy_has_is_in_its_groups(box: Box) -> None:
    box = grouped(box, "1000", 0, [0], IMAGE_GROUPS)
    # Of a user alone nothing is said of its first group.
    for policy in ("", "[config]\nusers = ['1000']"):
        assert [each.rule for each in box.failed(policy)] == ["config.groups"]
    assert box.failed("[config]\nusers = ['1000:0']") == []
    box.config["process"]["user"] = {"uid": 0, "gid": 50, "additionalGids": [50]}
    assert [each.rule for each in box.failed()] == ["config.user"]
    text = suggest(box.records(), References(box.image))
    assert "users = ['0:50']" in text and "groups" not in text and box.failed(text) == []


def test_groups_that_earlier_reference_values_do_not_have(box: Box) -> None:
    box = grouped(box, "1000", 0, [0, 42], None)
    assert box.failed() == []
    assert [each.got for each in box.appraise().findings if each.rule == "config.groups"] == [
        "0, 42"
    ]
    box.config["process"]["user"]["additionalGids"] = [0]
    assert "config.groups" not in {each.rule for each in box.appraise().findings}


def test_a_later_rule_of_the_device_controller_counts(box: Box) -> None:
    rules = [{"allow": True, "access": "rwm"}, {"allow": False, "access": "rwm"}]
    box.config["linux"]["resources"]["devices"] = rules
    assert box.failed() == []


@pytest.mark.parametrize(
    "name",
    [
        *("BASH_FUNC_ls%%", "SHELLOPTS", "PERL5DB", "PERLLIB", "PYTHONUSERBASE", "LUA_INIT_5_4"),
        *("DOTNET_STARTUP_HOOKS", "CORECLR_PROFILER_PATH_64", "PHP_INI_SCAN_DIR", "GEM_HOME"),
        *("IBM_JAVA_OPTIONS", "ERL_AFLAGS", "OPENSSL_ENGINES", "LD_AUDIT"),
        *("LD_PRELOAD_32", "LD_LIBRARY_PATH_64", "LD_ORIGIN_PATH", "BROWSER"),
        *("npm_config_node_options", "NPM_CONFIG_SCRIPT-SHELL", "Npm_Config_UserConfig"),
        *("ERL_OTP27_FLAGS", "BUN_OPTIONS", "TAR_OPTIONS", "GIT_CONFIG_COUNT", "PSModulePath"),
    ],
)
def test_variables_that_load_code(box: Box, name: str) -> None:
    box.config["process"]["env"].append(f"{name}=00")
    (finding,) = box.failed()
    assert finding.rule == "config.env"
    assert box.failed(suggest(box.records(), References(box.image))) == []
    config = box.image.config.model_copy(update={"env": (name,)})
    box.image = box.image.model_copy(update={"config": config})
    found = box.appraise().findings
    assert [each.severity for each in found if each.rule == "config.env"] == ["info"]
    assert "config" not in suggest(box.records(), References(box.image))


OTHERS = {
    "another value": ["NODE_OPTIONS={other}"],
    "no value": ["NODE_OPTIONS={empty}"],
    "in the clear": ["NODE_OPTIONS=--require=/app/trace.js"],
    "once more, with another": ["NODE_OPTIONS={same}", "NODE_OPTIONS={other}"],
    "once more, before": ["NODE_OPTIONS={other}", "NODE_OPTIONS={same}"],
    "without a value": ["NODE_OPTIONS"],
}


@pytest.mark.parametrize("name", ["the same", *OTHERS])
def test_a_variable_that_loads_code_has_the_images_value(box: Box, name: str) -> None:
    """Kind: what the image sets is believed by its name alone."""
    value, secret = "--require=/app/trace.js", b"s" * 32
    hidden = {
        "same": hidden_value(secret, value),
        "other": hidden_value(secret, "--require=/data/evil.js"),
        "empty": hidden_value(secret, ""),
    }
    env = [one.format(**hidden) for one in OTHERS.get(name, ["NODE_OPTIONS={same}"])]
    box.config["process"]["env"] += env
    image = {"env": ("NODE_OPTIONS",), "env_values": {"NODE_OPTIONS": value}}
    config = box.image.config.model_copy(update=image)
    box.image = box.image.model_copy(update={"config": config})
    records = [measured(record) for record in box.records()]

    def found(policy: str = "", *, secret: bytes | None) -> list[tuple[str, str]]:
        known = References(box.image)
        compared = compare(records, known, parse_policy(policy.encode()), None, secret)
        return [(one.severity, one.what) for one in compared if one.rule == "config.env"]

    wrong = [("fail", "NODE_OPTIONS, which makes programs load code, has not the image's value")]
    assert found(secret=secret) == (wrong if name in OTHERS else [])
    assert found('[config]\nenv = ["NODE_OPTIONS"]', secret=secret) == []
    # Another container's secret hides the same value otherwise.
    assert found(secret=b"t" * 32) == wrong
    # Of two values one is another, whatever they are.
    differ = ("fail", "NODE_OPTIONS is set to several values, which makes programs load other code")
    alike = ("info", "NODE_OPTIONS is set, as in the image; its value is not compared")
    assert found(secret=None) == [differ if name.startswith("once more") else alike]
    assert found('[config]\nenv = ["NODE_OPTIONS"]', secret=None) == []


def test_a_value_that_is_set_twice_is_one(box: Box) -> None:
    box.config["process"]["env"] += ["NODE_OPTIONS=00", "NODE_OPTIONS=00"]
    config = box.image.config.model_copy(update={"env": ("NODE_OPTIONS",)})
    box.image = box.image.model_copy(update={"config": config})
    assert box.failed() == []


@pytest.mark.parametrize("name", ["DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS"])
@pytest.mark.parametrize(
    ("values", "fails"),
    [
        (["/dev/null"], False),
        (["disabled:", ""], False),
        (["unix:path=/run/user/1000/bus"], False),
        (["unix:path=/host/run/dbus/system_bus_socket"], False),
        (["unixexec:path=/bin/sh,argv1=-c,argv2=id"], True),
        (["/dev/null", "unixexec:path=/bin/sh,argv1=-c,argv2=id"], True),
        (["unix:path=/run/dbus/system_bus_socket;unixexec:path=/bin/sh"], True),
        (["autolaunch:"], True),
    ],
)
def test_an_address_that_is_a_command(box: Box, name: str, values: list[str], fails: bool) -> None:
    """Kind: a value that a library runs as a command, in whatever program uses it."""
    secret = b"s" * 32
    box.config["process"]["env"] += [f"{name}={hidden_value(secret, each)}" for each in values]
    records = [measured(record) for record in box.records()]

    def found(secret: bytes | None) -> list[str]:
        compared = compare(records, References(box.image), Policy(), None, secret)
        return [one.got for one in compared if one.severity == "fail"]

    assert found(secret) == [name] * fails
    assert found(None) == [name]


def test_variables_that_do_not(box: Box) -> None:
    """LaunchDarkly's SDKs have LD_ before their own."""
    names = ["PYTHONUNBUFFERED", "HOME", "GOLD", "NODE_ENV", "LD_SDK_KEY", "LD_CLIENT_SIDE_ID"]
    names += ["NPM_CONFIG_LOGLEVEL", "npm_config_update_notifier", "GIT_AUTHOR_NAME", "BUN_INSTALL"]
    box.config["process"]["env"] += [f"{name}=00" for name in [*names, "LD_BIND_NOW"]]
    assert box.failed() == []


@pytest.mark.parametrize(
    ("directory", "cwd"),
    [("/app/", "/app"), ("//app", "/app"), ("/app/.", "/app"), ("/a/../app", "/app"), ("", "/")],
)
def test_directories_as_tools_write_them(box: Box, directory: str, cwd: str) -> None:
    """Docker cleans the path that an image has; containerd takes it as it is."""
    config = box.image.config.model_copy(update={"working_dir": directory})
    box.image = box.image.model_copy(update={"config": config})
    for used in (cwd, directory or "/"):
        box.config["process"]["cwd"] = used
        assert box.failed() == []
    box.config["process"]["cwd"] = "/app/x"
    assert [each.rule for each in box.failed()] == ["config.cwd"]
    assert box.failed("[config]\nworking_dirs = ['/app/x/']") == []


@pytest.mark.parametrize("stage", ["createContainer", "startContainer"])
def test_hooks_in_the_container(box: Box, stage: str) -> None:
    """A program of the image, with arguments that are not the image's, is no drift of a file."""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo * >/etc/passwd"]}
    box.config["hooks"] = {stage: [hook]}
    (finding,) = box.failed()
    assert finding.rule == "config.hook"
    text = suggest(box.records(), References(box.image))
    hint = "[config]\n" + finding.next.partition("[config] ")[2].removesuffix(" in the policy")
    assert box.failed(text) == box.failed(hint) == []
    for other in (hook | {"args": ["sh"]}, hook | {"path": "/bin/ash"}):
        box.config["hooks"] = {stage: [hook, other]}
        assert [each.rule for each in box.failed(text)] == ["config.hook"]


def test_variables_that_make_a_hook_in_the_container_load_other_code(box: Box) -> None:
    """A policy that allows the hook by its path and arguments says nothing of these."""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "true"], "env": ["TZ=00", "PATH=00"]}
    box.config["hooks"] = {"createContainer": [hook]}
    text = suggest(box.records(), References(box.image))
    assert box.failed(text) == []
    for name in ("LD_PRELOAD", "BASH_ENV", "BASH_FUNC_x%%"):
        box.config["hooks"] = {"createContainer": [hook | {"env": [f"{name}=00"]}]}
        (finding,) = box.failed(text)
        assert (finding.rule, finding.got) == ("config.env", name)
        suggested = suggest(box.records(), References(box.image))
        assert box.failed(suggested) == []
        # What the hook may have is nothing that the container's own programs may.
        honest = list(box.config["process"]["env"])
        box.config["process"]["env"].append(f"{name}=00")
        (finding,) = box.failed(suggested)
        assert (finding.path, finding.got) == ("process.env", name)
        assert box.failed(suggest(box.records(), References(box.image))) == []
        box.config["hooks"] = {}
        own = suggest(box.records(), References(box.image))
        box.config["process"]["env"] = honest
        box.config["hooks"] = {"createContainer": [hook | {"env": [f"{name}=00"]}]}
        assert "config.env" in {each.rule for each in box.failed(own)}
    box.config["hooks"] = {"poststop": [hook | {"env": ["LD_PRELOAD=00"]}]}
    assert box.failed(text) == []


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "poststart", "poststop"])
def test_hooks_on_the_host_are_named(box: Box, stage: str) -> None:
    box.config["hooks"] = {stage: [{"path": "/opt/hook", "args": ["hook"]}]}
    found = [each for each in box.appraise().findings if each.rule == "config.hook"]
    assert [each.severity for each in found] == ["warn"]
    assert "config" not in suggest(box.records(), References(box.image))
    box.config["hooks"] = {stage: [{"path": "/proc/142/exe", "args": ["libnetwork-setkey"]}]}
    found = [each for each in box.appraise().findings if each.rule == "config.hook"]
    assert bool(found) is (stage != "prestart")


REST = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"]


@pytest.mark.parametrize(
    ("paths", "masked", "fails"),
    [
        ([], ["/proc/kcore"], True),
        (REST, ["/proc/kcore"], True),
        ([*REST, "/proc/sys/net", "/proc/system"], ["/proc/kcore"], True),
        ([*REST, "proc/sys"], ["/proc/kcore"], True),
        (["/proc/sys"], ["/proc/kcore"], True),
        # Behind a link that is nowhere, which runtimes pass over.
        (["/proc/net/../sys", *REST], ["/proc/kcore"], True),
        (["/proc/thread-self/../sys", *REST], ["/proc/kcore"], True),
        (["/proc/sys", *REST[:3]], ["/proc/kcore"], True),
        # As engines and runc's own template have them.
        (["/proc/sys", *REST], ["/proc/kcore"], False),
        (["/proc/sys/", *REST], ["/proc/kcore"], False),
        (["/proc"], ["/proc/kcore"], False),
        (REST, ["/proc/kcore", "/proc/sys"], False),
    ],
)
def test_settings_of_the_kernel(box: Box, paths: list[str], masked: list[str], fails: bool) -> None:
    """Kind: it reaches out, though it is not called privileged (Podman's ``unmask=/proc/*``)."""
    box.config["linux"] |= {"readonlyPaths": paths, "maskedPaths": masked}
    assert [one.rule for one in box.failed()] == ["config.kernel_settings"] * fails
    assert box.failed("[config]\nallow_unmasked = true") == []
    assert box.failed("[config]\nallow_privileged = true") == []
    text = suggest(box.records(), References(box.image))
    assert box.failed(text) == [] and ("allow_unmasked" in text) is fails
    box.config["mounts"] = [one for one in box.config["mounts"] if one["type"] != "proc"]
    assert box.failed() == []
    # What protects /proc protects none that is mounted elsewhere.
    box.config["mounts"].append({"destination": "/other/", "type": "proc", "source": "proc"})
    found = box.failed("[config]\nmounts = [{destination = '/other/'}]")
    assert [one.rule for one in found] == ["config.kernel_settings"] and "/other/sys" in found[
        0
    ].got


@pytest.mark.parametrize(
    ("options", "paths", "fails"),
    [
        (["nosuid", "ro"], [], False),
        (["ro", "rw"], [], True),
        ([], [], True),
        ([], ["/sys"], False),
        ([], ["/sys/firmware"], True),
    ],
)
def test_devices_of_the_kernel(box: Box, options: list[str], paths: list[str], fails: bool) -> None:
    box.config["linux"]["readonlyPaths"] += paths
    box.config["mounts"].append(
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": options}
    )
    found = [one.path for one in box.failed() if one.rule == "config.kernel_settings"]
    assert found == ["/sys"] * fails and len(box.failed()) == fails
    assert box.failed(suggest(box.records(), References(box.image))) == []


@pytest.mark.parametrize(("kind", "name"), [("network", "net"), ("mount", "mnt")])
def test_a_namespace_of_the_hosts_joined_by_any_path(box: Box, kind: str, name: str) -> None:
    """Since Linux 6.18 their numbers tell them, as those of the others always did."""
    spaces = [*without(kind), {"type": kind, "path": "/run/netns/made"}]
    box.config["linux"]["namespaces"] = spaces
    assert [each.rule for each in box.failed()] == ["config.joined"] * (kind == "mount")
    assert box.failed(suggest(box.records(), References(box.image))) == []
    box.namespaces[name] = {"net": 0xEFFFFFF9, "mnt": 0xEFFFFFF8}[name]
    assert [each.rule for each in box.failed()] == ["config.namespace"]


@pytest.mark.parametrize("mode", ["0777", "1777", "0757", "0772", "0003", "x", ""])
def test_a_root_that_everybody_may_write_in(box: Box, mode: str) -> None:
    """Kind: on the host's side it is made to be another than the image, and no layer shows it."""
    box.rootfs["root"]["mode"] = mode
    (found,) = box.failed()
    assert (found.rule, found.path) == ("rootfs.written", "/")
    assert box.failed("[rootfs]\nallow_written = ['/']") == []
    assert box.failed(suggest(box.records(), References(box.image))) == []
    for honest in ("0755", "0555", "0775", "0700", "01755"):
        box.rootfs["root"] = {"mode": honest, "uid": 65534, "gid": 65534}
        assert box.failed() == []
    box.rootfs["root"] = None
    assert box.failed() == []


@pytest.mark.parametrize(
    ("wanted", "cwd", "fits"),
    [
        ("/", "/bin/..", False),  # /bin is usr/bin
        ("/app", "/app/loop2/..", False),
        ("/usr", "/usr/bin/..", True),
        ("/", "/app/..", True),
        ("/app/loop2/..", "/app/loop2/..", True),
    ],
)
def test_a_directory_above_a_link(box: Box, wanted: str, cwd: str, fits: bool) -> None:
    """Kind: a path is the image's as a text, and another to the kernel."""
    link = box.image.files["/app/run"].model_copy(update={"link": "/usr/lib"})
    config = box.image.config.model_copy(update={"working_dir": wanted})
    files = {**box.image.files, "/app/loop2": link}
    box.image = box.image.model_copy(update={"config": config, "files": files})
    box.config["process"]["cwd"] = cwd
    assert [each.rule for each in box.failed()] == ["config.cwd"] * (not fits)


@pytest.mark.parametrize("place", ["/run", "/tmp", "/var/tmp", "/run/lock"])
@pytest.mark.parametrize("below", ["", "/deep/er"])
@pytest.mark.parametrize(("name", "mode"), [("x", "0755"), ("x.py", "0644")])
def test_an_empty_file_system_over_programs(
    box: Box, place: str, below: str, name: str, mode: str
) -> None:
    """Kind: what the image has is hidden from it, as by ``maskedPaths``."""
    script = box.image.files["/app/script"].model_copy(update={"mode": mode})
    files = {**box.image.files, f"{place}{below}/{name}": script}
    box.image = box.image.model_copy(update={"files": files})
    mount = {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}
    box.config["mounts"].append(mount)
    (found,) = box.failed()
    assert found.rule == "config.mount" and "hides programs" in found.what
    assert box.failed(suggest(box.records(), References(box.image))) == []
    # Podman has the runtime copy there what it would hide.
    mount["options"] = ["nosuid", "tmpcopyup"]
    assert box.failed() == []
    data = box.image.files["/app/script"].model_copy(update={"mode": "0644"})
    files[f"{place}{below}/{name}"] = data if name == "x" else script
    files[f"{place}er/y"] = script
    box.image = box.image.model_copy(update={"files": files})
    mount["options"] = []
    assert bool(box.failed()) is (name != "x")


@pytest.mark.parametrize("at", ["/run", "/var/run"])
def test_the_hosts_network_as_docker_keeps_it(box: Box, at: str) -> None:
    """Debian 12's Docker joins it by this path, among those of its containers."""
    path = f"{at}/docker/netns/default"
    box.config["linux"]["namespaces"] = [*without("network"), {"type": "network", "path": path}]
    assert [each.rule for each in box.failed()] == ["config.namespace"]
    box.config["linux"]["namespaces"][-1]["path"] = f"{at}/docker/netns/0a1b2c3d4e5f"
    assert box.appraise().findings == Box.honest(box.image).appraise().findings


def allow(kind: str, **numbers: int) -> dict[str, Any]:
    return {"allow": True, "type": kind, "access": "rwm", **numbers}


DEVICES = [
    # At a path that every container has: whoever starts it chooses what is there.
    ({"path": "/dev/null", "type": "b", "major": 8, "minor": 0}, "b 8:0"),
    ({"path": "/dev/null", "type": "c", "major": 1, "minor": 1}, "c 1:1"),
    ({"path": "/dev/tty", "type": "p"}, "p 0:0"),
    ({"path": "/dev/zero", "type": "c 1:5", "major": 1, "minor": 5}, "c 1:5 1:5"),
    # By numbers, where a node can be made (CAP_MKNOD is in every engine's default).
    (allow("b", major=8), "b 8:*"),
    (allow("b", minor=0), "b *:0"),
    (allow("b", major=8, minor=-1), "b 8:*"),
    (allow("c", major=1, minor=1) | {"access": "r"}, "c 1:1"),
]


@pytest.mark.parametrize(("device", "number"), DEVICES)
def test_devices_by_whatever_path_or_number(box: Box, device: dict[str, Any], number: str) -> None:
    """A device is what its numbers say, whoever chose its path, and where it may be made."""
    linux = box.config["linux"]
    if "path" in device:
        linux["devices"] = [device]
    else:
        linux["resources"]["devices"].append(device)
    (finding,) = box.failed()
    assert (finding.rule, finding.got) == ("config.device", number)
    text = suggest(box.records(), References(box.image))
    assert box.failed(text) == []
    # The next container with another device in its place is refused.
    device |= {"type": "b", "major": 9, "minor": 1}
    refused = [finding.rule for finding in box.failed(text)] == ["config.device"]
    assert refused is ("number =" in text or "device_rules" in text)


def test_no_rule_of_devices_is_none_that_limits_them(box: Box) -> None:
    """Kind: what is not said is what one of the runtimes makes of it."""
    del box.config["linux"]["resources"]["devices"]
    assert [each.rule for each in box.failed()] == ["config.privileged"]
    assert box.failed(suggest(box.records(), References(box.image))) == []
    box.namespaces["user"] = 4026532200
    assert box.failed() == []


@pytest.mark.parametrize("kind", ["", "a"])
@pytest.mark.parametrize("numbers", [{}, {"major": 1, "minor": 3}])
@pytest.mark.parametrize("access", ["m", "r"])
def test_a_rule_for_both_kinds_of_devices_is_one_for_all(
    box: Box, kind: str, numbers: dict[str, int], access: str
) -> None:
    """Whatever it says beside: runc gives all devices by it."""
    rule = allow(kind, **numbers) | {"access": access}
    box.config["linux"]["resources"]["devices"].append(rule)
    assert [each.rule for each in box.failed()] == ["config.privileged"]
    assert box.failed("[config]\ndevice_rules = ['a 1:3']") != []
    assert box.failed(suggest(box.records(), References(box.image))) == []


def test_devices_that_every_container_has(box: Box) -> None:
    box.config["linux"]["devices"] = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/tty", "type": "u", "major": 5},
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
    ]
    box.config["linux"]["resources"]["devices"] = [
        allow("b", major=8),
        {"allow": False, "access": "rwm"},
        allow("c", major=136),
        allow("c", major=10, minor=229),
        {"allow": True, "type": "b", "major": 8, "access": "m"},
    ]
    assert [finding.path for finding in box.failed()] == ["/dev/fuse"]
    assert box.failed("[config]\ndevices = ['/dev/fuse']") == []


def test_numbers_that_drivers_get_when_they_are_loaded(box: Box) -> None:
    """The next boot gives others: a policy that was made once goes on to serve."""
    device = {"path": "/dev/nvidia-uvm", "type": "c", "major": 511, "minor": 0}
    box.config["linux"]["devices"] = [device]
    text = suggest(box.records(), References(box.image))
    device["major"] = 238
    assert box.failed(text) == []
    for other in ({"major": 1, "minor": 1}, {"type": "b", "major": 253}):
        box.config["linux"]["devices"] = [device | other]
        assert [finding.rule for finding in box.failed(text)] == ["config.device"]


# -- records --------------------------------------------------------------------------------------


VIOLATION: dict[str, Any] = {
    "type": "violation",
    "denied": False,
    "reason": "r",
    "func": "BPRM_CHECK",
    "digest": None,
    "path_hex": None,
    "mntns": 7,
    "inode": "1",
    "device": "8:1",
}
SERVICES: dict[str, Any] = {
    "type": "register",
    "id": "dependencies:1",
    "kind": "dependencies",
    "boot_id": "6f4b4c55",
    "registration": 1,
    "services": [],
    "missing": [],
}


@pytest.mark.parametrize("content", [{"type": "news"}, {"type": ["exit"]}, {"type": "exit"}])
def test_what_nobody_knows_is_refused_by_name(box: Box, content: dict[str, Any]) -> None:
    box.more.append(content)
    with pytest.raises(ContentError):
        box.appraise()


@pytest.mark.parametrize(
    ("content", "rule", "policy"),
    [
        ({"type": "lost", "count": 3, "reason": "r"}, "records.lost", "allow_lost = true"),
        (VIOLATION, "records.violation", "allow_violations = true"),
        (VIOLATION | {"kind": "unnamed"}, "records.violation", "allow_violations = true"),
        (
            VIOLATION | {"kind": "unstable", "why": "w"},
            "records.unstable",
            "allow_violations = true",
        ),
        (VIOLATION | {"kind": "changed"}, "records.changed", "allow_violations = true"),
        (VIOLATION | {"kind": "guard"}, "records.guard", "allow_violations = true"),
        (VIOLATION | {"kind": "entry"}, "records.entry", "allow_violations = true"),
        (VIOLATION | {"kind": "helper"}, "records.helper", "allow_violations = true"),
        (
            {
                "type": "memory",
                "kind": "execmem",
                "program_path_hex": b"/usr/bin/node".hex(),
                "program_digest": "11" * 32,
                "mntns": 1,
                "denied": False,
            },
            "records.memory",
            "memory = [{program = '/usr/bin/*', kinds = ['execmem', 'execmod']}]",
        ),
        (
            {"type": "service", "role": "r", "path_hex": "2f", "path": "/", "digest": None},
            "records.order",
            None,
        ),
        (SERVICES, "records.order", None),
        ({"type": "config", "config": {}}, "records.order", None),
        ({"type": "exit", "reason": "deleted"}, None, None),
    ],
)
def test_what_records_say(
    box: Box, content: dict[str, Any], rule: str | None, policy: str | None
) -> None:
    box.more.append(content)
    assert (rule in {finding.rule for finding in box.failed()}) is (rule is not None)
    if policy is not None:
        assert box.failed(policy) == []


def test_a_root_filesystem_that_others_hooks_changed(box: Box) -> None:
    """It is there twice then, and each time is judged."""
    box.more.append(box.rootfs)
    assert box.failed() == []
    added = Entry(b"added", "file", 0o644, 0, 0, size=1, sha256=b"\x44" * 32)
    changed = copy.deepcopy(box.rootfs)
    changed["layers"][2] = upper(added)
    box.more[-1] = changed
    assert [each.rule for each in box.failed()] == ["rootfs.written"]


def unstable(path: bytes, digest: bytes | None, **more: object) -> dict[str, Any]:
    """The record of a file on a FUSE file system, of which no digest can be believed."""
    return VIOLATION | {
        "kind": "unstable",
        "why": "server-can-answer-twice",
        "path_hex": path.hex(),
        "digest": digest.hex() if digest is not None else None,
        **more,
    }


BY_FUSE = """
[[unstable]]
path = "/**"
why = ["server-can-answer-twice"]
"""


def test_a_file_that_nothing_vouches_for_is_compared_all_the_same(box: Box) -> None:
    good = bytes.fromhex(box.image.files["/usr/bin/busybox"].sha256 or "")
    box.more.append(unstable(b"/usr/bin/busybox", good))
    assert [each.rule for each in box.failed()] == ["records.unstable"]
    assert "[[unstable]] path = '/usr/bin/busybox'" in box.failed()[0].next
    assert box.failed(BY_FUSE) == []
    assert box.failed("allow_violations = true") == []
    # With any tolerance: what the image does not have there is drift.
    for path, found, rule in (
        (b"/usr/bin/busybox", OTHER, "file.changed"),
        (b"/tmp/added", good, "file.added"),
        (b"/tmp/added", OTHER, "file.added"),
    ):
        box.more[-1] = unstable(path, found)
        for policy in (BY_FUSE, "allow_violations = true"):
            assert [each.rule for each in box.failed(policy)] == [rule]
        assert {each.rule for each in box.failed()} == {"records.unstable", rule}


@pytest.mark.parametrize(
    "change",
    [
        {"why": "writer"},
        {"why": "written-since"},
        {"path_hex": b"relative".hex()},
        {"path_hex": None},
        {"path_hex": ""},
        {"digest": None},
        {"digest": "11" * 20},
        {"func": None},
        {"func": "NONE"},
        {"kind": "changed"},
        {"kind": "guard"},
        {"kind": "entry"},
        {"kind": "helper"},
    ],
    ids=str,
)
def test_only_what_can_be_compared_is_tolerated_for_its_reason(
    box: Box, change: dict[str, Any]
) -> None:
    good = bytes.fromhex(box.image.files["/usr/bin/busybox"].sha256 or "")
    box.more.append(unstable(b"/usr/bin/busybox", good) | change)
    assert box.failed(BY_FUSE)
    elsewhere = BY_FUSE.replace("/**", "/opt/**")
    box.more[-1] = unstable(b"/usr/bin/busybox", good)
    assert [each.rule for each in box.failed(elsewhere)] == ["records.unstable"]


def test_a_denied_file_has_not_run(box: Box) -> None:
    changes = {"denied": True, "path_hex": b"/tmp/\n".hex(), "digest": "ab" * 32}
    denied = VIOLATION | changes
    box.more.append(denied)
    assert box.failed() == []
    [finding] = [each for each in box.appraise().findings if each.rule == "records.denied"]
    assert (finding.severity, finding.path, finding.got) == ("warn", r"/tmp/\x0a", "ab" * 32)
    for unclear in (1, "true", None):
        box.more[-1] = denied | {"denied": unclear}
        with pytest.raises(ContentError):
            box.appraise()
    box.more[-1] = denied | {"denied": False}
    assert [each.rule for each in box.failed()] == ["records.violation"]
    box.more[-1] = denied | {"path_hex": None}
    assert box.failed() == []


def test_missing_sources(box: Box) -> None:
    box.missing = ["ima"]
    assert [finding.rule for finding in box.failed()] == ["records.missing"]
    assert box.failed("allow_missing = ['ima']") == []


def test_a_partition_without_its_beginning_is_not_trusted(box: Box) -> None:
    records = box.records()
    for left_out in range(3):
        kept = [record for record in records if record.recnum != left_out]
        shown = appraise(kept, References(box.image), Policy())
        if left_out:
            assert shown.verdict == Verdict.UNTRUSTED
    assert appraise([], References(box.image), Policy()).verdict == Verdict.UNTRUSTED


def test_records_that_continue_others_are_compared(box: Box) -> None:
    later = [measured(record) for record in box.records()[3:]]
    assert list(compare([], References(box.image), Policy(), None)) == []
    assert [x.rule for x in compare(later, References(box.image), Policy())] == [
        "dependencies.reference"
    ]


def test_a_file_record_that_cannot_be_read(box: Box) -> None:
    bad = Record(3, "box", bytes(32), "ima_template", {"template_name": "ima-ng"}, {})
    with pytest.raises(ContentError):
        appraise([*box.records()[:3], bad], References(box.image), Policy())


def test_nothing_compared_is_never_trusted(box: Box) -> None:
    assert appraise(box.records(), References(), Policy()).verdict == Verdict.UNKNOWN
    box.files.clear()
    box.rootfs |= {"mode": "off", "layers": []}
    appraised = box.appraise("[rootfs]\nallow_unmeasured = true")
    assert (appraised.verdict, appraised.compared) == (Verdict.UNKNOWN, 0)
    found = compare(
        [measured(record) for record in box.records()],
        References(box.image),
        Policy.model_validate({"rootfs": {"allow_unmeasured": True}}),
    )
    assert "reference.image" in {each.rule for each in found if each.severity == "fail"}


# -- dependencies ---------------------------------------------------------------------------------


def dependencies(
    *files: tuple[bytes, bytes], unmeasured: str | None = None, digest: str | None = None
) -> list[Record]:
    partition = Partition("dependencies:1")
    records = [
        partition.add(SERVICES, {}),
    ]
    records += [
        partition.add_file(sha256, path, NAMESPACES["mnt"], Func.BPRM_CHECK, {})
        for path, sha256 in files
    ]
    found = [record for record in records if record is not None]
    if unmeasured:
        content = {
            "type": "unmeasured",
            "role": "conmon",
            "path_hex": unmeasured.encode().hex(),
            "path": unmeasured,
            "digest": digest,
            "func": "BPRM_CHECK",
            "reason": "the log does not have it",
        }
        found.append(partition.add(content, {}))
    return found


RUNC, RUNC_PATH = (b"/usr/bin/runc", OTHER), "/usr/bin/runc"


def test_dependencies_of_the_reference(box: Box) -> None:
    box.dependencies = dependencies(RUNC)
    box.host = HostReference(files={RUNC_PATH: ("0" * 64, HASH)})
    assert box.appraise().findings == ()


def test_an_upgraded_dependency(box: Box) -> None:
    box.dependencies = dependencies((b"/usr/bin/runc", b"\x22" * 32))
    box.host = HostReference(files={RUNC_PATH: (HASH,)})
    (found,) = box.failed()
    assert (found.rule, found.path) == ("dependency.changed", RUNC_PATH)
    assert (found.got, found.expected) == ("22" * 32, HASH)
    policy = "[[dependencies.files]]\npath = '/usr/bin/runc'\n"
    assert box.failed(policy) == []
    assert box.failed(policy + f"sha256 = ['{'22' * 32}']") == []
    assert box.failed(policy + f"sha256 = ['{HASH}']") != []


def test_a_dependency_that_the_reference_does_not_have(box: Box) -> None:
    box.dependencies = dependencies(RUNC, (b"/opt/rootkit", OTHER))
    box.host = HostReference(files={RUNC_PATH: (HASH,)})
    (found,) = box.failed()
    assert (found.rule, found.path) == ("dependency.added", "/opt/rootkit")


def test_an_unmeasured_dependency(box: Box) -> None:
    box.dependencies = dependencies(RUNC, unmeasured="/usr/bin/conmon")
    box.host = HostReference(files={RUNC_PATH: (HASH,)})
    (found,) = box.failed()
    assert (found.rule, found.path) == ("dependency.unmeasured", "/usr/bin/conmon")
    assert box.failed("[dependencies]\nallow_unmeasured = ['/usr/bin/con*']") == []
    box.dependencies = dependencies(RUNC, unmeasured=RUNC_PATH, digest=HASH)
    appraised = box.appraise()
    assert appraised.verdict == Verdict.TRUSTED  # the agent found what the reference has
    assert "dependency.unmeasured" in {finding.rule for finding in appraised.findings}
    box.dependencies = dependencies(RUNC, unmeasured=RUNC_PATH, digest="33" * 32)
    assert [finding.rule for finding in box.failed()] == ["dependency.unmeasured"]


def test_services_that_hold_no_file_or_have_lost_events(box: Box) -> None:
    """Finding 3. Kind: what says nothing about the host passes for a host that is as it should."""
    box.host = HostReference(files={RUNC_PATH: (HASH,)})
    box.dependencies = dependencies()
    assert [finding.rule for finding in box.failed()] == ["dependencies.none"]
    partition = Partition("dependencies:1")
    lost = partition.add({"type": "lost", "count": 1, "reason": "r"}, {})
    box.dependencies = [*dependencies(RUNC), lost]
    assert [finding.rule for finding in box.failed()] == ["records.lost"]
    found = SERVICES | {
        "services": [{"role": "shim", "path_hex": b"/usr/bin/shim".hex(), "path": "/usr/bin/shim"}]
    }
    box.dependencies = [partition.add(found, {}), *dependencies(RUNC)[1:]]
    assert [finding.rule for finding in box.failed()] == ["dependencies.unfinished"]
    box.host = None
    assert box.failed() == []


def test_an_empty_list_of_digests_allows_nothing(box: Box) -> None:
    """Finding 9. Kind: a policy that says less than its reader takes it to say."""
    box.files.append((b"/tmp/x", b"\x11" * 32, Func.BPRM_CHECK))
    assert box.failed("files = [{path = '/tmp/x'}]") == []
    assert box.failed("files = [{path = '/tmp/x', sha256 = []}]") != []


def test_dependencies_of_other_services(box: Box) -> None:
    box.dependencies = dependencies(RUNC)
    box.host = HostReference(files={RUNC_PATH: (HASH,)})
    box.relies_on = 2
    assert [finding.rule for finding in box.failed()] == ["dependencies.other"]
    box.relies_on = 1
    assert box.failed() == []


def test_dependencies_that_were_not_found(box: Box) -> None:
    nothing = dict.fromkeys(("path_hex", "path", "digest", "func"))
    content = {"type": "unmeasured", "role": "dependencies", "reason": "none"}
    box.more.append(content | nothing)
    assert box.appraise().verdict == Verdict.TRUSTED
    assert [x.rule for x in box.failed("[dependencies]\nrequired = true")] == [
        "dependencies.unknown",
        "dependencies.reference",
    ]


def test_dependencies_that_should_be_there(box: Box) -> None:
    assert [x.rule for x in box.failed("[dependencies]\nrequired = true")] == [
        "dependencies.reference"
    ]
    box.host = HostReference(files={RUNC_PATH: (HASH,)})
    assert [finding.rule for finding in box.failed()] == ["dependencies.none"]


def test_contents_are_the_images(tmp_path: Path) -> None:
    found = image(tmp_path).files
    assert found["/usr/bin/sh"].sha256 == hashlib.sha256(BUSYBOX).hexdigest()
