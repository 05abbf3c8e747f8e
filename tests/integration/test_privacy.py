"""What evidence of one container tells about the others: searched for what was planted in them."""

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_host import SimulatedHost, simulated_host

from cima_runc.evidence.models import Request, parse_evidence
from cima_runc.evidence.owner import generate, parse_private, public_text
from cima_runc.evidence.seal import unseal
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


def decoded(value: Any) -> Iterator[bytes]:
    """Yield every string of a JSON value as it is, and base64 and hex decoded, all the way down."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from decoded(key)
            yield from decoded(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from decoded(item)
    elif isinstance(value, str):
        yield value.encode()
        for part in (value, *re.findall(r"[A-Za-z0-9+/=_-]{16,}", value)):
            for decode in (bytes.fromhex, base64.b64decode, base64.urlsafe_b64decode):
                try:
                    yield decode(part)
                except (ValueError, binascii.Error):
                    continue


def everything(raw: bytes) -> bytes:
    """Return the evidence and all that is in it, the owner's part opened."""
    evidence = parse_evidence(raw)
    parts = [raw, *decoded(json.loads(raw))]
    for sealed in evidence.sealed:
        part = unseal(sealed.data, parse_private(PEM), evidence.container, evidence.nonce)
        parts += [part, *decoded(json.loads(part))]
    return b"\n".join(parts)


def forms(secret: bytes) -> list[bytes]:
    """Return how ``secret`` may stand somewhere."""
    return [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")[:-1]]


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
    found = everything(host.attester.assemble(waiting[-1].result()))
    assert b"/usr/bin/own" in found  # the search finds what is there
    for planted in [*own, *nonces.values()]:
        for form in forms(planted):
            assert form not in found, planted
    assert b"host-business" not in found
    assert (b"b" * 32) not in found


def test_search_would_find_it(host: SimulatedHost) -> None:
    own = plant(host, 1, PUBLIC)
    found = everything(host.evidence("planted-container-1", os.urandom(32)))
    missed = [planted for planted in own if not any(form in found for form in forms(planted))]
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
    host.start("tenant-a")
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
