"""A container's namespace, by which policies are assigned, is what its engine wrote of its pod."""

from typing import Any

import pytest

from cima_runc.fleet.hosts import _facts
from cima_runc.ml.contents import NO_ENGINE, Config, Engine, Register
from cima_runc.verifier.report.partitions import CheckedRecord

CONTAINERD = {
    "io.kubernetes.cri.sandbox-namespace": "containerds",
    "io.kubernetes.cri.sandbox-name": "one",
}
CRIO = {"io.kubernetes.pod.namespace": "crios", "io.kubernetes.pod.name": "other"}


def facts(engine: Engine, annotations: Any, uid: int | None = None) -> dict[str, Any]:
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
    )
    contents = (register, Config(config={"annotations": annotations}))
    records = [CheckedRecord(at, b"", content, b"") for at, content in enumerate(contents)]
    return {key: value for key, value in _facts(records).items() if key in {"namespace", "pod"}}


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
