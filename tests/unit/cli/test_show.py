import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cima_runc.cli import context, shapes
from cima_runc.cli.main import app
from cima_runc.cli.show import (
    EnvValue,
    ShowError,
    dependencies_summary,
    dependency_lines,
    env_values,
)
from cima_runc.measure.oci_config import hidden_value, measured_config
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.runtime.shim_settings import SETTINGS_FILE

SECRET = b"s" * 32
ESCAPE = "\x1b]0;title\x07"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file of a host without an agent, with one stored container."""
    path = tmp_path / "config.toml"
    state, bundle = tmp_path / "state", tmp_path / "bundle"
    path.write_text(f'state_dir = "{state}"\nsocket = "{tmp_path}/no.sock"\n')
    bundle.mkdir()
    config: dict[str, Any] = {
        "process": {
            "args": ["/bin/echo", f"a b{ESCAPE}"],
            "env": ["PATH=/bin", "TOKEN=hidden", f"ODD=x{ESCAPE}"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_SYS_ADMIN"]},
        },
        "mounts": [{"destination": "/data", "type": "bind", "source": "/srv/data"}],
        "linux": {"namespaces": [{"type": "mount"}]},
    }
    (bundle / "config.json").write_text(json.dumps(config))
    store = Store(state)
    store.prepare()
    services = Partition("dependencies:1")
    store.create(a_note(1, "dependencies:1", "", "dependencies"), SECRET)
    service = {"type": "service", "role": "runtime", "path": "/usr/sbin/runc", "digest": "00"}
    lacking = {"type": "unmeasured", "role": "init", "path": "/sbin/init", "digest": None}
    found = [services.add(content, {}) for content in (service, {**lacking, "reason": "why"})]
    store.append(1, found)
    container = Partition("box")
    store.create(a_note(2, "box", str(bundle), "container"), SECRET)
    contents: list[dict[str, Any]] = [
        {"type": "register", "id": "box", "registration": 2, "namespaces": {}, "dependencies": 1},
        {"type": "config", "config": measured_config(config, secret=SECRET, hooks_dir="/no")},
        {"type": "rootfs", "filesystem": "tree", "layers": [{"kind": "tree", "digest": "d"}]},
    ]
    store.append(2, [container.add(content, {}) for content in contents])
    return path


def a_note(registration: int, name: str, bundle: str, kind: Any) -> ContainerNote:
    return ContainerNote(
        registration=registration,
        id=name,
        boot_id="boot",
        mntns=7,
        cgroup="",
        pid=0,
        start_ticks=0,
        bundle=bundle,
        slot=registration,
        started="now",
        state="running",
        kind=kind,
    )


def show(settings: Path, *options: str) -> Any:
    try:
        return CliRunner().invoke(app, ["--config", str(settings), "show", "box", *options])
    finally:
        context.choose(SETTINGS_FILE)


def test_for_people(settings: Path) -> None:
    done = show(settings)
    assert done.exit_code == 0, done.output
    lines = [line.split(None, 1) for line in done.stdout.splitlines()]
    assert ["privileged", "no"] in lines
    assert "/data rw FROM THE HOST: /srv/data" in done.stdout
    assert "host namespaces    cgroup, ipc, network, pid, user, uts" in done.stdout
    assert "beyond default     SYS_ADMIN" in done.stdout
    assert "seccomp            OFF" in done.stdout
    assert "environment        PATH, TOKEN, ODD" in done.stdout
    assert "0 files measured, 1 not; see cima log dependencies:1" in done.stdout
    assert "runtime /usr/sbin/runc" in done.stdout
    assert "init /sbin/init: why" in done.stdout
    assert "hidden" not in done.stdout
    assert "\x1b" not in done.stdout and "\\x1b" in done.stdout
    assert all(char == "\n" or char.isprintable() for char in done.stdout)


def test_as_json(settings: Path) -> None:
    printed = show(settings, "--json").stdout
    shapes.check(("show", "--json"), printed)
    shown = json.loads(printed)
    assert shown["config"]["args"] == ["/bin/echo", f"a b{ESCAPE}"]
    assert shown["config"]["privileged"] is False
    assert shown["config"]["capabilities_beyond_default"] == ["CAP_SYS_ADMIN"]
    assert shown["rootfs"]["filesystem"] == "tree"
    assert shown["dependencies"]["unmeasured"][0]["path"] == "/sbin/init"
    assert "env" not in shown
    assert "hidden" not in json.dumps(shown)


@pytest.mark.skipif(os.geteuid() != 0, reason="values are for root")
def test_values_are_shown_on_request_and_checked(settings: Path) -> None:
    done = show(settings, "--env")
    assert "TOKEN=hidden" in done.stdout
    assert "NOT" not in done.stdout.split("environment")[1]
    assert "\x1b" not in done.stdout
    config_file = settings.parent / "bundle/config.json"
    config_file.write_text(config_file.read_text().replace("hidden", "changed"))
    done = show(settings, "--env")
    assert "TOKEN: measured with another value" in done.stdout
    assert "TOKEN=changed  (NOT what was measured)" in done.stdout
    assert "is not the one that was measured" in done.stderr
    printed = show(settings, "--env", "--json").stdout
    shapes.check(("show", "--json"), printed)
    values = json.loads(printed)["env"]
    assert {"name": "PATH", "value": "/bin", "measured": True} in values
    config_file.unlink()
    done = show(settings, "--env")
    assert isinstance(done.exception, ShowError)
    assert "the bundle is gone" in str(done.exception)


@given(st.lists(st.tuples(st.sampled_from(["A", "B", "é"]), st.text(max_size=4)), max_size=6))
def test_the_measured_environment_is_recognised(env: list[tuple[str, str]]) -> None:
    live = [f"{name}={value}" for name, value in env]
    measured = [f"{name}={hidden_value(SECRET, value)}" for name, value in env]
    found = env_values(measured, live, SECRET)
    assert [(value.name, value.value) for value in found] == env
    assert all(value.measured for value in found)
    other = env_values(measured, [*live, "NEW=1"], SECRET)
    assert other == [*found, EnvValue("NEW", "1", False)]
    missing = env_values([*measured, f"GONE={hidden_value(SECRET, '')}"], live, SECRET)
    assert missing == [*found, EnvValue("GONE", None, False)]


def test_the_unmeasured_are_grouped_by_service_and_reason() -> None:
    def lacking(number: int, role: str, reason: str) -> dict[str, Any]:
        path, kind = f"/lib/{number}.so", "unmeasured"
        return {"type": kind, "role": role, "path": path, "digest": None, "reason": reason}

    partition = Partition("dependencies:1")
    contents = [lacking(n, "init", "older than the policy") for n in range(6)]
    contents += [lacking(9, "shim", "older than the policy"), lacking(8, "init", "gone")]
    summary = dependencies_summary(partition.add(content, {}) for content in contents)
    lines = [text for head, text in dependency_lines({"partition": "p", **summary})][1:]
    assert lines == [
        "init /lib/0.so, /lib/1.so, /lib/2.so and 3 more files: older than the policy",
        "shim /lib/9.so: older than the policy",
        "init /lib/8.so: gone",
    ]
    assert len(summary["unmeasured"]) == 8
