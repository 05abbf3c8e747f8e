"""A real agent, real runc and a software TPM report to a service on this machine."""

import subprocess
import sys

import native_host
import pytest

_WHY_NOT = native_host.is_possible()


@pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))
@pytest.mark.parametrize("script", ["report_natively", "report_restarts_natively"])
def test_a_real_agent_reports(script: str) -> None:
    done = subprocess.run(
        [sys.executable, native_host.TOP / f"tests/{script}.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is there" in done.stdout
