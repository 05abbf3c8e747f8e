"""cima-runc beside runc and crun of this release, and its errors as engines show them."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm import guest
from tests.vm.guest import IMAGE, Ran, Settings

HOOKS = Path("/opt/cima/libexec/cima/hooks")
PROGRAM = ["/bin/sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done"]

ERRORS = [
    *(
        "",
        "nonsense",
        "--nonsense",
        "create",
        "create a b",
        "run",
        "run --nonsense x",
        "start none",
    ),
    *("state", "state none", "kill none KILL", "delete none", "delete --force none", "list -q x"),
    *("exec none true", "pause none", "resume none", "ps none", "update none", "restore x"),
    *("create --bundle /no/such x", "create -b {tmp} x", "run -b {bundle}", "run -b {bundle} a b"),
    *("create -b {bundle} ../x", "create -b {bundle} --pid-file", "checkpoint none", "--root"),
    *("--log {tmp}/no/l state none", "--log-format xml state none", "-v", "--version", "features"),
    *("create --help", "--help", "exec --help", "run -h"),
]
"""Command lines that start nothing."""
LIFE = [
    *("create -b {bundle} --pid-file {tmp}/pid x", "create -b {bundle} x", "state x", "list -q"),
    *("start x", "start x", "list -q", "exec x /bin/echo in", "exec x /bin/sh -c exit\t7"),
    *("exec x /no/such", "exec -d x /bin/true", "exec --cwd /bin x /bin/ls", "exec x"),
    *("pause x", "exec x /bin/true", "resume x", "delete x", "run -b {bundle} x", "kill x NO"),
    *("kill x KILL", "delete --force x", "state x", "list -q", "delete x"),
    *("run -d -b {bundle} --pid-file={tmp}/2 x", "delete -f x", "create --bundle={bundle} x"),
    *("delete x", "delete --force x", "run -b {bad} x", "list -q", "create -b {bad} x"),
    *("start x", "delete -f x", "run --no-pivot -b {bundle} -d x", "kill x TERM", "delete -f x"),
]
"""One after the other."""


@pytest.fixture(scope="module")
def bundles(image: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle that runs, and one whose program is missing."""
    top = tmp_path_factory.mktemp("launcher")
    found = {name: guest.make_bundle(top / name, "") for name in ("bundle", "bad")}
    for name, args in (("bundle", PROGRAM), ("bad", ["/no/such"])):
        config = json.loads((found[name] / "config.json").read_text())
        config["process"]["args"] = args
        (found[name] / "config.json").write_text(json.dumps(config))
    return found


def outcomes(program: str, lines: list[str], places: dict[str, Path], tmp: Path) -> list[object]:
    """What each line ends with and says, and what is then in the log and in ``tmp``."""
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    places = places | {"tmp": tmp}
    found: list[object] = []
    for number, line in enumerate(lines):
        log = ["--log", f"{tmp}/log", "--log-format", ("text", "json")[number % 2]]
        words = line.split(" ") if line else []
        for name, place in places.items():
            words = [word.replace("{" + name + "}", str(place)) for word in words]
        words = [word.replace("\t", " ") for word in words]
        ran = quiet(program, *([] if "--log" in line else log), *words, tmp=tmp)
        found.append((line, ran.code, neutral(ran.out), neutral(ran.err)))
    files = {path.name: neutral(path.read_text()) for path in sorted(tmp.iterdir())}
    return [*found, sorted(files.items())]


def quiet(program: str, *words: str, tmp: Path) -> Ran:
    # Files, not pipes: a container that stays would hold a pipe open.
    command = f'"$@" >{tmp.parent}/out 2>{tmp.parent}/err'
    code = guest.run("/bin/sh", "-c", command, "sh", program, *words).code
    return Ran(code, (tmp.parent / "out").read_text(), (tmp.parent / "err").read_text())


def neutral(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)", "TIME", text)
    text = re.sub(r'("(pid|init_process_pid)": ?)\d+', r"\1N", text)
    text = re.sub(r"(/proc/|process |pid |PID )\d+", r"\1N", text)
    text = re.sub(r"^\d+$", "N", text)
    return re.sub(r".*(level=debug|Failed to remove cgroup).*\n", "", text)


# tests/integration/test_runc_table.py compares with the runc and crun of the machine it runs on.
@pytest.mark.debian()
@pytest.mark.parametrize("lines", [ERRORS, LIFE], ids=["errors", "life"])
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_same_as_the_runtime(
    bundles: dict[str, Path], tmp_path: Path, runtime: str, lines: list[str]
) -> None:
    if runtime == "crun":  # it calls no hooks then, so we refuse it
        lines = [line for line in lines if not line.startswith("restore")]
    plain = outcomes(runtime, lines, bundles, tmp_path / "tmp")
    with Settings(f'runtimes = ["{runtime}"]\n'):
        ours = outcomes("cima-runc", lines, bundles, tmp_path / "tmp")
    for one, other in zip(ours, plain, strict=True):
        assert one == other


# -- errors, in the words of engines ------------------------------------------------------------


@contextmanager
def a_hook_missing() -> Iterator[None]:
    hook, aside = HOOKS / "poststop", HOOKS / "poststop.aside"
    hook.rename(aside)
    try:
        yield
    finally:
        aside.rename(hook)


BROKEN = {
    "hook": (a_hook_missing, f"cima-runc: the hook {HOOKS}/poststop cannot be executed"),
    "runtime": (
        lambda: Settings('runtimes = ["/no/such/runc"]\n'),
        "cima-runc: no low-level runtime found, looked for /no/such/runc",
    ),
    "settings": (lambda: Settings("runtimes = [\n"), "/etc/cima/config.toml is not TOML"),
}


def left_behind() -> list[str]:
    """Containers that a low-level runtime knows, by the directories of its state."""
    roots = (
        "/run/runc",
        "/run/crun",
        "/run/docker/runtime-runc/moby",
        "/run/containerd/runc/default",
    )
    return sorted(str(path) for root in roots for path in Path(root).glob("*"))


@pytest.mark.debian("13")
@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("engine", ["docker", "podman", "ctr"])
def test_the_engine_shows_our_line(image: str, engine: str, what: str) -> None:
    breaking, words = BROKEN[what]
    before, rows = left_behind(), guest.ps()
    command = {
        "docker": guest.docker("cima-runc", "--rm", IMAGE, "/bin/echo", "it ran"),
        "podman": guest.podman("cima-runc", "--rm", IMAGE, "/bin/echo", "it ran"),
        "ctr": [*guest.ctr("cima-runc", "broken"), "/bin/echo", "it ran"],
    }[engine]
    with breaking():
        ran = guest.run(*command)
    assert ran.code != 0
    assert "it ran" not in ran.out
    assert words in ran.err.replace("\\", "")
    assert left_behind() == before
    assert guest.ps() == rows
    after = guest.run(*command)
    assert (after.code, after.out) == (0, "it ran\n")
