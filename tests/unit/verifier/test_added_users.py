"""Kind: Podman adds a line for a user whom the image does not know, and nobody else may add one."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.verifier.appraised import Box, image, upper

from cima_runc.measure.mtree import Entry
from cima_runc.ml.contents import Engine
from cima_runc.verifier.policy import PolicyError, parse_policy
from cima_runc.verifier.reference.file import ImageReference, ReferenceFile

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101::/home/app:\n"
GROUP = "root:x:0:\nstaff:x:50:app\n"
ETC = Entry(b"etc", "dir", mode=0o755, uid=0, gid=0)
POLICY = "[config]\nusers = ['{}']\nworking_dirs = ['/work/x']\n"


@pytest.fixture(name="reference", scope="module")
def _reference(tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    return image(tmp_path_factory.mktemp("image"))


@dataclass(frozen=True)
class Podman:
    """What libpod writes, told by its source and not by our code."""

    version: str = "5.4"
    passwd: str | None = PASSWD
    group: str | None = GROUP
    directory: str = "/"

    def passwd_line(self, user: str) -> str:
        name, _, _ = user.partition(":")
        if not name.isdecimal() or int(name) in numbers(self.passwd):
            return ""
        uid, gid = self.ids(user)
        host = {0: "root", 65534: "nobody"}.get(uid) if self.version != "4.3" else None
        first, full = (host, host) if host else (str(uid), "container user")
        return f"{first}:*:{uid}:{gid}:{full}:{self.directory}:/bin/sh\n"

    def group_line(self, user: str) -> str:
        name, colon, group = user.partition(":")
        if not colon:
            group = "0" if self.version == "5.8" else name
        if not group.isdecimal() or int(group) in numbers(self.group):
            return ""
        return f"{int(group)}:x:{int(group)}:{name}\n"

    def ids(self, user: str) -> tuple[int, int]:
        name, colon, group = user.partition(":")
        known = [line for line in lines(self.passwd) if name in (line[0], line[2])]
        uid, gid = (int(known[0][2]), int(known[0][3])) if known else (int(name), 0)
        if not colon:
            return uid, gid
        named = [int(line[2]) for line in lines(self.group) if line[0] == group]
        return uid, named[0] if named else int(group)


def lines(text: str | None) -> list[list[str]]:
    return [line.split(":") for line in (text or "").split("\n") if line]


def numbers(text: str | None) -> set[int]:
    return {int(line[2]) for line in lines(text)}


def file(path: str, content: str, mode: int = 0o644, **more: Any) -> Entry:
    raw = content.encode()
    owner = {"uid": 0, "gid": 0} | more
    return Entry(
        path.encode(),
        "file",
        mode=mode,
        size=len(raw),
        sha256=hashlib.sha256(raw).digest(),
        **owner,
    )


def box(reference: ImageReference, user: str, podman: Podman, *written: Entry) -> Box:
    """A container of an image with these names, made by Podman."""
    files = dict(reference.files)
    for path, text in (("/etc/passwd", podman.passwd), ("/etc/group", podman.group)):
        if text is not None:
            files[path] = ReferenceFile(
                type="file",
                mode="0644",
                uid=0,
                gid=0,
                sha256=hashlib.sha256(text.encode()).hexdigest(),
                text=base64.b64encode(text.encode()).decode(),
                layer=0,
            )
    update = {"user": user, "working_dir": podman.directory}
    config = reference.config.model_copy(update=update)
    made = Box.honest(reference.model_copy(update={"files": files, "config": config}))
    del made.config["mounts"][2]  # Docker's
    uid, gid = podman.ids(user)
    made.config["process"] |= {"user": {"uid": uid, "gid": gid}, "cwd": podman.directory}
    made.register["engine"] = Engine(name="podman").model_dump(mode="json")
    made.rootfs["layers"][-1] = upper(ETC, *written)
    return made


def as_written(podman: Podman, user: str) -> list[Entry]:
    files = (
        ("etc/group", podman.group, podman.group_line(user)),
        ("etc/passwd", podman.passwd, podman.passwd_line(user)),
    )
    return [
        file(path, (text or "") + line, 0o600 if text is None else 0o644)
        for path, text, line in files
        if line
    ]


def failed(box: Box) -> set[tuple[str, str]]:
    user = box.config["process"]["user"]
    policy = POLICY.format(f"{user['uid']}:{user['gid']}")
    return {(each.rule, each.path) for each in box.failed(policy)}


USERS = ("0", "1001", "01001", "1001:0", "1001:1001", "1001:50", "1001:staff", "65534:65534")
NAMED = ("app", "root", "app:1001", "100", "100:7", "app:staff")
VERSIONS = ("4.3", "5.4", "5.8")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("user", [*USERS, *NAMED])
@pytest.mark.parametrize("directory", ["/", "/work/x"])
def test_what_podman_adds(
    reference: ImageReference, version: str, user: str, directory: str
) -> None:
    podman = Podman(version, directory=directory)
    assert failed(box(reference, user, podman, *as_written(podman, user))) == set()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("user", [each for each in USERS if "staff" not in each])
def test_files_that_the_image_does_not_have(
    reference: ImageReference, version: str, user: str
) -> None:
    podman = Podman(version, passwd=None, group=None)
    written = as_written(podman, user)
    assert len(written) == 2
    assert failed(box(reference, user, podman, *written)) == set()


@given(
    user=st.sampled_from([*USERS, *NAMED]),
    version=st.sampled_from(VERSIONS),
    passwd=st.sampled_from([PASSWD, PASSWD.rstrip("\n"), ""]),
    group=st.sampled_from([GROUP, GROUP + "many:x:1001:\n", "staff:x:50:", ""]),
)
def test_any_image_and_user(
    reference: ImageReference, user: str, version: str, passwd: str, group: str
) -> None:
    podman = Podman(version, passwd, group)
    try:
        podman.ids(user)
    except ValueError:
        return  # a name that the image does not have: Podman starts nothing
    assert failed(box(reference, user, podman, *as_written(podman, user))) == set()


LINE = "1001:*:1001:0:container user:/:/bin/sh\n"
FOREIGN = {
    "another user": LINE.replace("1001", "1002"),
    "another number": LINE.replace(":1001:", ":0:"),
    "another group": LINE.replace(":0:", ":50:"),
    "another home": LINE.replace(":/:", ":/tmp:"),
    "another shell": LINE.replace("sh", "busybox"),
    "a password": LINE.replace("*", ""),
    "two lines": LINE + LINE,
    "a line more": LINE + "toor::0:0::/:/bin/sh\n",
    "a line before": "toor::0:0::/:/bin/sh\n" + LINE,
    "a name of the host's": LINE.replace("1001:*", "me:*"),
    "nothing": "",
}


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize("path", ["etc/passwd", "etc/group"])
def test_a_foreign_line(reference: ImageReference, case: str, path: str) -> None:
    own = {"etc/passwd": PASSWD, "etc/group": GROUP}
    found = box(reference, "1001", Podman(), file(path, own[path] + FOREIGN[case]))
    if case == "nothing":
        assert failed(found) == set()
    else:
        assert failed(found) == {("rootfs.written", f"/{path}")}
    # The line alone hides all that the image has.
    found = box(reference, "1001", Podman(), file(path, FOREIGN[case]))
    assert failed(found) == {("rootfs.written", f"/{path}")}


GOOD = Podman()
REFUSED: dict[str, dict[str, Any]] = {
    "another mode": {"mode": 0o666},
    "another owner": {"uid": 1001},
    "another group": {"gid": 1001},
    "an attribute": {"xattrs": (("security.capability", b"x"),)},
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_mode_or_owner(reference: ImageReference, case: str) -> None:
    written = file("etc/passwd", PASSWD + LINE, **REFUSED[case])
    found = box(reference, "1001", GOOD, written)
    assert failed(found) == {("rootfs.written", "/etc/passwd")}


def refuses(box: Box) -> bool:
    return ("rootfs.written", "/etc/passwd") in failed(box)


def test_only_podman_adds_lines(reference: ImageReference) -> None:
    written = file("etc/passwd", PASSWD + LINE)
    found = box(reference, "1001", GOOD, written)
    assert not refuses(found)
    others: tuple[Any, ...] = ("docker", "containerd", "cri-o", None)
    for other in others:
        found.register["engine"] = Engine(name=other).model_dump(mode="json")
        assert refuses(found), other
    del found.register["engine"]
    assert refuses(found)


def test_another_place(reference: ImageReference) -> None:
    found = box(reference, "1001", GOOD, file("etc/shadow", PASSWD + LINE))
    assert failed(found) == {("rootfs.written", "/etc/shadow")}


def test_a_user_whom_the_image_knows(reference: ImageReference) -> None:
    line = LINE.replace("1001", "100").replace(":0:", ":101:")
    found = box(reference, "app", GOOD, file("etc/passwd", PASSWD + line))
    assert refuses(found)


@pytest.mark.parametrize("directory", ["/a:b", "/x\ntoor::0:0::/", "/x\r", "relative", ""])
def test_a_directory_that_is_no_field(reference: ImageReference, directory: str) -> None:
    """Podman writes the working directory as it is, and whoever starts a container chooses it."""
    podman = Podman(directory=directory)
    assert refuses(box(reference, "1001", podman, *as_written(podman, "1001")))


def restarted(box: Box, user: dict[str, Any], engine: str = "podman", run: int = 2) -> set[str]:
    """Rules by which a container that starts again as this user is untrusted."""
    for gid in (0, 7, 1001):
        known = ReferenceFile(type="file", mode="0640", uid=0, gid=gid, layer=0)
        files = {**box.image.files, f"/app/of-{gid}": known}
        groups = {"0": (0, 50), "100": (101, 50)}
        config = box.image.config.model_copy(update={"user_groups": groups})
        box.image = box.image.model_copy(update={"files": files, "config": config})
    box.config["process"]["user"] = user
    box.register["engine"] = Engine(name=engine).model_dump(mode="json")  # type: ignore[arg-type]
    line, previous = "00" * 32, "lost" if run > 1 else None
    box.register |= {"line": line, "run": run, "previous": previous}
    policy = "allow_restarts = true\n[config]\nusers = ['1001', '100']\n"
    return {each.rule for each in box.failed(policy)}


def test_groups_of_a_restart(reference: ImageReference) -> None:
    """Podman reads the groups anew, with the line that it has added itself."""
    user = {"uid": 1001, "gid": 0, "additionalGids": [0, 1001]}
    own = box(reference, "1001", GOOD, *as_written(GOOD, "1001"))
    assert restarted(own, user) == set()
    assert "config.groups" in restarted(own, user, run=1)
    assert "config.groups" in restarted(own, user, engine="docker")
    assert "config.groups" in restarted(own, user | {"additionalGids": [7]})
    # The image's own group of that number has the members that the image says.
    podman = Podman(group=GROUP + "many:x:1001:\n")
    assert restarted(box(reference, "1001", podman), user) == {"config.groups"}


def test_groups_of_a_restart_of_a_user_with_a_name(reference: ImageReference) -> None:
    user = {"uid": 100, "gid": 101, "additionalGids": [101, 50, 0]}
    podman = Podman("5.8", group="staff:x:50:app\n")
    own = box(reference, "app", podman, *as_written(podman, "app"))
    assert restarted(own, user) == set()
    assert restarted(box(reference, "app", Podman("5.8")), user) == {"config.groups"}
    user["additionalGids"] = [101, 1001]
    assert restarted(own, user) == {"config.groups"}


HOSTS = LINE.replace("1001:*", "me:*").replace("container user", "Me Too")


@pytest.mark.parametrize(
    ("names", "line", "is_allowed"),
    [
        (["you", "me:Me Too"], HOSTS, True),
        (["me:Me Too"], LINE, True),
        (["me"], HOSTS.replace("Me Too", ""), True),
        (["me"], HOSTS, False),
        (["you:Me Too"], HOSTS, False),
        (["me:Me Too"], HOSTS.replace(":1001:", ":0:"), False),
        (["me:Me Too"], HOSTS + HOSTS, False),
    ],
)
def test_names_of_the_host_that_the_policy_tells(
    reference: ImageReference, names: list[str], line: str, is_allowed: bool
) -> None:
    found = box(reference, "1001", GOOD, file("etc/passwd", PASSWD + line))
    assert (found.failed(f"[rootfs]\nhost_users = {names}\n") == []) is is_allowed


@pytest.mark.parametrize("name", ["", ":x", "a:b:c", "a\\n", "a:b\\n"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(PolicyError, match="host_users"):
        parse_policy(f'[rootfs]\nhost_users = ["{name}"]\n'.encode())


def test_behind_a_link(reference: ImageReference) -> None:
    link = ReferenceFile(type="link", mode="0777", uid=0, gid=0, link="usr", layer=0)
    found = box(reference, "1001", GOOD, file("etc/passwd", PASSWD + LINE))
    found.image = found.image.model_copy(update={"files": {**found.image.files, "/etc": link}})
    assert refuses(found)


def test_reference_values_of_earlier_versions(reference: ImageReference) -> None:
    """They have no texts: what is in the file is not known."""
    found = box(reference, "1001", GOOD, file("etc/passwd", PASSWD + LINE))
    files = {k: v.model_copy(update={"text": None}) for k, v in found.image.files.items()}
    found.image = found.image.model_copy(update={"files": files})
    assert refuses(found)
    found = box(reference, "1001", GOOD)
    found.image = found.image.model_copy(update={"files": files})
    assert failed(found) == set()
