"""The library as docs/library.md shows it, and the documents that others build on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.verifier.appraised import Box, image

import cima_runc
from cima_runc import verifier
from cima_runc.evidence.owner import generate, parse_private
from cima_runc.ml import contents
from cima_runc.verifier import StateDirectory, Verdict, Verifier, parse_enrolled_ak
from cima_runc.verifier.reference.file import HostReference, format_reference
from tests.support.forger import Forger, sha

DOCS = Path(__file__).parents[3] / "docs"


class Honest:
    """A made-up host with a container that is as its image."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        reference = image(directory)
        self.box = Box.honest(reference)
        self.forger = Forger()
        pem, public = generate()
        self.forger.owners = [public]
        self.forger.serve((b"/usr/sbin/runc", b"runc"))
        self.start()
        (directory / "image.json").write_bytes(format_reference(reference))
        host = HostReference(files={"/usr/sbin/runc": (sha(b"runc").hex(),)})
        (directory / "host.json").write_bytes(format_reference(host))
        (directory / "owner.key").write_bytes(pem)
        (directory / "ak.pem").write_bytes(self.forger.pem(label="node 3"))
        assert parse_private(pem)

    def start(self) -> None:
        config = self.box.config
        config["mounts"][2]["source"] = "/var/lib/docker/containers/box/hosts"
        first = [{"type": "config", "config": config}, self.box.rootfs]
        empty: dict[str, Any] = {"states": [], "kubelets": [], "shares": [], "redirected": []}
        engine = empty | {"name": "docker", "cri": False, "roots": ["/var/lib/docker"]}
        run = self.forger.start(first=first, register={"engine": engine})
        for path, digest, func in self.box.files:
            content = {digest: text for text in (b"busybox", b"#!/bin/sh\n", b"library")
                       for digest in [sha(text)]}[digest]  # fmt: skip
            run.partition.file(path, content, func.value.encode())

    def ask(self, request: bytes) -> bytes:
        return self.forger.evidence(json.loads(request))


@pytest.fixture(name="honest")
def _honest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Honest:
    monkeypatch.chdir(tmp_path)
    return Honest(tmp_path)


def test_the_example_runs(honest: Honest, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "library.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {"Callable": Callable}
    exec(code, names)
    assert names["is_trusted"]("box", honest.ask)
    assert "not proved: " in capsys.readouterr().out
    assert names["is_trusted"]("box", honest.ask)  # with nothing new
    honest.forger.runs[-1].partition.file(b"/tmp/x", b"x")
    assert not names["is_trusted"]("box", honest.ask)
    honest.forger.runs[-1].end()
    honest.start()
    assert not names["is_trusted"]("box", honest.ask)


def test_results_name_what_they_rest_on(honest: Honest) -> None:
    policy = b"allow_lost = true\n"
    raw = [(honest.directory / name).read_bytes() for name in ("image.json", "host.json")]
    known = Verifier(
        parse_enrolled_ak((honest.directory / "ak.pem").read_bytes()),
        references=raw,
        policy=policy,
        owner_key=(honest.directory / "owner.key").read_bytes(),
    )
    request = known.request("box", host="full")
    result = known.verify(honest.ask(request.to_json()), request)
    assert result.verdict is Verdict.TRUSTED, (result.refusal, result.findings)
    assert result.host is not None
    assert (result.host.label, result.host.known_by) == ("node 3", "name")
    by_kind = {source.kind: source for source in result.sources}
    assert {kind: source.sha256 for kind, source in by_kind.items()} == {
        "policy": sha(policy),
        "image": sha(raw[0]),
        "host": sha(raw[1]),
    }
    assert all(source.version for source in result.sources)
    shown = json.loads(result.model_dump_json())
    assert shown["host"]["ak_name"] == honest.forger.name.hex()
    again = known.verify(honest.ask(request.to_json()), known.request("box", host="full"))
    assert again.verdict is Verdict.STALE
    other = known.request("box", host="redacted")
    assert known.verify(honest.ask(other.to_json()), request).verdict is not Verdict.TRUSTED
    assert known.verify(b"", request).verdict is Verdict.UNKNOWN


def test_a_key_that_was_enrolled_without_its_name(honest: Honest) -> None:
    """The key alone does not say how its TPM keeps it."""
    known = Verifier(
        parse_enrolled_ak(honest.forger.pem(named=False)),
        owner_key=(honest.directory / "owner.key").read_bytes(),
    )
    request = known.request("box")
    result = known.verify(honest.ask(request.to_json()), request)
    assert result.host is not None
    assert result.host.known_by == "key"
    assert any("its TPM name was not enrolled" in each for each in result.not_proved)


def test_few_names_and_each_is_there() -> None:
    assert len(verifier.__all__) <= 12
    for name in verifier.__all__:
        assert getattr(verifier, name).__doc__
    assert sorted(verifier.__all__) == dir(verifier)
    with pytest.raises(AttributeError):
        verifier.nothing  # noqa: B018
    assert Path(cima_runc.__file__).with_name("py.typed").exists()


def test_what_is_remembered_is_asked_from(honest: Honest) -> None:
    known = Verifier(
        parse_enrolled_ak(honest.forger.pem()),
        owner_key=(honest.directory / "owner.key").read_bytes(),
        memory=StateDirectory(honest.directory / "seen"),
    )
    assert known.request("box").since is None
    request = known.request("box")
    assert known.verify(honest.ask(request.to_json()), request).verdict is Verdict.UNKNOWN
    since = known.request("box").since
    assert since is not None
    assert since.count == len(honest.forger.runs[-1].partition.records)
    assert since.inner == honest.forger.runs[-1].inner()


def test_every_content_and_every_field_of_it_is_described() -> None:
    """An appraiser can be written from docs/evidence.md: nothing of a record is left out there."""
    text = (DOCS / "evidence.md").read_text()
    table = text.partition("## Contents")[2].partition("**Completeness**")[0]

    def below(kind: type[contents.Content]) -> set[type[contents.Content]]:
        return {kind}.union(*map(below, kind.__subclasses__())) - {contents.Content}

    for kind in below(contents.Content):
        type_name = kind.model_fields["type"].default
        rows = [row for row in table.splitlines() if row.startswith(f"| `{type_name}`")]
        assert rows, kind
        for field in kind.model_fields:
            assert field == "type" or any(f"`{field}`" in row for row in rows), (kind, field)
    for kind in (contents.Layer, contents.RootAttributes, contents.ServicePath):
        for field in kind.model_fields:
            assert field in table, (kind, field)
    for word in (*contents.ViolationKind.__args__, *contents.MemoryKind.__args__):  # type: ignore[attr-defined]
        assert f"`{word}`" in table


def test_every_field_of_evidence_is_described() -> None:
    from cima_runc.evidence import models
    from cima_runc.evidence.request import Request, Since

    text = (DOCS / "evidence.md").read_text() + (DOCS / "design.md").read_text()
    for model in (
        models.Evidence, models.QuotePart, models.AggregationPart, models.AkPart,
        models.BindingPart, models.OwnerPart, models.RunPart, models.MissingPart,
        models.ServicesPart, models.HostLine, models.HostLog, Request, Since,
    ):  # fmt: skip
        for name, field in model.model_fields.items():
            shown = field.alias or name
            assert re.search(rf"[`\".]{shown}[`\".]", text), (model, shown)
