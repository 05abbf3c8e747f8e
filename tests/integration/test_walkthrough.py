"""examples/remote-verify with a real agent, real runc and the commands that people type."""

import re
import subprocess
import sys

import native_host
import pytest

_WHY_NOT = native_host.is_possible()


@pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))
def test_walkthrough() -> None:
    done = subprocess.run(
        [sys.executable, native_host.TOP / "tests/attest_natively.py"],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert "nothing was appraised" in out
    assert "UNKNOWN: container alices-web" in out
    assert "tpm2_checkquote: accepted" in out
    assert "OwnerKeyError" in out
    assert "NonceError" in out
    assert "nothing of bobs-web" in out
    quotes = re.search(r"200 requests at once: (\d+) quotes", out)
    assert quotes is not None
    assert int(quotes[1]) < 10
    assert out.count("refused: ") == 1
    assert "ended, and attested" in out


def test_readme_shows_a_part_of_what_it_prints() -> None:
    """tests/vm/test_attestation.py compares the whole with a run."""
    whole = (native_host.TOP / "examples/remote-verify/README.md").read_text()
    readme = (native_host.TOP / "README.md").read_text()
    part = readme.partition("## Prove it to somebody else")[2].split("```")[1]
    assert part.removeprefix("console\n") in whole
    assert "TRUSTED: container" in part
