"""A real agent with a real runc: what `cima` says of dependencies and of the configuration."""

import json
import subprocess
from pathlib import Path
from typing import Any

import native_host
from native_host import Host

from cima_runc.cpcr.blinded import blinded_leaf
from cima_runc.cpcr.inner import inner
from cima_runc.cpcr.tree import root_from_path
from cima_runc.evidence.models import parse_evidence
from cima_runc.ml.records import parse_fields, replay


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
    # Numbers are random: none tells a time, or how many others there are.
    numbers = {first["registration"], second["registration"], first["dependencies"]}
    assert len(numbers) == 3
    assert 2**40 < max(numbers) < 2**53
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


def test_commands_read_all_that_the_agent_says_of_itself(host: Host) -> None:
    python = [host.prefix / "bin/python3", "-m", "cima_runc.cli.main"]
    ran = subprocess.run([*python, "doctor", "--json"], capture_output=True, check=False)
    (agent,) = (one for one in json.loads(ran.stdout) if one["check"] == "agent")
    assert (agent["state"], agent["what"].partition(",")[0]) == ("ok", "runs")
    shown = subprocess.run([*python, "status"], capture_output=True, text=True, check=True)
    assert {"bind", "initial_value", "expected_value"} <= {
        line.split()[0] for line in shown.stdout.splitlines() if line
    }


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
    services = evidence.owner.services
    assert services is not None
    assert services.registration == row["dependencies"]
    assert root_from_path(services.leaf, services.slot, services.path) == evidence.binding.root
    masked = inner(services.secret, services.cpcr, services.count)
    assert blinded_leaf(services.blind, masked) == services.leaf
    records = [parse_fields(record) for record in services.records]
    assert replay(records) == (services.cpcr, services.count)
    stored = cima(host, "log", f"dependencies:{services.registration}")
    assert [r.digest.hex() for r in records] == [r["digests"][0]["digest"] for r in stored]
