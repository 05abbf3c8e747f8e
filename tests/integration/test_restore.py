"""What docs/how-to/back-up.md says is done and looked at; tests/vm/packages has systemd too."""

import json
import os
import subprocess
import sys
import tempfile

import native_host
from native_host import Host


def test_a_hosts_state_comes_back(host: Host) -> None:
    with tempfile.TemporaryDirectory(prefix="cima-restore-") as directory:
        done = subprocess.run(
            [sys.executable, native_host.TOP / "tests/restore_natively.py", host.prefix, directory],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{native_host.TOP}:{native_host.TOP}/tests"},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["before"]["code"] == 0 and seen["before"]["records"]
    assert seen["lost"]["code"] == seen["between"]["code"] == 2
    assert seen["kept"] == seen["before"]
    # It goes on, and nothing is proved of what was before: the TPM is another.
    assert seen["after"]["code"] == 0 and seen["after"]["records"]
    assert {"restored-kept", "restored-after"} <= {row["id"] for row in seen["ps"]}
    status = seen["status"]
    assert status["pcr_value"] == status["expected_value"]
    assert status["foreign_extends"] > 0
