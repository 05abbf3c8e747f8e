#!/usr/bin/env python3
"""`./dev fuzz`: coverage-guided fuzzing of the parsers in targets.py, by atheris (libFuzzer).

What libFuzzer says of its progress goes to stderr. Inputs that reach new code are kept in
build/fuzz/TARGET, so that the next run goes on from there; one that ends in an exception, a hang
or too much memory is left as build/fuzz/TARGET.crash-... (oom-, timeout-): mend what it found, and
move it to tests/fuzz/corpus/TARGET, which every `./dev test` reads.
"""

import argparse
import os
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT)]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["cima_runc"]):
    from tests.fuzz import targets

INPUT_BYTES = 1 << 16
INPUT_SECONDS = 20
"""One input that takes as long is a hang, even on a machine that does other things too."""
MEMORY_MIB = 2048


def fuzz(name: str, *, seconds: int, runs: int, found: Path) -> int:
    """Run one target in a child, since libFuzzer ends its process; returns the exit status."""
    found.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        options = [f"-artifact_prefix={found}.", f"-max_len={INPUT_BYTES}"]
        options += [f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"]
        options += [f"-max_total_time={seconds}"] if seconds else []
        options += [f"-runs={runs}"] if runs else []
        kept = targets.CORPUS / name
        corpora = [str(found), *([str(kept)] if kept.is_dir() else [])]
        atheris.Setup(["fuzz", *options, *corpora], lambda data: targets.check(name, data))
        atheris.Fuzz()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    """Run the targets one after the other and say which ended badly."""
    parser = argparse.ArgumentParser(prog="./dev fuzz", description="Fuzzes parsers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, if none is named")
    parser.add_argument("--seconds", type=int, help="for each target (default: 300)")
    parser.add_argument("--runs", type=int, default=0, help="inputs for each target, at most")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument(
        "--found", type=Path, default=CHECKOUT / "build/fuzz", help="where inputs are kept"
    )
    options = parser.parse_args()
    if options.list:
        print("\n".join(targets.TARGETS))
        return 0
    names = options.targets or list(targets.TARGETS)
    if unknown := set(names) - targets.TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}; see --list")
    seconds = options.seconds if options.seconds is not None else 0 if options.runs else 300
    bad = []
    for number, name in enumerate(names, 1):
        print(f"fuzz: {name}, {number} of {len(names)}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        status = fuzz(name, seconds=seconds, runs=options.runs, found=options.found / name)
        print(f"fuzz: {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if status:
            bad.append(f"{name}: exit status {status}, see {options.found}")
    for line in bad:
        print(f"fuzz: failed: {line}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
