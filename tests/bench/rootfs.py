"""How fast a root filesystem is measured, against openssl and sha256sum on the same tree.

All in one run, round by round on the same files in the page cache, so that a ratio compares times
that were taken seconds apart. Ours is timed inside a process that is up, as the agent is; with an
interpreter's start it is given beside. Peak memory is a whole process's, imports and all, and
taken again on a tree of 200,000 files and on one sparse file of 8 GiB.

    python tests/bench/rootfs.py [--rounds 5] [--files 10000] [--mib 1024] [--json]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIPE = "find {} -type f -print0 | xargs -0 -P2 -n64 {} > /dev/null"
GOALS = {"openssl": 1.15, "sha256sum": 0.5, "warm": 0.08, "memory": 120}

CHILD = """
import json, resource, sys, time
from pathlib import Path
begin = time.perf_counter()
from cima_runc.measure.overlay import read_rootfs
from cima_runc.measure.rootfs import Store, measure
rootfs = read_rootfs(Path(sys.argv[1]), Path("/proc/self/mountinfo").read_bytes())
store = Store.at(Path(sys.argv[2]))
times = []
for use_cache in json.loads(sys.argv[3]):
    start = time.perf_counter()
    found = measure(rootfs, store, use_cache=use_cache)
    times.append(time.perf_counter() - start)
layer = found.layers[-1]
print(json.dumps({
    "times": times, "cached": layer.is_cached, "files": layer.files, "bytes": layer.bytes,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def make_tree(root: Path, files: int, total: int) -> None:
    """Files of a log-normal size, as in an image: most are small, a few have most bytes."""
    chance = random.Random(1)
    weights = [chance.lognormvariate(0, 2) for _ in range(files)]
    sizes = [int(weight / sum(weights) * total) for weight in weights]
    sizes[0] += total - sum(sizes)
    block = chance.randbytes(1 << 20)
    for number, size in enumerate(sizes):
        folder = root / f"d{number // 100:03d}" / f"e{number // 10 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"file-{number}").open("wb") as out:
            for at in range(0, size, len(block)):
                out.write(block[: min(len(block), size - at)])


def make_many(root: Path, files: int) -> None:
    """Empty files, a hundred in a directory."""
    for number in range(0, files, 100):
        folder = root / f"d{number // 10000}" / f"e{number // 100}"
        folder.mkdir(parents=True)
        for each in range(100):
            (folder / f"file-{each}").touch()


def ours(tree: Path, store: Path, *use_cache: bool) -> dict:
    """Measure in a process of its own."""
    start = time.perf_counter()
    arguments = [sys.executable, "-c", CHILD, tree, store, json.dumps(use_cache)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) | {"wall": time.perf_counter() - start}


def theirs(tree: Path, command: str) -> float:
    start = time.perf_counter()
    subprocess.run(["sh", "-c", PIPE.format(tree, command)], check=True)
    return time.perf_counter() - start


def run(work: Path, rounds: int, files: int, mib: int) -> dict:
    tree, store = work / "tree", work / "store"
    make_tree(tree, files, mib << 20)
    os.sync()
    time.sleep(3)  # a tree that just changed is not cached
    theirs(tree, "cat")
    ours(tree, store, True)
    taken: dict[str, list[float]] = {name: [] for name in (*GOALS, "wall")}
    seconds: dict[str, list[float]] = {
        name: [] for name in ("cold", "warm", "openssl", "sha256sum")
    }
    for _ in range(rounds):
        openssl = theirs(tree, "openssl dgst -sha256")
        found = ours(tree, store, False)
        sha256sum = theirs(tree, "sha256sum")
        again = ours(tree, store, True, True)
        assert again["cached"], "the unchanged tree was read again"
        cold, warm = found["times"][0], again["times"][-1]
        for name, value in zip(seconds, (cold, warm, openssl, sha256sum), strict=True):
            seconds[name].append(value)
        taken["openssl"].append(cold / openssl)
        taken["sha256sum"].append(cold / sha256sum)
        taken["warm"].append(warm / cold)
        taken["memory"].append(max(found["peak"], again["peak"]))
        taken["wall"].append(found["wall"] / openssl)
    make_many(work / "many", 200_000)
    sparse = work / "sparse"
    sparse.mkdir()
    with (sparse / "file").open("wb") as out:
        out.truncate(8 << 30)
    many, large = ours(work / "many", store, False), ours(sparse, store, False)
    taken["memory"] += [many["peak"], large["peak"]]
    return {
        "tree": {"files": found["files"], "bytes": found["bytes"]},
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "cold to openssl": statistics.median(taken["openssl"]),
        "cold to openssl, with the start of an interpreter": statistics.median(taken["wall"]),
        "cold to sha256sum": statistics.median(taken["sha256sum"]),
        "warm to cold": statistics.median(taken["warm"]),
        "peak MiB": max(taken["memory"]),
        "peak MiB by tree": {
            "this one": max(taken["memory"][:-2]),
            "200,000 files": many["peak"],
            "one sparse file of 8 GiB": large["peak"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cima-bench-") as work:
        result = run(Path(work), given.rounds, given.files, given.mib)
    if given.json:
        print(json.dumps(result, indent=1))
        return
    files, size = result["tree"]["files"], result["tree"]["bytes"] / 2**20
    print(f"{files} files, {size:.0f} MiB, medians of {given.rounds} rounds")
    for name, value in result["seconds"].items():
        print(f"  {name:<10} {value * 1000:8.0f} ms")
    for name, goal in (
        ("cold to openssl", GOALS["openssl"]),
        ("cold to sha256sum", GOALS["sha256sum"]),
        ("warm to cold", GOALS["warm"]),
        ("peak MiB", GOALS["memory"]),
    ):
        mark = "met" if result[name] <= goal else "NOT met"
        print(f"  {name:<20} {result[name]:7.3f}   goal at most {goal:g}: {mark}")
    with_start = result["cold to openssl, with the start of an interpreter"]
    print(f"  cold to openssl, with the start of an interpreter: {with_start:.3f}")
    for name, value in result["peak MiB by tree"].items():
        print(f"  peak, {name}: {value:.0f} MiB")


if __name__ == "__main__":
    main()
