"""Containers that do their worst, and users of the host who are not root."""

import hashlib
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import Settings

# What another kernel could change runs in guests of both releases, the rest in one of them.
ON_12, ON_13 = pytest.mark.debian("12"), pytest.mark.debian("13")

ANY_CAPABILITY = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey."""


def start(
    tmp_path: Path, name: str, command: str, change: dict[str, object] | None = None
) -> subprocess.Popen[str]:
    bundle = guest.make_bundle(tmp_path / name, command)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["mounts"].append(
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}
    )
    config |= change or {}
    path.write_text(json.dumps(config))
    return subprocess.Popen(
        ["cima-runc", "run", "--bundle", bundle, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
    )


def end(process: subprocess.Popen[str]) -> guest.Ran:
    out, err = process.communicate(timeout=300)
    return guest.Ran(process.returncode, out, err)


def run(tmp_path: Path, name: str, command: str, change: dict[str, object] | None = None) -> str:
    ran = end(start(tmp_path, name, command, change))
    assert ran.code == 0, ran
    return ran.out


def paths(container: str) -> set[bytes]:
    return {file.path for file in guest.files(guest.records(container))}


def many(count: int, directory: str = "/tmp") -> str:
    """A command that executes ``count`` files of different content and name."""
    path = f"{directory}/busybox$i"
    make = f"cp /bin/busybox {path}; echo $i >>{path}; {path} true; rm {path}"
    return f"i=0; while [ $i -lt {count} ]; do {make}; i=$((i+1)); done"


@ON_12
def test_a_container_over_its_limit_loses_records_and_others_do_not(
    image: str, tmp_path: Path, agent_restarted_after: None
) -> None:
    with Settings("[limits]\nrecords = 100\n"):
        guest.restart_agent()
    greedy = start(tmp_path, "greedy", many(105))
    modest = start(tmp_path, "modest", many(20))
    assert [end(each).code for each in (greedy, modest)] == [0, 0]
    [lost] = guest.contents(guest.records("greedy"), "lost")
    assert lost["count"] is None
    assert lost["reason"] == "the container's limit of 100 records is reached"
    assert [guest.row("greedy")["count"], guest.row("greedy")["state"]] == [102, "stopped"]
    assert guest.types(guest.records("greedy"))[-1] == "exit"
    assert paths("modest") == {b"/bin/busybox"} | {b"/tmp/busybox%d" % i for i in range(20)}
    assert guest.contents(guest.records("modest"), "lost") == []


@ON_13
def test_a_container_that_floods_the_buffer_drops_only_its_own(
    image: str, tmp_path: Path, agent_restarted_after: None
) -> None:
    with Settings("[limits]\nmib_per_second = 1\n"):
        guest.restart_agent()
    # Every file by a path of 4,000 bytes; a shell built in, so that nothing is in its way.
    down = "cd /tmp; i=0; while [ $i -lt 15 ]; do mkdir $d; cd $d; i=$((i+1)); done"
    link = "i=0; while [ $i -lt 900 ]; do ln /tmp/b busybox$i; i=$((i+1)); done"
    flood = "for f in busybox*; do ./$f true & ./$f true; done; wait"
    directory = "d" * 250
    loud = start(
        tmp_path, "loud", f"d={directory}; cp /bin/busybox /tmp/b; {down}; {link}; {flood}"
    )
    modest = start(tmp_path, "quiet", many(30))
    assert [end(each).code for each in (loud, modest)] == [0, 0]
    assert paths("quiet") == {b"/bin/busybox"} | {b"/tmp/busybox%d" % i for i in range(30)}
    assert guest.contents(guest.records("quiet"), "lost") == []
    arrived = [path for path in paths("loud") if len(path) > 3000]
    lost = guest.contents(guest.records("loud"), "lost")
    dropped = sum(int(content["count"]) for content in lost)
    assert len(arrived) + dropped >= 900, "each file is a record or counted as lost"


def test_files_without_a_name(image: str, tmp_path: Path) -> None:
    command = """
        cp /bin/busybox /tmp/gone; echo 1 >>/tmp/gone; exec 3</tmp/gone; rm /tmp/gone
        /proc/self/fd/3 true
        cp /bin/busybox /tmp/open; echo 2 >>/tmp/open; exec 4</tmp/open; /proc/self/fd/4 true
        exit 0"""  # the shell in it knows itself by no such name
    run(tmp_path, "nameless", command)
    busybox = Path("/bin/busybox").read_bytes()
    found = {file.path: file.digest for file in guest.files(guest.records("nameless"))}
    assert found[b"/tmp/gone (deleted)"] == hashlib.sha256(busybox + b"1\n").hexdigest()
    assert found[b"/tmp/open"] == hashlib.sha256(busybox + b"2\n").hexdigest()


def test_a_file_that_is_written_while_it_runs(image: str, tmp_path: Path) -> None:
    """Copied up by its first writer, and changed again and again: each digest is of a state that
    the file was in, or it is not believed, which is a violation."""
    changes = 40
    script = "/bin/hostile-script"
    path = guest.TREE / script.lstrip("/")
    path.write_bytes(guest.SCRIPT)
    path.chmod(0o755)
    layers = {name: tmp_path / name for name in ("upper", "work", "merged")}
    for directory in layers.values():
        directory.mkdir()
    options = f"lowerdir={guest.TREE},upperdir={layers['upper']},workdir={layers['work']}"
    guest.ok("mount", "-t", "overlay", "overlay", "-o", options, layers["merged"])
    write = f"i=0; while [ $i -lt {changes} ]; do echo '#' >>{script}; i=$((i+1)); done"
    execute = f"{script}; {script}; {script}; {script}; {script}; {script}"
    try:
        command = f"({write}) & while kill -0 $!; do {execute}; done >/dev/null 2>&1; {script}"
        root = {"root": {"path": str(layers["merged"]), "readonly": False}}
        run(tmp_path, "race", command, root)
        last = guest.sha256sum(layers["merged"] / script.lstrip("/"))
    finally:
        guest.ok("umount", layers["merged"])
        path.unlink()
    states = [hashlib.sha256(guest.SCRIPT + b"#\n" * n).hexdigest() for n in range(changes + 1)]
    found = guest.files(guest.records("race"))
    digests = [file.digest for file in found if file.path == script.encode()]
    assert set(digests) <= set(states)
    # Not always the last of the states: a write is refused while the kernel executes the file.
    assert last in digests
    violations = guest.contents(guest.records("race"), "violation")
    assert {str(one["kind"]) for one in violations} <= {"unstable", "changed", "unnamed"}
    # IMA takes no digest where the writer came between its own look and the execution.
    unnamed = [one for one in violations if one["kind"] == "unnamed"]
    assert all(one.get("digest") is None for one in unnamed)
    assert all(bytes.fromhex(one["path_hex"]) == script.encode() for one in unnamed)


def test_storms_of_mounts_and_namespaces(image: str, tmp_path: Path) -> None:
    box = "/bin/busybox"
    mounts = f"{box} mount -t tmpfs none /tmp/m; {box} mount --bind /bin /tmp/m; "
    mounts += f"{box} umount /tmp/m; {box} umount /tmp/m"
    storm = (
        f"i=0; while [ $i -lt 60 ]; do {box} unshare -m {box} sh -c '{mounts}'; i=$((i+1)); done"
    )
    box_after = "/tmp/busybox-after"
    inside = f"cp {box} {box_after}; echo >>{box_after}; {box} unshare -m {box_after} true"
    bundle = guest.make_bundle(tmp_path / "template", "true")
    process = json.loads((bundle / "config.json").read_text())["process"]
    process["capabilities"] = dict.fromkeys(process["capabilities"], ANY_CAPABILITY)
    process["args"] = ["/bin/sh", "-c", f"mkdir /tmp/m; {storm}; {inside}"]
    # Other tests' containers may run as well.
    before = guest.status()["sensor"]["watched"]
    run(tmp_path, "storm", "", {"process": process})
    assert box_after.encode() in paths("storm")
    assert guest.contents(guest.records("storm"), "lost") == []
    guest.wait_for("namespaces gone", lambda: guest.status()["sensor"]["watched"] <= before)


@ON_12
def test_a_fork_bomb_hurts_its_container_only(image: str, tmp_path: Path) -> None:
    bomb = "b() { /bin/busybox true; b | b & }; b; sleep 5; exit 0"
    bundle = guest.make_bundle(tmp_path / "template", "true")
    linux = json.loads((bundle / "config.json").read_text())["linux"]
    linux["resources"] = {"pids": {"limit": 64}}
    bombing = start(tmp_path, "bomb", bomb, {"linux": linux})
    run(tmp_path, "beside", many(10))
    guest.run("cima-runc", "kill", "bomb", "KILL")
    end(bombing)
    assert paths("beside") == {b"/bin/busybox"} | {b"/tmp/busybox%d" % i for i in range(10)}
    assert paths("bomb") == {b"/bin/busybox"}
    guest.wait_for("bomb ended", lambda: guest.row("bomb")["state"] == "stopped")


@ON_13
def test_what_a_container_says_of_itself_harms_no_terminal(image: str, tmp_path: Path) -> None:
    evil = "\x1b]0;pwned\x07\x1b[2J\r\n$(touch /root/pwned)`;|../../etc\u202e\u0085"
    bundle = guest.make_bundle(tmp_path / "template", "true")
    process = json.loads((bundle / "config.json").read_text())["process"]
    process["args"] = ["/bin/sh", "-c", f"cp /bin/busybox '/tmp/{evil[:12]}'", evil]
    process["env"] += [f"EVIL={evil}"]
    change = {
        "process": process,
        "hostname": "evil",
        "annotations": {"evil": evil, evil: "x", "../../up": "y"},
    }
    run(tmp_path, "evil", "", change)
    shown = "".join(
        guest.ok("cima", *command)
        for command in (("ps",), ("log", "evil"), ("show", "evil"), ("status",))
    )
    logged = guest.ok("journalctl", "-u", "cima-agent", "--no-pager", "-o", "cat")
    for text in (shown, logged):
        assert not CONTROL.search(text), CONTROL.search(text)
        assert "\u202e" not in text
    assert not Path("/root/pwned").exists()
    [config] = guest.contents(guest.records("evil"), "config")
    assert config["config"]["annotations"][evil] == "x", "it is measured as it is"


@ON_12
@pytest.mark.parametrize("name", ["..", "a/b", "a\nb", "a\x1bb", "a" * 1025, "ü"])
def test_an_id_that_is_no_name_starts_nothing(image: str, tmp_path: Path, name: str) -> None:
    bundle = guest.make_bundle(tmp_path / "bundle", "echo it ran")
    before = guest.ps()
    ran = guest.run("cima-runc", "run", "--bundle", bundle, "--", name)
    assert ran.code != 0
    assert "it ran" not in ran.out
    assert guest.ps() == before


@ON_12
def test_an_id_that_looks_like_an_option_is_a_name(image: str, tmp_path: Path) -> None:
    bundle = guest.make_bundle(tmp_path / "bundle", "echo it ran")
    assert guest.ok("cima-runc", "run", "--bundle", bundle, "--", "-x") == "it ran\n"
    assert guest.row("-x")["state"] == "stopped"
    assert "/bin/busybox" in guest.ok("cima", "log", "--", "-x")


# -- neighbours on the host -----------------------------------------------------------------------

SOCKETS = [(guest.SOCKET, "STREAM"), (guest.SOCKET + ".bundles", "SEQPACKET")]
SPEAK = """
import socket, sys
s = socket.socket(socket.AF_UNIX, getattr(socket, "SOCK_" + sys.argv[2]))
s.settimeout(20)
s.connect(sys.argv[1])
s.sendall(b"ps 2\\n{}")
print(s.recv(1000))
"""


def as_nobody(*command: str) -> guest.Ran:
    return guest.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command)


@ON_13
@pytest.mark.parametrize(("path", "kind"), SOCKETS)
def test_other_users_cannot_reach_the_sockets(image: str, path: str, kind: str) -> None:
    assert os.stat(path).st_mode & 0o077 == 0
    ran = as_nobody("python3", "-c", SPEAK, path, kind)
    assert "PermissionError" in ran.err


@ON_13
@pytest.mark.parametrize(("path", "kind"), SOCKETS)
def test_other_users_are_refused_even_where_they_can(image: str, path: str, kind: str) -> None:
    os.chmod(path, 0o666)
    try:
        for user in (
            as_nobody,
            lambda *command: as_nobody("unshare", "--user", "--map-root-user", *command),
        ):
            ran = user("python3", "-c", SPEAK, path, kind)
            assert "registration" not in ran.out, "the list of containers"
            assert "may not ask" in ran.out or "no" in ran.out or "Error" in ran.err, ran
    finally:
        os.chmod(path, 0o600)
    assert guest.ps() is not None


@ON_13
def test_other_users_see_nothing_of_the_state(image: str) -> None:
    for path in (guest.STATE, Path("/sys/fs/bpf")):
        assert as_nobody("ls", str(path)).code != 0, path


@ON_12
def test_clients_that_say_nothing_or_nonsense_hold_nobody_up(image: str, tmp_path: Path) -> None:
    silent = []
    for _ in range(200):
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(guest.SOCKET)
        silent.append(channel)
    for line in (b"prestart 99999999999\n", b"\xff\xfe\n", b"ps -1\n", b"x" * 5000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(30)
            channel.connect(guest.SOCKET)
            channel.sendall(line)
            assert channel.recv(100).startswith(b"error ")
    started = time.monotonic()
    run(tmp_path, "served", "true")
    assert time.monotonic() - started < 60
    for channel in silent:
        channel.close()
