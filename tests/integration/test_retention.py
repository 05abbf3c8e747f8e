"""Quota and age under load: containers come and go while the oldest ones' records are removed."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from native_host import SETTINGS_FILE, Host, ask, make_bundle

from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote, Store

QUOTA_MIB = 4
CONTAINERS = 24
OLD = 80
"""More than are removed in one turn of the writer's."""
LONG_AGO = "2001-01-01T00:00:00.000Z"


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


def store_old(state: Path, number: int) -> None:
    """Leave a container of an earlier boot, as an earlier agent did."""
    note = ContainerNote(
        registration=(1 << 40) + number,
        id=f"old-{number}",
        boot_id="earlier",
        mntns=1,
        cgroup="/",
        pid=1,
        start_ticks=1,
        bundle="/b",
        started=LONG_AGO,
        ended=LONG_AGO,
        state="stopped",
    )
    store = Store(state)
    store.create(note, bytes(32))
    store.append(note.registration, [Partition(note.id).add({"type": "exit", "reason": "x"}, {})])
    store.sync()
    store.close_partition(note.registration)


def test_what_is_too_old_goes_and_is_named_while_others_start(host: Host, tmp_path: Path) -> None:
    before = SETTINGS_FILE.read_text()
    state = host.directory / "state"
    for number in range(OLD):
        store_old(state, number)
    names = [f"young-{number}" for number in range(8)]

    def live(name: str) -> str:
        bundle = make_bundle(tmp_path / name, "/bin/echo", "it ran")
        command = [host.cima_runc, "run", "--bundle", str(bundle), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        ask(host.prefix, "reload")
        return done.stdout or done.stderr

    try:
        SETTINGS_FILE.write_text(before + "[storage]\nkeep_days = 1\n")
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(live, names)) == {"it ran\n"}
        ask(host.prefix, "reload")
        removed = [json.loads(line) for line in (state / "removed.jsonl").read_text().splitlines()]
        gone = {one["id"] for one in removed}
        assert {f"old-{number}" for number in range(OLD)} <= gone
        assert not gone & set(names)
        store = Store(state)
        assert not [number for number in store.registrations() if number >> 40 == 1]
        assert set(names) <= {row["id"] for row in json.loads(ask(host.prefix, "ps"))}
        assert "Traceback" not in host.agent.log.read_text()
        assert Path(f"/proc/{host.agent.pid}").exists()
    finally:
        SETTINGS_FILE.write_text(before)
        ask(host.prefix, "reload")
