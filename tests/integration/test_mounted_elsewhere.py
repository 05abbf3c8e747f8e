"""A root filesystem that only the runtime sees where config.json says."""

import subprocess
from pathlib import Path

from native_host import Host, make_bundle


def test_another_tree_is_not_measured_in_its_place(host: Host, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", "/bin/echo", "hello")
    (bundle / "rootfs").rename(tmp_path / "real")
    (bundle / "rootfs").mkdir()
    runtime = f"exec {host.cima_runc} run --bundle {bundle} elsewhere"
    script = f"mount --bind {tmp_path}/real {bundle}/rootfs && {runtime}"
    command = ["unshare", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "hello" not in done.stdout
    assert "mounted where only the container sees it" in done.stderr
