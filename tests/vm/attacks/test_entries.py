"""Processes that enter a container from outside, with the container's own rights, and with more."""

import pytest

from tests.vm import guest
from tests.vm.attacks import container

pytestmark = pytest.mark.debian()  # every attack takes minutes a release: --everything

SLEEP = ("/bin/busybox", "sleep", "1000")
HONEST = ("/bin/attacks", "honest")


@pytest.fixture(scope="module")
def image() -> None:
    container.make_image()


def started(image: None) -> str:
    return guest.ok(*guest.docker("cima-runc", "-d", container.IMAGE, *SLEEP)).strip()


ENTRIES = {
    "docker exec": (("docker", "exec", "{id}", *HONEST), False),
    "docker exec --privileged": (("docker", "exec", "--privileged", "{id}", *HONEST), True),
    "nsenter": (("nsenter", "--target", "{pid}", "--mount", "--root", *HONEST), True),
    "nsenter, all namespaces": (("nsenter", "--target", "{pid}", "--all", *HONEST), True),
}


@pytest.mark.parametrize("entry", list(ENTRIES))
def test_an_entry_with_more_rights_is_seen(image: None, entry: str) -> None:
    command, has_more = ENTRIES[entry]
    name = started(image)
    try:
        pid = guest.ok("docker", "inspect", "-f", "{{.State.Pid}}", name).strip()
        said = guest.ok(*(word.format(id=name, pid=pid) for word in command))
        assert said.count("ran: good") == 3, said
        found = container.evidence(name, said)
        verdict, findings = container.appraised(name)
    finally:
        guest.ok("docker", "rm", "-f", name)
    assert ("entry" in found) == has_more, found
    assert verdict == ("UNTRUSTED" if has_more else "TRUSTED"), findings


@pytest.mark.parametrize("command", ["honest", "execmem anonymous"])
def test_an_entry_out_of_another_container_is_in_both_logs(image: None, command: str) -> None:
    """It has the other one's mark, as has all that an engine in a container starts."""
    name = started(image)
    try:
        pid = guest.ok("docker", "inspect", "-f", "{{.State.Pid}}", name).strip()
        rights = ("--privileged", "--pid=host", "--name=entering")
        inside = ("/bin/attacks", *command.split())
        enters = ("/bin/busybox", "nsenter", "-t", pid, "-m", *inside)
        said = guest.ok(*guest.docker("cima-runc", *rights, container.IMAGE, *enters))
        other = guest.ok("docker", "inspect", "-f", "{{.Id}}", "entering").strip()
        found = {each: container.evidence(each, said) for each in (name, other)}
        verdict, findings = container.appraised(name)
    finally:
        guest.run("docker", "rm", "-f", name, "entering")
    assert "entry" in found[name], found
    assert verdict == "UNTRUSTED", findings
    if command != "honest":
        assert "execmem" in found[name] & found[other], found
