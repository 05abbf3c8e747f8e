"""Which container is meant by a short word: by its name, its number, or the beginning of its id."""

import json
from pathlib import Path
from typing import Any

import pytest

from cima_runc.cli.records import called_alone
from cima_runc.config import Settings, load_settings
from cima_runc.ml.listing import NoSuchContainerError

NAMED, OTHER = "77" * 32, "db" * 32


def _row(id_: str, registration: int | None, bundle: Path, state: str) -> dict[str, Any]:
    shown = {"id": id_, "kind": "container", "registration": registration, "state": state}
    return shown | {"bundle": str(bundle)}


def _shown(root: Path, name: str, state: str = "running") -> list[dict[str, Any]]:
    """Two containers: NAMED, which Podman calls ``name``, and OTHER, whose number is 42."""
    storage = root / "overlay-containers"
    storage.mkdir()
    (storage / "containers.json").write_text(json.dumps([{"id": NAMED, "names": [name]}]))
    named = _row(NAMED, None, storage / NAMED / "userdata", state)
    return [named, _row(OTHER, 42, root / "bundle", "running")]


def _settings(root: Path) -> Settings:
    file = root / "config.toml"
    file.write_text(f'state_dir = "{root}/state"\n')
    return load_settings(str(file))


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("name", ["db", "dbd", OTHER[:12], "42"])
def test_a_name_that_is_short_for_another(tmp_path: Path, name: str, state: str) -> None:
    """A verdict on the one is not the other's, whoever gave it that name."""
    with pytest.raises(NoSuchContainerError) as raised:
        called_alone(_shown(tmp_path, name, state), name, _settings(tmp_path))
    assert raised.value.what == f"{name} is the name of {NAMED}, and short for {OTHER}"


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("web", "web", {NAMED}),
        ("77", "77", {NAMED}),  # short for itself
        (OTHER, OTHER, None),  # a whole id is nobody's name
        ("web", "db", None),
        ("web", "", None),
    ],
)
def test_one_that_is_meant(tmp_path: Path, name: str, wanted: str, found: set[str] | None) -> None:
    assert called_alone(_shown(tmp_path, name), wanted, _settings(tmp_path)) == found


def _calls(monkeypatch: pytest.MonkeyPatch, called: dict[str, dict[str, str]]) -> None:
    """Have the two containers called so: each ``{annotation or "engine": name}``."""

    def all_names(container_id: str, bundle: str, config: object) -> frozenset[tuple[str, str]]:
        return frozenset(called[container_id].items())

    monkeypatch.setattr("cima_runc.cli.records.all_names", all_names)


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("own", [{}, {"io.cima.name": "its-line"}])
@pytest.mark.parametrize(
    "who", ["io.cima.name", "io.kubernetes.cri.container-name", "nerdctl/name"]
)
def test_an_annotation_with_the_name_that_an_engine_has_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, who: str, own: dict[str, str], state: str
) -> None:
    """Neither is meant, whether the other lives, and whatever else it is called."""
    _calls(monkeypatch, {NAMED: {"engine": "web"} | own, OTHER: {who: "web", "engine": "mine"}})
    shown = [_row(NAMED, None, tmp_path, state), _row(OTHER, None, tmp_path, "running")]
    settings = _settings(tmp_path)
    assert called_alone(shown, "web", settings) == {NAMED, OTHER}
    for name in ("mine", *own.values()):
        assert called_alone(shown, name, settings) == ({OTHER} if name == "mine" else {NAMED})


@pytest.mark.parametrize("who", ["engine", "io.cima.name"])
def test_of_those_that_one_calls_so_that_which_lives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, who: str
) -> None:
    _calls(monkeypatch, {NAMED: {who: "web"}, OTHER: {who: "web"}})
    shown = [_row(NAMED, None, tmp_path, "stopped"), _row(OTHER, None, tmp_path, "running")]
    assert called_alone(shown, "web", _settings(tmp_path)) == {OTHER}
