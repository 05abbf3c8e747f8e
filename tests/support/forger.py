"""A host that is made up: whatever evidence its key signs, honest or not, without a TPM.

Written from docs/design.md and docs/evidence.md with hashlib, hmac and cryptography; nothing of
cima_runc is imported. A test changes one thing where it arises (``Edits``), and all that follows
from it is made anew and signed: what is wrong is then that thing alone.
"""

import base64
import copy
import hashlib
import hmac
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

BOOT_PCRS = (*range(10), 14)
BOOT_ID = "6f4b4c55-0000-4000-8000-000000000001"
ATTRIBUTES = 0x00050472
"""fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign."""


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def canonical(value: Any) -> bytes:
    """RFC 8785 for what is here: strings, integers, booleans, null; ASCII names."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def fields(*parts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def host_line(path: bytes, digest: bytes, algorithm: bytes = b"sha256") -> bytes:
    """Template data of ima-ng."""
    return fields(algorithm + b":\0" + digest, path + b"\0")


class Partition:
    """Records, and the register after them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: list[dict[str, Any]] = []

    def _add(self, content_type: str, content: Any, measured: bytes, **more: Any) -> None:
        digest = {"hashAlg": "sha256", "digest": sha(measured).hex()}
        record = {
            "recnum": len(self.records),
            "cpcr": self.name,
            "digests": [digest],
            "content_type": content_type,
            "content": content,
            "meta": {"time": "2026-01-01T00:00:00Z"},
        }
        self.records.append(record | more)

    def add(self, content: dict[str, Any]) -> None:
        self._add("cima", content, canonical(content))

    def file(
        self, path: bytes, content: bytes, func: bytes = b"BPRM_CHECK", *, line: bool = False
    ) -> None:
        mntns = struct.pack("<I", 4026532180)
        data = fields(b"sha256:\0" + sha(content), path + b"\0", mntns, func)
        more: dict[str, Any] = {}
        if line:
            shown = host_line(path.replace(b" ", b"_"), sha(content))
            more["line"] = {"template": "ima-ng", "data": b64(shown)}
        template = {"template_name": "cima-ng", "template_data": b64(data)}
        self._add("ima_template", template, data, **more)

    def value(self, count: int | None = None) -> bytes:
        value = bytes(32)
        for record in self.records[:count]:
            value = sha(value, bytes.fromhex(record["digests"][0]["digest"]))
        return value


@dataclass
class ForgedRun:
    """One run of the line."""

    number: int
    partition: Partition
    registration: int
    boot_id: str
    secret: bytes = field(default_factory=lambda: os.urandom(32))
    reason: str | None = None

    def inner(self, count: int | None = None) -> bytes:
        count = len(self.partition.records) if count is None else count
        value = self.partition.value(count)
        return hmac.digest(self.secret, value + struct.pack(">Q", count), "sha256")

    def previous(self) -> dict[str, Any]:
        return {
            "run": self.number,
            "boot_id": self.boot_id,
            "registration": self.registration,
            "count": len(self.partition.records),
            "cpcr": self.partition.value().hex(),
            "reason": self.reason,
        }

    def end(self, reason: str = "it ended") -> None:
        self.partition.add({"type": "exit", "reason": reason})
        self.reason = reason

    def part(self, since: int = 0) -> dict[str, Any]:
        return {
            "run": self.number,
            "id": self.partition.name,
            "registration": self.registration,
            "secret": self.secret.hex(),
            "since": since,
            "records": copy.deepcopy(self.partition.records[since:]),
        }


Edit = Callable[[Any], object]


@dataclass
class Edits:
    """What to change, and where it arises. Each takes the thing itself and may change it."""

    owner: Edit | None = None
    """The owner's part, before its leaf is made of it (``owner_after``: after)."""
    owner_after: Edit | None = None
    text: Callable[[bytes], bytes] | None = None
    """Its padded JSON, before it is sealed."""
    seals: Callable[[list[str]], list[str]] | None = None
    binding: Edit | None = None
    """The binding, after leaf and path, before the bind is made (``binding_after``: after)."""
    binding_after: Edit | None = None
    quote: Edit | None = None
    """The fields of what the TPM signs."""
    attest: Callable[[bytes], bytes] | None = None
    """Their bytes."""
    evidence: Edit | None = None
    """The whole, after all of it."""


class Forger:
    """A host, its key, and one container on it."""

    def __init__(self, container: str = "box", *, attributes: int = ATTRIBUTES) -> None:
        self.container = container
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.area = self._public(attributes)
        self.name = b"\x00\x0b" + sha(self.area)
        self.endorsement = b"\x00\x0b" + sha(struct.pack(">I", 0x4000000B), self.name)
        self.line = sha(b"a line of ", container.encode()).hex()
        self.clock = {"clock": 10_000, "reset": 5, "restart": 0, "safe": 1}
        self.boot_id = BOOT_ID
        self.history = os.urandom(32)
        self.status: dict[str, Any] = {
            "foreign": {"count": 0, "last": []},
            "gaps": {"count": 0, "last": []},
            "initial": "00" * 32,
        }
        self.pcrs = {pcr: sha(b"pcr %d" % pcr) for pcr in BOOT_PCRS}
        self.log: list[tuple[bytes, bool]] = []
        self.begin_log()
        self.runs: list[ForgedRun] = []
        self.services: Partition | None = None
        self.services_secret = os.urandom(32)
        self.owners: list[bytes] = []
        self.certificate: bytes | None = None

    # -- the host ---------------------------------------------------------------------------------

    def begin_log(self, digest: bytes | None = None, algorithm: bytes = b"sha256") -> None:
        """IMA's log of a boot begins."""
        value = sha(*(self.pcrs[pcr] for pcr in range(10))) if digest is None else digest
        self.log = [(host_line(b"boot_aggregate", value, algorithm), False)]

    def host_runs(self, path: bytes, content: bytes, *, violation: bool = False) -> None:
        digest = bytes(32) if violation else sha(content)
        self.log.append((host_line(path, digest), violation))

    def pem(self, *, named: bool = True, label: str = "") -> bytes:
        """The file of the enrolled key."""
        pem = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        head = b"cima-ak-name: " + self.name.hex().encode() + b"\n" if named else b""
        return head + (f"cima-label: {label}\n".encode() if label else b"") + pem

    def reboot(self) -> None:
        """Another boot: counters, boot id and PCRs are others; what ran has ended before."""
        self.clock["reset"] += 1
        self.clock["restart"] = 0
        self.clock["clock"] += 5_000
        self.boot_id = BOOT_ID[:-1] + str(self.clock["reset"])

    def _public(self, attributes: int) -> bytes:
        def sized(data: bytes) -> bytes:
            return struct.pack(">H", len(data)) + data

        numbers = self.key.public_key().public_numbers()
        area = struct.pack(">HHIH", 0x23, 0x0B, attributes, 0)
        area += struct.pack(">HHHHH", 0x10, 0x18, 0x0B, 0x03, 0x10)
        return area + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))

    def sign(self, attest: bytes) -> bytes:
        r, s = utils.decode_dss_signature(self.key.sign(attest, ec.ECDSA(hashes.SHA256())))
        data = struct.pack(">HHH", 0x18, 0x0B, 32) + r.to_bytes(32, "big")
        return data + struct.pack(">H", 32) + s.to_bytes(32, "big")

    # -- the container ----------------------------------------------------------------------------

    def start(
        self,
        *files: tuple[bytes, bytes],
        first: list[dict[str, Any]] | None = None,
        register: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> ForgedRun:
        """The next run: ``first`` are its configuration and root, ``files`` what runs in it."""
        name = self.container if name is None else name
        before = self.runs[-1] if self.runs else None
        number = before.number + 1 if before else 1
        run = ForgedRun(number, Partition(name), int.from_bytes(os.urandom(6), "big"), self.boot_id)
        relied_on = int(self.services.name.partition(":")[2]) if self.services else None
        run.partition.add(
            {
                "type": "register",
                "id": name,
                "boot_id": self.boot_id,
                "registration": run.registration,
                "cgroup": f"/{name}",
                "namespaces": {"mnt": 4026532180, "pid": 4026532181, "user": 0xEFFFFFFD},
                "dependencies": relied_on,
                "missing": [],
                "line": self.line,
                "run": number,
                "previous": before.previous() if before else None,
            }
            | (register or {})
        )
        for content in first if first is not None else PLAIN:
            run.partition.add(content)
        for path, content in files:
            run.partition.file(path, content)
        self.runs.append(run)
        return run

    def serve(self, *files: tuple[bytes, bytes]) -> Partition:
        """The host services that the container relies on; their lines are in the log."""
        number = int.from_bytes(os.urandom(6), "big")
        partition = self.services = Partition(f"dependencies:{number}")
        services = [
            {"role": "runtime", "path_hex": path.hex(), "path": path.decode()} for path, _ in files
        ]
        partition.add(
            {
                "type": "register",
                "id": partition.name,
                "kind": "dependencies",
                "boot_id": self.boot_id,
                "registration": number,
                "services": services,
                "missing": [],
            }
        )
        for path, content in files:
            self.host_runs(path.replace(b" ", b"_"), content)
            partition.file(path, content, line=True)
            partition.add(
                {
                    "type": "service",
                    "role": "runtime",
                    "path_hex": path.hex(),
                    "path": path.decode(),
                    "digest": sha(content).hex(),
                }
            )
        return partition

    def request(self, nonce: bytes, **more: Any) -> dict[str, Any]:
        return {
            "boot_log": False,
            "container": self.runs[-1].partition.name if self.runs else self.container,
            "host": "none",
            "nonce": nonce.hex(),
            "since": None,
        } | more

    # -- evidence ---------------------------------------------------------------------------------

    def evidence(
        self,
        request: dict[str, Any],
        edits: Edits | None = None,
        *,
        runs: list[ForgedRun] | None = None,
        kind: bytes = b"\x00",
        missing: list[dict[str, int]] | None = None,
    ) -> bytes:
        """Evidence that answers a request, as the edits want it."""
        edits = edits or Edits()
        runs = self.runs if runs is None else runs
        owner = self._owner_part(request, runs, missing or [])
        if edits.owner:
            edits.owner(owner)
        binding = self._binding(owner, edits)
        if edits.owner_after:
            edits.owner_after(owner)
        digest = sha(canonical(request))
        value = sha(self.history, self._bind(binding))
        if edits.binding_after:
            edits.binding_after(binding)
        return self._quoted(request, digest, owner, binding, value, kind, edits)

    def _owner_part(
        self, request: dict[str, Any], runs: list[ForgedRun], missing: list[dict[str, int]]
    ) -> dict[str, Any]:
        since = request["since"]
        parts = []
        for run in runs:
            if since is not None and run.number < since["run"]:
                continue
            is_first = since is not None and run.number == since["run"]
            parts.append(run.part(since["count"] if is_first and since else 0))
        last = runs[-1]
        services = None
        if self.services is not None:
            services = {
                "registration": int(self.services.name.partition(":")[2]),
                "secret": self.services_secret.hex(),
                "cpcr": self.services.value().hex(),
                "count": len(self.services.records),
                "records": copy.deepcopy(self.services.records),
            }
        return {
            "request": dict(request),
            "line": self.line,
            "blind": "",
            "cpcr": last.partition.value().hex(),
            "count": len(last.partition.records),
            "runs": parts,
            "missing": missing,
            "services": services,
        }

    def _binding(self, owner: dict[str, Any], edits: Edits) -> dict[str, Any]:
        slots = 1 << 10
        key = os.urandom(32)
        blinds = Cipher(ChaCha20(key, bytes(16)), None).encryptor().update(bytes(32 * slots))
        slot, other = int.from_bytes(os.urandom(2), "big") % 512, 700
        inners = {slot: _inner(owner["runs"][-1]["secret"], owner["cpcr"], owner["count"])}
        services = owner["services"]
        if services is not None:
            inners[other] = _inner(services["secret"], services["cpcr"], services["count"])
        leaves = [
            sha(b"\0", blinds[32 * at : 32 * at + 32], inners.get(at, bytes(32)))
            for at in range(slots)
        ]
        owner["blind"] = blinds[32 * slot : 32 * slot + 32].hex()
        levels = [leaves]
        while len(levels[-1]) > 1:
            below = levels[-1]
            levels.append([sha(b"\1", *below[at : at + 2]) for at in range(0, len(below), 2)])

        def path(at: int) -> list[str]:
            return [level[at >> height ^ 1].hex() for height, level in enumerate(levels[:-1])]

        if services is not None:
            owner["services"] = services | {
                "slot": other,
                "leaf": leaves[other].hex(),
                "path": path(other),
                "blind": blinds[32 * other : 32 * other + 32].hex(),
            }
        binding = {
            "pcr": 12,
            "status": copy.deepcopy(self.status),
            "host": sha(b"\5", os.urandom(32), os.urandom(32)).hex(),
            "root": levels[-1][0].hex(),
            "history": self.history.hex(),
            "slot": slot,
            "leaf": leaves[slot].hex(),
            "path": path(slot),
        }
        if edits.binding:
            edits.binding(binding)
        return binding

    def _bind(self, binding: dict[str, Any]) -> bytes:
        status = sha(canonical(binding["status"]))
        host, root = bytes.fromhex(binding["host"]), bytes.fromhex(binding["root"])
        return sha(b"cima-bind-v2\0", status, host, root)

    def _quoted(
        self,
        request: dict[str, Any],
        digest: bytes,
        owner: dict[str, Any],
        binding: dict[str, Any],
        value: bytes,
        kind: bytes,
        edits: Edits,
    ) -> bytes:
        siblings, index = [os.urandom(32) for _ in range(10)], 0x155
        root = sha(kind, digest)
        for height, sibling in enumerate(siblings):
            root = sha(b"\1", sibling, root) if index >> height & 1 else sha(b"\1", root, sibling)
        values = {**self.pcrs, 12: value}
        if request["host"] != "none":
            values[10] = bytes(32)
            for data, violation in self.log:
                values[10] = sha(values[10], b"\xff" * 32 if violation else sha(data))
        quote = {
            "magic": b"\xffTCG",
            "type": 0x8018,
            "signer": self.endorsement,
            "extra": root,
            **self.clock,
            "banks": [(0x000B, sorted(values))],
            "values": dict(values),
            "digest": None,
        }
        if edits.quote:
            edits.quote(quote)
        attest = _attest(quote)
        if edits.attest:
            attest = edits.attest(attest)
        evidence: dict[str, Any] = {
            "type": "cima-evidence",
            "version": 2,
            "container": request["container"],
            "nonce": request["nonce"],
            "request": digest.hex(),
            "quote": {
                "attest": b64(attest),
                "signature": b64(self.sign(attest)),
                "pcrs": {str(pcr): quote["values"][pcr].hex() for pcr in sorted(quote["values"])},
            },
            "aggregation": {"index": index, "path": [one.hex() for one in siblings]},
            "ak": {"public": b64(self.area)},
            "binding": binding,
            "host_log": self._log_part(request["host"]),
        }
        if self.certificate is not None:
            evidence["ak"]["certificate"] = b64(self.certificate)
        text = json.dumps(owner).encode()
        text = text.ljust(padme(max(len(text), 16384)))
        if edits.text:
            text = edits.text(text)
        if self.owners:
            seals = [b64(seal(public, text, kind, digest)) for public in self.owners]
            evidence["sealed"] = edits.seals(seals) if edits.seals else seals
        else:
            evidence["owner"] = json.loads(text)
        if edits.evidence:
            edits.evidence(evidence)
        return json.dumps(evidence).encode()

    def _log_part(self, disclosure: str) -> dict[str, Any]:
        lines: list[Any] = [
            {"template": "ima-ng", "data": data.hex(), "violation": violation}
            for data, violation in self.log
        ]
        hashed = [(b"\xff" * 32 if violation else sha(data)).hex() for data, violation in self.log]
        shown = {"none": [], "redacted": [lines[0], *hashed[1:]], "full": lines}[disclosure]
        return {"disclosure": disclosure, "pcr": 10, "entries": shown}


PLAIN: list[dict[str, Any]] = [
    {"type": "config", "config": {"process": {"args": ["/bin/sh"]}}},
    {
        "type": "rootfs",
        "mode": "off",
        "format": "cima-layer-1",
        "filesystem": "tree",
        "reason": "",
        "root": None,
        "layers": [],
    },
]
"""A configuration and a root filesystem that say nothing."""


def seal(public: bytes, text: bytes, kind: bytes, digest: bytes) -> bytes:
    """HPKE in base mode to an owner's key (32 bytes)."""
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    key = X25519PublicKey.from_public_bytes(public)
    return suite.encrypt(text, key, b"cima-evidence-v2\0" + kind + digest)


def padme(size: int) -> int:
    exponent = size.bit_length() - 1
    granule = 1 << (exponent - exponent.bit_length())
    return -(-size // granule) * granule


def _inner(secret: str, cpcr: str, count: int) -> bytes:
    packed = struct.pack(">Q", count)
    return hmac.digest(bytes.fromhex(secret), bytes.fromhex(cpcr) + packed, "sha256")


def _attest(quote: dict[str, Any]) -> bytes:
    def sized(data: bytes) -> bytes:
        return struct.pack(">H", len(data)) + data

    selection = struct.pack(">I", len(quote["banks"]))
    for algorithm, pcrs in quote["banks"]:
        mask = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
        selection += struct.pack(">HB", algorithm, 3) + mask
    digest = quote["digest"]
    if digest is None:
        digest = sha(*(quote["values"][pcr] for pcr in sorted(quote["values"])))
    clock = struct.pack(">QIIB", quote["clock"], quote["reset"], quote["restart"], quote["safe"])
    head = quote["magic"] + struct.pack(">H", quote["type"])
    return (
        head
        + sized(quote["signer"])
        + sized(quote["extra"])
        + clock
        + bytes(8)
        + selection
        + sized(digest)
    )
