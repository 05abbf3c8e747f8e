#!/usr/bin/python3
"""Runs the tests in tests/vm inside guests: `guest_tests.py RELEASE [PATH...] [PYTEST OPTION...]`.

A directory under tests/vm with a file `guest-options` (options of `./dev vm`, `#` starts a comment)
is a suite of its own, for a guest started with these options; one with `--debian` is for that
release only. All other tests share one guest that is started without any.
"""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

LAB = Path(__file__).resolve().parent
CHECKOUT = LAB.parent
TESTS = Path("tests/vm")
NO_TESTS_RAN = 5


def suite_of(test: Path) -> Path:
    """Return the directory whose guest the test wants."""
    return next(
        (
            above
            for above in (test, *test.parents)
            if (CHECKOUT / above / "guest-options").is_file()
        ),
        TESTS,
    )


def options_of(suite: Path) -> list[str]:
    """Return the options of `./dev vm` for the suite's guest."""
    file = CHECKOUT / suite / "guest-options"
    return shlex.split(file.read_text(), comments=True) if file.is_file() else []


def main() -> int:
    """Run each suite and say at the end which failed."""
    # Ended by a signal, the guest that is running goes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    release, *words = sys.argv[1:]
    named = [word for word in words if word.startswith("tests/")]
    passed_on = [word for word in words if word not in named]
    targets = named or [
        str(file.relative_to(CHECKOUT)) for file in sorted((CHECKOUT / TESTS).rglob("test_*.py"))
    ]
    suites: dict[Path, list[str]] = {}
    for target in targets:
        suites.setdefault(suite_of(Path(target.partition("::")[0])), []).append(target)

    failed, ran = [], False
    for suite, tests in sorted(suites.items()):
        options = options_of(suite)
        if "--debian" in options and options[options.index("--debian") + 1] != release:
            print(f"dev: {suite} is for another release", file=sys.stderr)
            continue
        title = f"{suite} in a Debian {release} guest"
        print(f"dev: {title} {shlex.join(options)}", file=sys.stderr, flush=True)
        boot = [str(LAB / "vm.py"), "--debian", release, "--verbose", *options]
        job = [str(LAB / "guest-pytest"), *tests, *passed_on]
        status = subprocess.run([*boot, *job], check=False).returncode
        ran |= status != NO_TESTS_RAN
        if status not in (0, NO_TESTS_RAN):
            failed.append(f"{title}: exit status {status}")
    if not (ran or passed_on):
        failed.append(f"Debian {release}: no test ran")
    for line in failed:
        print(f"dev: failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
