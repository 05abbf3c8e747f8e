"""A host with Docker from the .deb alone: installed, upgraded under a container.

Nothing of this checkout but packages is in the guest, whose tests import nothing of it either.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE
from tests.vm.packages import picture

# The package's scripts are the same for each release; what differs is what it depends on.
pytestmark = pytest.mark.debian("13")

PACKAGES = Path("/root/packages")
REMEMBERED = Path("/root/before.json")
DAEMON = Path("/etc/docker/daemon.json")
SETTINGS = Path("/etc/cima/config.toml")
USERS = ("passwd", "group", "shadow", "gshadow")
ENGINES = ("docker", "containerd", "podman")

NEW_PROGRAM_EACH_SECOND = """
n=0
until [ -e /stop ]; do
    cp /bin/busybox /tool$n; echo $n >>/tool$n; /tool$n true
    n=$((n+1)); sleep 1
done
echo $n
"""


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
    assert (code, wrong(found)) == (0, {})
    assert found.keys() >= {"ima", "own code", "sensor", "tpm", "agent", *ENGINES}


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
    container_id = run_measured("/bin/sh", "-c", NEW_PROGRAM_EACH_SECOND)
    agent = guest.agent_pid()

    ran = dpkg("--install", deb("later"))

    assert ran.code == 0, ran.err
    assert "reboot" not in ran.err
    assert guest.ok("cima", "version") == "cima-runc 99.0\n"
    assert guest.agent_pid() not in (agent, 0)
    code, found = doctor()
    assert (code, wrong(found)) == (0, {})
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


@pytest.mark.boot(2)
def test_it_is_not_removed_from_under_a_container_that_runs() -> None:
    container_id = run_measured("/bin/sleep", "10000")

    ran = dpkg("--remove", "cima-runc")

    assert ran.code != 0
    assert container_id[:12] in ran.err and "stop" in ran.err
    assert guest.row(container_id)["state"] == "running"
    guest.ok("docker", "rm", "-f", container_id)
