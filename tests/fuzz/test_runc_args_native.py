"""The launcher and the shim read every command line alike."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cima_runc.runtime.runc_args import (
    COMMAND_FLAGS,
    COMMAND_VALUES,
    ENDING,
    GLOBAL_FLAGS,
    GLOBAL_VALUES,
    STARTING,
    RuncArgs,
    parse_runc_args,
)

HERE = Path(__file__).parent
OPTIONS = sorted(GLOBAL_VALUES | GLOBAL_FLAGS | COMMAND_VALUES | COMMAND_FLAGS | ENDING)
WORDS = [*sorted(STARTING), "exec", "state", "--", "-", "", "=", "-=", "--=", "id", "/bundle", "."]

text = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=9)
option = st.sampled_from(OPTIONS)
value = st.one_of(text, st.sampled_from(["/bundle", "", "run", "-x", "config.json"]))
argument = st.one_of(
    st.sampled_from(WORDS),
    option,
    st.builds("{}={}".format, option, value),
    option.map(lambda name: name[1:]),
    option.flatmap(lambda name: st.integers(1, len(name)).map(lambda end: name[:end])),
    st.builds("{}{}".format, st.sampled_from(["-b", "-f", "-d"]), value),
    text,
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("takes cc")
    program = tmp_path_factory.mktemp("driver") / "driver"
    subprocess.run(
        [
            *("cc", "-std=gnu17", "-g", "-fsanitize=address,undefined", "-Wall", "-Werror"),
            *("-o", str(program), str(HERE / "runc_args_driver.c")),
        ],
        check=True,
    )
    return program


def native(driver: Path, args: list[str]) -> list[str]:
    done = subprocess.run([driver, *map(os.fsencode, args)], capture_output=True, check=True)
    assert done.stderr == b""
    return os.fsdecode(done.stdout).split("\0")[:-1]


def expected(args: RuncArgs) -> list[str]:
    shown = [str(int(args.starts)), str(int(args.certain))]
    if args.starts and args.certain:
        shown += [args.bundles[0], args.config_names[0]]
    if args.certain:
        shown += [args.log or "", args.log_format]
    return shown


@given(args=st.lists(argument, max_size=8))
@settings(max_examples=1000, deadline=None)
def test_decides_like_python(driver: Path, args: list[str]) -> None:
    assert native(driver, args) == expected(parse_runc_args(args))


@given(
    before=st.lists(argument, max_size=3),
    bundle=st.sampled_from(["/bundle", "b", "."]),
    form=st.sampled_from(["--bundle {}", "--bundle={}", "-b {}", "-bundle {}", "-b{}", "--bun={}"]),
    after=st.lists(argument, max_size=3),
    command=st.sampled_from(sorted(STARTING)),
)
def test_a_bundle_is_never_overlooked(
    before: list[str], bundle: str, form: str, after: list[str], command: str
) -> None:
    given_form = form.format(bundle).split(" ")
    args = parse_runc_args([*before, command, *given_form, *after])
    if not args.starts:
        # Only an answer that ends, another command before this one, or not exactly one id, which
        # every runtime refuses, keeps it from starting.
        ids = [word for word in after if not word.startswith("-")]
        # A word may be an option's value and no id.
        takes_one = not COMMAND_VALUES.isdisjoint(after)
        assert (
            ENDING & {*before, *after}
            or any(word in {"-", "--"} or not word.startswith("-") for word in before)
            or len(ids) != 1
            or takes_one
        )
    elif not args.certain:
        assert bundle in args.bundles
