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
from cima_runc.engines import change
from cima_runc.engines.change import Changes
from cima_runc.engines.containerd import CONTAINERD, dump_command
from cima_runc.engines.crio import CRIO, config_command
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


def directories(root: Path) -> set[str]:
    return {str(path.relative_to(root.parent)) for path in root.rglob("*") if path.is_dir()}


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
            plugins = total.setdefault("plugins", {})
            if values.get("version", 1) >= 3:
                merge(plugins, values.get("plugins", {}))
            else:
                # containerd 1.x: a plugin's whole section is replaced.
                plugins.update(values.get("plugins", {}))
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
        (CONTAINERD, "containerd/config.toml", "version = 5\n", "version 5"),
        (CONTAINERD, "containerd/config.toml", 'version = "2"\n', "version 0"),
        (CONTAINERD, "containerd/config.toml", 'disabled_plugins = ["cri"]\n', "switched off"),
        (
            CONTAINERD,
            "containerd/config.toml",
            'version = 3\ndisabled_plugins = ["io.containerd.cri.v1.runtime"]\n',
            "switched off",
        ),
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


# -- hosts as others have them ---------------------------------------------------------------------


CASES_OF_OTHERS = Path(__file__).parents[4] / "shared/cases"


def case(name: str) -> dict[str, str]:
    """A case's files by their names; they stand beside the checkout."""
    directory = CASES_OF_OTHERS / name
    if not directory.is_dir():
        pytest.skip(f"{directory} is not here")
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "README")
    return {str(path.relative_to(directory)): path.read_text("utf-8") for path in files}


CRI3 = "io.containerd.cri.v1.runtime"


def in_effect(root: Path) -> dict[str, Any]:
    total: dict[str, Any] = {}
    main = root / "etc/containerd/config.toml"
    for path in [main, *sorted(root.glob("etc/containerd/conf.d/*.toml"))]:
        merge(total, tomllib.loads(path.read_text()))
    return total


def test_nvidias_drop_in_stays_as_it_is(root: Path, changes: Changes) -> None:
    files = case("containerd-nvidia-drop-in")
    write(root, "containerd", files)
    before = snapshot(root)
    configure(changes, CONTAINERD, default=True)
    after = snapshot(root)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"etc/containerd/conf.d/zz-cima-runc.toml"}
    containerd = in_effect(root)["plugins"][CRI3]["containerd"]
    assert set(containerd["runtimes"]) == {"runc", "nvidia", "cima-runc"}
    wanted = {"BinaryName": RUNTIME, "SystemdCgroup": True}
    assert containerd["runtimes"]["cima-runc"]["options"] == wanted
    assert containerd["default_runtime_name"] == "cima-runc"
    assert CONTAINERD.named(root) == {RUNTIME}
    assert not configure(changes, CONTAINERD)
    remove(changes, CONTAINERD)
    assert snapshot(root) == before


def test_a_drop_in_of_version_2_hides_nothing(root: Path, changes: Changes) -> None:
    """containerd 1.x: the last file's section is the only one, so it has all of it."""
    cri2 = 'plugins."io.containerd.grpc.v1.cri"'
    files = {
        "config.toml": 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n',
        "conf.d/99-nvidia.toml": f"version = 2\n[{cri2}]\n  sandbox_image = 'p'\n"
        f"[{cri2}.containerd.runtimes.runc]\n  runtime_type = 'io.containerd.runc.v2'\n"
        f"[{cri2}.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n"
        f"[{cri2}.containerd.runtimes.nvidia]\n  runtime_type = 'io.containerd.runc.v2'\n",
    }
    write(root, "containerd", files)
    before = snapshot(root)
    configure(changes, CONTAINERD)
    after = snapshot(root)
    assert {name: after[name] for name in before} == before
    own = tomllib.loads(after["etc/containerd/conf.d/zz-cima-runc.toml"].decode())
    section = own["plugins"]["io.containerd.grpc.v1.cri"]
    assert section["sandbox_image"] == "p"
    assert set(section["containerd"]["runtimes"]) == {"runc", "nvidia", "cima-runc"}
    assert section["containerd"]["runtimes"]["cima-runc"]["options"]["SystemdCgroup"] is True
    # What others change there comes into it anew.
    write(
        root,
        "containerd",
        {"conf.d/99-nvidia.toml": files["conf.d/99-nvidia.toml"].replace("p'", "q'")},
    )
    assert configure(changes, CONTAINERD)
    assert b"'q'" in snapshot(root)["etc/containerd/conf.d/zz-cima-runc.toml"].replace(b'"', b"'")
    remove(changes, CONTAINERD)
    assert set(snapshot(root)) == set(before)


@pytest.mark.parametrize("version", [2, 3])
def test_drop_ins_that_containerd_reads_without_a_main_file(
    root: Path, changes: Changes, version: int
) -> None:
    """Since containerd 2.2. A main file that does not import them would switch them off."""
    plugin = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}[version]
    files = {
        "conf.d/10-root.toml": f'version = {version}\nroot = "/srv/containerd"\n',
        "conf.d/99-note": "not TOML",
    }
    if version == 3:  # sections are merged since then
        files["conf.d/50-nvidia.toml"] = (
            f'version = 3\n[plugins."{plugin}".containerd]\ndefault_runtime_name = "nvidia"\n'
            f'[plugins."{plugin}".containerd.runtimes.nvidia.options]\nSystemdCgroup = true\n'
        )
    write(root, "containerd", files)
    before = snapshot(root)
    assert configure(changes, CONTAINERD)
    made = tomllib.loads((root / "etc/containerd/config.toml").read_text())
    assert made["version"] == version
    assert made["imports"] == ["/etc/containerd/conf.d/*.toml"]
    runtime = made["plugins"][plugin]["containerd"]["runtimes"]["cima-runc"]
    assert runtime["options"].get("SystemdCgroup", False) is (version == 3)
    assert not configure(changes, CONTAINERD)
    assert CONTAINERD.named(root) == {RUNTIME}
    assert remove(changes, CONTAINERD)
    assert snapshot(root) == before


def test_containerds_version_4(root: Path, changes: Changes) -> None:
    write(root, "containerd", case("containerd-v4"))
    before = snapshot(root)
    configure(changes, CONTAINERD, default=True)
    containerd = in_effect(root)["plugins"][CRI3]["containerd"]
    assert containerd["default_runtime_name"] == "cima-runc"
    assert set(containerd["runtimes"]) == {"runc", "cima-runc"}
    remove(changes, CONTAINERD)
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "text", ["[plugins.cri]\n", "[grpc]\n  gid = 0\n", "version = 1\n[plugins.cri.containerd]\n"]
)
def test_containerds_version_1(root: Path, changes: Changes, text: str) -> None:
    write(root, "containerd", {"config.toml": text})
    before = snapshot(root)
    configure(changes, CONTAINERD)
    values = in_effect(root)
    assert values.get("version", 1) == 1
    runtimes = values["plugins"]["cri"]["containerd"]["runtimes"]
    assert set(runtimes) == {"runc", "cima-runc"}
    remove(changes, CONTAINERD)
    assert snapshot(root) == before


@pytest.mark.parametrize("name", ["config.toml.tmpl", "config-v3.toml.tmpl"])
@pytest.mark.parametrize("before", [None, '{{ template "base" . }}\n', "# own\n{{ .X }}\n[a]\n"])
def test_k3ss_template(
    root: Path, tmp_path: Path, changes: Changes, name: str, before: str | None
) -> None:
    file = tmp_path / name
    if before is not None:
        file.write_text(before)
    wish = Wish(RUNTIME, False, file=file)
    changes.make(CONTAINERD, changes.adding(CONTAINERD, wish))
    text = file.read_text()
    assert text.startswith(before or '{{ template "base" . }}\n')
    block = text[text.index("[plugins") : text.index("# cima configure containerd: end")]
    made = tomllib.loads(block.replace("{{ .SystemdCgroup }}", "true"))
    plugin = CRI3 if "v3" in name else "io.containerd.grpc.v1.cri"
    runtime = made["plugins"][plugin]["containerd"]["runtimes"]["cima-runc"]
    assert runtime["options"] == {"BinaryName": RUNTIME, "SystemdCgroup": True}
    assert not changes.adding(CONTAINERD, wish).needed
    with pytest.raises(EngineError, match="default runtime"):
        changes.adding(CONTAINERD, Wish(RUNTIME, True, file=file))
    remove(changes, CONTAINERD)
    assert (file.read_text() if file.exists() else None) == before
    assert not root.exists()


def test_a_file_elsewhere(root: Path, tmp_path: Path, changes: Changes) -> None:
    file = tmp_path / "elsewhere.toml"
    file.write_text("version = 2\n")
    changes.make(CONTAINERD, changes.adding(CONTAINERD, Wish(RUNTIME, False, file=file)))
    assert RUNTIME in file.read_text()
    assert not root.exists()
    with pytest.raises(EngineError, match="already"):
        changes.adding(CONTAINERD, Wish(RUNTIME, False, file=tmp_path / "another.toml"))
    with pytest.raises(EngineError, match="already"):
        changes.removing(CONTAINERD, tmp_path / "another.toml")
    remove(changes, CONTAINERD)
    assert file.read_text() == "version = 2\n"


@pytest.mark.parametrize("engine", [PODMAN, CRIO])
def test_a_file_of_others_is_not_written_over(
    engine: Engine, tmp_path: Path, changes: Changes
) -> None:
    """What goes into a file of its own replaces nothing where another is named."""
    file = tmp_path / "containers.conf"
    file.write_text("[engine]\nnum_locks = 4096\n")
    with pytest.raises(EngineError, match="has settings of others"):
        changes.adding(engine, Wish(RUNTIME, False, file=file))
    file.write_text("# nothing yet\n")
    changes.make(engine, changes.adding(engine, Wish(RUNTIME, False, file=file)))
    changes.make(engine, changes.adding(engine, Wish(RUNTIME, True, file=file)))
    assert RUNTIME in file.read_text()
    remove(changes, engine)
    assert file.read_text() == "# nothing yet\n"


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        (DOCKER, '{"runtimes": 1}'),
        (CONTAINERD, "version = 5\n"),
        (CONTAINERD, 'disabled_plugins = ["cri"]\n'),
        (PODMAN, "[engine"),
        (CRIO, "x"),
    ],
)
def test_errors_name_the_file_that_was_given(
    engine: Engine, text: str, tmp_path: Path, changes: Changes
) -> None:
    file = tmp_path / "elsewhere"
    file.write_text(text)
    with pytest.raises(CimaError, match=str(file)):
        changes.adding(engine, Wish(RUNTIME, False, file=file))
    file.write_bytes(b"\xff")
    for work_out in (
        lambda: changes.adding(engine, Wish(RUNTIME, False, file=file)),
        lambda: changes.removing(engine, file),
    ):
        with pytest.raises(EngineError, match=f"{file} is not UTF-8"):
            work_out()


def test_a_byte_order_mark(root: Path, changes: Changes) -> None:
    for text in (case("docker-daemon-bom")["daemon.json"], "\ufeff", "\ufeff{}"):
        write(root, "docker", {"daemon.json": text})
        configure(changes, DOCKER, default=True)
        made = (root / "etc/docker/daemon.json").read_text("utf-8")
        assert made.startswith("\ufeff{")
        assert json.loads(made[1:])["runtimes"]["cima-runc"]["path"] == RUNTIME
        assert DOCKER.named(root) == {RUNTIME}
        remove(changes, DOCKER)
        assert (root / "etc/docker/daemon.json").read_text("utf-8") == text


@pytest.mark.parametrize(
    ("engine", "name", "text"),
    [
        (CONTAINERD, "containerd/config.toml", "version = 2\n[debug]\n  level = 'info'\n"),
        (CONTAINERD, "containerd/config.toml", ""),
        (PODMAN, "containers/containers.conf", '[engine]\nruntime_supports_json = ["x"]\n'),
        (PODMAN, "containers/containers.conf.d/10.conf", "[engine]\n"),
        (CRIO, "crio/crio.conf", "[crio.runtime]\n"),
    ],
)
def test_a_byte_order_mark_in_toml(
    root: Path, changes: Changes, engine: Engine, name: str, text: str
) -> None:
    """The engines' readers skip it, and so it may stand in any file, ours or not."""
    write(root, "", {name: "\ufeff" + text})
    before = snapshot(root)
    configure(changes, engine, default=True)
    assert engine.named(root) == {RUNTIME}
    assert (root / "etc" / name).read_text("utf-8").startswith("\ufeff" + text)
    assert not configure(changes, engine)
    remove(changes, engine)
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "text",
    [
        "version = 2\nplugins = { 'io.containerd.grpc.v1.cri' = { containerd = {} } }\n",
        "version = 2\nplugins = { 'io.containerd.grpc.v1.cri' = {}, x = {a = 1} } # mine\n",
        "version = 3\n[plugins]\n'io.containerd.cri.v1.runtime' = { enable_cdi = true }\n",
        "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\n"
        "runtimes = { runc = { runtime_type = 'io.containerd.runc.v2' } }\n",
        "version = 2\nplugins.'io.containerd.grpc.v1.cri'.containerd.default_runtime_name = 'n'\n",
    ],
)
def test_tables_in_braces_and_dotted_names(root: Path, changes: Changes, text: str) -> None:
    write(root, "containerd", {"config.toml": text})
    before = snapshot(root)
    configure(changes, CONTAINERD, default=True)
    assert CONTAINERD.named(root) == {RUNTIME}
    assert not configure(changes, CONTAINERD)
    # Where somebody edited on, what is ours alone is taken out.
    file = root / "etc/containerd/config.toml"
    file.write_text(file.read_text() + "[added]\nlater = 1\n")
    remove(changes, CONTAINERD)
    left = tomllib.loads(file.read_text())
    assert "cima-runc" not in file.read_text()
    assert left.pop("added") == {"later": 1}
    assert left["version"] == tomllib.loads(text)["version"]
    file.write_text(text)
    assert snapshot(root) == before


def test_where_containerds_unit_says(root: Path, changes: Changes) -> None:
    """Its own file would be read by nobody."""
    for flag in ("--config /srv/c.toml", "--config=/srv/c.toml", "-c /srv/c.toml"):
        unit = f"[Service]\nExecStart=/usr/local/bin/containerd {flag}\n"
        write(root, "..", {"lib/systemd/system/containerd.service": unit, "srv/c.toml": ""})
        configure(changes, CONTAINERD)
        assert RUNTIME in (root / "srv/c.toml").read_text()
        assert not (root / "etc/containerd").exists()
        assert CONTAINERD.named(root) == {RUNTIME}
        assert dump_command(root) == ["containerd", "--config", "/srv/c.toml", "config", "dump"]
        remove(changes, CONTAINERD)


@pytest.mark.parametrize(
    ("directory", "made", "file"),
    [
        ("var/lib/rancher/k3s/agent/etc/containerd", "version = 2\n", "config.toml.tmpl"),
        ("var/lib/rancher/k3s/agent/etc/containerd", "version = 3\n", "config-v3.toml.tmpl"),
        ("var/lib/rancher/rke2/agent/etc/containerd", None, "config-v3.toml.tmpl"),
        ("var/snap/microk8s/current/args", None, "containerd-template.toml"),
        ("etc/k0s", None, "containerd.d/zz-cima-runc.toml"),
    ],
)
def test_a_containerd_of_others(
    root: Path, changes: Changes, directory: str, made: str | None, file: str
) -> None:
    """It would not read /etc/containerd: the file that it reads is named."""
    (root / directory).mkdir(parents=True)
    if made is not None:
        (root / directory / "config.toml").write_text(made)
    with pytest.raises(EngineError) as caught:
        configure(changes, CONTAINERD)
    assert caught.value.hint == f"cima configure containerd --file {root / directory / file}"
    named = Wish(RUNTIME, False, file=root / directory / file)
    assert CONTAINERD.named(root) == set()
    changes.make(CONTAINERD, changes.adding(CONTAINERD, named))
    assert RUNTIME in (root / directory / file).read_text()
    assert CONTAINERD.named(root) == {RUNTIME}
    remove(changes, CONTAINERD)
    assert CONTAINERD.named(root) == set()
    # Beside one of the distribution's that is the one to configure.
    write(root, "containerd", {"config.toml": "version = 2\n"})
    assert configure(changes, CONTAINERD)


@pytest.mark.parametrize(
    ("name", "version"), [("config-v3.toml.d/a.toml", 3), ("a-v3.toml", 3), ("conf.d/a.toml", 2)]
)
def test_the_version_of_a_new_file(
    tmp_path: Path, changes: Changes, name: str, version: int
) -> None:
    file = tmp_path / name
    changes.make(CONTAINERD, changes.adding(CONTAINERD, Wish(RUNTIME, False, file=file)))
    made = tomllib.loads(file.read_text())
    assert made["version"] == version
    assert list(made["plugins"]) == [CRI3 if version == 3 else "io.containerd.grpc.v1.cri"]


def test_a_runtime_of_dockers_by_its_shims_option(root: Path, changes: Changes) -> None:
    entry = {"runtimeType": "io.containerd.runc.v2", "options": {"BinaryName": RUNTIME}}
    text = json.dumps({"runtimes": {"cima-runc": entry}})
    write(root, "docker", {"daemon.json": text})
    assert DOCKER.named(root) == {RUNTIME}
    assert not configure(changes, DOCKER)
    for other in ({"BinaryName": "/x"}, {}, {"BinaryName": 1}, None):
        write(
            root,
            "docker",
            {"daemon.json": text.replace(json.dumps(entry["options"]), json.dumps(other))},
        )
        assert changes.adding(DOCKER, Wish(RUNTIME, False)).needed
    text = text.replace("runc.v2", "kata.v2")
    write(root, "docker", {"daemon.json": text})
    assert DOCKER.named(root) == set()


def test_where_crios_unit_says(root: Path, changes: Changes) -> None:
    unit = (
        "[Service]\nEnvironmentFile=-/etc/sysconfig/crio\nExecStart=/usr/bin/crio $CRIO_OPTIONS\n"
    )
    options = "CRIO_OPTIONS=--config-dir /srv/crio.d -c /srv/crio.conf\n"
    write(root, "..", {"usr/lib/systemd/system/crio.service": unit, "etc/sysconfig/crio": options})
    configure(changes, CRIO, default=True)
    assert RUNTIME in (root / "srv/crio.d/zz-cima-runc.conf").read_text()
    assert not (root / "etc/crio").exists()
    assert CRIO.named(root) == {RUNTIME}
    said = ["--config", "/srv/crio.conf", "--config-dir", "/srv/crio.d"]
    assert config_command(root) == ["crio", *said, "config"]
    remove(changes, CRIO)
    write(root, "..", {"etc/sysconfig/crio": 'CRIO_OPTIONS="--default-runtime crun"\n'})
    with pytest.raises(EngineError, match="--default-runtime=crun"):
        configure(changes, CRIO, default=True)
    assert configure(changes, CRIO)
    remove(changes, CRIO)
    write(root, "..", {"etc/sysconfig/crio": "CRIO_OPTIONS=--config-dir=\n"})
    with pytest.raises(EngineError, match="reads no drop-in files"):
        configure(changes, CRIO)


def test_the_cgroups_are_those_of_the_usual_runtime(root: Path, changes: Changes) -> None:
    """NVIDIA's may be the only handler that a file names, and the default."""
    section = '[plugins."io.containerd.grpc.v1.cri".containerd'
    text = f"version = 2\n{section}]\ndefault_runtime_name = 'nvidia'\n"
    text += f"{section}.runtimes.nvidia.options]\nSystemdCgroup = true\n"
    write(root, "containerd", {"config.toml": text})
    configure(changes, CONTAINERD)
    runtimes = in_effect(root)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes["cima-runc"]["options"]["SystemdCgroup"] is True


_DEBIANS_UNIT = """[Service]
EnvironmentFile=-/etc/default/docker
ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS
"""


@pytest.mark.parametrize(
    ("files", "flag"),
    [
        (None, "--default-runtime=runc"),
        ({"etc/default/docker": 'DOCKER_OPTS="--default-runtime nvidia"\n'}, "=nvidia"),
        ({"etc/default/docker": "DOCKER_OPTS='--add-runtime=x=/x'\n"}, "--add-runtime"),
        (
            {
                "etc/systemd/system/docker.service.d/a.conf": "[Service]\nExecStart=\n"
                "ExecStart=/usr/bin/dockerd \\\n  --default-runtime=${WHICH}\n",
                "run/systemd/system/docker.service.d/z.conf": "[Service]\nEnvironment=WHICH=x\n",
            },
            "--default-runtime=x",
        ),
    ],
)
def test_dockerds_own_flags(
    root: Path, changes: Changes, files: dict[str, str] | None, flag: str
) -> None:
    """With a directive as a flag and in the file too dockerd does not start."""
    if files is None:
        override = case("docker-default-runtime-flag")["override.conf"]
        files = {"etc/systemd/system/docker.service.d/override.conf": override}
    write(root, "..", {"lib/systemd/system/docker.service": _DEBIANS_UNIT, **files})
    before = snapshot(root)
    with pytest.raises(EngineError) as refused:
        configure(changes, DOCKER, default=True)
    assert flag in str(refused.value)
    assert next(iter(reversed(files))) in str(refused.value) or "systemd" in str(refused.value)
    assert snapshot(root) == before
    if "add-runtime" not in flag:
        assert configure(changes, DOCKER)
        remove(changes, DOCKER)
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "start",
    [
        "/bin/sh -c 'exec dockerd --add-runtime=x=/x -H fd:// 2>&1'",
        '/bin/bash -lc "ulimit -n 1; /usr/bin/dockerd ${MORE}"',
        "/usr/bin/env dockerd --add-runtime x=/x",
    ],
)
def test_dockerd_behind_a_shell(
    root: Path,
    changes: Changes,
    start: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its flags count, and the shell's are not given to dockerd's own check."""
    unit = f"[Service]\nEnvironment='MORE=--add-runtime=x=/x'\nExecStart={start}\n"
    write(root, "..", {"lib/systemd/system/docker.service": unit})
    with pytest.raises(EngineError, match="--add-runtime"):
        configure(changes, DOCKER)
    unit = unit.replace("--add-runtime=x=/x", "--debug").replace("--add-runtime x=/x", "--debug")
    write(root, "..", {"lib/systemd/system/docker.service": unit})
    (dockerd := tmp_path / "dockerd").write_text('#!/bin/sh\necho "$*" >&2\nexit 1\n')
    dockerd.chmod(0o755)
    monkeypatch.setattr(change, "_SBIN", str(tmp_path))
    with pytest.raises(EngineError, match=r": --debug (-H fd:// )?--validate"):
        changes.check(DOCKER, changes.adding(DOCKER, Wish(RUNTIME, False)))


def test_a_drop_in_that_is_masked_says_nothing(root: Path, changes: Changes) -> None:
    drop_in = "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd --add-runtime=x=/x\n"
    write(root, "..", {"lib/systemd/system/docker.service": _DEBIANS_UNIT})
    write(root, "..", {"usr/lib/systemd/system/docker.service.d/a.conf": drop_in})
    with pytest.raises(EngineError, match="add-runtime"):
        configure(changes, DOCKER)
    mask = root / "etc/systemd/system/docker.service.d/a.conf"
    mask.parent.mkdir(parents=True)
    mask.symlink_to("/dev/null")
    assert configure(changes, DOCKER)


@pytest.mark.parametrize(
    ("engine", "path", "text"),
    [
        (PODMAN, "containers/containers.conf.d/zzz.conf", '[engine]\nruntime = "crun"\n'),
        (
            CRIO,
            "crio/crio.conf.d/zzz.conf",
            '[crio.runtime]\ndefault_runtime = "crun"\n',
        ),
    ],
)
def test_a_default_that_a_later_file_takes_back(
    root: Path, changes: Changes, engine: Engine, path: str, text: str
) -> None:
    write(root, ".", {path: text})
    with pytest.raises(EngineError, match=r"zzz\.conf comes after our file"):
        configure(changes, engine, default=True)
    assert configure(changes, engine)
    assert engine.named(root) == {RUNTIME}


@pytest.mark.parametrize(
    "text", ['{"runtimes": null}', '{"debug": true, "runtimes": null, "a": 1}']
)
def test_no_runtimes_in_dockers_file(root: Path, changes: Changes, text: str) -> None:
    write(root, "docker", {"daemon.json": text})
    configure(changes, DOCKER)
    found = json.loads((root / "etc/docker/daemon.json").read_text())
    assert found == json.loads(text) | {"runtimes": {"cima-runc": {"path": RUNTIME}}}
    assert DOCKER.named(root) == {RUNTIME}
    remove(changes, DOCKER)
    assert (root / "etc/docker/daemon.json").read_text() == text


def test_dockers_snap(root: Path, changes: Changes) -> None:
    """Kind: a file that nobody reads is written, without a word."""
    own = root / "var/snap/docker/current/config/daemon.json"
    own.parent.mkdir(parents=True)
    assert configure(changes, DOCKER)
    assert RUNTIME in own.read_text()
    assert not (root / "etc").exists()
    assert DOCKER.named(root) == {RUNTIME}
    assert not configure(changes, DOCKER)
    assert remove(changes, DOCKER)
    assert not own.exists()
    # Beside one of the distribution's that is the one to configure.
    unit = "[Service]\nExecStart=/usr/bin/dockerd -H fd://\n"
    write(root, "..", {"lib/systemd/system/docker.service": unit})
    assert configure(changes, DOCKER)
    assert RUNTIME in (root / "etc/docker/daemon.json").read_text()
    assert not own.exists()


def test_dockerds_own_file(root: Path, changes: Changes) -> None:
    unit = _DEBIANS_UNIT.replace("-H fd://", "--config-file /srv/daemon.json")
    write(root, "..", {"lib/systemd/system/docker.service": unit})
    configure(changes, DOCKER)
    assert json.loads((root / "srv/daemon.json").read_text())["runtimes"]
    assert not (root / "etc/docker").exists()


_SECTION = '[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "x"\n'


@pytest.mark.parametrize(
    "files",
    [
        {  # a file by its name comes after the directory
            "config.toml": "version = 2\n"
            "imports = ['/etc/containerd/conf.d/*.toml', 'late.toml']\n",
            "late.toml": f"version = 2\n{_SECTION}",
        },
        {  # what an imported file imports comes last
            "config.toml": "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n",
            "conf.d/a.toml": "version = 2\nimports = ['/etc/containerd/deep.toml']\n",
            "deep.toml": f"version = 2\n{_SECTION}",
        },
    ],
    ids=["by-name", "nested"],
)
def test_a_file_with_the_last_word_is_named(
    root: Path, changes: Changes, files: dict[str, str]
) -> None:
    """It would replace the section with our handler, and no container be started by us."""
    write(root, "containerd", files)
    before = snapshot(root)
    last = next(reversed(files))
    with pytest.raises(EngineError, match=f"{last} comes after .* the last word"):
        configure(changes, CONTAINERD)
    assert snapshot(root) == before
    named = Wish(RUNTIME, True, file=root / "etc/containerd" / last)
    changes.make(CONTAINERD, changes.adding(CONTAINERD, named))
    assert CONTAINERD.named(root) == {RUNTIME}
    remove(changes, CONTAINERD)
    assert snapshot(root) == before


@pytest.mark.parametrize("version", [2, 3])
def test_a_drop_in_that_came_later_costs_the_main_file_nothing(
    root: Path, changes: Changes, version: int
) -> None:
    """Configured in the main file, and then NVIDIA's toolkit came: the rest of it stays."""
    plugin = "io.containerd.grpc.v1.cri" if version == 2 else "io.containerd.cri.v1.runtime"
    main = (
        f'version = {version}\nimports = ["/etc/containerd/conf.d/*.toml"]\nroot = "/srv/c"\n'
        f'[plugins."{plugin}"]\nenable_cdi = true\n'
    )
    write(root, "containerd", {"config.toml": main})
    configure(changes, CONTAINERD)
    nvidia = f'version = {version}\n[plugins."{plugin}".containerd.runtimes.nvidia]\na = 1\n'
    write(root, "containerd", {"conf.d/99-nvidia.toml": nvidia})
    if version == 2:
        with pytest.raises(EngineError, match=r"99-nvidia\.toml comes after"):
            configure(changes, CONTAINERD)
    else:
        configure(changes, CONTAINERD)
        assert CONTAINERD.named(root) == {RUNTIME}
    text = (root / "etc/containerd/config.toml").read_text()
    assert text.startswith(main) and RUNTIME in text
    remove(changes, CONTAINERD)
    assert (root / "etc/containerd/config.toml").read_text() == main


def test_podmans_appending_lists(root: Path, changes: Changes) -> None:
    write(root, "containers", case("podman-append"))
    before = snapshot(root)
    configure(changes, PODMAN)
    own = tomllib.loads((root / "etc/containers/containers.conf.d/zz-cima-runc.conf").read_text())
    assert own["engine"]["runtime_supports_json"] == ["cima-runc", {"append": True}]
    remove(changes, PODMAN)
    assert snapshot(root) == before


@pytest.mark.parametrize("without", [False, True])
def test_podmans_list_of_those_that_need_no_cgroups(
    root: Path, changes: Changes, without: bool
) -> None:
    """Podman asks it before --cgroups=disabled: said of us where the low-level runtime can."""
    changes.make(PODMAN, changes.adding(PODMAN, Wish(RUNTIME, False, without)))
    own = tomllib.loads((root / "etc/containers/containers.conf.d/zz-cima-runc.conf").read_text())
    wanted = ["crun", "krun", "cima-runc"] if without else None
    assert own["engine"].get("runtime_supports_nocgroups") == wanted
    remove(changes, PODMAN)
    assert snapshot(root) == {}


def test_the_engines_own_check_comes_first(
    root: Path, changes: Changes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setattr(change, "_SBIN", str(programs))
    wanted = changes.adding(DOCKER, Wish(RUNTIME, False))
    changes.check(DOCKER, wanted)  # no dockerd here: nobody to ask
    for script, words in (
        ("echo 'unable to configure: bad thing' >&2; exit 1", "bad thing"),
        ('case "$*" in *--validate*) eval cat "\\${$##*=}" >&2;; esac; exit 1', "}"),
        ("echo 'unknown flag: --validate' >&2; exit 125", ""),
        ("exit 0", ""),
    ):
        (programs / "dockerd").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "dockerd").chmod(0o755)
        if words:
            with pytest.raises(EngineError, match=words):
                changes.check(DOCKER, wanted)
        else:
            changes.check(DOCKER, wanted)
        assert snapshot(root) == {}


@pytest.mark.parametrize(
    ("engine", "example"),
    [
        (PODMAN, "podman/containers.conf"),
        (DOCKER, "docker/daemon.json"),
    ],
)
def test_what_a_person_put_in_place_is_seen(root: Path, engine: Engine, example: str) -> None:
    """By whichever of the engine's files: cima doctor must not warn of it."""
    path = Path(__file__).parents[3] / "examples" / example
    place = {
        "podman": "etc/containers/containers.conf.d/cima-runc.conf",
        "docker": "etc/docker/daemon.json",
    }[engine.name]
    assert engine.named(root) == set()
    (root / place).parent.mkdir(parents=True)
    (root / place).write_bytes(path.read_bytes())
    (found,) = engine.named(root)
    assert found.endswith("/cima-runc")


def test_a_directory_goes_that_was_made_and_is_empty(root: Path, changes: Changes) -> None:
    configure(changes, PODMAN)
    configure(changes, PODMAN, default=True)
    assert (root / "etc/containers/containers.conf.d").is_dir()
    remove(changes, PODMAN)
    assert not root.exists()
    # What somebody has put there stays, and so does what was there before.
    configure(changes, PODMAN)
    (root / "etc/containers/policy.json").write_text("{}")
    remove(changes, PODMAN)
    assert directories(root) == {"root/etc", "root/etc/containers"}
    assert snapshot(root) == {"etc/containers/policy.json": b"{}"}
    (root / "etc/containers/containers.conf.d").mkdir()
    configure(changes, PODMAN)
    remove(changes, PODMAN)
    assert (root / "etc/containers/containers.conf.d").is_dir()
