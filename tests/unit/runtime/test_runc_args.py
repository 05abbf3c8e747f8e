import pytest
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.runtime.runc_args import RuncArgs, parse_runc_args


def certain(
    bundle: str = ".", name: str = "config.json", restores: bool = False, **more: str
) -> RuncArgs:
    log, log_format = more.get("log"), more.get("log_format", "text")
    return RuncArgs(True, True, log, log_format, (bundle,), (name,), restores)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("create x", certain()),
        ("run --bundle /b x", certain("/b")),
        ("restore --bundle=/b --image-path i x", certain("/b", restores=True)),
        ("create restore", certain()),
        ("create -b /b -- x", certain("/b")),
        ("create -b /a --bundle /b x", certain("/b")),
        ("create --bundle= x", certain(".")),
        ("run --bundle /b --config c.json x", certain("/b", "c.json")),
        ("--root /r --systemd-cgroup create --pid-file p --no-pivot x", certain()),
        ("--log l --log-format json create x", certain(log="l", log_format="json")),
        ("--log=l --log-format=json --root r run -d x", certain(log="l", log_format="json")),
    ],
)
def test_certain(line: str, expected: RuncArgs) -> None:
    assert parse_runc_args(line.split(" ")) == expected


@pytest.mark.parametrize(
    "line",
    [
        *("", "state x", "exec x run", "exec x create --bundle b", "--version"),
        *("--help create", "-v run", "create --help", "run -h x", "kill run KILL", "-- state"),
        *("--root /r --debug list", "help create"),
        *("create", "run --bundle /b", "create a b", "restore --bundle=/b a b", "create --"),
    ],
)
def test_starts_nothing(line: str) -> None:
    args = parse_runc_args(line.split(" ") if line else [])
    assert not args.starts


@pytest.mark.parametrize(
    ("line", "bundle"),
    [
        ("create x --bundle /b", "/b"),  # urfave/cli moves options to the front
        ("create -bundle /b x", "/b"),  # Go
        ("create -bundle=/b x", "/b"),
        ("create -b/b x", "/b"),  # GNU
        ("create -db/b x", "/b"),
        ("create --bund /b x", "/b"),
        ("create --b=/b x", "/b"),
        ("create --pid-file - --bundle /b x", "/b"),
        ("create --unknown --bundle /b x", "/b"),
        ("--unknown value create --bundle /b x", "/b"),
        ("--roo /r create --bundle /b x", "/b"),
        ("--rootless create --bundle /b x", "/b"),
        ("create x", "."),
    ],
)
def test_in_doubt_everything_may_be_the_bundle(line: str, bundle: str) -> None:
    args = parse_runc_args(line.split(" "))
    assert args.starts
    assert bundle in args.bundles


@pytest.mark.parametrize(
    ("line", "restores"),
    [
        ("restore x --bundle /b", True),
        ("--unknown value restore -b/b x", True),
        ("create --unknown restore", True),
        ("create --unknown x", False),
        ("restore --image-pat=/i create", True),
        ("restore create", True),
    ],
)
def test_what_restores(line: str, restores: bool) -> None:
    assert parse_runc_args(line.split(" ")).restores is restores


def test_in_doubt_the_log_is_still_found() -> None:
    args = parse_runc_args(["-log", "/l", "-log-format=json", "create", "--nonsense", "x"])
    assert (args.log, args.log_format) == ("/l", "json")


@given(st.lists(st.text(max_size=12), max_size=10))
def test_never_fails(args: list[str]) -> None:
    parsed = parse_runc_args(args)
    assert not parsed.starts or (parsed.bundles and parsed.config_names)
    if not {"create", "run", "restore"} & set(args):
        assert not parsed.starts
