#!/usr/bin/env python3
"""What a fleet costs: service and database on this machine, simulated hosts with real signatures.

The service runs as people start it, over HTTPS, with PostgreSQL (or SQLite); hosts share a hundred
connections. What the hosts' side of it takes is not counted. The agent's own cost is that of the
agent's reporter with a software TPM. Nothing here is faster than it is with others on the machine:
run it alone.
"""

import argparse
import asyncio
import copy
import hashlib
import json
import os
import platform
import secrets
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import psutil
from sqlalchemy import func, insert, select, text

from cima_runc.evidence.compressed import ENCODING, compressed
from cima_runc.evidence.report import parse_report
from cima_runc.evidence.report_answer import Invitation, Resync, parse_answer
from cima_runc.fleet import changes, clock
from cima_runc.fleet.database import Database
from cima_runc.fleet.schema import Base, Container, Host, Record, new_uid, table_of
from cima_runc.ml import contents
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.swtpm import software_tpm
from cima_runc.verifier.report.check import check_report
from tests.support.fleet_host import FleetHost
from tests.support.fleet_image import POLICY, image, reference_file, start
from tests.support.fleet_keeper import Keeper
from tests.support.postgresql import postgresql
from tests.support.reporting_host import reporting
from tests.support.software_tpm import SoftwareTpm
from tests.support.unchanged_host import UnchangedHost
from tests.support.verifier_process import VerifierProcess, verifier_process

OWNER = "x25519:" + "A" * 43 + "="
GOALS = {
    "verify_ms": 1.0,
    "agent_cpu_ms": 5.0,
    "agent_bytes": 4096,
    "cores": 1.0,
    "late": 0,
    "webhook_s": 3.0,
    "search_ms": 200.0,
}
CONNECTIONS = 100
REALLY = 100
"""Hosts whose first report is a real one; the database's rows of more are copied from theirs."""


def say(line: str) -> None:
    """Tell how far it is."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


# -- without a service ----------------------------------------------------------------------------


def verification(containers: int, rounds: int = 400) -> dict[str, float]:
    """Processor time of an unchanged report: read it, check its nonce, verify it."""
    host = FleetHost()
    keeper = Keeper(host.tpm.ak_public)
    for number in range(containers):
        host.start(f"c{number}", (OWNER,))
    host.bind()
    host.heed(keeper.take(host.report(keeper.nonce())))
    bodies = [host.report(keeper.nonce()) for _ in range(rounds)]
    took = []
    for body in bodies:
        before = time.process_time_ns()
        report = parse_report(body)
        nonce = keeper.nonces.check(report.payload.nonce, keeper.ak_name, keeper.now)
        check_report(report, keeper.known, nonce)
        took.append((time.process_time_ns() - before) / 1e6)
    return {"verify_ms": round(statistics.median(took), 3), "body_bytes": len(bodies[-1])}


# -- the agent ------------------------------------------------------------------------------------


def agent_cost(directory: Path, containers: int, seconds: float) -> dict[str, float]:
    """Processor time and bytes of the agent's reports, where nothing changes."""
    with ExitStack() as stack:
        service = stack.enter_context(
            verifier_process(directory / "service", interval=0.5, min_interval=0.1)
        )
        (directory / "ca.pem").write_bytes(service.certificate.read_bytes())
        token = directory / "token"
        token.write_text(service.join_token())
        tpm = Tpm.open(stack.enter_context(software_tpm()))
        stack.callback(tpm.close)
        sizes: list[int] = []
        host = stack.enter_context(
            reporting(directory / "host", tpm, service.url, join_token_file=str(token))
        )
        client = host.reporter._clients[0]
        exchange = client._exchange

        def counted(method: str, route: str, body: bytes | None, *more: Any) -> Any:
            if method == "POST" and route.endswith("/reports"):
                sizes.append(len(body or b""))
            return exchange(method, route, body, *more)

        client._exchange = counted  # type: ignore[method-assign]
        for number in range(containers):
            host.do(lambda one, number=number: one.start(f"c{number}"))
        until(lambda: host.reporter.trouble is None and len(sizes) > 10)
        until(lambda: _settled(sizes))
        count, before = len(sizes), time.process_time()
        time.sleep(seconds)
        spent, reports = time.process_time() - before, len(sizes) - count
        return {
            "agent_cpu_ms": round(1000 * spent / reports, 2),
            "agent_bytes": max(sizes[count:]),
            "agent_reports": reports,
        }


def _settled(sizes: list[int]) -> bool:
    last = sizes[-5:]
    return len(sizes) > 20 and max(last) - min(last) < 200


def until(check: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > deadline:
            raise TimeoutError("it does not come to that")
        time.sleep(0.02)
    return found


# -- many hosts -----------------------------------------------------------------------------------


@contextmanager
def database(kind: str, directory: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Give the URL of an empty database, and its processes."""
    if kind == "sqlite":
        yield "", []
        return
    with postgresql() as server:
        assert server._process is not None
        yield server.create("bench"), [psutil.Process(server._process.pid)]


def hosts_of(count: int, containers: int) -> list[FleetHost]:
    """Make hosts with keys of their own, and the same containers, which have an owner's key."""
    template = FleetHost()
    for number in range(containers):
        template.start(f"c{number}", (OWNER,))
    template.bind()
    made = []
    for _ in range(count):
        one = copy.copy(template)
        one.tpm = SoftwareTpm(pcrs=dict(template.tpm.pcrs))
        one.changed = set(template.changed)
        made.append(one)
    return made


def enrol(url: str, hosts: list[FleetHost]) -> None:
    """Put the hosts into the database, as an approval does."""
    store = Database(url)
    now = clock.now()
    rows = [
        {
            "uid": new_uid(),
            "ak_name": host.tpm.ak_name.hex(),
            "ak_public": host.tpm.ak_public,
            "tpm": b"{}",
            "ek_digest": host.tpm.ak_name.hex()[4:],
            "hardware": "",
            "name": f"host-{number}",
            "labels": {},
            "state": "enrolled",
            "enrolled": now,
            "enrolled_by": "bench",
            "log": {},
            "log_lines": 0,
            "has_boot_log": False,
            "stale_told": 0,
            "refused": "",
        }
        for number, host in enumerate(hosts)
    ]
    with store.write() as connection:
        for at in range(0, len(rows), 500):
            connection.execute(insert(table_of(Host)), rows[at : at + 500])
    store.close()


def copied(url: str, first: FleetHost, hosts: Sequence[FleetHost]) -> None:
    """Have the database hold of ``hosts`` what the report of ``first`` has left of that one: a
    million containers are there in a minute, where their first reports would take a quarter of an
    hour of processor time."""
    store = Database(url)
    its_own = {"id", "uid", "host", "ak_name", "ak_public", "ek_digest"}

    def columns(kind: type[Base]) -> str:
        return ", ".join(
            f'"{column.name}"' for column in table_of(kind).c if column.name not in its_own
        )

    with store.write() as connection:
        number = connection.execute(
            select(table_of(Host).c.id).where(table_of(Host).c.ak_name == first.tpm.ak_name.hex())
        ).scalar_one()
        names = columns(Host)
        values = ", ".join(f"f.{name}" for name in names.split(", "))
        others = "o.id <> :first AND o.log_value IS NULL"
        for statement in (
            f"INSERT INTO container (uid, host, {columns(Container)})"
            " SELECT substr(md5(random()::text || c.id || o.id), 1, 24), o.id,"
            f" {', '.join('c.' + name for name in columns(Container).split(', '))}"
            f" FROM container c, host o WHERE c.host = :first AND {others}",
            "INSERT INTO owner (container, number, key)"
            " SELECT n.id, w.number, w.key FROM owner w JOIN container c ON c.id = w.container"
            " JOIN container n ON n.registration = c.registration AND n.host <> c.host"
            f" JOIN host o ON o.id = n.host WHERE c.host = :first AND {others}",
            "INSERT INTO host_table (host, content) SELECT o.id, t.content"
            f" FROM host_table t, host o WHERE t.host = :first AND {others}",
            "INSERT INTO host_log_part (host, boot_id, first, digests, shown)"
            " SELECT o.id, p.boot_id, p.first, p.digests, p.shown"
            f" FROM host_log_part p, host o WHERE p.host = :first AND {others}",
            f"UPDATE host o SET ({names}) = ROW({values}) FROM host f"
            f" WHERE f.id = :first AND {others}",
        ):
            connection.execute(text(statement), {"first": number})
    with store.write() as connection:
        connection.execute(text("ANALYZE"))
    store.close()
    for one in hosts:
        one.confirmed, one.changed = first.confirmed, set()
        one._before, one._slots = first._before, first._slots
        one.tpm.clock = first.tpm.clock


class Channel:
    """One connection that is kept, as agents keep theirs: HTTP/1.1 and nothing else of it, so that
    the hosts' side takes little of the machine."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._where = (host, port)
        self._context = context
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Return status and body; once more where a connection that was kept has ended."""
        is_kept = self._streams is not None
        try:
            return await asyncio.wait_for(self._exchange(method, path, body), 120)
        except (OSError, asyncio.IncompleteReadError):
            await self.close()
            if not is_kept:
                raise
        return await asyncio.wait_for(self._exchange(method, path, body), 120)

    async def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._where, ssl=self._context)
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._where[0]}\r\n"
        if body:
            head += f"Content-Encoding: {ENCODING}\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode("ascii") + b"\r\n" + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        fields = dict(line.split(b":", 1) for line in lines[1:] if line)
        answer = await reader.readexactly(int(fields[b"content-length"]))
        if fields.get(b"connection", b"").strip() == b"close":
            await self.close()
        return int(lines[0].split()[1]), answer

    async def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Driver:
    """Lets hosts report over a hundred connections."""

    def __init__(self, service: VerifierProcess) -> None:
        context = ssl.create_default_context(cafile=service.certificate)
        parts = urlsplit(service.url)
        assert parts.hostname is not None and parts.port is not None
        self._channels = [Channel(parts.hostname, parts.port, context) for _ in range(CONNECTIONS)]
        self._free: asyncio.LifoQueue[Channel] = asyncio.LifoQueue()
        for one in self._channels:
            self._free.put_nowait(one)
        self.took: list[float] = []
        self.failed: list[str] = []

    async def report(self, host: FleetHost | UnchangedHost) -> None:
        """One host gets a nonce and reports; once more, where it is told from where on."""
        began = time.monotonic()
        channel = await self._free.get()
        try:
            for _ in range(3):
                if await self._reported(channel, host):
                    self.took.append(time.monotonic() - began)
                    return
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.failed.append(repr(error)[:200])
            await channel.close()
        finally:
            self._free.put_nowait(channel)

    async def _reported(self, channel: Channel, host: FleetHost | UnchangedHost) -> bool:
        route = f"/v1/hosts/{host.tpm.ak_name.hex()}"
        _, raw = await channel.ask("GET", f"{route}/nonce")
        invited = parse_answer(raw)
        assert isinstance(invited, Invitation), invited
        body = compressed(host.report(invited.nonce))
        status, raw = await channel.ask("POST", f"{route}/reports", body)
        if isinstance(host, UnchangedHost) and status == 200:
            return True
        answer = parse_answer(raw)
        if status not in (200, 409) or isinstance(host, UnchangedHost):
            self.failed.append(f"{status} {answer!r}"[:200])
            return False
        host.heed(answer)
        return not isinstance(answer, Resync)

    async def all_once(self, hosts: list[FleetHost]) -> None:
        """Each host reports, as fast as it goes."""
        gate = asyncio.Semaphore(16)

        async def one(host: FleetHost) -> None:
            async with gate:
                await self.report(host)

        await asyncio.gather(*map(one, hosts))

    async def steady(
        self,
        hosts: Sequence[FleetHost | UnchangedHost],
        interval: float,
        seconds: float,
        before_each: Callable[[Any], None] = lambda host: None,
    ) -> int:
        """Each host reports once in each interval, spread evenly; returns how many were late: by
        more than an interval."""
        began, late = time.monotonic(), 0
        tasks: set[asyncio.Task[None]] = set()
        step = interval / len(hosts)
        total = int(seconds / step)

        async def one(host: FleetHost | UnchangedHost, due: float) -> None:
            nonlocal late
            await self.report(host)
            late += time.monotonic() - due > interval

        for number in range(total):
            due = began + number * step
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            before_each(hosts[number % len(hosts)])
            task = asyncio.create_task(one(hosts[number % len(hosts)], due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return late

    async def close(self) -> None:
        """Let go of the connections."""
        for one in self._channels:
            await one.close()


def processor_seconds(processes: list[psutil.Process]) -> float:
    """Return what processes and their children have taken, those that ended too."""
    total = 0.0
    for process in processes:
        for one in (process, *process.children(recursive=True)):
            try:
                spent = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += spent.user + spent.system
    return total


def many_hosts(
    directory: Path, kind: str, count: int, containers: int, interval: float, seconds: float
) -> dict[str, Any]:
    """Let so many hosts report, unchanged, for a while."""
    say(f"{count} hosts with {containers} containers each: {kind}")
    hosts = hosts_of(count, containers)
    with ExitStack() as stack:
        url, processes = stack.enter_context(database(kind, directory))
        root = directory / f"service-{count}-{containers}"
        settings = {"interval": interval, "reports_per_minute": 1_000_000}
        if url:
            settings["database"] = url  # type: ignore[assignment]
        service = stack.enter_context(verifier_process(root, **settings))
        enrol(url or f"sqlite:///{root / 'fleet.db'}", hosts)
        watched = [psutil.Process(service.process.pid), *processes]

        async def go() -> dict[str, Any]:
            driver = Driver(service)
            before, began = processor_seconds(watched), time.monotonic()
            really = hosts[:REALLY] if url else hosts
            await driver.all_once(really)
            first = {
                "first_cpu_ms": 1000 * (processor_seconds(watched) - before) / len(really),
                "first_s": time.monotonic() - began,
            }
            say(f"first reports: {first['first_s']:.1f} s")
            if rest := hosts[len(really) :]:
                copied(url, hosts[0], rest)
            driver.took.clear()
            # As much is made before as can be: it is the service that is measured.
            unchanged = [UnchangedHost(host) for host in hosts]
            own = time.process_time()
            before, began = processor_seconds(watched), time.monotonic()
            late = await driver.steady(unchanged, interval, seconds)
            spent, wall = processor_seconds(watched) - before, time.monotonic() - began
            took = sorted(driver.took) or [0.0]
            found = {
                "hosts": count,
                "containers": containers,
                "interval_s": interval,
                "seconds": round(wall, 1),
                "reports": len(took),
                "failed": len(driver.failed),
                "late": late,
                "cores": round(spent / wall, 3),
                "hosts_cores": round((time.process_time() - own) / wall, 3),
                "load": round(os.getloadavg()[0], 1),
                "cpu_ms_a_report": round(1000 * spent / len(took), 2),
                "median_ms": round(1000 * took[len(took) // 2], 1),
                "p99_ms": round(1000 * took[int(len(took) * 0.99)], 1),
                **{key: round(value, 1) for key, value in first.items()},
            }
            for failed in driver.failed[:3]:
                say(failed)
            await driver.close()
            return found

        return asyncio.run(go())


def changing_hosts(
    directory: Path, kind: str, count: int, interval: float, seconds: float
) -> dict[str, Any]:
    """The same with one container started and ended per host and interval, 30 records each, which
    the service reads."""
    say(f"{count} hosts that change: {kind}")
    hosts = [FleetHost() for _ in range(count)]
    with ExitStack() as stack:
        url, processes = stack.enter_context(database(kind, directory))
        root = directory / f"changing-{count}"
        settings = {"interval": interval, "reports_per_minute": 1_000_000}
        if url:
            settings["database"] = url  # type: ignore[assignment]
        service = stack.enter_context(verifier_process(root, **settings))
        enrol(url or f"sqlite:///{root / 'fleet.db'}", hosts)
        watched = [psutil.Process(service.process.pid), *processes]

        async def go() -> dict[str, Any]:
            driver = Driver(service)
            await driver.all_once(hosts)
            driver.took.clear()
            before, began = processor_seconds(watched), time.monotonic()
            late = await driver.steady(hosts, interval, seconds, _short_container)
            spent, wall = processor_seconds(watched) - before, time.monotonic() - began
            took = sorted(driver.took) or [0.0]
            for failed in driver.failed[:3]:
                say(failed)
            await driver.close()
            return {
                "hosts": count,
                "interval_s": interval,
                "seconds": round(wall, 1),
                "reports": len(took),
                "failed": len(driver.failed),
                "late": late,
                "cores": round(spent / wall, 3),
                "load": round(os.getloadavg()[0], 1),
                "cpu_ms_a_report": round(1000 * spent / len(took), 2),
                "median_ms": round(1000 * took[len(took) // 2], 1),
            }

        return asyncio.run(go())


def _short_container(host: FleetHost) -> None:
    """Start a container and end it, 30 records; what ended before is let go of."""
    for number in list(host.containers):
        host.forget(number)
        del host.containers[number]
        host.changed.discard(number)
    number = host.start(f"s{secrets.token_hex(4)}")
    for at in range(27):
        host.run(number, b"/usr/bin/%d" % at)
    host.end(number)
    host.bind()


# -- a webhook ------------------------------------------------------------------------------------


def webhook(directory: Path, rounds: int) -> dict[str, float]:
    """Seconds from the record of an unknown program to the webhook's delivery."""
    came: list[tuple[float, dict[str, Any]]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((time.monotonic(), json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    reference = image(directory / "image")
    with ExitStack() as stack:
        root = directory / "webhook-service"
        service = stack.enter_context(verifier_process(root, allow_private_webhooks=True))
        store = Database(f"sqlite:///{root / 'fleet.db'}")
        with store.write() as connection:
            changes.add_policy(connection, "bench", "default", POLICY)
            changes.add_reference(connection, "bench", "app", reference_file(reference))
            changes.add_webhook(
                connection,
                "bench",
                f"http://127.0.0.1:{receiver.server_port}/",
                kinds=[],
                tenant=None,
                allow_private=True,
            )
        store.close()
        (directory / "ca.pem").write_bytes(service.certificate.read_bytes())
        token = directory / "webhook-token"
        token.write_text(service.join_token())
        tpm = Tpm.open(stack.enter_context(software_tpm()))
        stack.callback(tpm.close)
        host = stack.enter_context(
            reporting(directory / "webhook-host", tpm, service.url, join_token_file=str(token))
        )
        took = []
        for number in range(rounds):
            name = f"web{number}"
            registration = host.do(lambda one, name=name: _start(one, name, reference))

            def verdict(name: str = name) -> str | None:
                rows = service.get("/v1/containers", name=name, everything=True)
                return rows[0]["verdict"] if rows else None

            until(lambda: verdict() == "TRUSTED", 60)
            time.sleep(3)
            came.clear()
            began = time.monotonic()
            host.do(lambda one, number=registration: one.run(number, b"/tmp/unknown", b"unknown"))
            until(lambda: any("UNTRUSTED" in json.dumps(body) for _, body in came), 60)
            took.append(next(at for at, body in came if "UNTRUSTED" in json.dumps(body)) - began)
    receiver.shutdown()
    return {"webhook_s": round(statistics.median(took), 2), "webhook_rounds": rounds}


def _start(one: Any, name: str, reference: Any) -> int:
    """Start a container of the image on a host with the agent's own parts."""
    number: int = one.start(name)
    simulated = FleetHost()
    start(simulated, name, reference)
    (container,) = simulated.containers.values()
    rootfs = next(
        record["content"]
        for record in container.records
        if record["content"].get("type") == "rootfs"
    )
    one.writer.add(number, contents.parse_rootfs(rootfs))
    one.writer.write()
    one.run(number, b"/bin/sh", b"shell")
    return number


# -- a search -------------------------------------------------------------------------------------


def search(kind: str, directory: Path, records: int) -> dict[str, Any]:
    """Milliseconds of a search for a digest, over so many recorded files."""
    say(f"a search over {records} records: {kind}")
    with ExitStack() as stack:
        url, _ = stack.enter_context(database(kind, directory))
        root = directory / "search"
        settings = {"database": url} if url else {}
        with verifier_process(root, **settings) as service:
            host = FleetHost()
            enrol(url or f"sqlite:///{root / 'fleet.db'}", [host])
            number = host.start("one")
            host.run(number, b"/bin/sh", b"wanted")
            host.bind()

            async def report() -> None:
                driver = Driver(service)
                await driver.report(host)
                await driver.close()

            asyncio.run(report())
            store = Database(url or f"sqlite:///{root / 'fleet.db'}")
            record, container = table_of(Record), table_of(Container)
            with store.read() as connection:
                owner = connection.execute(select(container.c.id)).scalar_one()
            piece = 200_000 if store.is_postgresql else 10_000
            for at in range(0, records, piece):
                last = min(at + piece, records)
                with store.write() as connection:
                    if store.is_postgresql:
                        connection.execute(
                            text(
                                "INSERT INTO record (container, number, content, file_digest,"
                                " path, time)"
                                " SELECT :owner, 1000 + n, '\\x7b7d', sha256(n::text::bytea),"
                                " ('/usr/bin/' || (n % 5000))::bytea, 0"
                                " FROM generate_series(:first, :last) n"
                            ),
                            {"owner": owner, "first": at + 1, "last": last},
                        )
                        continue
                    rows = [
                        {
                            "container": owner,
                            "number": 1000 + n,
                            "content": b"{}",
                            "file_digest": hashlib.sha256(b"%d" % n).digest(),
                            "path": b"/usr/bin/%d" % (n % 5000),
                            "time": 0,
                        }
                        for n in range(at, last)
                    ]
                    connection.execute(insert(record), rows)
            if store.is_postgresql:
                with store.write() as connection:
                    connection.execute(text("ANALYZE record"))
            with store.read() as connection:
                there = connection.execute(select(func.count()).select_from(record)).scalar_one()
            store.close()
            digest = hashlib.sha256(b"wanted").hexdigest()
            took = []
            for _ in range(20):
                before = time.perf_counter()
                (found,) = service.get("/v1/find", digest=digest)
                took.append(1000 * (time.perf_counter() - before))
            assert found["digest"] == digest
            return {"search_ms": round(statistics.median(took), 1), "records": there}


# -- all together ---------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """Return the figures as a table of Markdown."""
    rows = ["| what | measured | goal |", "|---|---|---|"]
    for key, value in found.items():
        if isinstance(value, list):
            for one in value:
                rows.append(f"| {key}: {one['hosts']} hosts | {json.dumps(one)} | |")
        elif isinstance(value, dict):
            for name, figure in value.items():
                rows.append(f"| {name} | {figure} | {_goal(name, figure)} |")
    return "\n".join(rows)


def _goal(name: str, figure: Any) -> str:
    if name not in GOALS:
        return ""
    return f"{'<=' if figure <= GOALS[name] else 'MISSED:'} {GOALS[name]}"


PARTS = ("verification", "agent", "steady", "changing", "webhook", "search")


def main() -> int:
    """Run what was asked for, print a table, and JSON where wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="parts; all without")
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--containers", type=int, nargs="+", default=[100])
    parser.add_argument("--changing-hosts", type=int, nargs="+", default=[100, 1_000])
    parser.add_argument("--interval", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--json", dest="as_json", metavar="FILE", help="write JSON there")
    arguments = parser.parse_args()
    wanted = arguments.only or PARTS
    found: dict[str, Any] = {
        "machine": {
            "cores_there": os.cpu_count(),
            "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 1),
            "database": arguments.database
            + (", without fsync" if arguments.database == "postgresql" else ""),
        }
    }
    with tempfile.TemporaryDirectory(prefix="cima-bench-fleet-") as name:
        directory = Path(name)
        if "verification" in wanted:
            found["verification"] = verification(100)
        if "agent" in wanted:
            (directory / "agent").mkdir()
            found["agent"] = agent_cost(directory / "agent", 100, 20.0)
        if "webhook" in wanted:
            (directory / "webhook").mkdir()
            found["webhook"] = webhook(directory / "webhook", 5)
        if "steady" in wanted:
            found["steady"] = [
                many_hosts(
                    directory,
                    arguments.database,
                    count,
                    containers,
                    arguments.interval,
                    arguments.seconds,
                )
                for count in arguments.hosts
                for containers in arguments.containers
            ]
        if "changing" in wanted:
            found["changing"] = [
                changing_hosts(
                    directory, arguments.database, count, arguments.interval, arguments.seconds
                )
                for count in arguments.changing_hosts
            ]
        if "search" in wanted:
            found["search"] = search(arguments.database, directory, arguments.records)
    print(table(found))
    if arguments.as_json:
        Path(arguments.as_json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
