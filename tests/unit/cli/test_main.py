"""Every command's help is run, in one style; ends are what the exit status says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cima_runc import __version__
from cima_runc.cli import output, shapes
from cima_runc.cli.examples import EXAMPLES
from cima_runc.cli.main import app


def commands(found: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, found
    for name in getattr(found, "list_commands", lambda _: [])(None):
        inner = found.get_command(None, name)
        assert inner is not None, name
        yield from commands(inner, (*words, name))


MAN = Path(__file__).resolve().parents[3] / "packaging/man.py"
ALL = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize(("words", "found"), ALL, ids=[" ".join(words) or "-" for words, _ in ALL])
def test_help(words: tuple[str, ...], found: Any) -> None:
    """Finding 7. Kind: a text with markup in it is taken for markup."""
    shown = [CliRunner().invoke(app, [*words, option]) for option in ("--help", "-h")]
    assert [one.exit_code for one in shown] == [0, 0], shown
    assert shown[0].stdout == shown[1].stdout
    assert shown[0].stdout.lstrip().startswith("Usage: ")
    assert not set("╭│─[/") & set(shown[0].stdout.replace("[OPTIONS]", "")) - {"[", "/"}
    assert found.help, "it says what it does"
    for name in getattr(found, "list_commands", lambda _: [])(None):
        first = found.get_command(None, name).help.strip().partition("\n")[0]
        assert "".join(first.split()) in "".join(shown[0].stdout.split()), "nothing is cut"
    for parameter in found.params:
        if parameter.name not in ("help",):
            assert getattr(parameter, "help", "said"), parameter.name


@pytest.mark.parametrize(("words", "found"), ALL[1:], ids=[" ".join(w) for w, _ in ALL[1:]])
def test_every_command_has_examples_that_can_be_typed(words: tuple[str, ...], found: Any) -> None:
    lines = EXAMPLES[" ".join(words)]
    assert lines or hasattr(found, "list_commands")
    shown = CliRunner().invoke(app, [*words, "--help"]).stdout
    for line in lines:
        assert f"\n    {line}\n" in shown
        typed = shlex.split(
            re.sub(r"\$\([^)]*\)", "X", line.partition(" | ")[0].partition(" > ")[0])
        )
        assert typed[: len(words) + 1] == ["cima", *words]
        found.make_context(" ".join(words), typed[len(words) + 1 :])


def test_no_examples_of_what_is_no_command() -> None:
    assert EXAMPLES.keys() == {" ".join(words) for words, _ in ALL[1:]}


def cima(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program itself, as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "cima_runc.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_version() -> None:
    assert cima("version").stdout == cima("--version").stdout == f"cima-runc {__version__}\n"
    assert json.loads(cima("version", "--json").stdout) == {
        "version": __version__,
        "json_version": shapes.VERSION,
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_CIMA_COMPLETE" in cima("completion", shell).stdout


def test_bash_completes(tmp_path: Path) -> None:
    """As bash does it: the script sourced, and the function called that it names."""
    script = """
    eval "$(cima completion bash)"
    COMP_WORDS=(cima configure doc) COMP_CWORD=2
    $(complete -p cima | sed 's/.*-F \\([^ ]*\\).*/\\1/') cima
    echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path},
        cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["docker"], done.stderr


def test_manual_pages_have_the_text_of_the_help(tmp_path: Path) -> None:
    subprocess.run([sys.executable, MAN, tmp_path], check=True)
    pages = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert pages.keys() == {
        *("-".join(("cima", *words)) + ".1" for words, _ in ALL), "cima-runc.8", "cima-agent.8"
    }  # fmt: skip
    for words, found in ALL:
        page = pages["-".join(("cima", *words)) + ".1"].replace("\\-", "-").replace("\\e", "\\")
        first = (found.help or "").strip().partition("\n")[0]
        assert first.rstrip(".") in page and ".SH EXIT STATUS" in page
        assert not words or all(line.strip() in page for line in EXAMPLES[" ".join(words)])
    if shutil.which("groff"):
        for name in pages:
            command = ["groff", "-man", "-ww", "-z", "-Tutf8", tmp_path / name]
            read = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (read.returncode, read.stderr) == (0, ""), name


def test_completion_knows_the_whole_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CIMA_COMPLETE", "complete_bash")

    def completed(*words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", " ".join(["cima", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return cima().stdout.split()

    for words, found in ALL:
        if inner := getattr(found, "list_commands", lambda _: [])(None):
            shown = completed(*words, "")
            assert shown == list(inner), words
    assert completed("verify", "--bo") == ["--boot-log"]
    assert completed("enroll", "accept", "--rep") == ["--replace"]
    assert {"docker", "containerd", "podman", "crio"} <= set(completed("configure", ""))
    assert "cel-json" in completed("log", "web", "--format", "")


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("ps", "--nonsense"),
        ("verify",),
        ("log", "x", "--format", "cel"),
        ("--config", "/nowhere/config.toml", "ps"),
        ("--config", "/", "ps"),
        ("show", "--json"),
        ("reference", "image", "--json"),
    ],
)
def test_what_cannot_be_done_is_2_and_no_traceback(words: tuple[str, ...]) -> None:
    done = cima(*words)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_an_error_as_json(tmp_path: Path) -> None:
    missing = tmp_path / "config.toml"
    done = cima("--config", str(missing), "ps", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"]) == (2, "NoSettings")
    assert str(missing) in error["what"] and error["hint"]


@pytest.mark.parametrize("words", [("nonsense",), ("log", ""), ("show",)])
def test_a_wrong_command_line_has_a_kind_of_its_own(words: tuple[str, ...]) -> None:
    """Kind: an error that a program cannot tell from any other."""
    error = json.loads(cima(*words, "--json").stdout)["error"]
    assert error["kind"] == "Usage" and error["hint"]
    verifiers = [sys.executable, "-m", "cima_runc.fleet.main", *words[1:], "nonsense", "--json"]
    done = subprocess.run(verifiers, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["error"]["kind"]) == (2, "Usage")


def test_what_nobody_thought_of_has_a_kind_too(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (OSError(5, "Input/output error"), ValueError("no")):
        with pytest.raises(SystemExit):
            output.fail_unexpectedly(error, as_json=True)
        assert json.loads(capsys.readouterr().out)["error"]["kind"] == "Unexpected"


def test_at_a_terminal_it_says_what_was_written_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[31m"
    output.wrote(path, "cima verify")
    assert not any(capsys.readouterr())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    output.wrote(path, "cima verify")
    output.wrote(Path("-"), "nothing of standard output")
    out, err = capsys.readouterr()
    assert not out
    assert err == f"cima: wrote {tmp_path}/a\\x1b[31m\ncima: next: cima verify\n"
