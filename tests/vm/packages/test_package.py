"""A host with Docker from the .deb alone: installed, upgraded under a container, removed, purged.

Nothing of this checkout but packages is in the guest, whose tests import nothing of it either.
"""

import ctypes
import hashlib
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE
from tests.vm.packages import picture

pytestmark = pytest.mark.debian("13")

PACKAGES = Path("/root/packages")
REMEMBERED = Path("/root/before.json")
REMEMBERED_LOG = Path("/root/log.json")
BACKUP = Path("/root/cima-backup.tar.gz")
HOW_TO = Path(__file__).resolve().parents[3] / "docs/how-to"
BACK_UP = HOW_TO / "back-up.md"
REMOVE = HOW_TO / "remove.md"
DAEMON = Path("/etc/docker/daemon.json")
SETTINGS = Path("/etc/cima/config.toml")
USERS = ("passwd", "group", "shadow", "gshadow")
ENGINES = ("docker", "containerd", "podman")


def deb(which: str) -> Path:
    [found] = (PACKAGES / which).glob("*.deb")
    return found


def dpkg(*words: str | Path) -> guest.Ran:
    command = ("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *words)
    return guest.run(*command, timeout=900)


def before() -> picture.Picture:
    remembered: picture.Picture = json.loads(REMEMBERED.read_text())
    return remembered


def differences(*but: str) -> str:
    """What differs from before the installation, and does not name any of these."""
    found = picture.differences(before(), picture.take())
    return "\n".join(line for line in found if not any(word in line for word in but))


def doctor() -> tuple[int, dict[str, str]]:
    ran = guest.run("cima", "doctor", "--json", timeout=600)
    return ran.code, {
        each["check"]: f"{each['state']} {each['what']} {each['next']}"
        for each in json.loads(ran.out)
    }


def wrong(found: dict[str, str]) -> dict[str, str]:
    return {check: told for check, told in found.items() if not told.startswith("ok")}


def configure_engines() -> None:
    for engine in ENGINES:
        guest.ok("cima", "configure", engine)
    guest.ok("systemctl", "restart", "containerd", "docker")


def keep_clock_right() -> None:
    """Tell the kernel what an NTP daemon tells it: the clock is right (ADJ_STATUS, ADJ_MAXERROR).

    A guest's clock is its host's.
    """
    timex = ctypes.create_string_buffer(208)
    struct.pack_into("I", timex, 0, 0x0010 | 0x0004)
    assert ctypes.CDLL(None).adjtimex(timex) >= 0


def run_measured(*command: str) -> str:
    return guest.ok(*guest.docker("cima-runc", "-d", IMAGE, *command)).strip()


def log_of(container_id: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in guest.ok("cima", "log", container_id, "--json").splitlines()
    ]


@pytest.mark.boot(1)
def test_it_is_installed_where_nothing_can_be_compiled() -> None:
    for tool in ("gcc", "cc", "clang", "make", "pip", "pip3", "cima"):
        assert shutil.which(tool) is None
    # As an administrator may have written it: put back byte for byte later.
    DAEMON.parent.mkdir(exist_ok=True)
    DAEMON.write_text('{\n   "log-driver" : "json-file",\n\t"debug":false }')
    REMEMBERED.write_text(json.dumps(picture.take()))

    ran = dpkg("--install", deb("now"))

    assert ran.code == 0, ran.err
    assert "reboot" in ran.err.splitlines()[-1] and "cima doctor" in ran.err
    assert guest.ok("cima", "version").startswith("cima-runc ")
    # What is there and what is not: said, and no traceback.
    code, found = doctor()
    assert code == 2
    assert {"ima", "agent"} <= wrong(found).keys(), found
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text(guest.Settings.patience)


@pytest.mark.boot(2)
def test_after_a_reboot_doctor_is_green() -> None:
    configure_engines()
    code, found = doctor()
    # Nothing keeps a guest's clock right.
    assert (code, wrong(found).keys() - {"clock"}) == (0, set())
    assert found.keys() >= {"own files", "ima", "ima policy", "own code", "sensor", "tpm", "agent"}
    assert found.keys() >= set(ENGINES)


@pytest.mark.debian()
@pytest.mark.boot(2)
def test_a_clock_that_is_kept_right() -> None:
    keep_clock_right()
    code, found = doctor()
    assert (code, wrong(found)) == (0, {})
    assert all("calls /usr/lib/cima-runc/bin/cima-runc for" in found[each] for each in ENGINES)
    assert all("cgroup driver systemd, v2" in found[each] for each in ("docker", "podman"))


@pytest.mark.debian()
@pytest.mark.boot(2)
def test_doctor_sees_every_file_of_ours() -> None:
    """What pip as root leaves in the environment, and what somebody edited."""
    [packages] = Path("/usr/lib/cima-runc/lib").glob("python3*/site-packages")
    module = packages / "cima_runc/fleet/metrics.py"
    [byte_code] = (module.parent / "__pycache__").glob("metrics.*.pyc")
    added = packages / "another.py"
    kept = {path: path.read_bytes() for path in (module, byte_code)}
    module.write_bytes(kept[module] + b"\n")
    byte_code.write_bytes(kept[byte_code][:-1] + bytes([kept[byte_code][-1] ^ 1]))
    code, found = doctor()
    assert code == 2
    assert "not what was installed" in found["own files"]
    assert str(module) in found["own files"] and str(byte_code) in found["own files"]
    for path, data in kept.items():
        path.write_bytes(data)
    added.write_bytes(b"")
    code, found = doctor()
    assert code == 2
    assert "not the user's" in found["own files"] and str(added) in found["own files"]
    added.unlink()
    assert not wrong(doctor()[1])


@pytest.mark.boot(2)
def test_it_needs_what_its_package_says_and_no_more() -> None:
    """Every library that a compiled part is linked with is of a package that is depended on."""
    of_ours = Path("/usr/lib/cima-runc").rglob("*.so*")
    parts = [str(part) for part in of_ours if re.search(r"\.so[.0-9]*$", part.name)]
    lines = [line.split() for part in parts for line in guest.ok("ldd", part).splitlines()]
    assert parts and not [words for words in lines if "found" in words]
    linked = {words[2] for words in lines if len(words) > 2 and words[2].startswith("/")}
    allowed, more = set(), {"cima-runc"}
    while more:
        allowed |= more
        more = (depends(*more) & installed()) - allowed
    owners = {owner(Path(library)) for library in linked - set(parts)}
    assert owners
    assert owners - allowed == set()


def depends(*packages: str) -> set[str]:
    form = "${Pre-Depends}, ${Depends}, "
    shown = guest.ok("dpkg-query", "--show", "--showformat", form, *sorted(packages))
    groups = [group for group in shown.split(",") if group.strip()]
    return {each.split()[0].split(":")[0] for group in groups for each in group.split("|")}


def owner(library: Path) -> str:
    """The package that a library is of, by its path before directories were merged or after."""
    real = library.resolve()
    for name in (str(real), f"*/{real.name}"):
        ran = guest.run("dpkg-query", "--search", name)
        if ran.code == 0:
            return ran.out.split(":")[0]
    raise AssertionError(f"{library} is of no package")


def installed() -> set[str]:
    shown = guest.ok("dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n")
    return {line.split()[0] for line in shown.splitlines() if line.endswith(" installed")}


@pytest.mark.boot(2)
def test_an_upgrade_loses_nothing_of_a_container_that_runs() -> None:
    guest.load_image()
    container_id = run_measured("/bin/sh", "-c", guest.NEW_PROGRAM_EACH_SECOND)
    agent = guest.agent_pid()

    ran = dpkg("--install", deb("later"))

    assert ran.code == 0, ran.err
    assert "reboot" not in ran.err
    assert guest.ok("cima", "version") == "cima-runc 99.0\n"
    assert guest.agent_pid() not in (agent, 0)
    code, found = doctor()
    assert (code, wrong(found).keys() - {"clock"}) == (0, set())
    guest.ok("docker", "exec", container_id, "/bin/sh", "-c", "echo >/stop")
    assert guest.ok("docker", "wait", container_id) == "0\n"
    count = int(guest.ok("docker", "logs", container_id))
    records = log_of(container_id)
    busybox = Path("/bin/busybox").read_bytes()
    ran_there = {
        b"/tool%d" % n: hashlib.sha256(busybox + b"%d\n" % n).hexdigest() for n in range(count)
    }
    measured = {file.path: file.digest for file in guest.files(records) if b"/tool" in file.path}
    assert measured == ran_there
    assert [record["recnum"] for record in records] == list(range(len(records)))
    assert not {"lost", "violation"} & set(guest.types(records))
    status = guest.status()
    assert status["pcr_value"] == status["expected_value"] and not status["trouble"]
    guest.ok("docker", "rm", container_id)
    REMEMBERED_LOG.write_text(json.dumps([container_id, log_of(container_id)]))


@pytest.mark.debian()
@pytest.mark.boot(2)
def test_the_state_is_backed_up() -> None:
    back_up, _ = commands(BACK_UP)
    guest.ok("sh", "-euc", f"cd {BACKUP.parent}; {back_up}")
    assert BACKUP.stat().st_mode & 0o077 == 0
    assert guest.agent_pid()


def commands(page: Path) -> list[str]:
    """Each block of commands of a page."""
    return [block.partition("```")[0] for block in page.read_text().split("```sh\n")[1:]]


@pytest.mark.boot(2)
def test_it_is_not_removed_from_under_a_container_that_runs() -> None:
    named = ("--name", "web", IMAGE)
    container_id = guest.ok(*guest.docker("cima-runc", "-d", *named, "/bin/sleep", "10000")).strip()

    ran = dpkg("--remove", "cima-runc")

    assert ran.code != 0
    # What the page on removal shows.
    shown = REMOVE.read_text().partition("```text\n")[2].partition("```")[0]
    assert shown.replace("3fd2c1b79a04", container_id[:12]) in ran.err
    assert guest.row(container_id)["state"] == "running"
    guest.ok("docker", "rm", "-f", container_id)


@pytest.mark.debian()
@pytest.mark.boot(2)
def test_removed_it_leaves_records_and_settings_alone() -> None:
    ran = dpkg("--remove", "cima-runc")
    assert ran.code == 0, ran.err
    assert DAEMON.read_text() == '{\n   "log-driver" : "json-file",\n\t"debug":false }'
    user = ("users: + cima:", "groups: + cima:", *(f"/etc/{name} " for name in USERS))
    # Until it is purged dpkg knows what to do then, and systemd's helper which units were enabled.
    of_dpkg = ("of dpkg: ", "answers: ", "packages: ", ".wants/cima-agent.")
    assert differences("/var/lib/cima", "/etc/cima", *user, *of_dpkg) == ""
    assert SETTINGS.exists() and list(Path("/var/lib/cima").iterdir())
    guest.ok("systemctl", "restart", "docker")
    assert guest.ok(*guest.docker("runc", "--rm", IMAGE, "/bin/echo", "goes on")) == "goes on\n"


@pytest.mark.debian()
@pytest.mark.boot(2)
def test_purged_it_leaves_nothing() -> None:
    ran = dpkg("--purge", "cima-runc")
    assert ran.code == 0, ran.err
    assert differences() == ""


@pytest.mark.debian()
@pytest.mark.boot(2)
def test_the_bundle_does_the_same_without_a_package_manager() -> None:
    [bundle] = (PACKAGES / "now").glob("*.tar.gz")
    place = Path("/root/unpacked")
    place.mkdir()
    guest.ok("tar", "-xf", bundle, "-C", place)
    SETTINGS.parent.mkdir()
    SETTINGS.write_text(guest.Settings.patience)
    done = guest.ok(place / "install.sh", bundle, timeout=1200)
    assert "reboot" in done.lower()
    # The kernel has the policy since this boot began, for the same user and file system; nobody can
    # see that it is what was written into the file just now.
    guest.ok("systemctl", "start", "cima-agent.socket", "cima-agent")
    configure_engines()
    code, found = doctor()
    assert (code, wrong(found).keys() - {"clock"}) == (0, {"ima policy"})
    assert "reboot" in found["ima policy"]
    container_id = run_measured("/bin/script")
    guest.ok("docker", "wait", container_id)
    assert b"/bin/script" in {file.path for file in guest.files(log_of(container_id))}
    guest.ok("docker", "rm", container_id)
    look_at_what_was_restored()
    guest.ok(place / "install.sh", "--uninstall", "--purge", timeout=600)
    shutil.rmtree(place)
    assert differences() == ""


def look_at_what_was_restored() -> None:
    """What was backed up before the purge is readable in this installation; nothing is proved."""
    container_id, records = json.loads(REMEMBERED_LOG.read_text())
    assert guest.run("cima", "log", container_id).code == 2
    _, restore = commands(BACK_UP)
    guest.ok("sh", "-euc", f"cd {BACKUP.parent}; {restore}")
    assert log_of(container_id) == records
    assert container_id in {
        row["id"] for row in json.loads(guest.ok("cima", "ps", "--all", "--json"))
    }
    # The TPM knows of more than the journal from before.
    assert guest.status()["foreign_extends"] > 0
    shutil.rmtree("/var/lib/cima.before")
