"""Docker, Podman and containerd do everything with cima-runc that they do with runc."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE, Ran

ON_12, ON_13 = pytest.mark.debian("12"), pytest.mark.debian("13")

CLIS = [pytest.param("docker", marks=ON_12), pytest.param("podman", marks=ON_13)]
_LOOP = 'trap "echo got it" USR1; trap "exit 5" TERM; echo up; while :; do sleep 0.2; done'


def run_command(cli: str, runtime: str, *rest: str) -> list[str]:
    return guest.docker(runtime, *rest) if cli == "docker" else guest.podman(runtime, *rest)


def run_in(cli: str, *rest: str, runtime: str = "cima-runc") -> Ran:
    return guest.run(*run_command(cli, runtime, *rest))


@pytest.fixture(params=CLIS)
def cli(request: pytest.FixtureRequest, image: str) -> Iterator[str]:
    yield request.param
    guest.run(request.param, "rm", "-f", "life")


def state(cli: str, what: str) -> str:
    return guest.ok(cli, "inspect", "--format", "{{.State." + what + "}}", "life").strip()


def logs(cli: str) -> str:
    return guest.ok(cli, "logs", "life")


def test_a_whole_life(cli: str) -> None:
    before = len(guest.ps())
    guest.ok(*run_command(cli, "cima-runc", "-d", "--name=life", IMAGE, "/bin/sh", "-c", _LOOP))
    guest.wait_for("the container is up", lambda: "up" in logs(cli))

    done = guest.run(cli, "exec", "life", "/bin/sh", "-c", "echo in; echo no >&2; exit 3")
    assert done == Ran(3, "in\n", "no\n")
    assert guest.run(cli, "exec", "-i", "life", "/bin/cat", stdin="given\n").out == "given\n"

    assert "sleep" in guest.ok(cli, "top", "life")
    assert "life" in guest.ok(cli, "stats", "--no-stream", "life")

    guest.ok(cli, "pause", "life")
    assert state(cli, "Status") == "paused"
    guest.ok(cli, "unpause", "life")
    assert state(cli, "Status") == "running"

    guest.ok(cli, "kill", "--signal=USR1", "life")
    guest.wait_for("the signal has arrived", lambda: "got it" in logs(cli))

    guest.ok(*update_command(cli), "--memory=100m", "--memory-swap=100m", "life")
    assert memory_limit(guest.ps()[-1]["cgroup"]) == 100 << 20

    guest.ok(cli, "restart", "life")
    guest.wait_for("it is up again", lambda: logs(cli).count("up") == 2)
    guest.ok(cli, "stop", "life")
    assert state(cli, "ExitCode") == "5"

    guest.ok(cli, "start", "life")
    guest.wait_for("it is up once more", lambda: logs(cli).count("up") == 3)
    guest.ok(cli, "kill", "life")
    guest.wait_for("it is dead", lambda: state(cli, "ExitCode") == "137")
    guest.ok(cli, "rm", "life")

    # Each start is a run of its own, and nothing of the last is left running.
    (row,) = guest.ps()[before:]
    assert guest.run_of(row["id"]) == 3
    guest.wait_for("it has ended", lambda: guest.row(row["id"])["state"] == "stopped")


def update_command(cli: str) -> list[str]:
    return ["docker", "update"] if cli == "docker" else ["podman", "--runtime=cima-runc", "update"]


def memory_limit(cgroup: str) -> int:
    """What the kernel has for a container's cgroup, bytes, in version 2 or 1."""
    own = cgroup.removesuffix("/container")
    limit = Path(f"/sys/fs/cgroup{own}/memory.max")
    if not limit.exists():
        limit = Path(f"/sys/fs/cgroup/memory{own}/memory.limit_in_bytes")
    return int(limit.read_text())


def test_a_terminal(cli: str) -> None:
    done = run_in(cli, "--rm", "-t", IMAGE, "/bin/sh", "-c", "test -t 1 && echo it is one")
    assert done.code == 0
    assert done.out == "it is one\r\n"


@pytest.mark.parametrize(
    "command",
    [["/no/such/program"], ["/etc"], ["no-such-program"]],
    ids=lambda command: command[-1],
)
def test_what_fails_fails_in_the_same_words(cli: str, command: list[str]) -> None:
    plain = run_in(cli, "--rm", IMAGE, *command, runtime="runc")
    ours = run_in(cli, "--rm", IMAGE, *command)
    assert plain.code == ours.code != 0
    assert ours.out == plain.out
    assert neutral(ours.err) == neutral(plain.err)


def neutral(text: str) -> str:
    """Without ids, and without the runtime's name, which engines put before what it said.

    Docker's client says now and then that it waits no longer for what has not started.
    """
    text = re.sub(r"time=\S+ level=error msg=.error waiting for container: .*\n", "", text)
    text = re.sub(r"[0-9a-f]{12,64}", "ID", text)
    return re.sub(r"(/usr/(local/)?s?bin/)?\b(cima-runc|runc)\b", "RUNTIME", text)


def test_an_image_without_a_shell(cli: str, tmp_path: Path) -> None:
    program = tmp_path / "busybox"
    program.write_bytes(Path("/bin/busybox").read_bytes())
    program.chmod(0o755)
    archive = subprocess.check_output(["tar", "-C", tmp_path, "-c", "busybox"])
    guest.ok(cli, "import", "-", "no-shell", stdin=archive)
    done = run_in(cli, "--rm", "no-shell", "/busybox", "echo", "it works")
    assert done == Ran(0, "it works\n", done.err)


def test_out_of_memory(cli: str) -> None:
    limits = ["--memory=24m", "--memory-swap=24m", "--name=life"]
    for runtime in ("runc", "cima-runc"):
        command = run_command(cli, runtime, *limits, IMAGE, "/bin/busybox", "tail", "/dev/zero")
        guest.check_it_is_killed_for_memory(cli, command, "life")


def at_once(commands: list[list[str]]) -> None:
    """Start a container with each of these commands side by side: each ends, and is measured."""
    before = len(guest.ps())

    def run(command: list[str]) -> Ran:
        return guest.run(*command, "/bin/sh", "-c", "echo on; exit 9", timeout=900)

    with ThreadPoolExecutor(len(commands)) as pool:
        done = list(pool.map(run, commands))
    assert [(ran.code, ran.out) for ran in done] == [(9, "on\n")] * len(commands), done
    rows = guest.ps()[before:]
    assert len({row["id"] for row in rows}) == len(rows) == len(commands)


@pytest.mark.parametrize(
    "cli", [pytest.param("docker", marks=pytest.mark.debian()), CLIS[1]], indirect=True
)
def test_twenty_at_once(cli: str) -> None:
    at_once([run_command(cli, "cima-runc", "--rm", IMAGE)] * 20)


@ON_13
def test_ctr(image: str) -> None:
    before = len(guest.ps())
    command = guest.ctr("cima-runc", "life", "-d")
    command.remove("--rm")
    guest.ok(*command, "/bin/sh", "-c", "while :; do sleep 0.2; done")
    try:
        done = guest.run(
            "ctr", "task", "exec", "--exec-id=x", "life", "/bin/sh", "-c", "echo in; exit 3"
        )
        assert (done.code, done.out) == (3, "in\n")
        guest.ok("ctr", "task", "pause", "life")
        assert "PAUSED" in guest.ok("ctr", "task", "ls")
        guest.ok("ctr", "task", "resume", "life")
        assert "cpu" in guest.ok("ctr", "task", "metrics", "life").lower()
        guest.ok("ctr", "task", "kill", "--signal=SIGKILL", "life")
        guest.wait_for("it is dead", lambda: "STOPPED" in guest.ok("ctr", "task", "ls"))
    finally:
        guest.run("ctr", "task", "rm", "--force", "life")
        guest.run("ctr", "container", "rm", "life")
    assert len(guest.ps()) == before + 1


@ON_12
def test_ctr_with_a_terminal(image: str) -> None:
    command = [*guest.ctr("cima-runc", "terminal", "--tty"), "/bin/sh", "-c"]
    # script(1) is the terminal that ctr wants on its side.
    line = shlex.join([*command, "test -t 1 && echo it is one"])
    done = guest.run("script", "--quiet", "--return", "--command", line, "/dev/null")
    assert done.code == 0 and "it is one\r" in done.out, done


@pytest.mark.debian()
def test_ctr_with_twenty_at_once(image: str) -> None:
    at_once([guest.ctr("cima-runc", f"twenty-{number}") for number in range(20)])
