#!/usr/bin/env python3
"""What measuring costs a container, and how many events the agent keeps up with.

Executions: in one guest, in a container on an overlay, something is done again and again, first
without an IMA policy, then with one, the kernel alone, with the sensor loaded and nobody watched
(as it is for all tasks that are in no container), with this container watched, and with it held
to a list of 10,000 digests, in turns (A B C D A B C D). "known" executes one file, "new" files
that nobody has executed before: they are hashed, and reported; "map" maps a known library
executable, "open" opens a file to read it, "write" one to write to it, "fork" makes a process. The
guest's clock counts its instructions, one a nanosecond, so what else this machine does is no part
of the figures; nor are caches, nor a TPM, which IMA extends for each new file. Beside them are the
kernel's own statistics of the sensor's programs, from one round more.

Events: on this machine, as many a second as asked for are put into a buffer of the sensor's size,
and the agent's own service makes records of them, on disk, with registers. No kernel is needed.
"""

import argparse
import mmap
import multiprocessing
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

from simulated_host import simulated_host  # noqa: E402

from cima_runc.agent.events import Events  # noqa: E402
from cima_runc.sensor.events import HEADER, SHA256, Event, Func, parse  # noqa: E402
from cima_runc.sensor.loader import Sensor  # noqa: E402
from cima_runc.sensor.options import RING_BYTES  # noqa: E402
from cima_runc.sensor.ring import RingReader  # noqa: E402

STATES = (
    "IMA off",
    "IMA",
    "IMA and sensor, unwatched",
    "IMA and sensor",
    "IMA and sensor, enforcing",
)
KINDS = ("known", "new", "map", "open", "write", "fork")
GOAL = 1.05
RATES = (5_000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 60_000, 80_000, 100_000)
RATES_GOAL = 20_000


def executions(release: str, rounds: int, count: int) -> None:
    """Run the guest and print what it measured."""
    with tempfile.TemporaryDirectory() as directory:
        spawner = Path(directory) / "spawn"
        source = Path(__file__).with_name("spawn.c")
        subprocess.run(["musl-gcc", "-O2", "-static", "-o", spawner, source], check=True)
        command = [
            *(CHECKOUT / "lab/vm.py", "--debian", release, "--no-policy", "--no-agent"),
            *("--no-tpm", "--instructions"),
            *("--put", f"{spawner}:/root/spawn"),
            *("--put", f"{CHECKOUT / 'examples/ima-policy'}:/root/ima-policy"),
            *(Path(__file__).with_name("_sensor_in_guest.py"), str(rounds), str(count)),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rates: dict[tuple[str, str], list[float]] = {}
    in_programs: dict[tuple[str, str], float] = {}
    for line in done.stdout.splitlines():
        kind, state, what, found = line.split("\t")
        if what == "rate":
            rates.setdefault((kind, state), []).append(float(found))
        else:
            in_programs[kind, state] = float(found) / 1e9
    print(f"Debian {release}, {rounds} rounds of {count}; load {os.getloadavg()[0]:.1f}")
    print(f"  {'':28}" + "".join(f"{kind:>28}" for kind in KINDS))
    for state in STATES:
        cells = []
        for kind in KINDS:
            found = rates[kind, state]
            # Paired with the kernel alone, in the same round; IMA off was before them all.
            times = [a / b for a, b in zip(rates[kind, STATES[1]], found[-rounds:], strict=True)]
            rate = statistics.median(found[-rounds:])
            share = f"{in_programs.get((kind, state), 0) * rate:5.1%} in it"
            cells.append(f"{rate:7.0f}/s x{statistics.median(times):.3f} {share}")
        print(f"  {state:28}" + "".join(f"{cell:>28}" for cell in cells))
    print(f"  x: time beside IMA alone, median of the rounds; goal for the sensor: x{GOAL:.2f}")


# -- events on this machine -----------------------------------------------------------------------


class Buffer:
    """The kernel's side of a ring buffer, on memory; an event that finds no room is dropped."""

    def __init__(self, registration: int) -> None:
        self._registration = registration
        self.fd = os.memfd_create("ring")
        # Where the kernel maps the data twice in a row there is twice the room: a record that
        # begins before the end of the first goes on in the second, and that is all that is read.
        os.ftruncate(self.fd, 2 * mmap.PAGESIZE + 2 * RING_BYTES)
        self._memory = mmap.mmap(self.fd, 0)
        self._end = 0

    def put(self, number: int) -> bool:
        """Put an event of a file that nobody has executed before; False where there is no room."""
        path = b"/usr/lib/some/program-%010d\0" % number
        event = HEADER.pack(
            *(self._registration, number, 1, number, 4026532000, 4242, 0, 1),
            *(SHA256, len(path), Func.BPRM_CHECK, 0, number.to_bytes(64, "little")),
        )
        record = struct.pack("=II", len(event) + len(path), 0) + event + path
        record += bytes(-len(record) % 8)
        if self._end + len(record) - int.from_bytes(self._memory[:8], "little") >= RING_BYTES:
            return False
        at = 2 * mmap.PAGESIZE + self._end % RING_BYTES
        self._memory[at : at + len(record)] = record
        self._end += len(record)
        self._memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = struct.pack("=Q", self._end)
        return True

    def fill(self, rate: int, seconds: float) -> int:
        """Put ``rate`` events a second, some each 5 ms; returns how many were dropped."""
        dropped, done, begun = 0, 0, time.monotonic()
        while done < rate * seconds:
            due = min(int(rate * seconds), int(rate * (time.monotonic() - begun)))
            dropped += sum(not self.put(number) for number in range(done, due))
            done = due
            time.sleep(0.005)
        return dropped


class Replayed:
    """What the service uses of a sensor, over such a buffer."""

    def __init__(self, buffer: Buffer) -> None:
        self._ring = RingReader(buffer.fd, RING_BYTES)
        self.release = self._ring.release

    def events(self, batch: int) -> Iterator[list[Event]]:
        end = self._ring.end
        while records := self._ring.read(batch, end):
            yield [parse(record) for record in records]

    def lost(self) -> dict[int, int]:
        return {}

    @property
    def empty(self) -> bool:
        return self._ring.empty


def replay(rate: int, seconds: float) -> tuple[int, float]:
    """Return (events dropped, processor seconds of the agent an event) at a rate of events."""
    with tempfile.TemporaryDirectory() as directory, simulated_host(Path(directory)) as host:
        registration = host.start("replayed")
        buffer = Buffer(registration)
        sensor = Replayed(buffer)
        events = Events(
            writer=host.writer,
            sensor=cast("Sensor", sensor),
            kernel_log=None,
            on_progress=lambda: None,
        )
        before = host.core.get(registration).partition.count  # type: ignore[union-attr]
        forked = multiprocessing.get_context("fork")
        answer, tell = forked.Pipe(duplex=False)
        filling = forked.Process(target=lambda: tell.send(buffer.fill(rate, seconds)))
        filling.start()
        used = time.process_time()
        while filling.is_alive() or not sensor.empty:
            events.take()
            events.count_lost()
            host.writer.bind()
            time.sleep(host.settings.binding.group_ms / 1000)
        used = time.process_time() - used
        dropped = answer.recv()
        recorded = host.core.get(registration).partition.count - before  # type: ignore[union-attr]
        assert recorded + dropped == int(rate * seconds), "each event is a record or was dropped"
        return dropped, used / max(recorded, 1)


def events(seconds: float) -> None:
    """Raise the rate until events drop."""
    print(f"Events of new files, for {seconds:g} s, buffer of {RING_BYTES >> 20} MiB, "
          f"software TPM; load {os.getloadavg()[0]:.1f}")  # fmt: skip
    for rate in RATES:
        dropped, used = replay(rate, seconds)
        print(
            f"  {rate:8} a second: {dropped:8} dropped, {used * 1e6:.0f} us of the agent an event"
        )
        if dropped:
            break
    print(f"  goal: none dropped below {RATES_GOAL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "executions", "events"])
    parser.add_argument("--seconds", type=float, default=10, help="for each rate of events")
    parser.add_argument("--debian", default="12", choices=["12", "13", "forky"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--count", type=int, default=300, help="executions in each measurement")
    options = parser.parse_args()
    if options.what in {"all", "events"}:
        events(options.seconds)
    if options.what in {"all", "executions"}:
        executions(options.debian, options.rounds, options.count)


if __name__ == "__main__":
    main()
