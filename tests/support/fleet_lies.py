"""Every way in which a host of a fleet may lie in a report, and by which name it is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cima_runc.evidence import errors as format_errors
from cima_runc.evidence.request import Asker
from cima_runc.verifier import errors
from cima_runc.verifier.report import errors as refused
from cima_runc.verifier.report.known import Known
from tests.support.fleet_host import FleetHost
from tests.support.fleet_keeper import Keeper

OWNER = "x25519:" + "A" * 43 + "="


def payload_with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Replace fields of the payload."""

    def lie(payload: dict[str, Any]) -> None:
        payload.update(changes)

    return lie


def changed_in(part: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    """Replace fields of the first of a part of the payload."""

    def lie(payload: dict[str, Any]) -> None:
        payload[part][0].update(changes)

    return lie


def _change(payload: dict[str, Any]) -> None:
    payload["changes"][0][1] = "77" * 32


def _other_slot(payload: dict[str, Any]) -> None:
    slot = (payload["changes"][0][0] + 1) % payload["slots"]
    payload["changes"][0][0] = slot
    payload["containers"][0]["slot"] = slot


def _unlisted(payload: dict[str, Any]) -> None:
    payload["containers"], payload["records"] = [], []


def _record(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def lie(payload: dict[str, Any]) -> None:
        payload["records"][0]["records"][-1].update(changes)

    return lie


def _line(line: Any, *, part: int = 1, record: int = 1) -> Callable[[dict[str, Any]], None]:
    """Replace what stands as the kernel's line beside a record, by default one of the services'."""

    def lie(payload: dict[str, Any]) -> None:
        records = payload["records"][part]["records"]
        records[record]["line"] = line(records) if callable(line) else line

    return lie


def _dropped(payload: dict[str, Any]) -> None:
    del payload["records"][0]["records"][1]


def _digest(payload: dict[str, Any]) -> None:
    payload["records"][0]["records"][-1]["digests"][0]["digest"] = "55" * 32


def _twice(payload: dict[str, Any]) -> None:
    other = {**payload["containers"][0], "registration": 7}
    payload["containers"].append(other)


def _stranger(payload: dict[str, Any]) -> None:
    payload["records"].append({**payload["records"][0], "registration": 7})


LIES: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "a register that is not bound": ({"lie": _change}, errors.BindingError),
    "another slot": ({"lie": _other_slot}, errors.BindingError),
    "a root that does not fit": ({"lie": payload_with(root="22" * 32)}, errors.BindingError),
    "another hostkey": ({"lie": payload_with(hostkey="22" * 32)}, errors.BindingError),
    "another history": ({"lie": payload_with(history="22" * 32)}, errors.BindingError),
    "more slots": ({"lie": payload_with(slots=2048)}, errors.BindingError),
    "another's name": ({"lie": payload_with(ak="000b" + "33" * 32)}, refused.AkNameError),
    "another's key": (
        {"lie_after": lambda proof: proof["ak"].update(public="AAAA")},
        refused.AkNameError,
    ),
    "a forged quote": (
        {"lie_after": lambda proof: proof["quote"].update(signature=_signature())},
        errors.SignatureError,
    ),
    "other PCRs": ({"pcrs": (10, 12)}, errors.PcrSelectionError),
    "other values": (
        {"lie_after": lambda proof: proof["pcrs"].update({"0": "44" * 32})},
        errors.PcrValuesError,
    ),
    "a quote for another": ({"qualify": lambda root: bytes(32)}, errors.QualifyingDataError),
    "a tenant's quote": ({"asker": Asker.OUTSIDE}, errors.QualifyingDataError),
    "a container that is not listed": ({"lie": _unlisted}, refused.SlotError),
    "two containers in one slot": ({"lie": _twice}, refused.SlotError),
    "records of nobody": ({"lie": _stranger}, refused.SecretError),
    "another secret": ({"lie": changed_in("containers", secret="66" * 32)}, errors.RegisterError),
    "records of another container": ({"lie": _record(cpcr="two")}, errors.ForeignRecordError),
    "another container's id": (
        {"lie": changed_in("containers", id="two")},
        errors.ForeignRecordError,
    ),
    "another run": ({"lie": changed_in("containers", run=7)}, refused.ListedError),
    "a record less": ({"lie": _dropped}, errors.RecordMissingError),
    "a record changed": ({"lie": _digest}, errors.RecordDigestError),
    "fewer records than come": (
        {"lie": changed_in("containers", count=1)},
        errors.RecordCountError,
    ),
    "a type that nobody knows": (
        {"lie": _record(content_type="cima", content={"type": "holiday"})},
        errors.RecordTypeError,
    ),
    **{
        f"a service's line that is {what}": ({"lie": _line(line)}, errors.RecordFormatError)
        for what, line in (
            ("a number", 5),
            ("nothing", None),
            ("a list", []),
            ("without data", {"template": "ima-ng"}),
            ("more than a line", {"template": "ima-ng", "data": "AAAA", "trusted": True}),
            ("of numbers", {"template": 1, "data": 2}),
            ("not canonical", {"template": "ima-ng", "data": "AAB="}),
        )
    },
    "a service's line of no file": (
        {"lie": _line({"template": "ima-ng", "data": "AAAA"})},
        errors.DependencyLineError,
    ),
    "a service's line of another file": (
        {"lie": _line(lambda records: records[2]["line"])},
        errors.DependencyLineError,
    ),
    "a line beside what is no file": (
        {"lie": _line(lambda records: records[1]["line"], record=0)},
        errors.DependencyLineError,
    ),
    "a line beside a container's record": (
        {"lie": _line({"template": "ima-ng", "data": "AAAA"}, part=0)},
        errors.RecordFormatError,
    ),
    "a log that does not add up": (
        {"lie_after": lambda proof: proof["host_log"]["entries"].append("12" * 32)},
        errors.HostLogError,
    ),
    "no log": (
        {"lie_after": lambda proof: proof.update(host_log={"from": 0, "entries": []})},
        errors.HostLogError,
    ),
    "a boot log of another": (
        {"lie_after": lambda proof: proof.update(boot_log="AAAA")},
        errors.BootLogError,
    ),
    **{
        f"an id that is {what}": (
            {"lie": changed_in("containers", id=name)},
            format_errors.EvidenceFormatError,
        )
        for what, name in (
            ("SQL", "x'; DROP TABLE hosts; --"),
            ("HTML", "<script>alert(1)</script>"),
            ("a terminal's escape", "\x1b]0;owned\x07"),
            ("a path", "../../etc/passwd"),
            ("two lines", "one\ntwo"),
            ("nothing", ""),
        )
    },
    "an owner that is HTML": (
        {"lie": changed_in("containers", owners=["<b>"])},
        format_errors.EvidenceFormatError,
    ),
    "a boot that is SQL": (
        {"lie": payload_with(boot_id="' OR 1")},
        format_errors.EvidenceFormatError,
    ),
    "a field too many": ({"lie": payload_with(trusted=True)}, format_errors.EvidenceFormatError),
    "slots that are none": ({"lie": payload_with(slots=1025)}, format_errors.EvidenceFormatError),
}


def _signature() -> str:
    host = FleetHost()
    proof = json.loads(host.report(bytes(16)).split(b"\n")[1])
    signature: str = proof["quote"]["signature"]
    return signature


def tell(host: FleetHost, keeper: Keeper, name: str) -> None:
    """Have a host lie: the report is refused by name, and nothing is kept of it."""
    lies, expected = LIES[name]
    number = host.start("one")
    host.run(number, b"/bin/sh")
    host.serve(b"/usr/bin/dockerd", b"/usr/bin/a b")
    if name == "a log that does not add up":
        # Entries beyond what is extended are the kernel's way; this one was extended otherwise.
        host.log[0] = host.log[0] + b"\0"
    host.bind()
    with pytest.raises(expected) as caught:
        keeper.take(host.report(keeper.nonce(), **lies))
    assert type(caught.value) is expected
    assert str(caught.value).isprintable()
    assert keeper.known == Known(ak=host.tpm.ak_public)
