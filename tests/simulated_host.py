"""A host as the agent sees it, but for the kernel: real TPM, core, ledger, store and attester.

What a kernel would do is done by hand: lines of its log are written and extended, files that a
container runs come as the sensor's events.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from cima_runc.agent.attester import Attester
from cima_runc.agent.core import Core
from cima_runc.agent.ledger import Ledger
from cima_runc.agent.writer import Writer
from cima_runc.base import clock
from cima_runc.config import Settings, parse_settings
from cima_runc.cpcr.journal import Journal
from cima_runc.cpcr.tree import Tree
from cima_runc.evidence.models import Request
from cima_runc.evidence.owner import owner_keys
from cima_runc.ima.template import pack_fields
from cima_runc.measure.oci_config import measured_config
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.structures import parse_public
from cima_runc.tpm.swtpm import software_tpm
from cima_runc.verifier.enrolled import EnrolledAk, enrolled_ak_file, parse_enrolled_ak
from tests.support.sensor_events import event_of

BOOT_ID = "6f4b4c55-0000-4000-8000-000000000001"


class SimulatedHost:
    """One boot of a host with a TPM."""

    def __init__(self, root: Path, tpm: Tpm, settings: dict[str, Any] | None = None) -> None:
        self.root = root
        self.tpm = tpm
        self.ima = root / "ima"
        self.settings = self._settings(settings or {})
        self._begin_log()
        self.core = Core(Tree())
        self.store = Store(root / "state")
        self.store.prepare()
        journal = Journal.open(self.store.journal_path(BOOT_ID))
        self.ledger = Ledger(self.core, self.store, journal, tpm, self.settings.tpm.pcr)
        self.writer = Writer(self.core, self.ledger, self.store, lambda registration: None)
        self.attester = Attester(
            settings=self.settings,
            writer=self.writer,
            store=self.store,
            tpm=tpm,
            commit=self.ledger.write,
        )
        self._next = max(self.store.registrations(), default=0) + 1

    def _settings(self, values: dict[str, Any]) -> Settings:
        (self.root / "owners").mkdir(exist_ok=True)
        attestation = {
            "owners_dir": str(self.root / "owners"),
            "event_log": str(self.root / "event-log"),
            **values.pop("attestation", {}),
        }
        return parse_settings(
            {
                "state_dir": str(self.root / "state"),
                "ima": {"directory": str(self.ima)},
                "attestation": attestation,
                **values,
            }
        )

    # -- the kernel ---------------------------------------------------------------------------

    def _begin_log(self) -> None:
        if not self.ima.exists():
            self.ima.mkdir()
            (self.ima / "binary_runtime_measurements").touch()
            self.host_runs(b"boot_aggregate", bytes(32))

    def host_runs(self, path: bytes, digest: bytes, *, extend: bool = True) -> None:
        """Log a file of the host, and extend the PCR as the kernel does, after that."""
        data = pack_fields([b"sha256:\0" + digest, path + b"\0"])
        line = b"10 %s ima-ng sha256:%s %s\n" % (
            hashlib.sha1(data).hexdigest().encode(),
            digest.hex().encode(),
            path,
        )
        with (self.ima / "ascii_runtime_measurements").open("ab") as log:
            log.write(line)
        if extend:
            self.tpm.extend(10, hashlib.sha256(data).digest())

    # -- containers ---------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *,
        owner: str | None = None,
        env: Sequence[str] = (),
        write: bool = True,
        dependencies: int | None = None,
        kind: Literal["container", "dependencies"] = "container",
    ) -> int:
        """Register a container as the agent does; returns its registration number."""
        number = self._next
        self._next += 1
        config: dict[str, Any] = {"process": {"args": ["/bin/sh"], "env": list(env)}}
        if owner is not None:
            config["annotations"] = {"io.cima.owner": owner}
        secret = os.urandom(32)
        note = ContainerNote(
            registration=number,
            id=name,
            boot_id=BOOT_ID,
            mntns=4026532000 + number,
            cgroup=f"/cg/{name}",
            pid=1000 + number,
            start_ticks=number,
            bundle=f"/bundles/{name}",
            started=clock.now(),
            state="running",
            owners=owner_keys(config, self.root / "owners"),
            dependencies=dependencies,
            kind=kind,
        )
        measured = measured_config(config, secret=secret, hooks_dir="/hooks")
        contents: list[dict[str, Any]] = [
            {
                "type": "register",
                "id": name,
                "registration": number,
                "dependencies": dependencies,
                "missing": [],
            },
            {"type": "config", "config": measured},
        ]
        if write:
            self.writer.begin(note, secret, contents)
            self.writer.write()
        else:
            self.core.register(note, secret, contents, note.started)
        return number

    def run(self, number: int, path: bytes, content: bytes, *, line: int | None = None) -> None:
        """Have a file run in a container."""
        container = self.core.get(number)
        assert container is not None
        event = replace(event_of(number, path, content), mntns=container.note.mntns)
        self.writer.measure(event, line, clock.now())

    def end(self, number: int) -> None:
        """End a container."""
        self.writer.end(number, "deleted")
        self.writer.write()

    # -- a verifier's side --------------------------------------------------------------------

    def evidence(self, name: str, nonce: bytes, *, anybody: bool = False, **wanted: Any) -> bytes:
        """Ask the attester."""
        request = Request(container=name, nonce=nonce, **wanted)
        waiting = self.attester.ask(request, anybody=anybody)
        self.attester.serve()
        return self.attester.assemble(waiting.result())

    def enrolled(self) -> EnrolledAk:
        """Return the host's AK as an enrolment leaves it."""
        public = parse_public(self.attester.attestation_key().public)
        return parse_enrolled_ak(enrolled_ak_file(public))

    def write_boot_log(self) -> None:
        """Write a firmware's event log and extend what it says."""
        sha256 = b"\x0b\x00\x20\x00"
        spec = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2" + b"\1\0\0\0" + sha256 + b"\0"
        log = bytes(4) + b"\3\0\0\0" + bytes(20) + len(spec).to_bytes(4, "little") + spec
        for pcr in range(8):
            digest = hashlib.sha256(b"firmware %d" % pcr).digest()
            self.tpm.extend(pcr, digest)
            log += pcr.to_bytes(4, "little") + b"\1\0\0\0" + b"\1\0\0\0" + b"\x0b\x00" + digest
            log += b"\4\0\0\0" + b"data"
        (self.root / "event-log").write_bytes(log)


@contextmanager
def simulated_host(root: Path, settings: dict[str, Any] | None = None) -> Iterator[SimulatedHost]:
    """Boot a host with a fresh swtpm."""
    with software_tpm() as tcti:
        tpm = Tpm.open(tcti)
        try:
            yield SimulatedHost(root, tpm, settings)
        finally:
            tpm.close()


def tampered(raw: bytes, **changes: Any) -> bytes:
    """Return evidence with fields replaced; ``a__b`` is the field b of a."""
    evidence = json.loads(raw)
    for name, value in changes.items():
        holder = evidence
        *above, last = name.split("__")
        for key in above:
            holder = holder[key]
        holder[last] = value
    return json.dumps(evidence).encode()
