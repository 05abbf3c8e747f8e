"""What an image says of itself is found in Podman's storage, and what is not found is not known."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cima_runc.agent.candidate import hands_on
from cima_runc.agent.registration import RegistrationError, own_annotations
from cima_runc.evidence.owner import names_us
from cima_runc.measure.engine import _image_stores
from cima_runc.measure.podman_image import image_pairs
from cima_runc.ml.contents import NO_ENGINE, Engine

ID, IMAGE = "c" * 64, "a" * 64
OWNER, NAME = "io.cima.owner", "io.cima.name"
KEY = "x25519:author"


def storage(
    store: Path, *manifests: Any, images: Path | None = None, listed: str = "containers.json"
) -> str:
    """Make a container of an image with these manifests; returns its bundle."""
    containers = store / "overlay-containers"
    containers.mkdir(parents=True)
    rows = [{"id": "d" * 64, "image": "b" * 64}, {"id": ID, "image": IMAGE}]
    (containers / listed).write_text(json.dumps(rows))
    place = (images or store) / "overlay-images" / IMAGE
    place.mkdir(parents=True)
    for number, manifest in enumerate(manifests):
        key = "manifest" if not number else f"manifest-sha256:{number:064x}"
        name = key if not number else "=" + base64.b64encode(key.encode()).decode()
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (place / name).write_text(text)
    (place / "=c2hhMjU2").write_text("the configuration")
    return f"{containers}/{ID}/userdata"


PLAIN = {"schemaVersion": 2, "annotations": {"org.opencontainers.image.title": "app"}}
ITS_OWN = {"schemaVersion": 2, "annotations": {OWNER: KEY, NAME: "app"}}


@pytest.mark.parametrize(
    ("manifests", "has"),
    [
        ([PLAIN], False),
        ([{"schemaVersion": 2}], False),
        ([{"layers": [OWNER, KEY]}], False),
        ([ITS_OWN], True),
        ([PLAIN, ITS_OWN], True),
        ([{"ANNOTATIONS": {OWNER: KEY}}], True),
        ([{"layers": [{"annotation\u017f": {OWNER: KEY}}]}], True),
        (["{}{}"], None),
        ([f'{{"annotations": {{}}, "annotations": {{"{OWNER}": "{KEY}"}}}}'], None),
        ([PLAIN, "no JSON"], None),
        (["[" * 100_000], None),
        ([], None),
    ],
)
def test_manifests(tmp_path: Path, manifests: list[Any], has: bool | None) -> None:
    found = image_pairs(storage(tmp_path, *manifests))
    assert (None if found is None else (OWNER, KEY) in found) is has


def test_where_containers_and_images_are(tmp_path: Path) -> None:
    bundle = storage(tmp_path / "a", ITS_OWN, listed="volatile-containers.json")
    assert (OWNER, KEY) in (image_pairs(bundle) or ())
    bundle = storage(tmp_path / "b", ITS_OWN, images=tmp_path / "other")
    assert image_pairs(bundle) is None
    assert (OWNER, KEY) in (image_pairs(bundle, [str(tmp_path / "other")]) or ())
    rows = tmp_path / "b" / "overlay-containers" / "containers.json"
    rows.write_text(json.dumps([{"id": ID}]))
    assert image_pairs(bundle) == frozenset()  # of a root filesystem
    for strange in (7, "../../etc", "a"):
        rows.write_text(json.dumps([{"id": ID, "image": strange}]))
        assert image_pairs(bundle) is None
    rows.write_text("[]")
    assert image_pairs(bundle) is None
    assert image_pairs("/bundle") is None
    given = ["--root", "/r", "--storage-opt", "overlay.imagestore=/x,/y", "--imagestore=/z"]
    assert _image_stores(given) == ("/r", "/z", "/x", "/y")


def kept(of_image: Any, **annotations: Any) -> dict[str, Any]:
    named = {"owner": OWNER, "name": NAME}
    values = {named.get(key, key): value for key, value in annotations.items()}
    candidate: Any = SimpleNamespace(of_image=of_image, state=SimpleNamespace(id="c"))
    return own_annotations(candidate, values)


def test_an_images_author_is_nobodys_owner() -> None:
    """Kind: what an image can set is taken for the word of who starts it."""
    image = frozenset({(OWNER, KEY), (NAME, "app")})
    with pytest.raises(RegistrationError, match="its author would be the owner"):
        kept(image, owner=KEY)
    assert kept(image, name="app", more="x") == {"more": "x"}
    # Who starts it says otherwise.
    assert kept(image, owner="x25519:mine", name="web") == {OWNER: "x25519:mine", NAME: "web"}
    assert kept(frozenset(), owner=KEY, name="app") == {OWNER: KEY, NAME: "app"}
    assert kept(None, more="x") == {"more": "x"}
    for each in ({"owner": KEY}, {"name": "app"}):
        with pytest.raises(RegistrationError, match="cannot be seen"):
            kept(None, **each)


@pytest.mark.parametrize(
    ("name", "bundle", "does"),
    [
        ("podman", f"/s/overlay-containers/{ID}/userdata", True),
        (None, f"/s/overlay-containers/{ID}/userdata", True),
        ("cri-o", f"/s/overlay-containers/{ID}/userdata", False),
        (None, "/bundle", False),
        ("docker", "/bundle", False),
        ("containerd", "/bundle", False),
    ],
)
def test_engines_that_hand_them_on(name: Any, bundle: str, does: bool) -> None:
    assert hands_on(Engine(name=name) if name else NO_ENGINE, bundle) is does


def test_configurations_that_are_looked_at() -> None:
    for annotations in (None, {}, {"other": "x"}, []):
        assert not names_us({"annotations": annotations})
    assert names_us({"annotations": {OWNER: "x"}}) and names_us({"annotations": {NAME: "x"}})
