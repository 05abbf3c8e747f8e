"""A real agent with a real runc: what `cima` says of dependencies and of the configuration."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import native_host
import pytest
from native_host import Host

from cima_runc.evidence.models import parse_evidence
from cima_runc.verifier.errors import DependenciesError
from cima_runc.verifier.steps import check_dependencies


def cima(host: Host, *command: str) -> Any:
    text = native_host.ask(host.prefix, *command)
    return (
        [json.loads(line) for line in text.splitlines()]
        if command[0] == "log"
        else json.loads(text)
    )


def test_a_container_names_what_it_relies_on(host: Host, tmp_path: Path) -> None:
    bundle = native_host.make_bundle(tmp_path / "b", "/bin/true", env=["PATH=/bin", "TOKEN=value"])
    ids = ["relies-1", "relies-2"]
    for container_id in ids:
        subprocess.run([host.cima_runc, "run", "--bundle", bundle, container_id], check=True)
    first, second = (
        next(row for row in cima(host, "ps") if row["id"] == container_id) for container_id in ids
    )
    assert first["dependencies"] == second["dependencies"]
    # A container's number is a time in microseconds, one that is shared tells no time.
    assert first["registration"] > time.time_ns() // 1000 - 600_000_000
    assert first["registration"] < second["registration"] < 2**53
    assert first["dependencies"] < 2**32
    name = f"dependencies:{first['dependencies']}"
    listed = {row["id"]: row for row in cima(host, "ps", "--dependencies")}
    assert listed[name]["kind"] == "dependencies"
    assert name not in {row["id"] for row in cima(host, "ps")}

    records = cima(host, "log", name)
    services = {r["content"]["role"] for r in records if r["content"].get("type") == "service"}
    assert {"runtime", "agent"} <= services
    register = cima(host, "log", ids[0])[0]["content"]
    assert register["dependencies"] == first["dependencies"]

    shown = cima(host, "show", ids[0])
    assert shown["config"]["args"] == ["/bin/true"]
    assert shown["config"]["hooks"] == [], "ours are not shown as anybody's"
    assert shown["dependencies"]["partition"] == name
    assert shown["rootfs"]["type"] == "rootfs"
    with_values = cima(host, "show", ids[0], "--env")
    assert with_values["env"][1] == {"name": "TOKEN", "value": "value", "measured": True}


def test_evidence_holds_them_under_the_same_root(host: Host, tmp_path: Path) -> None:
    bundle = native_host.make_bundle(tmp_path / "b", "/bin/true")
    subprocess.run([host.cima_runc, "run", "--bundle", bundle, "relies-3"], check=True)
    (row,) = (row for row in cima(host, "ps") if row["id"] == "relies-3")
    file = tmp_path / "evidence.json"
    command = ["attest", "relies-3", "--nonce", "00" * 32, "--output", str(file)]
    python = host.prefix / "bin/python3"
    subprocess.run([python, "-m", "cima_runc.cli.main", *command], check=True)
    evidence = parse_evidence(file.read_bytes())
    assert evidence.owner is not None
    part, binding, named = evidence.owner.dependencies, evidence.binding, row["dependencies"]
    records = check_dependencies(part, binding, named)
    assert records[0].content["registration"] == named
    stored = cima(host, "log", f"dependencies:{named}")
    assert [r.digest.hex() for r in records] == [r["digests"][0]["digest"] for r in stored]
    leaf = binding.dependencies
    assert leaf is not None
    moved = leaf.model_copy(update={"path": (bytes(32), *leaf.path[1:])})
    with pytest.raises(DependenciesError):
        check_dependencies(part, binding.model_copy(update={"dependencies": moved}), named)
    with pytest.raises(DependenciesError, match="names"):
        check_dependencies(part, binding, named + 1)
    with pytest.raises(DependenciesError, match="not shown"):
        check_dependencies(None, binding, named)
