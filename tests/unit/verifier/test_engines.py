"""What engines really write for a container, recorded, against the rules that know it by heart."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cima_runc.ml.records import Record, parse_line
from cima_runc.verifier.appraisal import Appraised, References, appraise
from cima_runc.verifier.errors import Verdict
from cima_runc.verifier.policy import Policy
from cima_runc.verifier.reference.file import ImageReference, parse_reference

RECORDED = Path(__file__).parents[2] / "fixtures" / "engines"

FAILED = {
    "privileged": {"config.privileged", "config.capabilities"},
    "host": {"config.namespace"},
    "mount": {"config.mount"},
}
"""What is wrong with a container by the case that it was recorded for; nothing with all others."""


def runs() -> Iterator[Any]:
    for path in sorted(RECORDED.glob("*/*.jsonl")):
        yield pytest.param(path, id=f"{path.parent.name}-{path.stem}")


RUNS = list(runs())
HONEST = [run for run in RUNS if run.values[0].stem.partition("-")[2] not in FAILED]


def image_of(path: Path) -> ImageReference:
    reference = parse_reference((path.parent / "image.json").read_bytes())
    assert isinstance(reference, ImageReference)
    return reference


def records_of(path: Path) -> list[Record]:
    return [parse_line(line) for line in path.read_bytes().splitlines()]


def judge(path: Path, records: list[Record]) -> Appraised:
    return appraise(records, References(image_of(path)), Policy())


def failed(appraised: Appraised) -> set[tuple[str, str]]:
    return {(each.rule, each.path) for each in appraised.findings if each.severity == "fail"}


def test_all_engines_of_both_releases_are_recorded() -> None:
    paths = [run.values[0] for run in RUNS]
    assert {(path.parent.name, path.stem.partition("-")[0]) for path in paths} == {
        (release, engine)
        for release in ("debian-12", "debian-13")
        for engine in ("ctr", "docker", "podman")
    }


@pytest.mark.parametrize("path", RUNS)
def test_a_recorded_run(path: Path) -> None:
    appraised = judge(path, records_of(path))
    case = path.stem.partition("-")[2]
    assert FAILED.get(case, set()) <= {rule for rule, _ in failed(appraised)}
    wanted = Verdict.UNTRUSTED if case in FAILED else Verdict.TRUSTED
    assert appraised.verdict == wanted, failed(appraised)


def with_mount(records: list[Record], number: int, mount: dict[str, Any]) -> list[Record]:
    """The records with another mount in the place of one, or with one more."""
    changed = []
    for record in records:
        content = copy.deepcopy(record.content)
        if content.get("type") == "config":
            content["config"]["mounts"][number : number + 1] = [mount]
        changed.append(record._replace(content=content))
    return changed


@pytest.mark.parametrize("path", HONEST)
def test_nothing_else_may_be_where_engines_mount(path: Path) -> None:
    records = records_of(path)
    mounts = next(
        record.content["config"]["mounts"]
        for record in records
        if record.content.get("type") == "config"
    )
    for number, mount in enumerate(mounts):
        at = mount["destination"]
        for other in (
            {"type": "bind", "source": "/srv", "options": ["rbind", "rw"]},
            {"type": "none", "source": "/", "options": ["bind"]},
            {"type": "bind", "source": "/var/lib/docker/containers/x/../../../../../etc/hosts"},
            {"type": "overlay", "source": "overlay", "options": ["lowerdir=/srv:/etc"]},
            {"type": "ext4", "source": "/dev/nvme0n1", "options": []},
        ):
            found = failed(judge(path, with_mount(records, number, mount | other)))
            assert ("config.mount", at) in found, (mount, other)


@pytest.mark.parametrize("path", HONEST)
def test_what_engines_mount_may_be_nowhere_else(path: Path) -> None:
    records = records_of(path)
    for record in records:
        if record.content.get("type") != "config":
            continue
        for number, mount in enumerate(record.content["config"]["mounts"]):
            for at in ("/bin", "/usr/lib", "/"):
                moved = with_mount(records, number, mount | {"destination": at})
                assert ("config.mount", at) in failed(judge(path, moved)), mount
