"""The launcher on its three ways: at once, through the agent, through Python; and when it fails."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import native_host
import pytest
from native_host import Host

from cima_runc.base import limits
from cima_runc.runtime.agent_socket import frame
from cima_runc.runtime.shim_settings import COMPANION_FILE, SETTINGS_FILE, identity_of

ID = f"shim-{os.getpid()}"
_DUMP = r"""#!/bin/sh
pwd
for arg; do printf '<%s>\n' "$arg"; done
/usr/bin/tr '\0' '\n' </proc/$$/environ
/usr/bin/grep -E 'Sig(Ign|Cgt)|NoNewPrivs|Seccomp|Groups' /proc/$$/status
for fd in /proc/$$/fd/*; do echo "${fd##*/} $(/usr/bin/readlink "$fd")"; done
umask; ulimit -a; /usr/bin/cat /proc/$$/oom_score_adj
/usr/bin/cat
"""
"""A low-level runtime that prints all that it was given."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return native_host.make_bundle(tmp_path / "bundle", "/bin/true")


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    program = tmp_path / "dump"
    program.write_text(_DUMP)
    program.chmod(0o755)
    return program


@contextmanager
def changed_settings(**changes: Any) -> Iterator[None]:
    file = Path(SETTINGS_FILE)
    before = file.read_text()
    top, section, rest = before.partition("\n[")
    kept = [line for line in top.splitlines() if line.partition(" ")[0] not in changes]
    lines = [f"{key} = {json.dumps(value)}" for key, value in changes.items()]
    file.write_text("\n".join([*kept, *lines, section + rest]))
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def without(path: Path) -> Iterator[None]:
    """Take a file away."""
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextmanager
def no_agent() -> Iterator[None]:
    """Take the agent's sockets out of reach."""
    with without(native_host.SOCKET), without(Path(f"{native_host.SOCKET}.bundles")):
        yield


def settled(cima_runc: str) -> None:
    """Wait until the launcher needs no Python to know the settings."""
    deadline = time.monotonic() + 120
    while (identity_of() or "none") not in native_host.read(COMPANION_FILE):
        assert time.monotonic() < deadline
        subprocess.run([cima_runc, "--version"], stdout=subprocess.DEVNULL, check=True)
        time.sleep(0.1)


def run(*command: object, **more: Any) -> subprocess.CompletedProcess[str]:
    # Files, not pipes: a container that stays would hold a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            timeout=60,
            check=False,
            **more,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())


def containers() -> str:
    return run("runc", "list", "-q").stdout


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def hooks_of(bundle: Path, name: str = "config.json") -> list[str]:
    hooks = json.loads((bundle / name).read_text()).get("hooks", {})
    return sorted(entry["path"].rpartition("/")[2] for stage in hooks.values() for entry in stage)


OURS = ["poststart", "poststop", "prestart"]


# -- what passes through ------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["at once", "agent", "python"])
@pytest.mark.parametrize("ignored", [[], [signal.SIGPIPE, signal.SIGCHLD, signal.SIGXFSZ]], ids=str)
def test_the_runtime_gets_everything_as_it_came(
    host: Host, bundle: Path, dump: Path, tmp_path: Path, way: str, ignored: list[signal.Signals]
) -> None:
    arguments = ["state", ID] if way == "at once" else ["create", "--bundle", str(bundle), ID]
    env = {
        "LC_ALL": "C",
        "PATH": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "PYTHONHOME": "/nowhere",
        "LISTEN_FDS": "2",
        "EMPTY": "",
        "CIMA_SOCKET": "/nowhere",
        "RUNC": "/bin/false",
    }

    def prepare() -> None:
        os.umask(0o027)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        if not ignored:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def through(program: str) -> str:
        with (tmp_path / "in").open("w+") as stdin, (tmp_path / "out").open("w+") as out:
            stdin.write("what stands on standard input\n")
            stdin.seek(0)
            handle = os.open("/dev/zero", os.O_RDONLY)
            done = subprocess.run(
                [program, *arguments],
                stdin=stdin,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[handle],
                env=env,
                cwd=tmp_path,
                preexec_fn=prepare,
                restore_signals=False,
                check=False,
            )
            os.close(handle)
            out.seek(0)
            assert done.returncode == 0, out.read()
            # The last but one descriptor is the pipe between the dump's own programs.
            return re.sub(r"pipe:\[\d+\]", "PIPE", out.read().replace(program, "PROGRAM"))

    with changed_settings(runtimes=[str(dump)]):
        if way == "python":
            with no_agent():
                ours = through(host.cima_runc)
        else:
            run(host.cima_runc, "state", "x")
            ours = through(host.cima_runc)
    assert ours.replace(str(dump), "PROGRAM") == through(str(dump)).replace(str(dump), "PROGRAM")
    assert "what stands on standard input" in ours
    assert hooks_of(bundle) == ([] if way == "at once" else OURS)


@pytest.mark.parametrize("way", ["state", "create"])
def test_signal_mask_and_dispositions_pass(
    host: Host, bundle: Path, tmp_path: Path, way: str
) -> None:
    runtime = tmp_path / "cat"
    shutil.copy(str(shutil.which("busybox")), runtime)
    (bundle / way).touch()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR1, signal.SIGTERM])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def signals(program: object) -> list[str]:
        done = run(program, way, "/proc/self/status", cwd=bundle, preexec_fn=prepare)
        return [line for line in done.stdout.splitlines() if line.startswith("Sig")][2:]

    with changed_settings(runtimes=[str(runtime)]):
        ours = signals(host.cima_runc)
    assert ours == signals(runtime)
    assert "SigBlk:\t0000000000004200" in ours


def test_a_signal_reaches_the_container(host: Host, tmp_path: Path) -> None:
    bundle = native_host.make_bundle(
        tmp_path / "b",
        "/bin/sh",
        "-c",
        "trap 'exit 42' TERM; echo up; while :; do sleep 0.05; done",
    )
    with subprocess.Popen(
        [host.cima_runc, "run", "--bundle", bundle, ID], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 42
    assert containers() == ""


@pytest.mark.parametrize(
    "line",
    [
        *(
            "--version",
            "--help",
            "nonsense",
            "list",
            "list -q",
            "list --format json",
            "spec --help",
        ),
        *("state none", "kill none", "delete none", "delete --force none", "start none", "ps none"),
        *("exec none true", "pause none", "resume none", "update none", "state", "--nonsense"),
        *("--root", "--roo /tmp list", "-v", "-V", "-?", "--usage", "create --help", "run --usage"),
        *("create", "run a b", "create --bundle /no/such x", "-b x", "--debug state none"),
        *("--log /dev/stderr --log-format json state none", "--log-format=json state none"),
    ],
)
def test_same_as_crun(host: Host, line: str) -> None:
    arguments = line.split(" ")
    with changed_settings(runtimes=["/no/such/runtime", "crun"]):
        ours = run(host.cima_runc, *arguments)
    theirs = run("crun", *arguments)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert without_time(ours.stderr) == without_time(theirs.stderr)


def without_time(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)


# -- which bundle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "line"),
    [
        ("runc", "create --bundle {b} {id}"),
        ("runc", "create -bundle={b} {id}"),
        ("runc", "create {id} --bundle {b}"),
        ("runc", "create --no-pivot --nonsense --bundle {b} {id}"),
        ("runc", "--nonsense value create --bundle {b} {id}"),
        ("runc", "create --pid-file - --bundle {b} {id}"),
        ("crun", "create --bund {b} {id}"),
        ("crun", "create --b={b} {id}"),
        ("crun", "create -b{b} {id}"),
        ("crun", "run -db{b} {id}"),
        ("crun", "--roo /tmp create -b{b} {id}"),
        ("crun", "--roo=/tmp --deb run --bundl={b} {id}"),
    ],
)
def test_no_form_of_the_option_hides_the_bundle(
    host: Host, bundle: Path, tmp_path: Path, runtime: str, line: str
) -> None:
    # The hooks are missing on purpose: what starts a container under them must then fail.
    with changed_settings(runtimes=[runtime]):
        arguments = line.replace("{b}", str(bundle)).replace("{id}", ID).split(" ")
        run(host.cima_runc, *arguments, cwd=tmp_path)
    run("runc", "delete", "--force", ID)
    assert hooks_of(bundle) == OURS


def test_the_working_directory_is_the_bundle_by_default(host: Host, bundle: Path) -> None:
    assert run(host.cima_runc, "run", ID, cwd=bundle).returncode == 0
    assert hooks_of(bundle) == OURS


def test_a_link_to_a_configuration_is_replaced_and_what_it_names_kept(
    host: Host, bundle: Path, tmp_path: Path
) -> None:
    shared = (bundle / "config.json").rename(tmp_path / "shared.json")
    (bundle / "config.json").symlink_to(shared)
    before = shared.read_bytes()
    assert run(host.cima_runc, "run", "--bundle", bundle, ID).returncode == 0
    assert hooks_of(bundle) == OURS
    assert shared.read_bytes() == before


def test_crun_may_name_the_configuration(host: Host, bundle: Path) -> None:
    """From its own directory, not from the bundle."""
    (bundle / "config.json").rename(bundle / "other.json")
    with changed_settings(runtimes=["crun"]):
        run(host.cima_runc, "run", "--bundle", bundle, "--config", "other.json", ID, cwd=bundle)
    assert hooks_of(bundle, "other.json") == OURS


@pytest.mark.parametrize(
    "line",
    ["restore {id}", "restore -b{b} --image-pat=/no {id}", "--roo /tmp restore --bundle {b} {id}"],
)
def test_a_runtime_that_calls_no_hooks_then_restores_nothing(
    host: Host, bundle: Path, line: str
) -> None:
    """What crun restores would run without any record."""
    arguments = line.replace("{b}", str(bundle)).replace("{id}", ID).split(" ")
    with changed_settings(runtimes=["crun"]):
        done = run(host.cima_runc, *arguments, cwd=bundle)
        helped = run(host.cima_runc, "restore", "--help")
    assert done.returncode == 1
    assert "crun calls no hooks when it restores a container" in done.stderr
    theirs = run("crun", "restore", "--help")
    assert (helped.returncode, helped.stderr) == (theirs.returncode, theirs.stderr)


@pytest.mark.parametrize("line", ["create --help", "--help create", "-v run", "state run"])
def test_what_starts_nothing_changes_nothing(host: Host, bundle: Path, line: str) -> None:
    before = contents(bundle)
    run(host.cima_runc, *line.split(" "), cwd=bundle)
    assert contents(bundle) == before


# -- which way ----------------------------------------------------------------------------------


def test_no_python_where_the_agent_answers(host: Host, bundle: Path) -> None:
    settled(host.cima_runc)
    with without(host.prefix / "libexec/cima/prepare.py"):
        assert run(host.cima_runc, "run", "--bundle", bundle, ID).returncode == 0
        assert run(host.cima_runc, "--version").returncode == 0
    assert hooks_of(bundle) == OURS


def test_both_ways_write_the_same_configuration(host: Host, bundle: Path) -> None:
    settled(host.cima_runc)
    before = (bundle / "config.json").read_bytes()
    run(host.cima_runc, "run", "--bundle", bundle, ID)
    by_agent = (bundle / "config.json").read_bytes()
    (bundle / "config.json").write_bytes(before)
    with without(Path(f"{native_host.SOCKET}.bundles")):
        run(host.cima_runc, "run", "--bundle", bundle, ID)
    assert (bundle / "config.json").read_bytes() == by_agent


def test_the_hooks_are_there_once(host: Host, bundle: Path) -> None:
    for _ in range(2):
        assert run(host.cima_runc, "run", "--bundle", bundle, ID).returncode == 0
        assert hooks_of(bundle) == OURS


@pytest.mark.parametrize("forged", ["others write", "another's", "a link", "long", "no lines"])
def test_a_forged_companion_is_not_believed(
    host: Host, tmp_path: Path, dump: Path, forged: str
) -> None:
    settled(host.cima_runc)
    companion = Path(COMPANION_FILE)
    text = companion.read_text().replace("\nrunc\n", f"\n{dump}\n")
    assert str(dump) in text
    aside = shutil.move(companion, tmp_path / "companion")
    try:
        companion.write_text(text)
        companion.chmod(0o644)
        assert "<state>" in run(host.cima_runc, "state", "x").stdout
        match forged:
            case "others write":
                companion.chmod(0o664)
            case "another's":
                os.chown(companion, 65534, 0)
            case "a link":
                shutil.move(companion, tmp_path / "target")
                companion.symlink_to(tmp_path / "target")
            case "long":
                companion.write_text(text + "x" * 5000 + "\n")
            case "no lines":
                companion.write_text(text.rstrip("\n"))
        done = run(host.cima_runc, "state", "x")
        assert "<state>" not in done.stdout
        assert "does not exist" in done.stderr
    finally:
        companion.unlink(missing_ok=True)
        shutil.move(aside, companion)


def test_changed_settings_count_at_once(host: Host, dump: Path) -> None:
    settled(host.cima_runc)
    with changed_settings(runtimes=[str(dump)]):
        assert "<state>" in run(host.cima_runc, "state", "x").stdout
    assert "does not exist" in run(host.cima_runc, "state", "x").stderr


def test_it_never_calls_itself(host: Host, tmp_path: Path) -> None:
    link = tmp_path / "runc"
    link.symlink_to(host.cima_runc)
    with changed_settings(runtimes=[str(link), host.cima_runc, "runc"]):
        assert run(host.cima_runc, "--version").stdout == run("runc", "--version").stdout
    with changed_settings(runtimes=[str(link)]):
        done = run(host.cima_runc, "--version")
    assert done.returncode == 1
    assert "no low-level runtime found" in done.stderr


# -- what goes wrong ----------------------------------------------------------------------------


def holding(config: bytes, name: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        (bundle / "config.json").write_bytes(config)

    damage.__name__ = name
    return damage


def other_spelling(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"Hooks": {}}))


def a_pipe(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")


def hooks_that_are_none(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"hooks": ["nonsense"]}))


def read_only_file_system(bundle: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "small", bundle], check=True)
    (bundle / "config.json").write_text("{}")
    subprocess.run(["mount", "-o", "remount,ro", bundle], check=True)


def read_only(bundle: Path) -> None:
    subprocess.run(["mount", "--bind", bundle, bundle], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", bundle], check=True)


def full(bundle: Path) -> None:
    kept = contents(bundle)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=755", "full", bundle], check=True)
    (bundle / "config.json").write_bytes(kept["config.json"])
    with (bundle / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"x" * 512)
        except OSError:
            pass


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (holding(b'{"ociVersion": ', "cut off"), "is not JSON"),
    (holding(b"", "empty"), "is not JSON"),
    (holding(b"[]", "a list"), "is not a JSON object"),
    (holding(b'{"hooks": {}, "hooks": {}}', "a key twice"), "the same key twice"),
    (holding(b"\xef\xbb\xbf{}", "a byte order mark"), "BOM"),
    (holding(b'{"a": "\xff"}', "no UTF-8"), "is not JSON"),
    (holding(b'{"a": NaN}', "NaN"), "NaN is no JSON number"),
    (holding(b'{"a": 1e999}', "a huge number"), "is too large"),
    (holding(b"{} {}", "more after it"), "is not JSON"),
    (holding(b'{"a": "' + b"x" * limits.CONFIG_JSON + b'"}', "too long"), "has more than"),
    (holding(b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "too deep"), "is nested"),
    (holding(b"\x1b[2J\r\n", "escapes"), "is not JSON"),
    (a_pipe, "is not a regular file"),
    (other_spelling, "unusual spelling"),
    (hooks_that_are_none, "hooks is not an object"),
    (read_only, "our hooks cannot be written to"),
    (read_only_file_system, "Read-only file system"),
    (full, "No space left on device"),
]


def fails_with_one_line(host: Host, bundle: Path, words: str, log: Path, log_format: str) -> None:
    """See that ``create`` fails, says so once and everywhere, and leaves nothing behind."""
    command = ["--log", log, "--log-format", log_format, "create", "--bundle", bundle, ID]
    done = run(host.cima_runc, *command)
    assert done.returncode == 1
    assert done.stdout == ""
    errors = [line for line in log.read_text().splitlines() if "error" in line]
    assert len(errors) == 1
    if log_format == "json":
        entry = json.loads(errors[0])
        assert entry["level"] == "error"
        message = entry["msg"]
    else:
        assert " level=error msg=" in errors[0]
        message = errors[0]
    assert words in message
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("cima-runc: ")
    assert words in lines[0]
    assert containers() == ""
    assert not list(Path("/run/runc").glob("*"))
    # A walk, since other tests' groups may vanish under it.
    assert not [group for group, _, _ in os.walk("/sys/fs/cgroup") if Path(group).name == ID]


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    ("damage", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_bundle_that_cannot_be_prepared(
    host: Host,
    bundle: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
    log_format: str,
) -> None:
    damage(bundle)
    try:
        before = contents(bundle)
        fails_with_one_line(host, bundle, words, tmp_path / "log", log_format)
        assert contents(bundle) == before
    finally:
        if os.path.ismount(bundle):
            subprocess.run(["umount", bundle], check=True)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_runtime(host: Host, bundle: Path, tmp_path: Path, log_format: str) -> None:
    before = contents(bundle)
    with changed_settings(runtimes=["/no/such/runc", "no-such-runc"]):
        words = "no low-level runtime found"
        fails_with_one_line(host, bundle, words, tmp_path / "log", log_format)
    assert contents(bundle) == before


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_runtime_that_cannot_be_executed(
    host: Host, bundle: Path, tmp_path: Path, log_format: str
) -> None:
    runtime = tmp_path / "not-a-program"
    runtime.write_text("\x7fELF nonsense")
    runtime.chmod(0o755)
    with changed_settings(runtimes=[str(runtime)]):
        words = "the low-level runtime cannot be executed"
        fails_with_one_line(host, bundle, words, tmp_path / "log", log_format)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_python_and_no_agent(host: Host, bundle: Path, tmp_path: Path, log_format: str) -> None:
    before = contents(bundle)
    with no_agent(), without(host.prefix / "libexec/cima/prepare.py"):
        done = run(
            *(host.cima_runc, "--log", tmp_path / "log", "--log-format", log_format),
            *("create", "--bundle", bundle, ID),
        )
    assert done.returncode == 1
    assert "the container cannot be measured" in (tmp_path / "log").read_text()
    assert contents(bundle) == before
    assert containers() == ""


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("hook", OURS)
def test_a_hook_that_is_missing(
    host: Host, bundle: Path, tmp_path: Path, log_format: str, hook: str
) -> None:
    before = contents(bundle)
    with without(host.hooks / hook):
        fails_with_one_line(host, bundle, f"hooks/{hook}", tmp_path / "log", log_format)
    assert contents(bundle) == before


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_hook_that_goes_missing(
    host: Host, bundle: Path, tmp_path: Path, log_format: str
) -> None:
    # Between our look and the runtime's: then the runtime says so, and takes the container back.
    assert run(host.cima_runc, "run", "--bundle", bundle, ID).returncode == 0
    with without(host.hooks / "prestart"):
        log = tmp_path / "log"
        done = run("runc", "--log", log, "--log-format", log_format, "run", "-b", bundle, ID)
    assert done.returncode == 1
    assert "hooks/prestart" in log.read_text()
    assert containers() == ""


@pytest.mark.parametrize("settings", ['runtimes = "runc"', "runtimes = [", 'socket = "relative"'])
def test_settings_that_are_wrong(host: Host, bundle: Path, tmp_path: Path, settings: str) -> None:
    file = Path(SETTINGS_FILE)
    text = file.read_text()
    file.write_text(settings + "\n")
    try:
        fails_with_one_line(host, bundle, SETTINGS_FILE, tmp_path / "log", "json")
    finally:
        file.write_text(text)


# -- hooks --------------------------------------------------------------------------------------


def test_no_agent_no_container(host: Host, bundle: Path, tmp_path: Path) -> None:
    with no_agent():
        done = run(host.cima_runc, "run", "--bundle", bundle, ID)
    assert done.returncode == 1
    assert "the agent cima-agent is not running" in done.stderr
    assert containers() == ""


def held_namespaces(host: Host) -> set[str]:
    """Mount namespaces that the agent keeps from ending."""
    found = set()
    for link in Path(f"/proc/{host.agent.pid}/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(link))
    return {target for target in found if target.startswith("mnt:[")}


def shown_as_held() -> list[str]:
    return os.listdir(f"{native_host.SOCKET}.held")


@pytest.mark.parametrize("pids", ["of its own", "of the host"])
def test_the_agent_lets_go_as_soon_as_nothing_is_left(
    host: Host, tmp_path: Path, pids: str
) -> None:
    bundle = native_host.make_bundle(tmp_path / "b", "/bin/sh", "-c", "sleep 1000 & wait")
    if pids == "of the host":
        config = json.loads((bundle / "config.json").read_text())
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [one for one in spaces if one["type"] != "pid"]
        (bundle / "config.json").write_text(json.dumps(config))
    try:
        assert run(host.cima_runc, "run", "--detach", "--bundle", bundle, ID).returncode == 0
        pid = json.loads(run("runc", "state", ID).stdout)["pid"]
        namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        deadline = time.monotonic() + 120
        while len(run("runc", "ps", ID).stdout.splitlines()) < 3:  # a heading, the shell, the other
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert namespace in held_namespaces(host)
        assert ID in shown_as_held()
        run("runc", "kill", ID, "KILL")
        if pids == "of its own":
            while namespace in held_namespaces(host):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        else:
            # Killed was the first process alone. The other one lives, and belongs to the container.
            while '"stopped"' not in run("runc", "state", ID).stdout:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            native_host.ask(host.prefix, "status")
            assert namespace in held_namespaces(host)
            assert ID in shown_as_held()
    finally:
        deleted = run(host.cima_runc, "delete", "--force", ID)
    assert deleted.returncode == 0
    assert namespace not in held_namespaces(host)
    assert ID not in shown_as_held()
    rows = json.loads(native_host.ask(host.prefix, "ps"))
    assert [row["state"] for row in rows if row["id"] == ID][-1] == "stopped"


def test_unmeasured_only_where_that_is_allowed_and_noted(
    host: Host, bundle: Path, tmp_path: Path
) -> None:
    state_dir = str(tmp_path / "state")
    with changed_settings(on_agent_unavailable="allow", state_dir=state_dir), no_agent():
        assert run(host.cima_runc, "run", "--bundle", bundle, ID).returncode == 0
    (note,) = (tmp_path / "state/unmeasured").iterdir()
    assert json.loads(note.read_bytes())["id"] == ID


@pytest.mark.parametrize("waits", [False, True])
def test_who_waits_no_more_is_not_registered(host: Host, tmp_path: Path, waits: bool) -> None:
    """A hook whose time is spent may have let the container start, unmeasured; that is no start
    to be registered when the agent comes to it."""
    name = f"{ID}-{waits}"
    bundle = native_host.make_bundle(tmp_path / "b", "/bin/true")
    # As crun makes a container, in the cgroup that it was called in.
    script = "unshare --mount --propagation private sleep 1000 & echo $!; wait"
    runtime = subprocess.Popen(
        ["/bin/sh", "-c", script, "crun", "--cgroup-manager=disabled"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert runtime.stdout is not None
        pid = int(runtime.stdout.readline())
        until(lambda: native_host.read(f"/proc/{pid}/comm") == "sleep\n")
        state = json.dumps({"id": name, "pid": pid, "bundle": str(bundle)}).encode()
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(native_host.SOCKET))
            channel.sendall(frame("prestart", state))
            if waits:
                channel.settimeout(60)
                assert channel.recv(100) == b"ok 0\n", host.agent.log.read_text()[-2000:]
        if not waits:
            said = f"the hook of container {name} waits no more"
            until(lambda: said in host.agent.log.read_text())
        rows = json.loads(native_host.ask(host.prefix, "ps"))
        assert [row["id"] for row in rows if row["id"] == name] == [name] * waits
    finally:
        os.killpg(runtime.pid, signal.SIGKILL)
        runtime.wait()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_others_hooks_go_on_without_the_agent_only_where_the_start_is_noted(
    host: Host, tmp_path: Path
) -> None:
    """A container that was registered would run with a record of the files as they were before."""
    env = {
        "CIMA_SOCKET": str(tmp_path / "none"),
        "CIMA_ON_AGENT_UNAVAILABLE": "allow",
        "CIMA_STATE_DIR": str(tmp_path / "state"),
    }
    other = STATE.replace(b'"pid": 1', b'"pid": 2')
    assert hook(host, "settled", STATE, **env).returncode == 1
    assert hook(host, "prestart", other, **env).returncode == 0
    done = hook(host, "settled", STATE, **env)
    assert done.returncode == 1
    assert b"registered already" in done.stderr
    assert hook(host, "settled", other, **env).returncode == 0


def hook(host: Host, stage: str, state: bytes, **env: str) -> subprocess.CompletedProcess[bytes]:
    command = [host.hooks / stage]
    return subprocess.run(
        command, input=state, capture_output=True, timeout=60, env=env, check=False
    )


STATE = b'{"ociVersion": "1.0.2", "id": "x", "pid": 1, "bundle": "/no/such"}'


@pytest.mark.parametrize(
    "state", [b"", b"nonsense", STATE, b"[]", b" " * (1 << 18), b" " * (1 << 20)]
)
def test_the_hook_tells_the_agents_refusal(host: Host, state: bytes) -> None:
    done = hook(host, "prestart", state, CIMA_SOCKET=str(native_host.SOCKET))
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"cima-runc: the agent refuses: ")
    assert done.stderr.endswith(b"\n")
    assert done.stderr.count(b"\n") == 1


def test_the_hook_escapes_what_it_tells(host: Host) -> None:
    state = b'{"id": "x", "pid": 1, "bundle": "/no/\\u001b[2Jsuch\\n\\u00e9"}'
    done = hook(host, "prestart", state, CIMA_SOCKET=str(native_host.SOCKET))
    assert done.returncode == 1
    assert all(0x20 <= byte < 0x7F for byte in done.stderr.rstrip(b"\n"))


@pytest.mark.parametrize(
    "answer",
    [b"", b"ok", b"ok 9\nshort", b"nonsense\n", b"error", b"ok 1\n", b"\n", b"x" * 70_000],
    ids=lambda answer: repr(answer[:20]),
)
def test_the_hook_believes_no_broken_answer(host: Host, tmp_path: Path, answer: bytes) -> None:
    import threading

    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)

        def serve() -> None:
            for _ in range(2):
                channel, _ = listener.accept()
                with channel, suppress(OSError):
                    channel.recv(1 << 16)
                    channel.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        done = hook(host, "prestart", STATE, CIMA_SOCKET=path, CIMA_TIMEOUT="4")
    assert done.returncode == 1
    assert done.stderr.startswith(b"cima-runc: ")


def test_the_hook_waits_for_an_agent_that_was_killed(host: Host, tmp_path: Path) -> None:
    """Killed with the request, gone for a while, back again."""
    import threading

    path = tmp_path / "s"
    asked: list[bytes] = []

    def agents() -> None:
        for answer in (b"", b"ok 0\n"):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(tmp_path / "new"))
                listener.listen(8)
                (tmp_path / "new").rename(path)
                channel, _ = listener.accept()
                with channel:
                    asked.append(channel.recv(1 << 16))
                    channel.sendall(answer)
            time.sleep(0.5)

    thread = threading.Thread(target=agents)
    path.touch()
    thread.start()
    while not path.is_socket():
        time.sleep(0.01)
    done = hook(host, "prestart", STATE, CIMA_SOCKET=str(path), CIMA_TIMEOUT="30")
    thread.join()
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_a_silent_agent_is_not_waited_for_longer_than_the_runtime_waits(
    host: Host, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        took = []
        while not took or (took[-1] >= 4 and len(took) < 10):  # a busy machine may be late
            before = time.monotonic()
            done = hook(host, "prestart", STATE, CIMA_SOCKET=path, CIMA_TIMEOUT="4")
            took.append(time.monotonic() - before)
            assert done.returncode == 1
            assert b"does not answer" in done.stderr
        assert took[-1] < 4
        assert hook(host, "poststop", STATE, CIMA_SOCKET=path, CIMA_TIMEOUT="2").returncode == 0


@pytest.mark.parametrize(
    ("shown", "waits"), [(None, True), ([], False), (["other"], False), (["x"], True)]
)
def test_a_deletion_waits_only_for_what_is_held(
    host: Host, tmp_path: Path, shown: list[str] | None, waits: bool
) -> None:
    path = str(tmp_path / "s")
    if shown is not None:
        (tmp_path / "s.held").mkdir()
        for name in shown:
            (tmp_path / "s.held" / name).touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        program = subprocess.Popen(
            [host.hooks / "poststop"],
            stdin=subprocess.PIPE,
            env={"CIMA_SOCKET": path, "CIMA_TIMEOUT": "60"},
        )
        assert program.stdin is not None
        program.stdin.write(STATE)
        program.stdin.close()
        channel, _ = listener.accept()
        with channel:
            expected = b"poststop %d\n" % len(STATE) + STATE
            assert channel.recv(4096) == expected
            if waits:
                with pytest.raises(subprocess.TimeoutExpired):
                    program.wait(0.3)
                channel.sendall(b"ok 0\n")
        assert program.wait(30) == 0
