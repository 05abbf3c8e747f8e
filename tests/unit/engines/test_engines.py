"""Each engine with its shipped file and ten that look like real ones: in, again, and out."""

import hashlib
import json
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support import engine_files

from cima_runc.base.errors import CimaError
from cima_runc.engines.change import Changes
from cima_runc.engines.containerd import CONTAINERD
from cima_runc.engines.crio import CRIO
from cima_runc.engines.docker import DOCKER
from cima_runc.engines.engine import Engine, EngineError, Wish
from cima_runc.engines.podman import PODMAN

RUNTIME = "/opt/cima/bin/cima-runc"
CASES = [
    pytest.param(engine, directory, files, id=f"{engine.name}-{number}")
    for engine, directory, all_files in (
        (DOCKER, "docker", engine_files.DOCKER),
        (CONTAINERD, "containerd", engine_files.CONTAINERD),
        (PODMAN, "containers", engine_files.PODMAN),
        (CRIO, "crio", engine_files.CRIO),
    )
    for number, files in enumerate(all_files)
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def changes(root: Path, tmp_path: Path) -> Changes:
    return Changes(root, tmp_path / "records")


def write(root: Path, directory: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "etc" / directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def snapshot(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def configure(changes: Changes, engine: Engine, *, default: bool = False) -> bool:
    change = changes.adding(engine, Wish(RUNTIME, default))
    if change.needed:
        changes.make(engine, change)
    return change.needed


def remove(changes: Changes, engine: Engine) -> bool:
    change = changes.removing(engine)
    if change.needed:
        changes.make(engine, change)
    return change.needed


def merged(root: Path, engine: Engine) -> dict[str, Any]:
    """Return what the engine reads, its files merged as it does."""
    if engine is DOCKER:
        found: dict[str, Any] = json.loads((root / "etc/docker/daemon.json").read_text())
        return found
    total: dict[str, Any] = {}
    for name, content in sorted(snapshot(root).items(), key=lambda item: (".d/" in item[0], item)):
        if engine is CONTAINERD:
            values = tomllib.loads(content.decode())
            # containerd 1.x: a plugin's whole section is replaced.
            total.setdefault("plugins", {}).update(values.get("plugins", {}))
        elif name.endswith(".conf"):
            merge(total, tomllib.loads(content.decode()))
    return total


def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def entry(engine: Engine, values: dict[str, Any]) -> Any:
    """Return (the runtime's path, the default runtime) in the engine's settings."""
    if engine is DOCKER:
        return values["runtimes"]["cima-runc"]["path"], values.get("default-runtime")
    if engine is PODMAN:
        part = values["engine"]
        assert part["runtime_supports_json"][-1] == "cima-runc"
        assert len(set(part["runtime_supports_json"])) == len(part["runtime_supports_json"]) > 1
        return part["runtimes"]["cima-runc"][0], part.get("runtime")
    if engine is CRIO:
        part = values["crio"]["runtime"]
        return part["runtimes"]["cima-runc"]["runtime_path"], part.get("default_runtime")
    for plugin in values["plugins"].values():
        if "cima-runc" in plugin.get("containerd", {}).get("runtimes", {}):
            runtime = plugin["containerd"]["runtimes"]["cima-runc"]
            assert runtime["runtime_type"] == "io.containerd.runc.v2"
            name = plugin["containerd"].get("default_runtime_name")
            return runtime["options"]["BinaryName"], name
    return None


@pytest.mark.parametrize(("engine", "directory", "files"), CASES)
@pytest.mark.parametrize("default", [False, True])
def test_in_again_and_out_byte_for_byte(
    root: Path,
    changes: Changes,
    engine: Engine,
    directory: str,
    files: dict[str, str],
    default: bool,
) -> None:
    write(root, directory, files)
    before = snapshot(root)
    assert configure(changes, engine, default=default)
    path, name = entry(engine, merged(root, engine))
    assert path == RUNTIME
    assert (name == "cima-runc") == default
    after = snapshot(root)
    assert not configure(changes, engine, default=default)
    assert not configure(changes, engine)
    assert snapshot(root) == after
    configure(changes, engine, default=True)
    assert entry(engine, merged(root, engine)) == (RUNTIME, "cima-runc")
    assert remove(changes, engine)
    assert snapshot(root) == before
    assert not remove(changes, engine)


@pytest.mark.parametrize(("engine", "directory", "files"), CASES)
def test_only_ours_goes_where_somebody_edited_on(
    root: Path, changes: Changes, engine: Engine, directory: str, files: dict[str, str]
) -> None:
    write(root, directory, files)
    configure(changes, engine, default=True)
    path = changes.adding(engine, Wish(RUNTIME, True)).path
    text = path.read_text()
    if engine is DOCKER:
        path.write_text(json.dumps(json.loads(text) | {"added": 1}))
    else:
        path.write_text(text + "\n[added]\nlater = 1\n")
    assert remove(changes, engine)
    left = path.read_text()
    assert "cima-runc" not in left.replace("# Made by", "").replace("cima-runc', 'crun", "")
    values = json.loads(left) if engine is DOCKER else tomllib.loads(left)
    assert values["added"] in (1, {"later": 1})
    original = files.get(str(path.relative_to(root / "etc" / directory)), "")
    if engine is DOCKER:
        assert values.get("default-runtime") == json.loads(original or "{}").get("default-runtime")


@pytest.mark.parametrize(("engine", "directory", "files"), CASES)
def test_the_rest_stays_as_it_is_written(
    root: Path, changes: Changes, engine: Engine, directory: str, files: dict[str, str]
) -> None:
    write(root, directory, files)
    removed = [
        line
        for line in changes.adding(engine, Wish(RUNTIME, False)).diff().splitlines()[2:]
        if line.startswith("-")
    ]
    # Only a line that gets a comma, or the last one where it had no newline.
    assert len(removed) <= 2 or len(removed) <= len("".join(files.values()).splitlines()) <= 5


@pytest.mark.parametrize(
    ("engine", "name", "text", "words"),
    [
        (DOCKER, "docker/daemon.json", "{", "is not JSON"),
        (DOCKER, "docker/daemon.json", "[]", "is not a JSON object"),
        (DOCKER, "docker/daemon.json", '{"runtimes": 1}', "not an object"),
        (DOCKER, "docker/daemon.json", '{"a": 1, "a": 2}', "same key twice"),
        (CONTAINERD, "containerd/config.toml", "version = ", "is not TOML"),
        (CONTAINERD, "containerd/config.toml", "[plugins.cri]\n", "version 1"),
        (CONTAINERD, "containerd/config.toml", 'disabled_plugins = ["cri"]\n', "version 1"),
        (CONTAINERD, "containerd/config.toml", "version = 4\n", "version 4"),
        (CONTAINERD, "containerd/config.toml", "version = 2\nplugins = 1\n", "table"),
        (PODMAN, "containers/containers.conf", "[engine", "is not TOML"),
        (PODMAN, "containers/containers.conf", "[engine]\nruntime_supports_json = 1\n", "list"),
        (CRIO, "crio/crio.conf.d/zz-cima-runc.conf", "\x00", "is not TOML"),
    ],
)
def test_what_cannot_be_edited_is_left_alone(
    root: Path, changes: Changes, engine: Engine, name: str, text: str, words: str
) -> None:
    write(root, "", {name: text})
    before = snapshot(root)
    with pytest.raises(CimaError, match=words):
        configure(changes, engine)
    assert snapshot(root) == before


def test_systemd_cgroups_are_taken_over(root: Path, changes: Changes) -> None:
    write(root, "containerd", engine_files.CONTAINERD[5])
    configure(changes, CONTAINERD)
    text = (root / "etc/containerd/config.toml").read_text()
    assert text.count("SystemdCgroup = true") == 2


def test_mode_and_link_stay(root: Path, changes: Changes) -> None:
    write(root, "docker", {"real.json": '{"debug": true}'})
    link, real = root / "etc/docker/daemon.json", root / "etc/docker/real.json"
    link.symlink_to("real.json")
    real.chmod(0o640)
    configure(changes, DOCKER)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "cima-runc" in real.read_text()
    remove(changes, DOCKER)
    assert real.read_text() == '{"debug": true}'


def test_a_file_that_changes_meanwhile_is_not_overwritten(root: Path, changes: Changes) -> None:
    write(root, "docker", {"daemon.json": "{}"})
    change = changes.adding(DOCKER, Wish(RUNTIME, False))
    write(root, "docker", {"daemon.json": '{"debug": true}'})
    with pytest.raises(EngineError, match="just been changed"):
        changes.make(DOCKER, change)
    assert snapshot(root) == {"etc/docker/daemon.json": b'{"debug": true}'}


def test_the_diff_shows_no_control_characters(root: Path, changes: Changes) -> None:
    write(root, "containerd", {"config.toml": "# \x1b[2J\u202e\nversion = 2\n"})
    with pytest.raises(EngineError):
        changes.adding(CONTAINERD, Wish(RUNTIME, False))
    write(root, "containerd", {"config.toml": "# \u202e\nversion = 2\n"})
    assert changes.adding(CONTAINERD, Wish(RUNTIME, False)).diff().isprintable() is False
    assert "\u202e" not in changes.adding(CONTAINERD, Wish(RUNTIME, False)).diff()


def test_the_record_says_what_was_made(root: Path, changes: Changes, tmp_path: Path) -> None:
    configure(changes, DOCKER)
    record = json.loads((tmp_path / "records/docker.json").read_text())
    made = (root / "etc/docker/daemon.json").read_bytes()
    assert record["after_sha256"] == hashlib.sha256(made).hexdigest()
