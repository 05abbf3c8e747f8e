"""The quota under load: containers come and go while the oldest ones' records are removed."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from native_host import SETTINGS_FILE, Host, ask, make_bundle

QUOTA_MIB = 4
CONTAINERS = 24


def test_the_quota_holds_and_what_was_removed_is_named(host: Host, tmp_path: Path) -> None:
    before = SETTINGS_FILE.read_text()
    SETTINGS_FILE.write_text(before + f"[storage]\nquota_mib = {QUOTA_MIB}\n")
    names = [f"retained-{number}" for number in range(CONTAINERS)]

    def live(name: str) -> str:
        bundle = make_bundle(tmp_path / name, "/bin/echo", "it ran")
        config = json.loads((bundle / "config.json").read_text())
        (bundle / "config.json").write_text(json.dumps({**config, "x": "x" * 600_000}))
        command = [host.cima_runc, "run", "--bundle", str(bundle), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # At once: what is over the quota now is removed while others start.
        ask(host.prefix, "reload")
        return done.stdout or done.stderr

    try:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(live, names)) == {"it ran\n"}
        ask(host.prefix, "reload")
        storage = json.loads(ask(host.prefix, "status"))["storage"]
        state = host.directory / "state"
        sizes = [path.stat().st_size for path in state.glob("containers/*/records.jsonl")]
        assert storage["mib"] <= QUOTA_MIB
        assert sum(sizes) <= QUOTA_MIB << 20
        removed = [json.loads(line) for line in (state / "removed.jsonl").read_text().splitlines()]
        gone = {one["id"] for one in removed} & set(names)
        assert storage["removed_unattested"] == len(removed)
        shown = {row["id"] for row in json.loads(ask(host.prefix, "ps"))} & set(names)
        assert gone | shown == set(names)
        assert not gone & shown
        assert len(gone) >= CONTAINERS - QUOTA_MIB * (1 << 20) // 600_000
        # The agent that removed them is the one that was there.
        log = host.agent.log.read_text()
        assert "Traceback" not in log
        assert Path(f"/proc/{host.agent.pid}").exists()
    finally:
        SETTINGS_FILE.write_text(before)
        ask(host.prefix, "reload")
