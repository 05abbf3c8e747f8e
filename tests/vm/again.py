"""How a test that failed in a guest is run again."""

import shlex


def command_again(release: str, test: str, *, everything: bool) -> str:
    """Return the command that runs a test alone; with ``everything`` also one that is left out on
    its release otherwise."""
    more = " --everything" if everything else ""
    return f"./dev test --debian {release}{more} {shlex.quote(test)}"
