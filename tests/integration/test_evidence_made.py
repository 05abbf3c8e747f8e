"""What the attester makes, checked with hashlib, hmac and cryptography alone."""

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from simulated_host import SimulatedHost, simulated_host
from support.unsealed import owner_text

from cima_runc.base import limits
from cima_runc.evidence.models import parse_evidence
from cima_runc.evidence.owner import generate, public_text
from cima_runc.evidence.padding import padme
from cima_runc.tpm.structures import parse_quote

PEM, PUBLIC = generate()


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def up(leaf: bytes, slot: int, path: list[str]) -> bytes:
    for sibling in map(bytes.fromhex, path):
        leaf = sha(b"\1", sibling, leaf) if slot & 1 else sha(b"\1", leaf, sibling)
        slot >>= 1
    assert slot == 0
    return leaf


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    with simulated_host(tmp_path) as made:
        yield made


def opened(raw: bytes) -> dict[str, Any]:
    """Return the owner's part, which exactly one of the seals gives."""
    text = owner_text(raw, PEM if b'"sealed":' in raw else None)
    assert len(text) == padme(len(text)) >= 16384
    return dict(json.loads(text))


def replayed(records: list[dict[str, Any]], value: bytes = bytes(32), at: int = 0) -> bytes:
    for number, record in enumerate(records, at):
        assert record["recnum"] == number
        content = record["content"]
        if record["content_type"] == "ima_template":
            digest = sha(base64.b64decode(content["template_data"]))
        else:
            digest = sha(rfc8785.dumps(content))
        assert record["digests"] == [{"hashAlg": "sha256", "digest": digest.hex()}]
        value = sha(value, digest)
    return value


def checked(raw: bytes, request: dict[str, Any]) -> dict[str, Any]:
    """Check everything that holds evidence together; returns the owner's part."""
    parse_evidence(raw)
    evidence = json.loads(raw)
    digest = sha(rfc8785.dumps(request))
    assert evidence["request"] == digest.hex()
    assert (evidence["container"], evidence["nonce"]) == (request["container"], request["nonce"])
    body = parse_quote(base64.b64decode(evidence["quote"]["attest"]))
    place = evidence["aggregation"]
    assert len(place["path"]) == 10
    assert up(sha(sha_leaf(digest)), place["index"], place["path"]) == body.extra_data
    values = {int(pcr): bytes.fromhex(v) for pcr, v in evidence["quote"]["pcrs"].items()}
    assert sha(*(values[pcr] for pcr in sorted(values))) == body.pcr_digest
    binding = evidence["binding"]
    root, leaf = bytes.fromhex(binding["root"]), bytes.fromhex(binding["leaf"])
    assert up(leaf, binding["slot"], binding["path"]) == root
    status = sha(rfc8785.dumps(binding["status"]))
    bind = sha(b"cima-bind-v2\0", status, bytes.fromhex(binding["host"]), root)
    assert sha(bytes.fromhex(binding["history"]), bind) == values[12]

    part = opened(raw)
    assert part["request"] == request
    last = part["runs"][-1]
    assert last["id"] == request["container"]
    if last["since"] == 0:
        cpcr = replayed(last["records"])
        assert cpcr.hex() == part["cpcr"]
    assert part["count"] == last["since"] + len(last["records"])
    inner = masked(last["secret"], part["cpcr"], part["count"])
    assert sha(b"\0", bytes.fromhex(part["blind"]), inner) == leaf
    for before, after in zip(part["runs"], part["runs"][1:], strict=False):
        assert before["run"] < after["run"]
        first = after["records"][0]["content"]
        assert first["line"] == part["line"]
        previous = first["previous"]
        assert previous["run"] == before["run"]
        assert previous["registration"] == before["registration"]
        assert previous["count"] == before["since"] + len(before["records"])
        if before["since"] == 0:
            assert previous["cpcr"] == replayed(before["records"]).hex()
    services = part["services"]
    if services is not None:
        assert replayed(services["records"]).hex() == services["cpcr"]
        inner = masked(services["secret"], services["cpcr"], services["count"])
        leaf = sha(b"\0", bytes.fromhex(services["blind"]), inner)
        assert leaf.hex() == services["leaf"]
        assert up(leaf, services["slot"], services["path"]) == root
    check_host_log(evidence, values, services, request["host"])
    return part


def sha_leaf(digest: bytes) -> bytes:
    return b"\0" + digest


def masked(secret: str, cpcr: str, count: int) -> bytes:
    message = bytes.fromhex(cpcr) + count.to_bytes(8, "big")
    return hmac.new(bytes.fromhex(secret), message, hashlib.sha256).digest()


def check_host_log(
    evidence: dict[str, Any], values: dict[int, bytes], services: Any, disclosure: str
) -> None:
    log = evidence["host_log"]
    assert log["disclosure"] == disclosure
    assert (10 in values) == (disclosure != "none") == bool(log["entries"])
    if disclosure == "none":
        return
    entries = log["entries"]
    shown = [isinstance(entry, dict) for entry in entries]
    assert shown[0]
    assert all(shown) if disclosure == "full" else not any(shown[1:])
    digests = [
        sha(bytes.fromhex(entry["data"])) if isinstance(entry, dict) else bytes.fromhex(entry)
        for entry in entries
    ]
    value, prefixes = bytes(32), [bytes(32)]
    for digest in digests:
        value = sha(value, digest)
        prefixes.append(value)
    proved = digests[: prefixes.index(values[10])]
    for record in services["records"] if services else []:
        if record["content_type"] == "ima_template":
            line = base64.b64decode(record["line"]["data"])
            assert sha(line) in proved
            data = base64.b64decode(record["content"]["template_data"])
            size = int.from_bytes(data[:4], "little")
            assert line[: 4 + size] == data[: 4 + size]
        else:
            assert "line" not in record


def ask(host: SimulatedHost, name: str, /, **wanted: Any) -> tuple[bytes, dict[str, Any]]:
    nonce = os.urandom(32)
    raw = host.evidence(name, nonce, **wanted)
    shown = {key: value for key, value in wanted.items() if key != "anybody"}
    request = host.request(name, nonce, **shown).model_dump(mode="json")
    return raw, request


def busy(host: SimulatedHost, name: str = "tenant-a", **more: Any) -> int:
    number = host.start(name, **more)
    for program in (b"/bin/sh", b"/usr/bin/id", b"/opt/a b\n"):
        host.run(number, program, name.encode() + program)
    return number


@pytest.mark.parametrize("disclosure", ["none", "redacted", "full"])
@pytest.mark.parametrize("owner", [None, public_text(PUBLIC)], ids=["clear", "sealed"])
def test_everything_adds_up(host: SimulatedHost, disclosure: str, owner: str | None) -> None:
    host.write_boot_log()
    services = host.start_services(b"/usr/bin/runc", b"/usr/bin/containerd")
    busy(host, owner=owner, dependencies=services)
    host.host_runs(b"/usr/bin/later", b"r" * 32)
    raw, request = ask(host, "tenant-a", host=disclosure, boot_log=True)
    part = checked(raw, request)
    assert part["count"] == 5
    assert len(part["services"]["records"]) == 3
    assert part["missing"] == []
    assert "boot_log" in json.loads(raw)


def test_each_owner_has_a_seal_and_none_is_named(host: SimulatedHost) -> None:
    _, other = generate()
    (host.root / "owners" / "both").write_text(f"{public_text(PUBLIC)}\n{public_text(other)}\n")
    busy(host, owner="both")
    orders = set()
    for _ in range(20):
        raw, request = ask(host, "tenant-a")
        checked(raw, request)
        evidence = json.loads(raw)
        assert len(evidence["sealed"]) == 2
        alone = {**evidence, "sealed": evidence["sealed"][:1]}
        try:
            owner_text(json.dumps(alone).encode(), PEM)
        except ValueError:
            orders.add(1)
        else:
            orders.add(0)
    assert orders == {0, 1}


def test_every_quote_is_over_a_bind_of_its_own(host: SimulatedHost) -> None:
    busy(host)
    seen: set[str] = set()
    for _ in range(5):
        binding = json.loads(ask(host, "tenant-a")[0])["binding"]
        values = {binding["history"], binding["root"], binding["host"], binding["leaf"]}
        values |= set(binding["path"])
        assert seen.isdisjoint(values)
        seen |= values


def test_requests_share_a_quote_only_with_the_same_selection(host: SimulatedHost) -> None:
    for name in "abc":
        host.start(name)
    asked = [("a", "none"), ("b", "none"), ("a", "redacted"), ("c", "full"), ("c", "none")]
    waiting = []
    for name, disclosure in asked:
        request = host.request(name, os.urandom(32), host=disclosure)
        waiting.append((request, host.attester.ask(request, source=None)))
    host.attester.serve()
    quotes: dict[bool, set[str]] = {True: set(), False: set()}
    bindings = set()
    for request, answer in waiting:
        raw = host.assembly.evidence(answer.result())
        checked(raw, request.model_dump(mode="json"))
        evidence = json.loads(raw)
        quotes[request.host != "none"].add(evidence["quote"]["attest"])
        bindings.add(evidence["binding"]["root"])
    assert (len(quotes[True]), len(quotes[False])) == (1, 1)
    assert quotes[True] != quotes[False]
    assert len(bindings) == 1


def test_since_that_fits_gives_what_is_new(host: SimulatedHost) -> None:
    number = busy(host)
    since = host.since(number, 4)
    part = checked(*ask(host, "tenant-a", since=since.model_dump(mode="json")))
    (run,) = part["runs"]
    assert (run["since"], [record["recnum"] for record in run["records"]]) == (4, [4])
    whole = host.since(number)
    part = checked(*ask(host, "tenant-a", since=whole.model_dump(mode="json")))
    assert part["runs"][0]["records"] == []


@pytest.mark.parametrize(
    "change", [{"run": 2}, {"count": 3}, {"count": 9}, {"inner": "00" * 32}, {"count": 2**53 - 1}]
)
def test_since_that_does_not_fit_gives_the_whole(
    host: SimulatedHost, change: dict[str, Any]
) -> None:
    number = busy(host)
    since = {**host.since(number, 4).model_dump(mode="json"), **change}
    part = checked(*ask(host, "tenant-a", since=since))
    assert [run["since"] for run in part["runs"]] == [0]


def test_size_is_no_function_of_since(host: SimulatedHost) -> None:
    """Somebody who is not proved cannot make one that fits, and learns no count by trying."""
    number = host.start("tenant-a", owner=public_text(PUBLIC))
    for at in range(400):
        host.run(number, b"/bin/%d" % at, b"%d" % at)
    sizes = set()
    for count in (0, 1, 100, 402, 403, 10_000):
        since = {"run": 1, "count": count, "inner": os.urandom(32).hex()}
        sizes.add(len(ask(host, "tenant-a", since=since, anybody=True)[0]))
    assert max(sizes) - min(sizes) < 64  # the quote's signature, the index


def test_an_answer_is_of_the_time_of_its_quote(host: SimulatedHost) -> None:
    number = busy(host)
    request = host.request("tenant-a", os.urandom(32))
    waiting = host.attester.ask(request, source=None)
    host.attester.serve()
    host.run(number, b"/bin/later", b"later")
    host.end(number)
    host.start("tenant-a")
    raw = host.assembly.evidence(waiting.result())
    assert checked(raw, request.model_dump(mode="json"))["count"] == 5


# -- runs ---------------------------------------------------------------------------------------


def test_a_restart_goes_on_from_what_ran_before(host: SimulatedHost) -> None:
    number = busy(host)
    since = host.since(number)
    host.end(number)
    again = busy(host)
    part = checked(*ask(host, "tenant-a", since=since.model_dump(mode="json")))
    first, second = part["runs"]
    assert [record["content"]["type"] for record in first["records"]] == ["exit"]
    assert (first["run"], second["run"]) == (1, 2)
    assert (first["registration"], second["registration"]) == (number, again)
    whole = checked(*ask(host, "tenant-a"))
    assert [run["since"] for run in whole["runs"]] == [0, 0]
    assert whole["line"] == part["line"]


def test_twice_between_two_looks(host: SimulatedHost) -> None:
    number = busy(host)
    since = host.since(number)
    for _ in range(2):
        busy(host)
    part = checked(*ask(host, "tenant-a", since=since.model_dump(mode="json")))
    assert [run["run"] for run in part["runs"]] == [1, 2, 3]


def test_a_run_before_has_its_leaf_until_the_next_is_bound(host: SimulatedHost) -> None:
    number = busy(host)
    host.writer.bind()
    slot = host.container(number).note.slot
    held = host.table.inner(slot)
    host.end(number)
    host.writer.bind()
    assert host.table.inner(slot) not in (held, bytes(32))
    busy(host)
    assert host.core.get(number) is None
    host.writer.bind()
    assert (
        host.table.inner(slot) == bytes(32)
        or host.container(next(one.number for one in host.core.containers)).note.slot == slot
    )


def test_records_that_are_not_kept_are_missing(host: SimulatedHost) -> None:
    for _ in range(3):
        number = busy(host)
        host.end(number)
    first, second, third = host.writer.runs_of(host.container(number).note)
    host.writer.discard(second)
    part = checked(*ask(host, "tenant-a"))
    assert [run["run"] for run in part["runs"]] == [3]  # nothing vouches for the first any more
    assert part["missing"] == [{"run": 2, "from": 0, "to": 6}]
    host.writer.discard(first)
    host.writer.discard(third)
    again = busy(host)
    part = checked(*ask(host, "tenant-a"))
    assert [run["run"] for run in part["runs"]] == [4]
    assert part["missing"] == [{"run": 3, "from": 0, "to": 6}]
    assert host.container(again).note.run == 4


def test_only_as_many_records_as_there_is_room_for(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        number = busy(host)
    one = sum(map(len, host.store.lines(number)))
    monkeypatch.setattr(limits, "SHOWN_RECORDS", 5 * one // 2)
    part = checked(*ask(host, "tenant-a"))
    assert [run["run"] for run in part["runs"]] == [3, 4]
    assert part["missing"] == [{"run": 2, "from": 0, "to": 6}]


def test_lines_do_not_cross(host: SimulatedHost) -> None:
    named = {"io.cima.name": "web"}
    own, other = public_text(PUBLIC), public_text(generate()[1])
    starts: list[dict[str, Any]] = [
        {"owner": own},
        {"owner": other},
        {"owner": own, "uid": 7},
        {"owner": own, "annotations": {"io.cima.name": "db"}},
    ]
    lines = set()
    for at, start in enumerate(starts):
        number = host.start(f"c{at}", **{"annotations": named, **start})
        note = host.container(number).note
        assert note.run == 1
        lines.add(note.line)
    assert len(lines) == 4
    again = host.container(host.start("another-id", owner=own, annotations=named)).note
    assert again.run == 2


def test_late_events_are_lost_in_the_new_run(host: SimulatedHost) -> None:
    number = busy(host)
    host.end(number)
    with pytest.raises(Exception, match="has ended"):
        host.run(number, b"/bin/late", b"late")
    again = busy(host)
    host.run(number, b"/bin/later", b"later")
    part = checked(*ask(host, "tenant-a"))
    lost = [
        record["content"]
        for record in part["runs"][-1]["records"]
        if record["content"].get("type") == "lost"
    ]
    assert [content["count"] for content in lost] == [1, 1]
    assert all("came after" in content["reason"] for content in lost)
    assert host.container(again).note.run == 2


# -- the kernel's log ---------------------------------------------------------------------------


def test_a_line_that_came_late_is_found(host: SimulatedHost) -> None:
    """Finding 12. Kind: a race at first use: the sensor sees a file before the kernel logs it."""
    number = host.start("tenant-a")
    contents = {b"/bin/%d" % at: os.urandom(8) for at in range(20)}
    for path, content in contents.items():
        host.run(number, path, content)
    for path, content in list(contents.items())[:19]:
        host.host_runs(path, hashlib.sha256(content).digest())
    part = checked(*ask(host, "tenant-a"))
    shown = [r["meta"]["in_kernel_log"] for r in part["runs"][0]["records"][2:]]
    assert shown == [True] * 19 + [False]


def test_the_log_may_lead_the_quote(host: SimulatedHost) -> None:
    services = host.start_services(b"/usr/bin/runc")
    busy(host, dependencies=services)
    host.host_runs(b"/usr/bin/not-yet", b"x" * 32, extend=False)
    raw, request = ask(host, "tenant-a", host="redacted")
    checked(raw, request)


def test_a_line_of_a_service_that_is_not_extended_yet_is_waited_for(host: SimulatedHost) -> None:
    services = host.start_services(b"/usr/bin/runc")
    busy(host, dependencies=services)
    digest = hashlib.sha256(b"/usr/bin/new").digest()
    data = host.host_runs(b"/usr/bin/new", digest, extend=False)
    host.kernel_log.read_new()
    line = host.kernel_log.line_of(digest, b"/usr/bin/new")
    assert line is not None
    from cima_runc.ima.template import Func

    host.writer.add_file(services, digest, b"/usr/bin/new", func=Func.BPRM_CHECK, line=line)
    with pytest.raises(Exception, match="do not stand still"):
        host.evidence("tenant-a", os.urandom(32), host="redacted")
    real = host.attester._signed
    quotes: list[int] = []

    def signed(*arguments: Any) -> Any:
        made = real(*arguments)
        quotes.append(1)
        if len(quotes) == 2:
            host.tpm.extend(10, hashlib.sha256(data).digest())
        return made

    host.attester._signed = signed  # type: ignore[method-assign]
    raw, request = ask(host, "tenant-a", host="redacted")
    checked(raw, request)
    assert len(quotes) == 3
