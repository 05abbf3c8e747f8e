import copy
import hashlib
import hmac
import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.measure.oci_config import hidden_value, measured_config
from cima_runc.runtime import oci_hooks
from cima_runc.runtime.oci_hooks import HooksError, inject, remove

DIR = "/opt/cima/libexec/cima/hooks"
OTHER = {"path": "/usr/bin/other", "args": ["other", "prestart"]}

hook = st.fixed_dictionaries(
    {"path": st.sampled_from(["/usr/bin/other", "/x", f"{DIR}x/prestart"])}
)
stages = st.sampled_from(
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop", "x"]
)
configs = st.fixed_dictionaries(
    {"ociVersion": st.just("1.0.2")},
    optional={
        "hooks": st.dictionaries(stages, st.lists(hook, min_size=1, max_size=3), min_size=1),
        "x-unknown": st.integers() | st.text(max_size=5),
    },
)


def injected(config: dict[str, Any], stage: str = "createRuntime") -> dict[str, Any]:
    result = copy.deepcopy(config)
    inject(result, hooks_dir=DIR, create_stage=stage, timeout_seconds=60, env=["A=b"])
    return result


@given(configs, st.sampled_from(oci_hooks.CREATE_STAGES))
def test_what_is_put_in_is_taken_out(config: dict[str, Any], stage: str) -> None:
    with_ours = injected(config, stage)
    assert with_ours != config
    assert injected(with_ours, stage) == with_ours, "twice is once"
    remove(with_ours, hooks_dir=DIR)
    assert with_ours == config


def ours(name: str) -> dict[str, Any]:
    return {"path": f"{DIR}/{name}", "args": [name], "env": ["A=b"], "timeout": 60}


def test_ours_come_first_and_say_their_environment_and_timeout() -> None:
    hooks = injected({"hooks": {"createRuntime": [OTHER], "poststop": None}})["hooks"]
    assert hooks["createRuntime"] == [ours("prestart"), OTHER, ours("settled")]
    assert [entry["path"] for entry in hooks["poststart"]] == [f"{DIR}/poststart"]
    assert [entry["path"] for entry in hooks["poststop"]] == [f"{DIR}/poststop"]


STAGES = ("prestart", "createRuntime", "createContainer", "startContainer")
"""In the order in which every runtime runs them."""


@given(configs, st.sampled_from(oci_hooks.CREATE_STAGES))
def test_the_namespace_is_watched_before_anything_runs_in_it(
    config: dict[str, Any], stage: str
) -> None:
    hooks = injected(config, stage)["hooks"]
    order = [entry["path"] for each in STAGES for entry in hooks.get(each) or []]
    assert order[0] == f"{DIR}/prestart"
    assert order.count(f"{DIR}/prestart") == 1
    before = config.get("hooks") or {}
    others = sum(len(before.get(each) or []) for each in oci_hooks.CREATE_STAGES)
    assert order.count(f"{DIR}/settled") == (1 if others else 0)
    if others:
        # After all that runs before the container is entered.
        place = order.index(f"{DIR}/settled")
        assert place == 1 + others or stage == "prestart"
    assert oci_hooks.has_others(config) == bool(others)


def test_a_hook_without_a_limit() -> None:
    config: dict[str, Any] = {}
    inject(config, hooks_dir=DIR, create_stage="prestart", timeout_seconds=None, env=[])
    assert all("timeout" not in entry for each in config["hooks"].values() for entry in each)


@pytest.mark.parametrize(
    "config",
    [
        {"hooks": []},
        {"hooks": {"prestart": {}}},
        {"Hooks": {}},
        {"hooks": {}, "HOOKS": {"createRuntime": []}},
        {"hooks": {"CreateRuntime": []}},
    ],
)
def test_hooks_that_two_readers_could_read_differently_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(HooksError):
        injected(config)


def test_the_measured_configuration() -> None:
    config = {
        "process": {
            "env": ["PATH=/bin", "EMPTY=", "TWO=a=b", "NOVALUE"],
            "rlimits": [{"hard": 2**64 - 1, "soft": 1024}],
        },
        "hooks": {"prestart": [{"path": "/other", "env": ["TOKEN=secret"]}]},
        "unknown": {"kept": [1, None]},
    }
    secret = b"k" * 32
    before = injected(config)
    measured = measured_config(before, secret=secret, hooks_dir=DIR)

    def hidden(value: str) -> str:
        return hmac.new(secret, value.encode(), hashlib.sha256).hexdigest()

    assert measured == {
        "process": {
            "env": [
                f"PATH={hidden('/bin')}",
                f"EMPTY={hidden('')}",
                f"TWO={hidden('a=b')}",
                "NOVALUE",
            ],
            "rlimits": [{"hard": "18446744073709551615", "soft": 1024}],
        },
        "hooks": {"prestart": [{"path": "/other", "env": [f"TOKEN={hidden('secret')}"]}]},
        "unknown": {"kept": [1, None]},
    }
    assert before == injected(config), "the configuration itself stays as it was"
    assert json.loads(rfc8785.dumps(measured)) == measured
    assert hidden_value(secret, "/bin") == hidden("/bin")


def test_odd_environments_are_kept_as_they_are() -> None:
    for env in (None, "A=b", [1, None], {}):
        config = {"process": {"env": env}}
        assert measured_config(config, secret=b"", hooks_dir=DIR) == config
