"""What evidence of one container tells about the others: searched for what was planted in them."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_host import SimulatedHost, simulated_host
from support.evidence_by_hand import open_owner_part
from support.planted import decoded, everything, found

from cima_runc.base import limits
from cima_runc.evidence.models import Request
from cima_runc.evidence.owner import generate, public_text
from cima_runc.ml.records import IMA_TEMPLATE, template_data

PEM, PUBLIC = generate()
OTHERS = 10


def plant(host: SimulatedHost, number: int, public: bytes | None = None) -> list[bytes]:
    """Start and run another tenant's container; return everything that is its own."""
    name = f"planted-container-{number}"
    public = public or generate()[1]
    registration = host.start(name, owner=public_text(public), env=[f"SECRET{number}=hidden"])
    paths = [f"/opt/planted-{number}/{program}".encode() for program in ("daemon", "helper")]
    contents = [os.urandom(20) for _ in paths]
    for path, content in zip(paths, contents, strict=True):
        host.run(registration, path, content)
    host.ledger.write()
    container = host.core.get(registration)
    assert container is not None
    own = [name.encode(), container.secret, container.partition.cpcr, public, *paths]
    own += [hashlib.sha256(content).digest() for content in contents]
    own += [hashlib.sha256(name.encode()).digest(), f"/bundles/{name}".encode()]
    for record in host.store.records(registration):
        own.append(record.digest)
        if record.content_type == IMA_TEMPLATE:
            own.append(hashlib.sha1(template_data(record.content)).digest())
    return own


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    with simulated_host(tmp_path) as made:
        yield made


def crowded(host: SimulatedHost) -> list[bytes]:
    """Have A's container between others."""
    own = [one for number in range(OTHERS // 2) for one in plant(host, number)]
    registration = host.start("tenant-a", owner=public_text(PUBLIC))
    host.run(registration, b"/usr/bin/own", b"own")
    own += [one for number in range(OTHERS // 2, OTHERS) for one in plant(host, number)]
    return own


@pytest.mark.parametrize("disclosure", ["none", "redacted"])
def test_nothing_of_the_neighbours(host: SimulatedHost, disclosure: str) -> None:
    own = crowded(host)
    host.host_runs(b"/usr/local/bin/host-business", b"b" * 32)
    nonces = {f"planted-container-{number}": os.urandom(32) for number in range(OTHERS)}
    asked = os.urandom(32)
    waiting = [
        host.attester.ask(Request(container=name, nonce=nonce, host=disclosure), anybody=True)
        for name, nonce in [*nonces.items(), ("tenant-a", asked)]
    ]
    host.attester.serve()
    text = everything(host.attester.assemble(waiting[-1].result()), PEM)
    assert b"/usr/bin/own" in text  # the search finds what is there
    for planted in [*own, *nonces.values()]:
        assert not found(planted, text), planted
    assert b"host-business" not in text
    assert (b"b" * 32) not in text


def test_search_would_find_it(host: SimulatedHost) -> None:
    own = plant(host, 1, PUBLIC)
    text = everything(host.evidence("planted-container-1", os.urandom(32)), PEM)
    missed = [planted for planted in own if not found(planted, text)]
    # All but two SHA-1 template hashes, the bundle's path and the hash of the id.
    assert len(missed) == 4, missed


def shape(value: Any) -> Any:
    """Return a JSON value with every number and string replaced by its kind and length."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return (type(value).__name__, len(value) if isinstance(value, str) else None)


def test_number_of_containers_does_not_show(tmp_path: Path) -> None:
    shapes = []
    for others in (0, OTHERS):
        root = tmp_path / str(others)
        root.mkdir()
        with simulated_host(root) as host:
            host.start("tenant-a")
            for number in range(others):
                plant(host, number)
            shown = json.loads(host.evidence("tenant-a", os.urandom(32)))
            assert shown["binding"]["seq"] == 1
            shapes.append(shape(shown))
    assert shapes[0] == shapes[1]


def test_unchanged_container_shows_no_trace_of_the_others(host: SimulatedHost) -> None:
    relied_on = host.start("dependencies:1", kind="dependencies")
    host.start("tenant-a", dependencies=relied_on)
    first = json.loads(host.evidence("tenant-a", os.urandom(32)))
    for number in range(OTHERS):
        plant(host, number)
    second = json.loads(host.evidence("tenant-a", os.urandom(32)))
    differing = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert differing == {"quote", "binding", "nonce"}


def test_kernels_numbering_is_not_shown(host: SimulatedHost) -> None:
    """A file that a neighbour ran before has its line in the kernel's log long before our own."""
    registration = host.start("tenant-a")
    host.run(registration, b"/bin/sh", b"sh", line=7)
    host.run(registration, b"/bin/own", b"own", line=8_000_001)
    records = json.loads(host.evidence("tenant-a", os.urandom(32)))["owner"]["records"]
    for record in records[2:]:
        assert record["meta"].keys() == {"time", "uid", "in_kernel_log"}
        assert record["meta"]["in_kernel_log"] is True


def test_anybody_sees_nothing_of_what_it_relies_on(host: SimulatedHost) -> None:
    relied_on = host.start("dependencies:1", kind="dependencies")
    host.run(relied_on, b"/usr/bin/containerd", b"containerd")
    host.start("tenant-a", owner=public_text(PUBLIC), dependencies=relied_on)
    raw = host.evidence("tenant-a", os.urandom(32), anybody=True)
    shared = host.core.get(relied_on)
    assert shared is not None
    outside = b"\n".join(decoded(json.loads(raw)))
    for planted in (b"/usr/bin/containerd", shared.secret, shared.partition.cpcr):
        assert not found(planted, outside)
        assert found(planted, everything(raw, PEM))
    records = open_owner_part(json.loads(raw), PEM)["dependencies"]["records"]
    assert not any("time" in record["meta"] for record in records)


def test_requests_that_share_a_quote_do_not_count_each_other(host: SimulatedHost) -> None:
    shapes = []
    for others in (1, OTHERS):
        host.start(f"tenant-{others}")
        waiting = [
            host.attester.ask(
                Request(container=f"tenant-{others}", nonce=os.urandom(32)), anybody=False
            )
            for _ in range(1 + others)
        ]
        host.attester.serve()
        raw = host.attester.assemble(waiting[0].result())
        shapes.append(shape(json.loads(raw)["aggregation"]))
        assert json.loads(raw)["aggregation"]["size"] == limits.WAITING_REQUESTS
    assert shapes[0] == shapes[1]
