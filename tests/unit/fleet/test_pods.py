"""A container's namespace, by which policies are assigned, is what its engine wrote of its pod."""

from typing import Any

import pytest

from cima_runc.base import limits
from cima_runc.fleet.hosts import _facts
from cima_runc.ml.contents import NO_ENGINE, Config, Engine, Exit, Register
from cima_runc.verifier.report.partitions import CheckedRecord

CONTAINERD = {
    "io.kubernetes.cri.sandbox-namespace": "containerds",
    "io.kubernetes.cri.sandbox-name": "one",
}
CRIO = {"io.kubernetes.pod.namespace": "crios", "io.kubernetes.pod.name": "other"}


def facts(engine: Engine, annotations: Any, uid: int | None = None) -> dict[str, Any]:
    found = all_facts(engine, annotations, uid)
    return {key: value for key, value in found.items() if key in {"namespace", "pod"}}


def all_facts(
    engine: Engine, annotations: Any, uid: int | None = None, said: str = ""
) -> dict[str, Any]:
    register = Register(
        id="a",
        boot_id="b",
        registration=1,
        cgroup="/",
        namespaces={},
        dependencies=None,
        missing=(),
        engine=engine,
        uid=uid,
        line=bytes(32),
        run=1,
        previous=None,
        enforced=said or None,
    )
    contents = (register, Config(config={"annotations": annotations}), Exit(reason=said))
    return _facts([CheckedRecord(at, b"", content, b"") for at, content in enumerate(contents)])


@pytest.mark.parametrize("annotations", [CONTAINERD, CRIO, CONTAINERD | CRIO, {}, None])
@pytest.mark.parametrize(
    ("engine", "own"),
    [
        (NO_ENGINE, {}),
        (Engine(name="docker"), {}),
        (Engine(name="podman"), {}),
        (Engine(name="containerd"), {}),
        (Engine(name="containerd", cri=True), CONTAINERD),
        (Engine(name="cri-o", cri=True), CRIO),
    ],
)
def test_keys_of_another_engine_name_no_namespace(
    engine: Engine, own: dict[str, str], annotations: Any
) -> None:
    written = own and all((annotations or {}).get(key) == value for key, value in own.items())
    namespace, name = own.values() if written else (None, None)
    wanted = {"namespace": namespace, "pod": name} if written else {}
    assert facts(engine, annotations) == wanted
    # A user runs what he likes under an engine's name.
    assert facts(engine, annotations, uid=1000) == {}


def test_what_is_shown_in_every_list_is_short() -> None:
    """Kind: a host's text, as long as a record may be, in a column that is read with all others."""
    said = "a" * 1_000_000
    found = all_facts(Engine(name="cri-o", cri=True), dict.fromkeys(CRIO, said), said=said)
    texts = {name: len(value) for name, value in found.items() if isinstance(value, str)}
    assert texts == dict.fromkeys(("end", "enforced", "namespace", "pod"), limits.LABEL)
