"""The examples are what `cima configure` writes, and name each other rightly."""

import re
import tomllib
from pathlib import Path

from cima_runc.engines.change import Changes
from cima_runc.engines.containerd import CONTAINERD
from cima_runc.engines.engine import RUNTIME_NAME, Wish

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
CRI = "io.containerd.grpc.v1.cri"


def configured(tmp_path: Path, text: str | None, runtime: str) -> object:
    path = tmp_path / "etc/containerd/config.toml"
    path.parent.mkdir(parents=True)
    if text is not None:
        path.write_text(text)
    change = Changes(tmp_path, tmp_path / "records").adding(CONTAINERD, Wish(runtime, False))
    assert change.then is not None
    return tomllib.loads(change.then.decode())


def test_containerd(tmp_path: Path) -> None:
    example = tomllib.loads((EXAMPLES / "containerd/config.toml").read_text())
    assert configured(tmp_path, None, "/usr/local/bin/cima-runc") == example


def test_the_handler_of_kubernetes(tmp_path: Path) -> None:
    text = (EXAMPLES / "kubernetes/containerd.toml").read_text()
    before = text[
        : text.index(f"[plugins.{CRI!r}.containerd.runtimes.cima-runc]".replace("'", '"'))
    ]
    assert configured(tmp_path, before, "/opt/cima/bin/cima-runc") == tomllib.loads(text)


def test_names_agree() -> None:
    runtime_class = (EXAMPLES / "kubernetes/node/runtimeclass.yaml").read_text()
    assert re.findall("^handler: (.+)$", runtime_class, re.MULTILINE) == [RUNTIME_NAME]
    (name,) = re.findall("^  name: (.+)$", runtime_class, re.MULTILINE)
    pod = (EXAMPLES / "kubernetes/pod.yaml").read_text()
    assert re.findall("runtimeClassName: (.+)", pod) == [name]
    selectors = {
        tuple(re.findall('nodeSelector:\n +(.+): "true"', text))
        for text in (runtime_class, (EXAMPLES / "kubernetes/node/daemonset.yaml").read_text())
    }
    assert len(selectors) == 1 and len(selectors.pop()) == 1
