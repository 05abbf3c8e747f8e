"""The agent down, restarted, lied to, and overwhelmed."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cima_runc.base import limits
from tests.vm import guest
from tests.vm.guest import IMAGE, Settings

HOOKS = Path("/opt/cima/libexec/cima/hooks")


NOT_OF_THE_KERNEL = pytest.mark.debian("12", "13")
"""What the agent does by itself, whatever the kernel and engines: two releases are enough."""


@pytest.fixture
def no_agent() -> Iterator[None]:
    guest.ok("systemctl", "stop", "cima-agent.socket", "cima-agent.service")
    yield
    guest.ok("systemctl", "start", "cima-agent")


def test_without_the_agent_no_container_starts(image: str, no_agent: None) -> None:
    ran = guest.run(*guest.docker("cima-runc", "--rm", IMAGE, "/bin/echo", "it ran"))
    assert ran.code == 125
    assert "it ran" not in ran.out
    assert "cima-agent is not running" in ran.err
    assert "systemctl start cima-agent" in ran.err
    ran = guest.run(*guest.podman("cima-runc", "--rm", IMAGE, "/bin/echo", "it ran"))
    assert ran.code != 0
    assert "it ran" not in ran.out
    assert "systemctl start cima-agent" in ran.err


@NOT_OF_THE_KERNEL
def test_allowed_without_the_agent_it_is_noted_as_unmeasured(image: str, no_agent: None) -> None:
    with Settings('on_agent_unavailable = "allow"\n'):
        name = f"--name=unmeasured-{os.getpid()}"
        out = guest.ok(*guest.docker("cima-runc", name, IMAGE, "/bin/echo", "it ran"))
    assert out == "it ran\n"
    container_id = guest.ok("docker", "inspect", "-f", "{{.Id}}", name.split("=")[1]).strip()
    stored = json.loads(guest.ok("cima", "ps", "--json"))
    for listed in (stored, ps_after_start()):
        row = next(row for row in listed if row["id"] == container_id)
        assert row["state"] == "unmeasured"
        assert row["cpcr"] is None
    logged = guest.ok("journalctl", "-t", "cima-runc", "--no-pager")
    assert "started unmeasured" in logged
    assert container_id[:12] in guest.ok("cima", "ps")
    assert "unmeasured" in guest.ok("cima", "ps")


def ps_after_start() -> list[dict[str, object]]:
    guest.ok("systemctl", "start", "cima-agent")
    return guest.ps()


def test_a_restarted_agent_goes_on_without_a_gap(image: str) -> None:
    command = guest.docker("cima-runc", "-d", IMAGE, "/bin/sleep", "600")
    container_id = guest.ok(*command).strip()
    before = guest.row(container_id)
    os.kill(guest.agent_pid(), signal.SIGKILL)
    guest.ok("docker", "exec", container_id, "/bin/script")
    records = guest.records(container_id)
    assert "lost" not in guest.types(records)
    assert b"/bin/script" in {file.path for file in guest.files(records)}
    after = guest.row(container_id)
    assert after["registration"] == before["registration"]
    assert after["state"] == "running"
    guest.ok("docker", "rm", "-f", container_id)
    assert guest.row(container_id)["state"] == "stopped"
    status = guest.status()
    assert status["pcr_value"] == status["expected_value"]
    assert (status["lost"], status["sensor"]["orphans"]) == (0, 0)


ESCAPES = """
unshare -m sh -c 'echo $$ >/sys/fs/cgroup/cgroup.procs; echo out $$
exec >/dev/null 2>&1  # which Docker waits for
until [ -e /proc/1/root/run/escaped ]; do sleep 0.2; done; /bin/script; sleep 600' &
wait
"""
"""On the host's process numbers; then out of the container's mount namespace and cgroup."""


@pytest.fixture
def escaped(image: str) -> Iterator[tuple[str, int]]:
    """A container, and what has left all that is the container's but the sensor's mark."""
    options = ("--pid=host", "--cgroupns=host", "--privileged", "-d")
    command = guest.docker("cima-runc", *options, IMAGE, "/bin/sh", "-c", ESCAPES)
    container = guest.ok(*command).strip()
    told = guest.wait_for("it to be out", lambda: guest.ok("docker", "logs", container).split())
    yield container, int(told[1])
    with suppress(ProcessLookupError):
        os.kill(int(told[1]), signal.SIGKILL)
    Path("/run/escaped").unlink(missing_ok=True)
    guest.ok("docker", "rm", "-f", container)


# Of the kernel it takes marks that are looked up by pidfd: the oldest and the newest.
@pytest.mark.debian("12", "forky")
def test_containers_that_end_while_no_agent_runs_are_recorded_to_their_ends(
    image: str, escaped: tuple[str, int]
) -> None:
    waits = "until [ -e /tmp/go ]; do sleep 0.2; done; /bin/script"
    command = guest.docker("cima-runc", "-d", IMAGE, "/bin/sh", "-c", waits)
    container_id = guest.ok(*command).strip()
    pid = guest.row(container_id)["pid"]
    goes_on, survivor = escaped
    first = guest.row(goes_on)["pid"]
    guest.ok("systemctl", "stop", "cima-agent.socket", "cima-agent.service")
    try:
        guest.ok("docker", "exec", container_id, "/bin/busybox", "touch", "/tmp/go")
        os.kill(first, signal.SIGKILL)
        guest.wait_for("its end", lambda: not Path(f"/proc/{pid}").exists())
        # Docker has deleted it too, or the agent would be told that later.
        state = ("docker", "inspect", "-f", "{{.State.Running}}", goes_on)
        guest.wait_for("its deletion", lambda: guest.ok(*state) == "false\n")
    finally:
        guest.ok("systemctl", "start", "cima-agent")
    records = guest.records(container_id)
    assert guest.types(records)[-1] == "exit"
    assert "lost" not in guest.types(records)
    assert b"/bin/script" in {file.path for file in guest.files(records)}
    guest.ok("docker", "rm", container_id)
    # Of the other one a process goes on, and what that does is recorded.
    assert guest.row(goes_on)["state"] != "stopped"
    assert b"/bin/script" not in executed(goes_on)
    Path("/run/escaped").touch()
    guest.wait_for("what it runs", lambda: b"/bin/script" in executed(goes_on))
    os.kill(survivor, signal.SIGKILL)
    guest.wait_for("its end", lambda: guest.row(goes_on)["state"] == "stopped")
    assert "lost" not in guest.types(guest.records(goes_on))
    status = guest.status()
    assert status["pcr_value"] == status["expected_value"]
    assert status["sensor"]["orphans"] == 0


def executed(container: str) -> set[bytes]:
    return {file.path for file in guest.files(guest.records(container))}


def test_a_container_waits_for_an_agent_that_is_started_anew(image: str) -> None:
    os.kill(guest.agent_pid(), signal.SIGKILL)
    out = guest.ok(*guest.docker("cima-runc", "--rm", IMAGE, "/bin/echo", "it ran"))
    assert out == "it ran\n"


@pytest.fixture
def short_watchdog() -> Iterator[None]:
    """Systemd waits 30 seconds for the agent's word, not 60."""
    settings = Path("/run/systemd/system/cima-agent.service.d/watchdog.conf")
    settings.parent.mkdir(parents=True)
    settings.write_text("[Service]\nWatchdogSec=30\n")
    guest.ok("systemctl", "daemon-reload")
    guest.restart_agent()
    yield
    settings.unlink()
    settings.parent.rmdir()
    guest.ok("systemctl", "daemon-reload")
    guest.restart_agent()


@pytest.mark.debian("13")
def test_an_agent_that_hangs_is_started_anew_by_systemd(image: str, short_watchdog: None) -> None:
    command = guest.docker("cima-runc", "-d", IMAGE, "/bin/sleep", "600")
    container_id = guest.ok(*command).strip()
    hanging = guest.agent_pid()
    os.kill(hanging, signal.SIGSTOP)
    guest.wait_for("another agent", lambda: guest.agent_pid() not in (hanging, 0), seconds=240)
    guest.ok("docker", "exec", container_id, "/bin/script")
    records = guest.records(container_id)
    assert "lost" not in guest.types(records)
    assert b"/bin/script" in {file.path for file in guest.files(records)}
    guest.ok("docker", "rm", "-f", container_id)


@NOT_OF_THE_KERNEL
def test_a_second_agent_is_refused() -> None:
    second = guest.run("cima-agent")
    assert second.code == 2
    assert second.err == "ERROR another agent uses /var/lib/cima; stop it first\n"
    assert guest.status()["sensor"] != "missing"


# -- hooks that lie -------------------------------------------------------------------------------


def call_prestart(state: str | bytes) -> guest.Ran:
    return guest.run(HOOKS / "prestart", stdin=state)


@pytest.fixture(scope="module")
def bystander(image: str) -> Iterator[str]:
    """A container that must not be touched by what hooks say about others."""
    container_id = guest.ok(*guest.docker("cima-runc", "-d", IMAGE, "/bin/sleep", "600")).strip()
    yield container_id
    guest.ok("docker", "rm", "-f", container_id)


def state_of(pid: int, container_id: str, bundle: str) -> str:
    return json.dumps(
        {
            "ociVersion": "1.0.2",
            "id": container_id,
            "pid": pid,
            "status": "creating",
            "bundle": bundle,
        }
    )


@NOT_OF_THE_KERNEL
def test_hooks_that_lie_are_refused(bystander: str, tmp_path: Path) -> None:
    bundle = str(guest.make_bundle(tmp_path / "bundle", "/bin/true"))
    gone = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(gone, 0)
    of_bystander = guest.row(bystander)["pid"]
    lies = {
        "is not JSON": "{",
        "more than": b'{"id":"' + b"x" * limits.HOOK_STATE + b'"}',
        "is not a JSON object": "[]",
        "id": json.dumps({"pid": 1, "bundle": bundle}),
        "pid": json.dumps({"id": "a", "pid": "1", "bundle": bundle}),
        "names no process": state_of(0, "a", bundle),
        "is gone": state_of(gone, "a", bundle),
        "host's mount namespace": state_of(os.getpid(), "a", bundle),
        "letters, digits": state_of(of_bystander, "a/../b", bundle),
        "not this container's": state_of(of_bystander, "a", bundle),
        "cannot be looked at": state_of(of_bystander, "a", "/nowhere"),
        "not an absolute path": state_of(of_bystander, "a", "bundle"),
    }
    before = guest.ps()
    stored = sorted(os.listdir(guest.STATE / "containers"))
    for reason, state in lies.items():
        ran = call_prestart(state)
        assert ran.code != 0, reason
        assert reason in ran.err
        assert len(ran.err.splitlines()) == 1
    assert guest.ps() == before
    assert sorted(os.listdir(guest.STATE / "containers")) == stored
    guest.ok("docker", "exec", bystander, "/bin/script")
    files = {file.path for file in guest.files(guest.records(bystander))}
    assert b"/bin/script" in files


# -- events that find no room ---------------------------------------------------------------------


def test_dropped_events_are_a_lost_record(image: str, agent_restarted_after: None) -> None:
    programs, depth = 400, 15
    with Settings("[sensor]\nring_mib = 1\n"):
        guest.restart_agent()
    container_id = guest.ok(*guest.docker("cima-runc", "-d", IMAGE, "/bin/sleep", "600")).strip()
    # Long paths fill the buffer with few events: 15 directories of 250 bytes.
    directory = "d" * 250
    make = f"cd /; i=0; while [ $i -lt {depth} ]; do mkdir {directory}; cd {directory}; "
    make += f"i=$((i+1)); done; i=0; while [ $i -lt {programs} ]; do ln /bin/busybox busybox$i; "
    make += "i=$((i+1)); done"
    enter = f"cd /; i=0; while [ $i -lt {depth} ]; do cd {directory}; i=$((i+1)); done; "
    execute = enter + "for p in busybox*; do ./$p true; done"
    guest.ok("docker", "exec", container_id, "/bin/sh", "-c", make)
    guest.ok("systemctl", "service-watchdogs", "no")
    os.kill(guest.agent_pid(), signal.SIGSTOP)
    try:
        guest.ok("docker", "exec", container_id, "/bin/sh", "-c", execute)
    finally:
        os.kill(guest.agent_pid(), signal.SIGCONT)
        guest.ok("systemctl", "service-watchdogs", "yes")
    records = guest.records(container_id)
    lost = guest.contents(records, "lost")
    arrived = [
        f
        for f in guest.files(records)
        if f.path.rpartition(b"/")[2].startswith(b"busybox") and len(f.path) > 1000
    ]
    assert lost
    assert all(content["count"] > 0 for content in lost)
    # Executing is one event, the mapping of the same file by the loader another, if not told apart.
    assert programs - len(arrived) <= sum(content["count"] for content in lost)
    assert len(arrived) < programs
    # A run of a program that the kernel skipped counts for everybody.
    everywhere = [
        content["count"]
        for row in guest.ps()
        if row["state"] != "unmeasured"
        for content in guest.contents(guest.records(row["id"]), "lost")
    ]
    assert guest.status()["lost"] == sum(everywhere)
    guest.ok("docker", "rm", "-f", container_id)


@NOT_OF_THE_KERNEL
def test_the_journal_has_priorities_and_fields(image: str) -> None:
    row = guest.with_docker_once()
    guest.wait_for("its end", lambda: guest.row(row["id"])["state"] == "stopped")
    for event in ("container-registered", "container-ended"):
        asked = (f"EVENT={event}", f"CONTAINER={row['id']}", "-o", "json")
        [line] = guest.ok("journalctl", "-u", "cima-agent", "--no-pager", *asked).splitlines()
        entry = json.loads(line)
        assert entry["PRIORITY"] == "6"
        assert entry["REGISTRATION"] == str(row["registration"])
    # Somebody's typing mistake is none of the administrator's business.
    warnings = ("journalctl", "-u", "cima-agent", "-p", "warning", "--no-pager", "-o", "cat")
    before = guest.ok(*warnings)
    assert guest.run("cima", "log", "no-such-container").code == 2
    assert guest.ok(*warnings) == before


def test_the_doctor_finds_a_measuring_host_fit() -> None:
    ran = guest.run("cima", "doctor", "--json")
    found = {one["check"]: one for one in json.loads(ran.out)}
    wrong = {check: one["what"] for check, one in found.items() if one["state"] != "ok"}
    # Nothing keeps a guest's clock right, a software TPM may have no certificate, and other tests
    # install anew and edit settings of engines; tests/vm/packages has a host of its own.
    others = {"clock", "tpm certificate", "ima policy", "containerd", "podman"}
    assert wrong.keys() <= others, "\n".join(map(str, wrong.items()))
    assert ran.code == 0
    assert {"own files", "ima", "own code", "disk", "sensor", "tpm", "agent"} <= found.keys()
    assert others - {"tpm certificate"} <= found.keys()
    assert "cgroup driver systemd, v2" in found["docker"]["what"]
