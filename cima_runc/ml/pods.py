"""What an engine itself wrote of a pod into a container's configuration.

An annotation is the engine's by the keys that this very engine writes last, after those that a pod
may pass on. Under another engine's keys it is the tenant's: CRI-O copies a pod's annotations onto
each of its containers, and knows nothing of containerd's.

Which engine it is, is measured (``register.engine``), and so are its facts of root's containers. A
user's own engine is whatever that user runs under its name: what it writes is the user's word, and
for others' use it is nobody's pod.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cima_runc.ml.contents import Engine


class Pod(NamedTuple):
    """A pod, and the container in it; each empty where the engine does not tell it."""

    uid: str = ""
    sandbox: str = ""
    """Id of the pod's sandbox."""
    container: str = ""
    namespace: str = ""
    name: str = ""


KEYS = {
    "containerd": Pod(
        "io.kubernetes.cri.sandbox-uid",
        "io.kubernetes.cri.sandbox-id",
        "io.kubernetes.cri.container-name",
        "io.kubernetes.cri.sandbox-namespace",
        "io.kubernetes.cri.sandbox-name",
    ),
    "cri-o": Pod(
        "io.kubernetes.pod.uid",
        "io.kubernetes.cri-o.SandboxID",
        "io.kubernetes.container.name",
        "io.kubernetes.pod.namespace",
        "io.kubernetes.pod.name",
    ),
}
"""The annotation that an engine writes each into, by the engine's name.
Sources: containerd pkg/cri/annotations; CRI-O pkg/annotations, and the labels that kubelet gives a
container, which internal/factory/container writes last."""


def pod_of(engine: Engine, annotations: Mapping[str, Any]) -> Pod:
    """Return what the engine wrote; nothing where it made the container for no pod."""
    keys = KEYS.get(engine.name or "") if engine.cri else None
    if keys is None:
        return Pod()
    found = (annotations.get(key) for key in keys)
    return Pod(*(value if isinstance(value, str) else "" for value in found))
