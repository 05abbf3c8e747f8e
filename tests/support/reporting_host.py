"""A simulated host (real swtpm, store, writer, attester) whose reporter is the agent's own."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cima_runc.agent.confirmations import Confirmations
from cima_runc.agent.current import CurrentSettings
from cima_runc.agent.fleet.reporter import Reporter
from cima_runc.agent.retention import Retention
from cima_runc.agent.rooms import Turn
from cima_runc.agent.runs import Runs
from cima_runc.evidence.request import Request
from cima_runc.ml.lines import Lines
from cima_runc.tpm.device import Tpm
from tests.simulated_host import BOOT_ID, SimulatedHost


class ReportingHost:
    """One boot of it. What changes the host is done with :meth:`do`."""

    def __init__(
        self, root: Path, tpm: Tpm, settings: dict[str, Any], boot_id: str = BOOT_ID
    ) -> None:
        self.host = SimulatedHost(root, tpm, settings, boot_id)
        self._lock = threading.RLock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.confirmations = Confirmations()
        host = self.host
        self._rooms: Any = SimpleNamespace(
            commit=lambda bind: host.writer.write(), writer=host.writer, attester=host.attester
        )
        self.reporter = Reporter(
            settings=host.settings,
            boot_id=boot_id,
            store=host.store,
            assembly=host.assembly,
            submit=self._submit,
            attest=self._attest,
            loop=self._loop,
        )
        self.confirmations.service = self.reporter
        self.retention = Retention(
            CurrentSettings(host.settings),
            boot_id,
            host.writer,
            host.store,
            Runs(host.store, Lines(host.store.root / "lines")),
            confirmations=self.confirmations,
        )

    async def _submit(self, work: Callable[[Any], Any], turn: Turn = Turn.USUAL) -> Any:
        def locked() -> Any:
            with self._lock:
                return work(self._rooms)

        return await asyncio.to_thread(locked)

    async def _attest(self, request: Request, *, source: str | None) -> bytes:
        def made() -> bytes:
            with self._lock:
                waiting = self.host.attester.ask(request, source=source)
                self.host.attester.serve()
                return self.host.assembly.evidence(waiting.result())

        return await asyncio.to_thread(made)

    def do(self, work: Callable[[SimulatedHost], Any]) -> Any:
        """Change the host, and tell the reporter, as the agent does after a commit."""
        with self._lock:
            result = work(self.host)
            core = self.host.core
            mark = (core.change_mark, core.changed)
        self.reporter.look(mark)
        return result

    def stop(self) -> None:
        """End the agent; the host's files stay."""
        self.reporter.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextmanager
def reporting(root: Path, tpm: Tpm, url: str, **fleet: Any) -> Iterator[ReportingHost]:
    """Run a host's agent, as far as reports go."""
    root.mkdir(exist_ok=True)
    boot_id = fleet.pop("boot_id", BOOT_ID)
    more = fleet.pop("more", {})
    settings = {"fleet": {"url": url, "ca": str(root.parent / "ca.pem")} | fleet, **more}
    host = ReportingHost(root, tpm, settings, boot_id)
    host.reporter.start()
    try:
        yield host
    finally:
        host.stop()
