"""runc and cima-runc, side by side: the same command lines, the same of everything."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import native_host
import pytest
from native_host import Host

RUNC = "runc"
ID = "table"


@dataclass(frozen=True)
class Line:
    """One command line; ``{bundle}``, ``{root}``, ``{tmp}`` stand for directories."""

    args: tuple[str, ...]
    before: str = "nothing"
    """What is there before: ``nothing``, or the container ``created``, ``running``, ``paused``,
    ``stopped``."""
    stdin: bytes = b""
    more_fds: int = 0
    env: dict[str, str] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    """Keys of the process in config.json."""
    within: str = ""
    """Runs the command line, which is ``"$@"``; the same placeholders."""
    numbers: bool = False
    """Whether the output is full of numbers that change."""

    def __str__(self) -> str:
        return f"{self.before}: {' '.join(self.args)} {self.within}".strip()[:120]


def on(before: str, *lines: str, **more: Any) -> list[Line]:
    return [Line(tuple(line.split(" ")) if line else (), before, **more) for line in lines]


HELP = [
    *on("nothing", "", "--help", "-h", "-help", "--version", "-v", "-version", "help", "h"),
    *on("nothing", "help create", "help nonsense", "create --help", "create -h", "run --help"),
    *on("nothing", "run -h", "restore --help", "exec --help", "start --help", "state --help"),
    *on("nothing", "kill --help", "delete --help", "pause --help", "resume --help", "ps --help"),
    *on("nothing", "list --help", "events --help", "update --help", "checkpoint --help"),
    *on("nothing", "spec --help", "features --help", "features", "--help create", "--version run"),
    *on("nothing", "-v create", "--root {root} --help run", "--debug --version", "run --help x"),
]
GLOBAL = [
    *on("nothing", "nonsense", "--nonsense", "-nonsense list", "--root", "--root= list"),
    *on("nothing", "--root {root} list", "--root={root} list", "-root {root} list"),
    *on("nothing", "-root={root} list", "--log {tmp}/l list", "--log={tmp}/l list"),
    *on("nothing", "--log {tmp}/l --log-format json state none", "--log-format text state none"),
    *on("nothing", "--log-format=json --log={tmp}/l state none", "--log-format xml list"),
    *on("nothing", "--log {tmp}/no/such/l list", "--debug list", "--debug=false list"),
    *on("nothing", "--debug=maybe list", "--systemd-cgroup list", "--rootless false list"),
    *on("nothing", "--rootless=true list", "--criu /bin/true list", "--root {root} -- list"),
    *on("nothing", "-- list", "--- list", "- list", "list --root {root}", "--root {root}"),
    *on("nothing", "--log {tmp}/l --debug --root={root} --log-format=json list -q"),
    *on("nothing", "--debug --log={tmp}/l --root {root} state none"),
    *on("nothing", "features extra", "features --nonsense", "features", env={"LANG": "C"}),
    Line(("",)),
    Line(("--root", "", "list")),
    Line(("state", "")),
    Line(("--log", "", "list")),
]
MISSING = [
    *on("nothing", "create", "run", "restore", "exec", "start", "state", "kill", "delete", "pause"),
    *on("nothing", "resume", "ps", "events", "update", "checkpoint", "create a b", "run a b"),
    *on("nothing", "start a b", "state a b", "delete a b", "exec none", "kill none", "start none"),
    *on("nothing", "state none", "kill none KILL", "delete none", "delete --force none"),
    *on("nothing", "pause none", "resume none", "ps none", "events --stats none", "update none"),
    *on("nothing", "exec none true", "checkpoint none", "list none", "state --nonsense x"),
    *on("nothing", "start --nonsense x", "delete -f none", "kill --all none TERM"),
    *on("nothing", "create --bundle", "create --bundle /no/such/directory x"),
    *on("nothing", "create --nonsense x", "run --nonsense", "create --bundle={tmp} x"),
    *on("nothing", "run --bundle {tmp}/nothing x", "create -b {tmp} x", "restore x"),
    *on("nothing", "restore --bundle {bundle} x", "restore --bundle {bundle} --image-path {tmp} x"),
    *on("nothing", "create --bundle {bundle} bad/id", "create --bundle {bundle} .."),
    *on("nothing", "run --bundle {bundle} --pid-file", "run --bundle {bundle}"),
]
STARTING = [
    *on("nothing", "create --bundle {bundle} " + ID, "create -b {bundle} " + ID),
    *on("nothing", "create --bundle={bundle} " + ID, "create -bundle {bundle} " + ID),
    *on("nothing", "create -bundle={bundle} " + ID, "create -b={bundle} " + ID),
    *on("nothing", f"create {ID} --bundle " + "{bundle}", "create --bundle {bundle} -- " + ID),
    *on("nothing", "--root {root} create --bundle {bundle} " + ID),
    *on("nothing", "--debug=true create --bundle {bundle} " + ID),
    *on("nothing", "create --bundle {bundle} --pid-file {tmp}/pid " + ID),
    *on("nothing", "create --bundle {bundle} --no-pivot " + ID),
    *on("nothing", "create --no-new-keyring --bundle {bundle} " + ID),
    *on("nothing", "create --bundle {bundle} --pid-file {tmp}/no/pid " + ID),
    *on("nothing", "create --bundle {bundle} --console-socket {tmp}/no " + ID),
    *on("nothing", "--log {tmp}/l --log-format json create --bundle {bundle} " + ID),
    *on("nothing", "create --bundle /no --bundle {bundle} " + ID),
    *on("created", "create --bundle {bundle} " + ID, "run --bundle {bundle} " + ID),
    *on("nothing", f"run {ID}", f"create {ID}"),
]


def running(shell: str, line: str = "run --bundle {bundle} " + ID, **more: Any) -> Line:
    """Return a ``run`` of a shell's command in the container."""
    process = {"args": ["/bin/sh", "-c", shell]}
    return Line(tuple(line.split(" ")), process=process, **more)


RUN = [
    running("echo out; echo err >&2"),
    running("exit 7"),
    running("kill -9 $$"),
    running("cat", stdin=b"what came in\n"),
    running("grep Sig /proc/self/status"),
    running("env"),
    running("pwd; id"),
    running("cat <&3", "run --preserve-fds 1 --bundle {bundle} " + ID, more_fds=1),
    running("cat <&3; echo $LISTEN_FDS", more_fds=1, env={"LISTEN_FDS": "1"}),
    running("ls /proc/self/fd", more_fds=2),
    running("true", "run --keep --bundle {bundle} " + ID),
    running("sleep 100", "run --detach --bundle {bundle} " + ID),
    running("sleep 100", "run -d --pid-file {tmp}/pid --bundle {bundle} " + ID),
    running("true", "run --no-subreaper --bundle {bundle} " + ID),
    running("true", "run --nonsense --bundle {bundle} " + ID),
    running("true", "run --bundle {bundle} " + ID + " extra"),
    Line(("run", "--bundle", "{bundle}", ID), process={"args": ["/no/such/program"]}),
    Line(("run", "--bundle", "{bundle}", ID), process={"args": ["/etc"]}),
    Line(("run", "--bundle", "{bundle}", ID), process={"args": []}),
    Line(("run", "--bundle", "{bundle}", ID), process={"args": ["/bin/true"], "cwd": "/no"}),
    Line(("run", "--bundle", "{bundle}", ID), process={"args": ["/bin/id"], "cwd": "relative"}),
    Line(
        ("run", "--bundle", "{bundle}", ID),
        process={"args": ["/bin/id"], "user": {"uid": 7, "gid": 8}},
    ),
    Line(("run", "--bundle", "{bundle}", ID), process={"args": ["/bin/id"], "terminal": True}),
]
LIVES = [
    *on("created", f"state {ID}", f"start {ID}", f"kill {ID} KILL", f"delete {ID}"),
    *on("created", f"delete --force {ID}", f"exec {ID} true", f"pause {ID}", "list -q"),
    *on("created", "list", "list --format json", "list --format=table", "list -f json", "list -q"),
    *on("created", "list --format xml"),
    *on("running", f"state {ID}", f"start {ID}", f"delete {ID}", f"delete -f {ID}", f"kill {ID}"),
    *on("running", f"kill {ID} 0", f"kill {ID} TERM", f"kill {ID} SIGTERM", f"kill {ID} 9"),
    *on("running", f"kill {ID} NONSENSE", f"kill {ID} 99", f"kill --all {ID} KILL",),
    *on("running", f"kill -a {ID}"),
    *on("running", f"exec {ID} true", f"exec {ID} false", f"exec {ID} /no/such", f"exec {ID}"),
    *on("running", f"exec {ID} /bin/sh -c exit\t9", f"exec --cwd /tmp {ID} /bin/pwd"),
    *on("running", f"exec --env A=b {ID} /bin/env", f"exec -e A=b -e C=d {ID} /bin/env"),
    *on("running", f"exec --user 7:8 {ID} /bin/id", f"exec -u 7 {ID} /bin/id"),
    *on("running", f"exec --nonsense {ID} true", f"exec --detach {ID} /bin/true"),
    *on("running", "exec -d --pid-file " + "{tmp}/pid " + f"{ID} /bin/true"),
    *on("running", f"exec --tty {ID} /bin/true", "exec --process " + "{tmp}/no " + ID),
    *on("running", f"exec {ID} run", f"exec {ID} create", f"exec {ID} -- /bin/echo --help"),
    *on("running", f"exec {ID} /bin/echo --help --version"),
    *on("running", f"exec --preserve-fds 1 {ID} /bin/true"),
    *on("running", f"exec {ID} /bin/cat", stdin=b"to exec\n"),
    *on("running", f"exec --cap CAP_KILL {ID} /bin/true", f"exec --no-new-privs {ID} /bin/true"),
    *on("running", f"pause {ID}", f"resume {ID}", f"pause --nonsense {ID}"),
    *on("running", f"update --pids-limit 50 {ID}", f"update --memory 64000000 {ID}"),
    *on("running", f"update --memory nonsense {ID}", f"update -r - {ID}", f"update {ID} extra"),
    *on("running", f"ps {ID}", f"ps --format json {ID}", f"ps --format=table {ID} -ef",
        f"ps --format xml {ID}", f"events --stats {ID}", numbers=True),
    *on("running", f"checkpoint {ID}", "checkpoint --image-path " + "{tmp} " + ID),
    *on("running", "--root " + "{root} " + f"state {ID}", "list --format json"),
    *on("paused", f"state {ID}", f"resume {ID}", f"pause {ID}", f"exec {ID} true"),
    *on("paused", f"delete --force {ID}", f"kill {ID} KILL"),
    *on("stopped", f"state {ID}", f"start {ID}", f"delete {ID}", f"delete --force {ID}"),
    *on("stopped", f"kill {ID} KILL", f"exec {ID} true", f"ps {ID}", f"pause {ID}", "list -q"),
    *on("stopped", f"events --stats {ID}", f"kill --all {ID} KILL"),
]  # fmt: skip
SPEC = [
    *on("nothing", "spec --bundle {tmp}", "spec -b {tmp}", "spec --rootless --bundle {tmp}"),
    *on("nothing", "spec --bundle /no/such", "spec --nonsense", "spec extra"),
]
HERE = "create --bundle {bundle} " + ID
"""Creates a container."""
CONFIG = "{bundle}/config.json"
PLACES = [
    Line(tuple(line.split(" ")), within=shell)
    for shell, *lines in (
        ('cd {bundle}; exec "$@"', f"create {ID}", f"create -b . {ID}", f"create --bundle= {ID}"),
        ('cd {bundle}/rootfs; exec "$@"', f"create -b .. {ID}", f"create --bundle ../ {ID}"),
        ('cd {bundle}/..; exec "$@"', f"create -b bundle {ID}", f"create -b ./bundle// {ID}"),
        ('cd /; exec "$@"', "create -b {bundle}/ " + ID, "create --pid-file pid -b {tmp} x"),
        ('ln -s {bundle} link; exec "$@"', f"create -b link {ID}", f"create -b link/. {ID}"),
        ('ln -s link link; exec "$@"', f"create -b link {ID}"),
        ('touch file; exec "$@"', f"create -b file {ID}", f"create -b file/ {ID}"),
        ('mkdir config.json; exec "$@"', f"create {ID}", f"run {ID}", "create", "create a b"),
        ('ln -s config.json config.json; exec "$@"', f"create {ID}"),
        ('echo nonsense >config.json; exec "$@"', "create", "create a b", "run", "restore a b"),
        ('echo nonsense >config.json; exec "$@"', f"state {ID}", "create --help", "list"),
        ('mkdir gone; cd gone; rmdir ../gone; exec "$@"', HERE, f"create {ID}", "list"),
    )
    for line in lines
] + [
    Line(("create", "--bundle", "x" * 300, ID)),
    Line(("create", "--bundle", "{tmp}/" + "x/" * 3000, ID)),
]
CONFIGS = [
    Line(tuple(HERE.split(" ")), within=f"printf %s '{text}' >{CONFIG}; " + 'exec "$@"')
    for text in (
        "{}",
        '{"ociVersion": "1.0.2"}',
        '{"ociVersion": "9", "process": {"args": ["/bin/true"], "cwd": "/"}}',
        '{"ociVersion": "1.0.2", "process": {"args": ["/bin/true"], "cwd": "/"}, "root": null}',
        '{"ociVersion": "1.0.2", "process": "nonsense"}',
        '{"ociVersion": "1.0.2", "process": {"args": "nonsense"}}',
        '{"ociVersion": 1.5, "process": {}}',
        '{"unknown": [1, 2.5, "\\u00e9\\ud83d\\ude00"], "process": null}',
    )
] + [
    Line(
        ("run", "--bundle", "{bundle}", ID),
        process={"args": ["/bin/cat", "/proc/self/mounts"]},
        within=f"sed -i 's,{old},{new},' {CONFIG}; " + 'exec "$@"',
    )
    for old, new in (
        ('"path": *"rootfs"', '"path":"no/such"'),
        ('"path": *"rootfs"', '"path":""'),
        ('"path": *"rootfs"', '"path":"rootfs/bin/busybox"'),
        ('"readonly": *true', '"readonly":false'),
        ('"source": *"proc"', '"source":"nonsense"'),
        ('"destination": *"/proc"', '"destination":"proc"'),
        ('"hostname": *"runc"', '"hostname":"pr\u00fcfung"'),
        ('"type": *"network"', '"type":"nonsense"'),
        ('"type": *"mount"', '"type":"uts"'),
        ('"linux":', '"annotations":{"a":"b"},"hooks":{},"linux":'),
        ('"linux":', '"hooks":null,"linux":'),
        ('"linux":', '"hooks":{"prestart":null,"poststop":[]},"linux":'),
        ('"linux":', '"hooks":{"prestart":[{"path":"/bin/true"}]},"linux":'),
        ('"linux":', '"hooks":{"prestart":[{"path":"/bin/false"}]},"linux":'),
        ('"linux":', '"hooks":{"prestart":[{"path":"relative"}]},"linux":'),
        ('"linux":', '"hooks":{"createContainer":[{"path":"/no/such"}]},"linux":'),
        ('"linux":', '"hooks":{"startContainer":[{"path":"/bin/false"}]},"linux":'),
        ('"linux":', '"hooks":{"poststop":[{"path":"/bin/false"}]},"linux":'),
        ('"linux":', '"hooks":{"nonsense":[{"path":"/bin/false"}]},"linux":'),
    )
]
DESCRIPTORS = [
    running("cat", within='exec "$@" <&-'),
    running("echo out", within='exec "$@" >&-'),
    running("echo out; echo err >&2", within='exec "$@" 2>&-'),
    running("ls /proc/self/fd", within='exec "$@" <&- >{tmp}/out 2>&-'),
    running("echo out", within='exec "$@" >/dev/full'),
    running("readlink /proc/self/fd/3", within='exec "$@" 3</dev/null'),
    running("env | grep ^LISTEN; ls /proc/self/fd", within='LISTEN_FDS=2 exec "$@"'),
    running("cat <&3; cat <&4", f"run --preserve-fds=2 -b {{bundle}} {ID}", more_fds=2),
    running("cat <&3", f"run --preserve-fds 2 -b {{bundle}} {ID}", more_fds=1),
    running("true", f"run --preserve-fds 99999 -b {{bundle}} {ID}"),
    running("true", f"run --preserve-fds -1 -b {{bundle}} {ID}"),
    running("true", f"run --preserve-fds=nonsense -b {{bundle}} {ID}"),
    running("true", f"run --preserve-fds= -b {{bundle}} {ID}"),
    running("cat <&3", within='LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', more_fds=1),
    Line(tuple(HERE.split(" ")), within='exec "$@" <&- >&- 2>&-'),
    *on("running", f"exec {ID} /bin/cat", within='exec "$@" <&-'),
    *on("running", f"exec --preserve-fds 1 {ID} /bin/sh -c cat\t<&3", more_fds=1),
    *on("running", f"exec {ID} /bin/env", within='LISTEN_FDS=3 exec "$@"'),
    *on("nothing", "--version", "features", "list", within='exec "$@" >&-'),
]
SIGNALS = [
    running(
        f"trap 'exit {status}' {signal}; echo up; while :; do sleep 0.05; done",
        within='"$@" >{tmp}/out & while ! grep -qs up {tmp}/out; do sleep 0.02; done; '
        f"kill -{signal} $!; wait $!",
    )
    for status, signal in enumerate(("TERM", "INT", "USR1", "HUP"), 3)
]
FORMS = [
    *on("nothing", "create -b {bundle} -b {bundle} " + ID, "create -b /no -b {bundle} " + ID),
    *on("nothing", "create --bundle {bundle} --bundle= " + ID, "create -b={bundle} -- " + ID),
    *on("nothing", "create -- -x", "create -b {bundle} -- -x", "create -b {bundle} -- -- " + ID),
    *on("nothing", "create -- " + ID + " -b {bundle}", "create " + ID + " -- -b {bundle}"),
    *on("nothing", "create -b{bundle} " + ID, "create --bundl {bundle} " + ID),
    *on("nothing", "create -no-pivot=true -b {bundle} " + ID, "create --no-pivot=0 -b {bundle} x"),
    *on("nothing", "create --no-pivot= -b {bundle} x", "create --no-pivot=nonsense -b {bundle} x"),
    *on("nothing", "create -b", "create -b {bundle} --console-socket", "create -b {bundle} -"),
    *on("nothing", "create --pid-file= -b {bundle} " + ID, "create --pid-file pid -b {bundle} x"),
    *on("nothing", "create --console-socket {tmp} -b {bundle} " + ID),
    *on("nothing", "create --nonsense=1 -b {bundle} x", "create -b {bundle} x y", "create ''"),
    *on("nothing", "create -b {bundle} x\ty", "create -b {bundle} " + "x" * 1100),
    *on(
        "nothing", "run -d -b {bundle} " + ID, "run -detach -b {bundle} " + ID, "run -db {bundle} x"
    ),
    *on("nothing", "run --detach=true --bundle={bundle} " + ID, "run --keep=false -b {bundle} x y"),
    *on(
        "nothing", "--root={root} run -d -b {bundle} " + ID, "-root {root} create -b {bundle} " + ID
    ),
    *on("nothing", "--debug --debug create -b {bundle} " + ID, "--debug=1 --debug=0 list"),
    *on("nothing", "--log {tmp}/a --log {tmp}/b --log-format json state none"),
    *on("nothing", "--log-format json --log-format text --log {tmp}/l state none"),
    *on("nothing", "--log {tmp} state none", "--log {tmp} create -b {bundle} x", "--log= state x"),
    *on(
        "nothing", "--log {tmp}/no/l create -b {bundle} x", "--log-format xml create -b {bundle} x"
    ),
    *on("nothing", "--log-format= --log {tmp}/l state none", "--log /dev/stderr state none"),
    *on("nothing", "--criu /no/such list", "--criu= create -b {bundle} " + ID, "--rootless=1 list"),
    *on("nothing", "--rootless=nonsense list", "--rootless nonsense create -b {bundle} x"),
    *on("nothing", "--rootless=true create -b {bundle} " + ID, "--rootless auto state none"),
    *on("nothing", "--systemd-cgroup create -b {bundle} " + ID, "--systemd-cgroup=false list -q"),
    *on("nothing", "--root {tmp}/file list", "--root {root} create", "--root {root} state none"),
    *on("nothing", "create create", "run run", "state create", "-- create -b {bundle} " + ID),
    *on("nothing", "CREATE x", "creat x", "help help", "--help=true", "--version=false", "-vh"),
    *on("nothing", "init", "init x", "--log-level debug list", "--cgroup-manager x list"),
    *on("nothing", "restore --bundle {bundle} --work-path {tmp}/w --image-path {tmp}/i x"),
    *on(
        "nothing", "restore -d --bundle {bundle} --image-path {tmp}/no x", "restore --lazy-pages x"
    ),
    *on("nothing", "restore --nonsense x", "restore --empty-ns x -b {bundle} x", "restore a b"),
    *on("nothing", "restore --manage-cgroups-mode nonsense -b {bundle} x"),
    *on("running", "checkpoint --image-path {tmp}/i --work-path {tmp}/w " + ID),
    *on("running", f"checkpoint --pre-dump {ID}", f"checkpoint --leave-running {ID}"),
    *on("running", f"restore -b {{bundle}} {ID}", f"create -b {{bundle}} {ID}"),
    *on("running", f"run -b {{bundle}} {ID}", f"run -d -b {{bundle}} {ID}", f"delete {ID} extra"),
    *on("created", f"exec -d {ID} /bin/true", f"resume {ID}", f"update --cpu-shares 10 {ID}"),
    *on("created", f"update --help {ID}", f"state --help {ID}", f"-- state {ID}"),
    *on("stopped", f"create -b {{bundle}} {ID}", f"resume {ID}", f"update --memory 1000000 {ID}"),
]
TABLE = [*HELP, *GLOBAL, *MISSING, *STARTING, *RUN, *LIVES, *SPEC]
TABLE += [*PLACES, *CONFIGS, *DESCRIPTORS, *SIGNALS, *FORMS]
FAILING = [line for line in (*MISSING, *LIVES, *STARTING[:2]) if not line.numbers]


@dataclass(frozen=True)
class Outcome:
    """What a command line did; pids, times and ids taken out."""

    status: int
    stdout: str
    stderr: str
    files: dict[str, str]
    """What it left in its directory: the log, pid files, a spec."""
    state: dict[str, str]
    """What it left in runc's state directory."""
    containers: str
    """What ``runc list`` then says."""
    config: dict[str, Any]


class Bench:
    """Runs command lines, each in a world made anew."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.directory = host.directory / "table"
        self.pristine = native_host.make_bundle(
            self.directory / "pristine", "/bin/sh", "-c", "sleep 100"
        )

    def outcome(self, runtime: str, line: Line) -> Outcome:
        places = {name: self.directory / name for name in ("bundle", "tmp", "root")}
        for place in places.values():
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.pristine, places["bundle"], symlinks=True, copy_function=_copy)
        places["tmp"].mkdir()
        config_file = places["bundle"] / "config.json"
        config = json.loads(config_file.read_text())
        config["process"] |= line.process
        config_file.write_text(json.dumps(config))
        root = places["root"] if "{root}" in line.args or "--root={root}" in line.args else None
        state = root or Path("/run/runc")
        try:
            self._prepare(line, places["bundle"], root)
            done = self._run(runtime, line, places)
            if line.before != "nothing":
                self._settle(line)
            return Outcome(
                done.returncode,
                neutral(done.stdout, line.numbers),
                neutral(done.stderr, line.numbers),
                tree(places["tmp"]),
                tree(state),
                neutral(subprocess.check_output([RUNC, "list"]), True),
                without_our_hooks(config_file, self.host),
            )
        finally:
            for place in filter(None, ("/run/runc", root)):
                runc = [RUNC, "--root", str(place)]
                for name in subprocess.check_output([*runc, "list", "-q"], text=True).split():
                    command = [*runc, "delete", "--force", "--", name]
                    subprocess.run(command, capture_output=True, check=False)

    def _settle(self, line: Line) -> None:
        """Wait until what was killed has ended: the signal is sent, not awaited, by either.

        Only SIGKILL is certain to end it: process 1 of a container ignores what it does not handle.
        """
        time.sleep(0.02)
        deadline = time.monotonic() + 60
        while "kill" in line.args and {"KILL", "9"} & set(line.args):
            listed = subprocess.check_output([RUNC, "list"])
            if not any(word in listed for word in (b" running ", b" created ", b" paused ")):
                break
            assert time.monotonic() < deadline, f"SIGKILL did not end {ID}: {listed!r}"
            time.sleep(0.02)

    def _prepare(self, line: Line, bundle: Path, root: Path | None) -> None:
        runc = [RUNC, *(("--root", str(root)) if root else ())]
        null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        if line.before == "nothing":
            return
        subprocess.run([*runc, "create", "--bundle", str(bundle), ID], check=True, **null)
        if line.before != "created":
            subprocess.run([*runc, "start", ID], check=True, **null)
            pid = json.loads(subprocess.check_output([*runc, "state", ID]))["pid"]
            while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
                time.sleep(0.005)
        if line.before == "paused":
            subprocess.run([*runc, "pause", ID], check=True, **null)
        if line.before == "stopped":
            subprocess.run([*runc, "kill", ID, "KILL"], check=True, **null)
            while b'"stopped"' not in subprocess.check_output([*runc, "state", ID]):
                time.sleep(0.005)

    def _run(
        self, runtime: str, line: Line, places: dict[str, Path]
    ) -> subprocess.CompletedProcess[bytes]:
        command = [runtime]
        for arg in line.args:
            command.append(arg.replace("\t", " "))
            for name, place in places.items():
                command[-1] = command[-1].replace("{" + name + "}", str(place))
        shell = line.within or 'exec "$@"'
        if line.more_fds:
            (places["tmp"] / "extra").write_text("through a descriptor\n")
            opens = "; ".join(f"exec {3 + n}<{places['tmp']}/extra" for n in range(line.more_fds))
            shell = f"{opens}; {shell}"
        if line.within or line.more_fds:
            for name, place in places.items():
                shell = shell.replace("{" + name + "}", str(place))
            command = ["/bin/sh", "-c", shell, "sh", *command]
        # Files, not pipes: what is left running would hold a pipe open.
        with (
            (self.directory / "out").open("w+b") as out,
            (self.directory / "err").open("w+b") as err,
            (self.directory / "in").open("w+b") as stdin,
        ):
            stdin.write(line.stdin)
            stdin.flush()
            stdin.seek(0)
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=out,
                stderr=err,
                cwd=self.directory / "tmp",
                env=os.environ | line.env,
            )
            status = process.wait(60)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, status, out.read(), err.read())


def _copy(source: str, target: str) -> None:
    """Copy what a test may change; a link is enough for the rest."""
    if source.endswith("/busybox"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def neutral(text: bytes, numbers: bool) -> str:
    """Return ``text`` without what differs between two runs of one and the same runc."""
    shown = text.decode("utf-8", "surrogateescape")
    shown = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "TIME", shown)
    shown = re.sub(r'("(pid|ppid|init_process_pid|init_process_start)": ?)\d+', r"\1N", shown)
    shown = re.sub(r"/proc/\d+/", "/proc/N/", shown)
    shown = re.sub(r"/#\d+ \(deleted\)", "/#N (deleted)", shown)
    shown = re.sub(r"(SigQ:\s*)\d+", r"\1N", shown)
    # A time's fraction has as many digits as it takes, and columns are as wide as that.
    shown = re.sub("  +", "  ", shown)
    shown = re.sub(rf"^({ID}\s+)\d+(\s+)", r"\1N\2", shown, flags=re.MULTILINE)
    shown = re.sub(r"\(0x[0-9a-f]+\)|0xc[0-9a-f]+", "POINTER", shown)
    # runc tries again for as long as a dead process is not reaped.
    shown = re.sub(r".*Failed to remove cgroup \(will retry\).*\n", "", shown)
    # What runc says of its own doings names our hooks among the rest.
    shown = re.sub(r".*level=debug.*\n", "", shown)
    shown = re.sub(r"(process|pid|PID)[ =]\d+", r"\1 N", shown)
    if not numbers:
        return shown
    shown = re.sub(r" *\d+", "N", shown)
    # What runc counted nothing of, it leaves out.
    for counted in (r'"\w+_recursive":\[[^]]*\],?', r'"\w+":(N|\[[N,]*\]),?', r",(?=})"):
        shown = re.sub(counted, "", shown)
    return shown


def tree(directory: Path) -> dict[str, str]:
    """Return what every file below ``directory`` holds."""
    found = {}
    for path in sorted(directory.rglob("*")) if directory.is_dir() else []:
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.name == "state.json":
            found[name] = state_json(path)
        elif path.name == "pid":
            found[name] = str(path.read_text().isdigit())
        elif path.name in {"dump.log", "restore.log"}:
            found[name] = criu_errors(path.read_bytes())
        elif path.suffix == ".img" or path.name in {"stats-dump", "stats-restore"}:
            found[name] = "an image of CRIU's"
        elif path.is_file():
            found[name] = neutral(path.read_bytes(), False)
        else:
            found[name] = f"mode {path.stat().st_mode:o}"
    return found


def criu_errors(log: bytes) -> str:
    """Return what CRIU's log says went wrong: the rest is time stamps, ids and addresses."""
    lines = log.decode("utf-8", "surrogateescape").splitlines()
    errors = [line.partition("Error ")[2] for line in lines if "Error (" in line]
    return re.sub(r"0x[0-9a-f]+|\d+", "N", "\n".join(errors))


def state_json(path: Path) -> str:
    state = json.loads(path.read_text())
    for key in ("init_process_pid", "init_process_start", "created", "external_descriptors"):
        state.pop(key, None)
    state["namespace_paths"] = sorted(state.get("namespace_paths", {}))
    for stage, hooks in list((state["config"].get("Hooks") or {}).items()):
        state["config"]["Hooks"][stage] = [
            hook for hook in hooks or [] if "/libexec/cima/hooks/" not in hook["path"]
        ]
    hooks = state["config"].pop("Hooks", None) or {}
    return json.dumps([state, {stage: hook for stage, hook in hooks.items() if hook}], indent=1)


def without_our_hooks(path: Path, host: Host) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text())
    hooks = config.pop("hooks", {})
    others = {
        stage: [entry for entry in entries if not entry["path"].startswith(str(host.hooks))]
        for stage, entries in hooks.items()
    }
    return config | {"hooks": {stage: entries for stage, entries in others.items() if entries}}


@pytest.fixture(scope="module")
def bench(host: Host) -> Iterator[Bench]:
    yield Bench(host)


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 400
    assert len({str(line) + str(line.process) for line in TABLE}) >= 400


@pytest.mark.parametrize("line", TABLE, ids=str)
def test_same_as_runc(bench: Bench, line: Line) -> None:
    assert bench.outcome(bench.host.cima_runc, line) == bench.outcome(RUNC, line)


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("line", FAILING, ids=str)
def test_same_log_as_runc(bench: Bench, line: Line, log_format: str) -> None:
    logged = Line(
        ("--log", "{tmp}/log", "--log-format", log_format, *line.args), line.before, line.stdin
    )
    ours = bench.outcome(bench.host.cima_runc, logged)
    assert ours == bench.outcome(RUNC, logged)
    assert "log" in ours.files
