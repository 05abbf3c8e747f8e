import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.cli.engine_names import Names, all_names, names_of

ID = "0123456789ab" * 5 + "cafe"


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (
            {
                "io.kubernetes.cri.container-name": "web",
                "io.kubernetes.cri.image-name": "registry.example/web:1",
                "io.kubernetes.cri.sandbox-name": "web-0",
                "io.kubernetes.cri.sandbox-namespace": "shop",
            },
            Names("web", "registry.example/web:1", "shop/web-0"),
        ),
        (
            {
                "io.kubernetes.container.name": "web",
                "io.kubernetes.cri-o.ImageName": "web:1",
                "io.kubernetes.pod.name": "web-0",
                "io.kubernetes.pod.namespace": "shop",
            },
            Names("web", "web:1", "shop/web-0"),
        ),
        ({"io.cima.name": "mine"}, Names("mine")),
        ({"io.cima.name": 7}, Names()),
        (None, Names()),
        ([], Names()),
    ],
)
def test_annotations(annotations: Any, expected: Names) -> None:
    assert names_of(ID, "/run/bundle", {"annotations": annotations}) == expected


def test_docker(tmp_path: Path) -> None:
    """As dockerd 20.10 and 26.1 lay a container's directory out."""
    directory = tmp_path / "containers" / ID
    directory.mkdir(parents=True)
    about = {"Name": "/alice", "Config": {"Image": "demo:1"}}
    (directory / "config.v2.json").write_text(json.dumps(about))
    mount = {"destination": "/etc/hostname", "source": f"{directory}/hostname"}
    assert names_of(ID, "/run/b", {"mounts": [mount]}) == Names("alice", "demo:1")
    called = {"mounts": [mount], "annotations": {"io.cima.name": "web", "nerdctl/name": ""}}
    assert all_names(ID, "/run/b", called) == {("io.cima.name", "web"), ("engine", "alice")}
    # Another container's directory says nothing of this one.
    assert names_of("f" * 64, "/run/b", {"mounts": [mount]}) == Names()


def test_podman(tmp_path: Path) -> None:
    """As Podman 4.3 and 5.4 keep the list of containers."""
    storage = tmp_path / "overlay-containers"
    storage.mkdir()
    row = {"id": ID, "names": ["bobby"], "metadata": '{"image-name":"localhost/demo:1"}'}
    (storage / "containers.json").write_text(json.dumps([{"id": "other"}, row]))
    bundle = str(storage / ID / "userdata")
    assert names_of(ID, bundle, {}) == Names("bobby", "localhost/demo:1")
    for damaged in ("", "[", "{}", "[7]", '[{"id": null}]', json.dumps([row | {"names": 7}])):
        (storage / "containers.json").write_text(damaged)
        assert names_of(ID, bundle, {}) == Names()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(_JSON, _JSON)
def test_any_configuration(annotations: Any, mounts: Any) -> None:
    found = names_of(ID, "/b", {"annotations": annotations, "mounts": mounts})
    assert all(isinstance(one, str) for one in found)
    # It is called by each name, by that which is shown too.
    called = {
        name for _, name in all_names(ID, "/b", {"annotations": annotations, "mounts": mounts})
    }
    assert {found.name} - {""} <= called
