import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from unit.verifier.appraised import Box, image

from cima_runc.base.errors import CimaError
from cima_runc.cli import context, shapes
from cima_runc.cli.main import app
from cima_runc.cli.references import read_references, values_in
from cima_runc.ima.template import Func
from cima_runc.measure.oci_config import hidden_value
from cima_runc.ml.listing import boot_id
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.runtime.shim_settings import SETTINGS_FILE
from cima_runc.verifier.reference.file import (
    HostReference,
    format_reference,
    read_reference,
)
from cima_runc.verifier.values import ReferencesError

RUNC = b"\x11" * 32


def note(registration: int, name: str, relies_on: int | None) -> ContainerNote:
    return ContainerNote(
        kind="container" if relies_on else "dependencies",
        registration=registration,
        id=name,
        boot_id=boot_id(),
        mntns=1,
        cgroup="/",
        pid=1,
        start_ticks=1,
        bundle="/",
        slot=registration,
        started="now",
        state="stopped",
        dependencies=relies_on,
    )


class Host:
    """A host without an agent, with one stored container and what it relies on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = directory / "config.toml"
        state = directory / "state"
        self.settings.write_text(f'state_dir = "{state}"\nsocket = "{directory}/no.sock"\n')
        self.store = Store(state)
        self.store.prepare()
        self.box = Box.honest(image(directory))
        self.box.relies_on = 1
        self.reference = directory / "image.json"
        self.reference.write_bytes(format_reference(self.box.image))
        services = Partition("dependencies:1")
        runc = services.add_file(RUNC, b"/usr/sbin/runc", 1, Func.BPRM_CHECK, {})
        assert runc is not None
        self.store.create(note(1, "dependencies:1", None), bytes(32))
        self.store.append(1, [runc])

    def finish(self) -> None:
        self.box.register["registration"] = 2
        self.store.create(note(2, "box", 1), bytes(32))
        self.store.append(2, self.box.records())

    def cima(self, *arguments: str | Path) -> Result:
        words = ["--config", str(self.settings), *map(str, arguments)]
        done = CliRunner().invoke(app, words)
        if "--json" in words and isinstance(done.exception, SystemExit | None):
            shapes.check(tuple(words), done.stdout)
        return done


@pytest.fixture(name="host")
def _host(tmp_path: Path) -> Iterator[Host]:
    yield Host(tmp_path)
    context.choose(SETTINGS_FILE)


def test_values_of_the_environment_are_compared_by_who_may_read_the_secret(host: Host) -> None:
    own = {"env": ("NODE_OPTIONS",), "env_values": {"NODE_OPTIONS": "--require=/app/x.js"}}
    config = host.box.image.config.model_copy(update=own)
    of = host.box.image.model_copy(update={"config": config})
    host.reference.write_bytes(format_reference(of))
    other = hidden_value(bytes(32), "--require=/data/evil.js")
    host.box.config["process"]["env"].append(f"NODE_OPTIONS={other}")
    host.finish()
    ran = host.cima("appraise", "box", "--reference", host.reference)
    assert ran.exit_code == 1 and "has not the image's value" in ran.stdout
    suggested = ("policy", "suggest", "box", "--reference", host.reference)
    assert "env = ['NODE_OPTIONS']" in host.cima(*suggested).stdout
    (host.store.verdict_path(2).parent / "secret").unlink()
    ran = host.cima("appraise", "box", "--reference", host.reference)
    assert ran.exit_code == 0 and "its value is not compared" in ran.stdout
    assert "NODE_OPTIONS" not in host.cima(*suggested).stdout


def test_trusted(host: Host) -> None:
    host.finish()
    ran = host.cima("appraise", "box", "--reference", host.reference)
    assert ran.exit_code == 0
    assert ran.stdout.startswith("TRUSTED: container box\n")
    assert "warn dependencies.reference" in ran.stdout


def test_untrusted_says_where_what_and_what_next(host: Host) -> None:
    host.box.files.append((b"/tmp/x\x1b[2J", b"\x22" * 32, Func.BPRM_CHECK))
    host.finish()
    ran = host.cima("appraise", "b", "--reference", host.reference)
    assert ran.exit_code == 1
    assert ran.stdout.startswith("UNTRUSTED: container box\nfail file.added: ")
    assert "\x1b" not in ran.stdout
    for line in (
        "  path:     /tmp/x\\x1b[2J\n",
        f"  got:      {'22' * 32}",
        "  expected: no such file",
    ):
        assert line in ran.stdout
    assert "  next:     if it may run, in the policy: [[files]]" in ran.stdout


def test_readme_shows_what_it_prints(host: Host) -> None:
    """All but which file it was, and when."""
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    shown = readme.partition("    UNTRUSTED: container appraised-13\n")[2].partition("\n\n")[0]
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    assert len(lines) == 5 and lines[0].startswith("fail file.changed: ")
    host.box.files.append((b"/app/script", b"\x22" * 32, Func.BPRM_CHECK))
    host.finish()
    ran = host.cima("appraise", "box", "--reference", host.reference)
    printed = {unlike_each_run(line) for line in ran.stdout.splitlines()}
    assert {unlike_each_run(line) for line in lines} <= printed, ran.stdout


def unlike_each_run(line: str) -> str:
    """Without digests, numbers and the file's name."""
    return re.sub(r"[0-9a-f]{64}|\d+", "N", re.sub(r"/(bin|app)/script", "FILE", line))


def test_json(host: Host) -> None:
    host.box.config["linux"]["maskedPaths"] = []
    host.finish()
    ran = host.cima("appraise", "box", "--reference", host.reference, "--json")
    assert ran.exit_code == 1
    shown = json.loads(ran.stdout)
    assert (shown["verdict"], shown["container"]) == ("UNTRUSTED", "box")
    found = next(each for each in shown["findings"] if each["severity"] == "fail")
    assert found["rule"] == "config.privileged"
    assert found["expected"] == "not privileged"
    assert found["record"] == 1


def test_the_policy_counts(host: Host) -> None:
    host.box.config["process"]["args"] = ["/bin/sh"]
    host.finish()
    policy = host.directory / "p.toml"
    policy.write_text("[config]\nargs = [['/bin/sh']]\n")
    words = ("appraise", "box", "--reference", host.reference)
    assert host.cima(*words).exit_code == 1
    assert host.cima(*words, "--policy", policy).exit_code == 0


def test_what_cannot_be_appraised_ends_with_2(host: Host) -> None:
    host.finish()
    bad = host.directory / "bad.toml"
    bad.write_text("[files]\n")
    for words in (
        ("nobody", "--reference", host.reference),
        ("box", "--reference", host.directory / "none.json"),
        ("box", "--reference", host.reference, "--policy", bad),
    ):
        ran = host.cima("appraise", *words)
        assert isinstance(ran.exception, CimaError)
        assert ran.exception.exit_code == 2


def test_the_hosts_services(host: Host) -> None:
    host.finish()
    golden = host.directory / "host.json"
    ran = host.cima("reference", "host", "-o", golden)
    assert ran.exit_code == 0, ran.output
    reference = read_reference(golden)
    assert reference.files["/usr/sbin/runc"] == (RUNC.hex(),)
    policy = host.directory / "keylime.json"
    ran = host.cima("reference", "host", "--to-keylime", policy)
    assert json.loads(policy.read_bytes())["digests"]["/usr/sbin/runc"] == [RUNC.hex()]
    assert not ran.stdout
    ran = host.cima("reference", "host", "--from-keylime", policy)
    assert ran.stdout.encode() == golden.read_bytes()
    words = ("appraise", "box", "--reference", host.reference, "--reference", golden)
    ran = host.cima(*words)
    assert ran.exit_code == 0, ran.output

    golden.write_bytes(format_reference(HostReference(files={"/usr/sbin/runc": ("2" * 64,)})))
    ran = host.cima(*words)
    assert ran.exit_code == 1
    assert "fail dependency.changed: /usr/sbin/runc" in ran.stdout


def test_a_host_without_containers_has_no_golden_snapshot(tmp_path: Path) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text(f'state_dir = "{tmp_path}/state"\nsocket = "{tmp_path}/no.sock"\n')
    ran = CliRunner().invoke(app, ["--config", str(settings), "reference", "host"])
    context.choose(SETTINGS_FILE)
    assert isinstance(ran.exception, CimaError)
    assert "no container" in ran.exception.what


def test_one_image_and_one_host(host: Host) -> None:
    golden = host.directory / "host.json"
    golden.write_bytes(format_reference(HostReference(files={})))
    assert read_references([golden, host.reference]).host == HostReference(files={})
    for paths in ([], [golden], [host.reference, host.reference], [golden, golden]):
        with pytest.raises(ReferencesError):
            read_references(paths)


def test_the_identity_is_of_all_that_is_compared_with(host: Host) -> None:
    policy = host.directory / "p.toml"
    policy.write_text("")
    golden = host.directory / "host.json"
    golden.write_bytes(format_reference(HostReference(files={})))
    identities = {
        identity([host.reference], None),
        identity([host.reference], policy),
        identity([host.reference, golden], None),
    }
    assert identity([golden, host.reference], None) in identities
    policy.write_text("allow_lost = true")
    identities.add(identity([host.reference], policy))
    assert len(identities) == 4


def identity(paths: list[Path], policy: Path | None) -> bytes:
    found = values_in(paths, policy).appraisal
    assert found is not None
    return found.identity


def test_what_is_parsed_is_what_is_hashed(host: Host) -> None:
    """Finding 11. Kind: a file that is read twice may be another the second time, or nothing, as a
    pipe is."""
    read, write = os.pipe()
    os.write(write, host.reference.read_bytes())
    os.close(write)
    found = values_in([Path(f"/dev/fd/{read}")], None)
    os.close(read)
    by_file = values_in([host.reference], None)
    assert found.sources == by_file.sources
    assert found.appraisal is not None
    assert by_file.appraisal is not None
    assert found.appraisal.identity == by_file.appraisal.identity
    digest = hashlib.sha256(host.reference.read_bytes()).digest()
    assert digest in {source.sha256 for source in found.sources}


def listed(host: Host) -> dict[str, Any]:
    [row] = json.loads(host.cima("ps", "--all", "--json").stdout)
    return dict(row)


def test_ps_shows_the_last_verdict_and_of_how_much_it_was(host: Host) -> None:
    host.finish()
    assert listed(host)["verdict"] is None
    assert "VERDICT" not in host.cima("ps", "--all").stdout
    host.cima("appraise", "box", "--reference", host.reference)
    kept = listed(host)["verdict"]
    count = listed(host)["count"]
    assert (kept["verdict"], kept["records"]) == ("TRUSTED", count)
    digests = {source["kind"]: source["sha256"] for source in kept["sources"]}
    assert digests["image"] == hashlib.sha256(host.reference.read_bytes()).hexdigest()
    assert digests.keys() == {"image", "policy"}
    # What comes later is not what was looked at.
    box = Partition.restore("box", host.store.records(2))
    added = box.add_file(b"\x22" * 32, b"/tmp/x", 1, Func.BPRM_CHECK, {})
    assert added is not None
    host.store.append(2, [added])
    assert (listed(host)["verdict"]["records"], listed(host)["count"]) == (count, count + 1)
    assert f"TRUSTED, of {count}" in host.cima("ps", "--all").stdout
    host.cima("appraise", "box", "--reference", host.reference)
    assert listed(host)["verdict"]["verdict"] == "UNTRUSTED"
    host.store.create(note(3, "other", 1), bytes(32))
    [of_other] = [
        line for line in host.cima("ps", "--all").stdout.splitlines() if line.startswith("other")
    ]
    assert of_other.split()[3] == "-"


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 100_000, b"x" * (1 << 20)])
def test_a_verdict_that_cannot_be_read_is_none(host: Host, raw: bytes) -> None:
    host.finish()
    host.store.verdict_path(2).write_bytes(raw)
    assert listed(host)["verdict"] is None


def test_what_is_appraised_of_another_registration_leaves_this_one_alone(host: Host) -> None:
    host.finish()
    host.store.create(note(3, "other", 1), bytes(32))
    host.cima("appraise", "box", "--reference", host.reference)
    assert not host.store.verdict_path(3).exists()
