"""A host as the agent sees it, but for the kernel: real TPM, core, ledger, store and attester.

What a kernel would do is done by hand: lines of its log are written and extended, files that a
container runs come as the sensor's events.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cima_runc.agent.assembly import Assembly
from cima_runc.agent.attester import Attester
from cima_runc.agent.binding_pcr import BindingPcr
from cima_runc.agent.core import Core
from cima_runc.agent.fresh import Fresh
from cima_runc.agent.index import Container
from cima_runc.agent.runs import Runs
from cima_runc.agent.writer import Writer
from cima_runc.base import clock
from cima_runc.config import Settings, parse_settings
from cima_runc.cpcr.inner import inner
from cima_runc.cpcr.journal import Journal
from cima_runc.cpcr.table import Table
from cima_runc.evidence.owner import owner_keys
from cima_runc.evidence.request import Request, Since
from cima_runc.ima.kernel_log import KernelLog
from cima_runc.ima.template import Func, pack_fields
from cima_runc.measure.oci_config import measured_config
from cima_runc.ml import contents
from cima_runc.ml.lines import Lines, line_name, line_of
from cima_runc.ml.listing import stored_notes
from cima_runc.ml.partition import Partition
from cima_runc.ml.store import ContainerNote, Store
from cima_runc.tpm.device import Tpm
from cima_runc.tpm.structures import parse_public
from cima_runc.tpm.swtpm import software_tpm
from cima_runc.verifier.enrolled import EnrolledAk, enrolled_ak_file, parse_enrolled_ak
from tests.support.sensor_events import event_of

BOOT_ID = "6f4b4c55-0000-4000-8000-000000000001"


class SimulatedHost:
    """One boot of a host with a TPM."""

    def __init__(
        self,
        root: Path,
        tpm: Tpm,
        settings: dict[str, Any] | None = None,
        boot_id: str = BOOT_ID,
    ) -> None:
        self.root = root
        self.tpm = tpm
        self.boot_id = boot_id
        self.ima = root / "ima"
        self.settings = self._settings(dict(settings or {}))
        self._begin_log()
        self.table = Table(self.settings.binding.slots)
        self.core = Core(self.table)
        self.store = Store(root / "state")
        self.store.prepare()
        self.fresh = Fresh(self.store, tpm)
        notes = stored_notes(self.store, None)
        runs = Runs(self.store, Lines(self.store.root / "lines"))
        runs.restore(notes)
        known = any(note.boot_id == boot_id for note in notes)
        self.journal = Journal.open(self.store.journal_path(boot_id), boot_is_known=known)
        pcr = BindingPcr(self.journal, tpm, self.settings.tpm.pcr)
        self.writer = Writer(self.core, self.store, runs, pcr, lambda registration: None)
        self.kernel_log = KernelLog.open(self.ima)
        self.attester = Attester(
            settings=self.settings, writer=self.writer, tpm=tpm, commit=self._commit
        )
        self.assembly = Assembly(
            settings=self.settings,
            boot_id=boot_id,
            store=self.store,
            kernel_log=self.kernel_log,
            host_log=self.attester.host_log,
        )
        self.writer.probe()

    def _commit(self) -> None:
        self.kernel_log.read_new()
        self.writer.write()

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
            self.write_boot_log()
            self.ima.mkdir()
            (self.ima / "binary_runtime_measurements").touch()
            self.host_runs(b"boot_aggregate", self._boot_aggregate())

    def _boot_aggregate(self) -> bytes:
        """Return what IMA of a kernel with a TPM begins with: SHA-256 over PCRs 0 to 9."""
        values = self.tpm.read_pcrs(range(10))
        return hashlib.sha256(b"".join(values[pcr] for pcr in range(10))).digest()

    def host_runs(self, path: bytes, digest: bytes, *, extend: bool = True) -> bytes:
        """Log a file of the host, and extend the PCR as the kernel does, after that.

        Returns the line's template data.
        """
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
        return data

    # -- containers ---------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *,
        owner: str | None = None,
        env: Sequence[str] = (),
        annotations: dict[str, str] | None = None,
        dependencies: int | None = None,
        uid: int = 0,
    ) -> int:
        """Register a container as the agent does; returns its registration number."""
        number = self.fresh.number()
        config: dict[str, Any] = {"process": {"args": ["/bin/sh"], "env": list(env)}}
        config["annotations"] = dict(annotations or {})
        if owner is not None:
            config["annotations"]["io.cima.owner"] = owner
        owners = owner_keys(config, self.root / "owners")
        line = line_of(uid, owners, line_name(name, config["annotations"], contents.NO_ENGINE))
        before = self.writer.run_of(line.hex())
        if before is not None and before.note.state != "stopped":
            self.end(before.number)
        run = self.writer.next_run(line, uid)
        secret = self.fresh.secret()
        number_of_namespace = 4026532000 + len(self.store.registrations())
        note = ContainerNote(
            registration=number,
            id=name,
            boot_id=self.boot_id,
            mntns=number_of_namespace,
            cgroup=f"/cg/{name}",
            pid=1000,
            start_ticks=1,
            bundle=f"/bundles/{name}",
            started=clock.now(),
            state="running",
            owners=owners,
            dependencies=dependencies,
            uid=uid,
            line=line.hex(),
            run=run.run,
        )
        measured = measured_config(config, secret=secret, hooks_dir="/hooks")
        first = [
            contents.Register(
                id=name,
                boot_id=self.boot_id,
                registration=number,
                cgroup=note.cgroup,
                namespaces={"mnt": note.mntns},
                dependencies=dependencies,
                missing=(),
                uid=uid or None,
                line=run.line,
                run=run.run,
                previous=run.previous,
            ),
            contents.Config(config=measured),
        ]
        self.writer.begin(note, secret, first)
        self.writer.write()
        self.writer.bind()
        return number

    def start_services(self, *paths: bytes) -> int:
        """Begin a partition of host services that run these files, which the kernel has logged."""
        number = self.fresh.number()
        note = ContainerNote(
            registration=number,
            id=f"dependencies:{number}",
            boot_id=self.boot_id,
            mntns=1,
            cgroup="",
            pid=0,
            start_ticks=0,
            bundle="",
            started=clock.now(),
            state="running",
            kind="dependencies",
        )
        role = contents.ServicePath(role="containerd", path_hex=b"/c", path="/c")
        register = contents.ServicesRegister(
            id=note.id,
            kind="dependencies",
            boot_id=self.boot_id,
            registration=number,
            services=(role,),
            missing=(),
        )
        self.writer.begin(note, self.fresh.secret(), [register])
        for path in paths:
            self.service_runs(number, path)
        self.writer.write()
        return number

    def service_runs(self, number: int, path: bytes) -> None:
        """Have a service run a file, which the kernel logs."""
        digest = hashlib.sha256(path).digest()
        self.host_runs(path, digest)
        self.kernel_log.read_new()
        line = self.kernel_log.line_of(digest, path)
        assert line is not None
        self.writer.add_file(number, digest, path, func=Func.BPRM_CHECK, line=line)

    def run(self, number: int, path: bytes, content: bytes, *, line: int | None = None) -> None:
        """Have a file run in a container."""
        container = self.core.get(number)
        event = event_of(number, path, content)
        if container is not None:
            event = replace(event, mntns=container.note.mntns)
        self.writer.measure(event, line, clock.now())
        self.writer.write()

    def end(self, number: int) -> None:
        """End a container."""
        self.writer.end(number, "deleted")
        self.writer.write()

    # -- a verifier's side --------------------------------------------------------------------

    def request(self, name: str, nonce: bytes, **wanted: Any) -> Request:
        """Return a request for a container's evidence."""
        asked = {"host": "none", "boot_log": False, "since": None, **wanted}
        return Request(container=name, nonce=nonce, **asked)

    def evidence(self, name: str, nonce: bytes, *, anybody: bool = False, **wanted: Any) -> bytes:
        """Ask the attester."""
        source = "192.0.2.1" if anybody else None
        waiting = self.attester.ask(self.request(name, nonce, **wanted), source=source)
        self.attester.serve()
        return self.assembly.evidence(waiting.result())

    def container(self, number: int) -> Container:
        """Return a container of this boot."""
        found = self.core.get(number)
        assert found is not None
        return found

    def since(self, number: int, count: int | None = None) -> Since:
        """Return what a verifier remembers that has seen so many of a container's records."""
        container = self.container(number)
        records = list(self.store.records(number))[:count]
        partition = Partition.restore(container.note.id, records)
        value = inner(container.secret, partition.cpcr, partition.count)
        assert container.note.run is not None
        return Since(run=container.note.run, count=partition.count, inner=value)

    def enrolled(self) -> EnrolledAk:
        """Return the host's AK as an enrolment leaves it."""
        public = parse_public(self.attester.attestation_key().public)
        return parse_enrolled_ak(enrolled_ak_file(public))

    def write_boot_log(self) -> None:
        """Boot: write a firmware's event log and extend what it says, once."""
        if (self.root / "event-log").exists():
            return
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
