import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cima_runc.runtime import oci_hooks

OURS = "/usr/libexec/cima-runc"

_entry = st.fixed_dictionaries({"path": st.sampled_from(("/usr/bin/x", f"{OURS}/y/z", "/b"))})
_stages = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
_hooks = st.none() | st.dictionaries(
    st.sampled_from(_stages), st.none() | st.lists(_entry, max_size=3)
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_config = st.builds(
    lambda has, hooks, other: {"hooks": hooks, "process": other} if has else {"process": other},
    st.booleans(),
    _hooks,
    _json,
)


def _put_in(config: dict[str, Any], stage: str) -> dict[str, Any]:
    """As it is in the file that the runtime reads, and the agent after it."""
    written: dict[str, Any] = json.loads(json.dumps(config))
    oci_hooks.inject(written, hooks_dir=OURS, create_stage=stage, timeout_seconds=None, env=[])
    return json.loads(json.dumps(written))  # type: ignore[no-any-return]


@given(_config, st.sampled_from(oci_hooks.CREATE_STAGES))
def test_what_our_hooks_were_put_into_is_known_again(config: dict[str, Any], stage: str) -> None:
    """Also where there were hooks that are none: an empty object, an empty list, null."""
    before = oci_hooks.digest(config)
    found = _put_in(config, stage)
    oci_hooks.remove(found, hooks_dir=OURS)
    assert oci_hooks.digest(found) == before


@given(_config, st.sampled_from(oci_hooks.CREATE_STAGES), _entry)
def test_any_other_hook_is_another_configuration(
    config: dict[str, Any], stage: str, entry: dict[str, Any]
) -> None:
    found = _put_in(config, stage)
    found["hooks"].setdefault(stage, []).append(entry)
    oci_hooks.remove(found, hooks_dir=OURS)
    assert oci_hooks.digest(found) != oci_hooks.digest(config)


@given(_config, st.sampled_from(oci_hooks.CREATE_STAGES))
def test_ours_is_the_first_of_all_and_the_last_that_looks(
    config: dict[str, Any], stage: str
) -> None:
    """Runtimes run the stage prestart and then createRuntime, each in its order."""
    put_in = _put_in(config, stage)
    stages = ("prestart", "createRuntime")
    order = [entry["path"] for each in stages for entry in put_in["hooks"].get(each) or []]
    assert order[0] == f"{OURS}/prestart"
    others = [path for path in order if not path.startswith(f"{OURS}/") or path.endswith("/z")]
    assert order[1:] == ([*others, f"{OURS}/settled"] if others else [])
