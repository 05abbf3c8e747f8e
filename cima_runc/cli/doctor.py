"""``cima doctor``: is this host ready to measure containers, and if not, what is to be done."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cima_runc.base import limits
from cima_runc.base.errors import CimaError
from cima_runc.base.text import printable
from cima_runc.cli import context
from cima_runc.cli.configure import ENGINES
from cima_runc.cli.output import CANNOT, print_json, print_table
from cima_runc.config import Settings
from cima_runc.doctor import clock, disk, ima_policy, own_files
from cima_runc.doctor.finding import UnfitError
from cima_runc.engines.containerd import of_others
from cima_runc.runtime import installation, oci_hooks
from cima_runc.runtime.agent_socket import call_agent

if TYPE_CHECKING:
    from cima_runc.ima.entry import Entry
    from cima_runc.tpm.device import Tpm

_AGENT_SECONDS = 60.0
_RUNTIME_SECONDS = 10.0
_PROGRAMS = {"docker": "dockerd", "containerd": "containerd", "podman": "podman", "crio": "crio"}
"""The program by which an engine is known to be installed."""
_INSTALL = "install it again: apt reinstall cima-runc, or install.sh"


@dataclass(frozen=True)
class Diagnosis:
    """What one check found."""

    check: str
    state: Literal["ok", "warn", "fail"]
    what: str
    next: str = ""
    """What to do about it."""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check that this host can measure containers; exit status 2 where it cannot."""
    diagnoses = examine(context.settings())
    if as_json:
        print_json([asdict(one) for one in diagnoses])
    else:
        print_table(("CHECK", "", "WHAT"), [(one.check, one.state, one.what) for one in diagnoses])
        for one in diagnoses:
            if one.next:
                typer.echo(f"{one.check}: {printable(one.next)}")
    sys.exit(CANNOT if any(one.state == "fail" for one in diagnoses) else 0)


def examine(settings: Settings) -> list[Diagnosis]:
    """Make every check; one that fails keeps none of the others from being made."""
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("privilege", _privilege, True),
        ("installation", _installation, True),
        ("own files", _own_files, True),
        ("runtime", lambda: _runtime(settings), True),
        ("clock", _clock, False),
        ("disk", lambda: _disk(settings), False),
        ("ima", lambda: _ima(settings), settings.ima.required),
        ("ima policy", lambda: _ima_policy(settings), False),
        ("ima replay", lambda: _ima_replay(settings), False),
        ("own code", lambda: _own_code(settings), False),
        ("sensor", _sensor, settings.sensor.required),
        ("tpm", lambda: _tpm(settings), settings.tpm.required),
        ("tpm keys", lambda: _tpm_keys(settings), settings.tpm.required),
        ("tpm certificate", lambda: _tpm_certificate(settings), False),
    ]
    found = [_diagnose(*check) for check in checks]
    found += _agent(settings)
    found += [
        _diagnose(name, lambda name=name: _engine(name), False)  # type: ignore[misc]
        for name, program in _PROGRAMS.items()
        if shutil.which(program) or (name == "containerd" and of_others(Path("/")) is not None)
    ]
    _progress("")
    return found


def _progress(check: str) -> None:
    """Say at a terminal what is looked at; the next line takes its place."""
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{f'looking at {check}' if check else ''}", err=True, nl=False)


def _diagnose(check: str, look: Callable[[], str], needed: bool) -> Diagnosis:
    _progress(check)
    try:
        return Diagnosis(check, "ok", look())
    except CimaError as error:
        return Diagnosis(check, "fail" if needed else "warn", error.what, error.hint)
    except OSError as error:
        what = f"{error.filename or check}: {error.strerror}"
        return Diagnosis(check, "fail" if needed else "warn", what)


def _privilege() -> str:
    if os.geteuid() != 0:
        raise UnfitError("not root: most of this host cannot be looked at", hint="run it as root")
    return "root"


def _installation() -> str:
    hooks = [installation.hooks_dir() / name for name in oci_hooks.NAMES]
    for path in (installation.launcher(), *hooks):
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) and os.access(path, os.X_OK)):
            raise UnfitError(f"{path} is no program", hint=_INSTALL)
        # Engines run it as root: nobody else may change it, or put another in its place.
        for part in (path, *path.parents):
            mode = part.stat().st_mode
            if mode & 0o022 and not mode & stat.S_ISVTX:
                raise UnfitError(f"{part} can be changed by others", hint=f"chmod go-w {part}")
    return f"launcher and hooks below {installation.prefix()}"


def _own_files() -> str:
    prefix = installation.prefix()
    return own_files.look(prefix, installation.launcher().lstat().st_uid)


def _clock() -> str:
    return clock.look(clock.installed_at(installation.launcher()))


def _disk(settings: Settings) -> str:
    return disk.look(Path(settings.shim.state_dir), settings.storage.quota_mib * limits.MIB)


def _runtime(settings: Settings) -> str:
    from cima_runc.runtime.shim import find_runtime

    path = find_runtime(settings.shim.runtimes, str(installation.launcher()))
    try:
        ran = subprocess.run(
            [path, "--version"], capture_output=True, timeout=_RUNTIME_SECONDS, check=True
        )
    except subprocess.SubprocessError as error:
        raise UnfitError(f"{path} does not tell its version", hint="install runc") from error
    version = ran.stdout.decode("utf-8", "replace").partition("\n")[0]
    return f"{version} ({path})"


def _ima(settings: Settings) -> str:
    from cima_runc.agent.sources import log_copy, open_kernel_log

    copy = log_copy(settings, keep=False)
    log = open_kernel_log(Path(settings.ima.directory), copy)
    log.close()
    entries = _entries(settings)
    # What cannot be used is refused above; this is what it is.
    file = next(entry for entry in reversed(entries) if entry.file is not None)
    template = printable(file.template)
    return f"{len(entries)} entries in the kernel's log, template {template}, files by SHA-256"


def _entries(settings: Settings) -> "list[Entry]":
    from cima_runc.agent.sources import log_copy
    from cima_runc.ima.kernel_log import KernelLog

    log = KernelLog.open(Path(settings.ima.directory), log_copy(settings, keep=False))
    try:
        return log.read_new()
    finally:
        log.close()


def _ima_policy(settings: Settings) -> str:
    prefix, launcher = installation.prefix(), installation.launcher()
    return ima_policy.look(
        Path(settings.ima.directory),
        prefix / "share/cima/ima-policy",
        launcher.lstat().st_uid,
        ima_policy.uuid_of(launcher),
    )


def _ima_replay(settings: Settings) -> str:
    """See that the log adds up to what the TPM has, as verifiers will."""
    from cima_runc.agent.sources import log_copy
    from cima_runc.ima.kernel_log import KernelLog

    pcrs = (settings.ima.host_pcr, settings.ima.container_pcr)
    # The PCRs first, the log after: the log may lead, never lag.
    with _opened_tpm(settings) as tpm:
        values = tpm.read_pcrs(pcrs)
    log = KernelLog.open(Path(settings.ima.directory), log_copy(settings, keep=False))
    try:
        starts = sum(entry.name == b"boot_aggregate" for entry in log.read_new())
        for pcr in pcrs:
            if not log.explains(pcr, values[pcr]):
                raise UnfitError(
                    f"PCR {pcr} does not follow from the kernel's log: the kernel was started by"
                    " kexec without the log of the one before, or lines are gone",
                    hint="boot the host anew, not by kexec",
                )
    finally:
        log.close()
    carried = f", carried over {starts - 1} times by kexec" if starts > 1 else ""
    return f"the log adds up to PCR {pcrs[0]} and PCR {pcrs[1]}{carried}"


def _own_code(settings: Settings) -> str:
    entries = _entries(settings)
    own = os.fsencode(installation.prefix()) + b"/"
    names = {entry.file[1] for entry in entries if entry.file is not None}
    count = sum(name.startswith(own) and name.endswith((b".py", b".pyc")) for name in names)
    if not count:
        owner = installation.launcher().stat().st_uid
        raise UnfitError(
            "the kernel does not measure our Python files when they are read",
            hint=f"the IMA policy needs: measure func=FILE_CHECK mask=^MAY_READ fowner={owner}",
        )
    return f"{count} of our Python files are in the kernel's log"


def _sensor() -> str:
    from cima_runc.sensor.loader import check_kernel

    check_kernel()
    order = Path("/sys/kernel/security/lsm").read_text().strip()
    return f"the BPF LSM of Linux {os.uname().release}, in the order {printable(order)}"


def _tpm(settings: Settings) -> str:
    from cima_runc.tpm.state import read_state
    from cima_runc.tpm.trouble import LOCKOUT, require

    with _opened_tpm(settings) as tpm:
        state = read_state(tpm)
        require("records cannot be bound", state.binding(settings.tpm.pcr))
        tpm.random(32)
        value = tpm.read_pcrs([settings.tpm.pcr])[settings.tpm.pcr]
    if state.locked_out:
        raise UnfitError(LOCKOUT.what, hint=LOCKOUT.hint)
    return f"{tpm.description}, PCR {settings.tpm.pcr} is {value.hex()[:16]}..."


def _tpm_keys(settings: Settings) -> str:
    """Make the attestation key and a quote, as the agent will; nothing of it stays."""
    from cima_runc.tpm.keys import load_ak, unload
    from cima_runc.tpm.quote import quote
    from cima_runc.tpm.state import read_state
    from cima_runc.tpm.trouble import require

    attestation = settings.attestation
    with _opened_tpm(settings) as tpm:
        if attestation.ak_handle is not None:
            require("the attestation key cannot be kept", read_state(tpm).owner())
        key = load_ak(tpm)
        try:
            pcrs = (*attestation.boot_pcrs, settings.ima.host_pcr, settings.tpm.pcr)
            made = quote(tpm, key, pcrs, tpm.random(32)).body
        finally:
            unload(tpm, key)
    return f"makes the attestation key and a quote of {len(made.pcrs)} PCRs"


def _tpm_certificate(settings: Settings) -> str:
    from cima_runc.tpm.keys import held_certificates

    with _opened_tpm(settings) as tpm:
        held = held_certificates(tpm)
    passed_over = "".join(
        f"; {index:#x} is passed over: {reason}" for index, reason in held.passed_over.items()
    )
    if not held.certificates:
        raise UnfitError(
            f"the TPM holds no certificate of its endorsement key{passed_over}",
            hint="to enrol: get it from the manufacturer (--ek-certificate), or --any-ek",
        )
    kinds = ", ".join(held.certificates)
    return f"{kinds}, {len(held.chain)} of issuers{passed_over}"


@contextmanager
def _opened_tpm(settings: Settings) -> "Iterator[Tpm]":
    from cima_runc.tpm.device import Tpm

    tpm = Tpm.open(settings.tpm.tcti)
    try:
        yield tpm
    finally:
        tpm.close()


def _agent(settings: Settings) -> list[Diagnosis]:
    status: dict[str, Any] = {}

    def answers() -> str:
        raw = call_agent(settings.shim.socket, "status", b"{}", timeout=_AGENT_SECONDS)
        status.update(json.loads(raw))
        return f"runs, {status['containers']} containers"

    found = [_diagnose("agent", answers, True)]
    if not status:
        return found
    if status["missing"]:
        what = f"runs without {', '.join(status['missing'])}"
        found.append(Diagnosis("sources", "warn", what, "verifiers are told so in every record"))
    expected = status["expected_value"]
    if expected is not None and expected != status["pcr_value"]:
        what = f"PCR {status['pcr']} was extended by somebody else"
        hint = "find out who uses it, or choose another PCR: tpm.pcr"
        found.append(Diagnosis("binding", "warn", what, hint))
    if status["unwritten_records"]:
        what = f"{status['unwritten_records']} records wait for the disk"
        hint = f"make room in {settings.shim.state_dir}"
        found.append(Diagnosis("records", "fail", what, hint))
    return found


def _engine(name: str) -> str:
    from cima_runc.doctor import engines

    return engines.look(ENGINES[name], installation.launcher())
