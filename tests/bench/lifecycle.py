#!/usr/bin/env python3
"""What cima-runc costs: every step of a container's life, beside plain runc's.

Paired: runc and cima-runc take turns (A B A B) in one run, on busybox, with the agent running and
a software TPM (a real TPM extends more slowly). As with containerd and CRI-O, each container gets a
new bundle in /run, which is in memory; root filesystem and records are on disk. The agent uses what
else this kernel gives it, and the result says what that is. Takes root.
"""

import argparse
import ctypes
import json
import os
import pickle
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import native_host

_T = TypeVar("_T")

LIFE = ("create", "state", "start", "exec", "kill", "delete")
"""The steps of one container, in this order."""
ALONE = ("--version", "features", "help")
"""What needs no container."""
GOALS = dict.fromkeys(("state", "kill", "delete", "exec", "--version", "features"), 1.3) | {
    "create+start+delete": 1.5
}
_PR_SET_CHILD_SUBREAPER = 36
_NULL = [(os.POSIX_SPAWN_OPEN, handle, "/dev/null", os.O_RDWR, 0) for handle in range(2)]


@dataclass(frozen=True)
class Took:
    """What one command took, milliseconds."""

    wall: float
    cpu: float
    """Of the command and of the processes that it waited for, its hooks among them."""

    def __add__(self, other: "Took") -> "Took":
        return Took(self.wall + other.wall, self.cpu + other.cpu)


def timed(command: Sequence[str]) -> Took:
    """Run ``command`` and return what it took."""
    before = time.perf_counter_ns()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=_NULL)
    _, status, usage = os.wait4(child, 0)
    wall = (time.perf_counter_ns() - before) / 1e6
    took = Took(wall, (usage.ru_utime + usage.ru_stime) * 1e3)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return took


def one_life(runtime: str, bundle: Path, name: str) -> dict[str, Took]:
    """Run every step once."""
    more = {"create": ("--bundle", str(bundle)), "exec": (), "kill": (), "delete": ()}
    after = {"exec": ("/bin/true",), "kill": ("KILL",)}
    took = {}
    for step in LIFE:
        if step == "kill":
            pid = _pid_of(name)
        if step == "delete":
            os.waitpid(pid, 0)
        took[step] = timed([runtime, step, *more.get(step, ()), name, *after.get(step, ())])
    took["create+start+delete"] = took["create"] + took["start"] + took["delete"]
    for step in ALONE:
        took[step] = timed([runtime, step])
    return took


def whole_run(runtime: str, bundle: Path, name: str) -> Took:
    """``run`` of a program that ends at once, its delete included."""
    return timed([runtime, "run", "--bundle", str(bundle), name])


def _pid_of(name: str) -> int:
    found = subprocess.run(["runc", "state", name], capture_output=True, check=True)
    return int(json.loads(found.stdout)["pid"])


def new_bundle(template: Path, directory: Path) -> Path:
    """Make a bundle as an engine does: in memory, with the root filesystem elsewhere."""
    config = json.loads((template / "config.json").read_text())
    config["root"]["path"] = str(template / "rootfs")
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def measure(prefix: Path, directory: Path, rounds: int) -> dict[str, dict[str, list[Took]]]:
    """Return step -> runtime's name -> milliseconds of each round."""
    runtimes = {"runc": str(shutil.which("runc")), "cima-runc": str(prefix / "bin/cima-runc")}
    results: dict[str, dict[str, list[Took]]] = {}
    life = native_host.make_bundle(directory / "life", "/bin/sleep", "1000")
    run = native_host.make_bundle(directory / "run", "/bin/true")
    for turn in range(-2, rounds):
        for name, runtime in runtimes.items():
            one, two = (f"{kind}-{name}-{turn}" for kind in ("life", "run"))
            took = one_life(runtime, new_bundle(life, Path("/run", one)), one)
            took["run"] = whole_run(runtime, new_bundle(run, Path("/run", two)), two)
            for step, spent in took.items():
                if turn >= 0:
                    results.setdefault(step, {}).setdefault(name, []).append(spent)
    return results


def under_init(work: Callable[[], _T]) -> _T:
    """Do ``work`` in a process whose parent is init, and which reaps, as an engine's shim does.

    The agent looks at all ancestors of a container: here it must not meet a developer's shells.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.001)
            if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")
            try:
                with os.fdopen(writing, "wb") as out:
                    pickle.dump(work(), out)
            except BaseException:
                traceback.print_exc()
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as result:
        found: _T = pickle.load(result)
    return found


def summary(results: dict[str, dict[str, list[Took]]]) -> list[dict[str, Any]]:
    """Return for each step both medians, their ratio and the extremes."""
    rows = []
    for step, took in results.items():
        plain, ours = ([one.wall for one in took[name]] for name in ("runc", "cima-runc"))
        plain_cpu, our_cpu = (
            statistics.median(one.cpu for one in took[name]) for name in ("runc", "cima-runc")
        )
        rows.append(
            {
                "step": step,
                "runc_ms": round(statistics.median(plain), 2),
                "runc_min_max_ms": [round(min(plain), 2), round(max(plain), 2)],
                "cima_runc_ms": round(statistics.median(ours), 2),
                "cima_runc_min_max_ms": [round(min(ours), 2), round(max(ours), 2)],
                "ratio": round(statistics.median(ours) / statistics.median(plain), 2),
                "paired_ratio": round(
                    statistics.median(b / a for a, b in zip(plain, ours, strict=True)), 2
                ),
                "runc_cpu_ms": round(plain_cpu, 2),
                "cima_runc_cpu_ms": round(our_cpu, 2),
                "goal": GOALS.get(step),
            }
        )
    return rows


def cpu_of(pid: int) -> float:
    """Return the processor time that a process has used, milliseconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Say where this was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    version = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True)
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "runc": version.stdout.splitlines()[0],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./dev bench lifecycle", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="lives of each (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    options = parser.parse_args()
    reason = native_host.is_possible()
    if reason:
        raise SystemExit(f"lifecycle: {reason}")
    with tempfile.TemporaryDirectory(prefix="cima-bench-") as name:
        directory = Path(name)
        prefix = native_host.installation(directory)
        native_host.private_mounts(directory)
        with native_host.agent(prefix, directory) as agent:
            # A settings file is taken for settled, and the launcher's own, 2 s after its change.
            time.sleep(2.5)
            status = json.loads(native_host.ask(prefix, "status"))
            before = cpu_of(agent.pid)
            results = under_init(lambda: measure(prefix, directory, options.rounds))
            # Two containers a round, and two rounds to warm up.
            agent_cpu = (cpu_of(agent.pid) - before) / (2 * (options.rounds + 2))
        rows = summary(results)
    print(
        f"{'step':20} {'runc':>8} {'cima-runc':>10} {'ratio':>6} {'goal':>5} {'cpu':>13}   min..max"
    )
    for row in rows:
        low, high = row["cima_runc_min_max_ms"]
        print(
            f"{row['step']:20} {row['runc_ms']:8.2f} {row['cima_runc_ms']:10.2f} "
            f"{row['ratio']:6.2f} {row['goal'] or '':>5} "
            f"{row['runc_cpu_ms']:6.1f} {row['cima_runc_cpu_ms']:6.1f}   {low:.1f}..{high:.1f} "
            f"(runc {row['runc_min_max_ms'][0]:.1f}..{row['runc_min_max_ms'][1]:.1f})"
        )
    where = (
        machine()
        | {
            "agent_cpu_ms_per_container": round(agent_cpu, 1),
            "load_average": round(os.getloadavg()[0], 1),
        }
        | {"missing": status["missing"], "tpm": "swtpm", "rounds": options.rounds}
    )
    print(json.dumps(where))
    if options.json:
        plain = {
            step: {name: [astuple(one) for one in took] for name, took in by_name.items()}
            for step, by_name in results.items()
        }
        options.json.write_text(
            json.dumps({"machine": where, "steps": rows, "wall_and_cpu_ms": plain}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
