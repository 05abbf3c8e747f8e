"""Evidence checked by hand: docs/design.md and docs/evidence.md with hashlib, hmac, cryptography.

Nothing of cima_runc is imported. Every check is an assertion; what is returned was proved.
"""

import base64
import hashlib
import hmac
import json
import struct
from contextlib import suppress
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

SHA256, ECDSA, RSASSA = 0x000B, 0x0018, 0x0014
ECC, RSA = 0x0023, 0x0001
FIXED_TPM, FIXED_PARENT, ORIGIN, RESTRICTED, DECRYPT, SIGN = 1, 4, 5, 16, 17, 18


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def hexed(text: str, size: int | None = 32) -> bytes:
    """Lower-case hexadecimal, 32 bytes unless said otherwise."""
    value = bytes.fromhex(text)
    assert value.hex() == text
    assert size is None or len(value) == size
    return value


def number(value: Any) -> int:
    assert type(value) is int and 0 <= value < 1 << 53
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key stands twice."""
    value = dict(pairs)
    assert len(value) == len(pairs)
    return value


def blob(text: str) -> bytes:
    """Base64 in the one form that its bytes have."""
    value = base64.b64decode(text, validate=True)
    assert base64.b64encode(value).decode() == text
    return value


def keys(value: dict[str, Any], names: str, may: str = "") -> None:
    """An object has just these keys, and perhaps those."""
    assert set(names.split()) <= set(value) <= {*names.split(), *may.split()}, set(value)


class Reader:
    """TPM structures: numbers big-endian, sized buffers with 2 bytes of length."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        assert len(taken) == size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))


def parse_public(area: bytes) -> tuple[int, ec.EllipticCurvePublicKey | rsa.RSAPublicKey]:
    """TPMT_PUBLIC: attributes and key."""
    reader = Reader(area)
    kind, name_hash = reader.number(2), reader.number(2)
    assert name_hash == SHA256
    attributes = reader.number(4)
    assert reader.sized() == b""  # no policy
    assert reader.number(2) == 0x0010  # no symmetric algorithm
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    if kind == ECC:
        assert (reader.number(2), reader.number(2)) == (ECDSA, SHA256)
        assert (reader.number(2), reader.number(2)) == (0x0003, 0x0010)  # NIST P-256, no KDF
        x, y = (int.from_bytes(reader.sized(), "big") for _ in range(2))
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    else:
        assert kind == RSA
        assert (reader.number(2), reader.number(2)) == (RSASSA, SHA256)
        assert reader.number(2) == 2048
        exponent = reader.number(4) or 65537
        key = rsa.RSAPublicNumbers(exponent, int.from_bytes(reader.sized(), "big")).public_key()
    assert not reader.data
    return attributes, key


def check_signature(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, signature: bytes, attest: bytes
) -> None:
    """TPMT_SIGNATURE over TPMS_ATTEST."""
    reader = Reader(signature)
    scheme, hashed = reader.number(2), reader.number(2)
    assert hashed == SHA256
    if isinstance(key, ec.EllipticCurvePublicKey):
        assert scheme == ECDSA
        r, s = (int.from_bytes(reader.sized(), "big") for _ in range(2))
        der = utils.encode_dss_signature(r, s)
        key.verify(der, attest, ec.ECDSA(hashes.SHA256()))
    else:
        assert scheme == RSASSA
        key.verify(reader.sized(), attest, padding.PKCS1v15(), hashes.SHA256())
    assert not reader.data


def up(leaf: bytes, place: int, path: list[str]) -> bytes:
    """The root above a leaf: siblings lowest first, bit i of its place is 1 where it is right."""
    assert 0 <= place < 1 << len(path)
    value = leaf
    for sibling in map(hexed, path):
        value = sha(b"\x01", sibling, value) if place & 1 else sha(b"\x01", value, sibling)
        place >>= 1
    return value


def canonical(value: Any) -> bytes:
    """RFC 8785, as far as evidence goes: strings, integers, booleans, null; keys in the BMP."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def padme(size: int) -> int:
    exponent = size.bit_length() - 1
    granule = 1 << (exponent - exponent.bit_length())
    return -(-size // granule) * granule


def fields_of(data: bytes) -> list[bytes]:
    """Template data: u32 little-endian length and so many bytes, again and again."""
    found = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        assert len(data) >= 4 + size
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


def file_of(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Algorithm, digest and name of a line of the kernel's log."""
    digest, name, *_ = fields_of(data)
    algorithm, value = digest.split(b":\0", 1)
    assert name.endswith(b"\0")
    return algorithm.rpartition(b":")[2], value, name[:-1]


RECORD = "recnum cpcr digests content_type content meta"


def replay(
    records: list[dict[str, Any]], since: int, name: str, start: bytes, *, lines: bool = False
) -> bytes:
    """The register after records that are named and numbered as they must be."""
    value = start
    for expected, record in enumerate(records, start=since):
        keys(record, RECORD, "line" if lines else "")
        assert (number(record["recnum"]), record["cpcr"]) == (expected, name)
        (digest,) = record["digests"]
        keys(digest, "hashAlg digest")
        assert digest["hashAlg"] == "sha256"
        content = record["content"]
        if record["content_type"] == "ima_template":
            keys(content, "template_name template_data")
            assert content["template_name"] == "cima-ng"
            measured = blob(content["template_data"])
            sized, path, mntns, func = fields_of(measured)
            assert sized.startswith(b"sha256:\0") and len(sized) == 40
            assert path.endswith(b"\0") and b"\0" not in path[:-1] and len(mntns) == 4
            assert func in {b"BPRM_CHECK", b"MMAP_CHECK", b"FILE_CHECK"}
        else:
            assert record["content_type"] == "cima"
            measured = canonical(content)
        assert sha(measured) == hexed(digest["digest"])
        value = sha(value, hexed(digest["digest"]))
    return value


def leaf_of(blind: str, secret: str, cpcr: bytes, count: int) -> bytes:
    inner = hmac.digest(hexed(secret), cpcr + struct.pack(">Q", count), "sha256")
    return sha(b"\x00", hexed(blind), inner)


def said_before(run: dict[str, Any]) -> tuple[str, int, Any]:
    """Line, run and previous, as the first record or the one of the take-over says them."""
    first = run["records"][0]["content"]
    assert first["type"] == "register"
    assert (first["id"], first["registration"]) == (run["id"], run["registration"])
    adopted = [r["content"] for r in run["records"] if r["content"].get("type") == "adopted"]
    if "line" not in first:
        (said,) = adopted
        assert (said["run"], said["previous"]) == (1, "lost")
    else:
        said = first
        assert not adopted
        assert (said["previous"] is None) == (said["run"] == 1)
    return said["line"], said["run"], said["previous"]


def end_of(run: dict[str, Any]) -> str | None:
    exits = [r["content"]["reason"] for r in run["records"] if r["content"].get("type") == "exit"]
    return exits[0] if exits else None


def check_runs(owner: dict[str, Any], container: str) -> tuple[bytes, int]:
    """Every run adds up, and each says of the one before what that came to; the last's register."""
    before = None
    value, count = bytes(32), 0
    for run in owner["runs"]:
        keys(run, "run id registration secret since records")
        assert number(run["since"]) == 0
        value = replay(run["records"], 0, run["id"], bytes(32))
        count = len(run["records"])
        line, own, previous = said_before(run)
        assert (line, own) == (owner["line"], number(run["run"]))
        if before is not None:
            assert previous == before
        before = {
            "run": own,
            "boot_id": run["records"][0]["content"]["boot_id"],
            "registration": run["registration"],
            "count": count,
            "cpcr": value.hex(),
            "reason": end_of(run),
        }
    assert owner["runs"][-1]["id"] == container
    return value, count


def open_owner_part(evidence: dict[str, Any], private_pem: bytes | None) -> dict[str, Any]:
    """The owner's part: in the clear, or sealed with HPKE (RFC 9180), which exactly one opens."""
    assert ("owner" in evidence) != ("sealed" in evidence)
    if "owner" in evidence:
        owner: dict[str, Any] = evidence["owner"]
        return owner
    assert private_pem is not None
    key: Any = serialization.load_pem_private_key(private_pem, password=None)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    info = b"cima-evidence-v2\0\x00" + hexed(evidence["request"])
    texts = []
    for sealed in evidence["sealed"]:
        with suppress(InvalidTag):
            texts.append(suite.decrypt(blob(sealed), key, info))
    (text,) = texts
    assert (text[:1], text.rstrip(b" ")[-1:]) == (b"{", b"}")
    assert len(text) == padme(max(len(text.rstrip(b" ")), 16384))
    opened: dict[str, Any] = json.loads(text, object_pairs_hook=unique)
    return opened


def host_lines(entries: list[Any]) -> list[bytes]:
    """What each entry of the host's log extended the PCR with."""
    return [
        hexed(entry)
        if isinstance(entry, str)
        else b"\xff" * 32
        if entry["violation"]
        else sha(hexed(entry["data"], None))
        for entry in entries
    ]


def check_host_log(
    log: dict[str, Any], values: dict[int, bytes], services: list[dict[str, Any]]
) -> dict[str, Any]:
    """The log adds up to PCR 10, begins with this boot, and holds the files of the services."""
    keys(log, "disclosure pcr entries")
    assert log["pcr"] == 10
    if log["disclosure"] == "none":
        assert log["entries"] == []
        return {}
    shown = [isinstance(entry, dict) for entry in log["entries"]]
    assert shown[0] and all(shown) if log["disclosure"] == "full" else not any(shown[1:])
    extended, value, proved = host_lines(log["entries"]), bytes(32), None
    for at, line in enumerate(extended, start=1):
        value = sha(value, line)
        if value == values[10]:
            proved = at
            break
    assert proved is not None
    first = log["entries"][0]
    assert not first["violation"]
    algorithm, digest, name = file_of(hexed(first["data"], None))
    assert name == b"boot_aggregate"
    for record in services:
        if record["content_type"] != "ima_template":
            continue
        data = blob(record["line"]["data"])
        assert sha(data) in extended[:proved]
        own, path, _, _ = fields_of(blob(record["content"]["template_data"]))
        kernels = file_of(data)
        assert kernels[:2] == (b"sha256", own.removeprefix(b"sha256:\0"))
        assert kernels[2] == path[:-1].replace(b" ", b"_")
    expected = sha(*(values[pcr] for pcr in range(10)))
    return {
        "lines": proved,
        "aggregate": "zero"
        if not any(digest)
        else "not comparable"
        if algorithm != b"sha256"
        else "equal"
        if digest == expected
        else "another",
        "violations": extended[:proved].count(b"\xff" * 32),
    }


OUTSIDE = "type version container nonce request quote aggregation ak binding host_log"


def verify(
    raw: bytes,
    nonce: bytes,
    ak_name: bytes,
    container: str,
    *,
    private_pem: bytes | None = None,
    boot_pcrs: tuple[int, ...] = (*range(10), 14),
    host: str = "none",
    boot_log: bool = False,
) -> dict[str, Any]:
    """Check all of it, in the design's order, of evidence that begins with a whole run.

    Returns runs, services, PCR values, counters, status, and what the host's log says.
    """
    evidence = json.loads(raw, object_pairs_hook=unique)
    keys(evidence, OUTSIDE, "sealed owner boot_log")
    assert (evidence["type"], number(evidence["version"])) == ("cima-evidence", 2)

    area = blob(evidence["ak"]["public"])
    assert struct.pack(">H", SHA256) + sha(area) == ak_name
    attributes, key = parse_public(area)
    for bit in (FIXED_TPM, FIXED_PARENT, ORIGIN, RESTRICTED, SIGN):
        assert attributes & 1 << bit
    assert not attributes & 1 << DECRYPT

    attest = blob(evidence["quote"]["attest"])
    check_signature(key, blob(evidence["quote"]["signature"]), attest)

    reader = Reader(attest)
    assert reader.take(4) == b"\xffTCG"
    assert reader.number(2) == 0x8018
    endorsement = struct.pack(">I", 0x4000000B)
    assert reader.sized() == struct.pack(">H", SHA256) + sha(endorsement, ak_name)
    extra = reader.sized()
    clock, reset_count, restart_count = reader.number(8), reader.number(4), reader.number(4)
    assert reader.number(1) == 1  # safe
    reader.number(8)  # firmware
    assert (reader.number(4), reader.number(2)) == (1, SHA256)
    selected = int.from_bytes(reader.take(reader.number(1)), "little")
    digest = reader.sized()
    assert not reader.data

    log = evidence["host_log"]
    assert log["disclosure"] == host and ("boot_log" in evidence) == boot_log
    wanted = {*boot_pcrs, 12} | ({10} if host != "none" else set())
    assert {pcr for pcr in range(24) if selected & 1 << pcr} == wanted
    values = {int(pcr): hexed(value) for pcr, value in evidence["quote"]["pcrs"].items()}
    assert set(values) == wanted and {str(pcr) for pcr in values} == set(evidence["quote"]["pcrs"])

    assert hexed(evidence["nonce"], None) == nonce and evidence["container"] == container
    place = evidence["aggregation"]
    keys(place, "index path")
    assert len(place["path"]) == 10
    request = hexed(evidence["request"])
    assert up(sha(b"\x00", request), number(place["index"]), place["path"]) == extra
    assert sha(*(values[pcr] for pcr in sorted(values))) == digest

    binding = evidence["binding"]
    keys(binding, "pcr status host root history slot leaf path")
    status, root = binding["status"], hexed(binding["root"])
    assert len(binding["path"]) >= 10
    assert up(hexed(binding["leaf"]), number(binding["slot"]), binding["path"]) == root
    bind = sha(b"cima-bind-v2\0", sha(canonical(status)), hexed(binding["host"]), root)
    assert binding["pcr"] == 12 and sha(hexed(binding["history"]), bind) == values[12]

    owner = open_owner_part(evidence, private_pem)
    keys(owner, "request line blind cpcr count runs missing services")
    asked = owner["request"]
    keys(asked, "boot_log container host nonce since")
    assert sha(canonical(asked)) == request
    assert (asked["container"], asked["nonce"]) == (container, nonce.hex())
    assert (asked["host"], asked["boot_log"]) == (host, boot_log)

    value, count = check_runs(owner, container)
    assert (hexed(owner["cpcr"]), number(owner["count"])) == (value, count)
    last = owner["runs"][-1]
    assert leaf_of(owner["blind"], last["secret"], value, count) == hexed(binding["leaf"])

    relied_on = last["records"][0]["content"]["dependencies"]
    part, services = owner["services"], []
    assert (part is None) == (relied_on is None)
    if part is not None:
        keys(part, "registration slot leaf path blind secret cpcr count records")
        assert part["registration"] == relied_on and len(part["path"]) >= 10
        assert up(hexed(part["leaf"]), number(part["slot"]), part["path"]) == root
        services = part["records"]
        value = replay(services, 0, f"dependencies:{relied_on}", bytes(32), lines=True)
        assert (value, len(services)) == (hexed(part["cpcr"]), number(part["count"]))
        made = leaf_of(part["blind"], part["secret"], value, len(services))
        assert made == hexed(part["leaf"])
        first = services[0]["content"]
        assert (first["type"], first["registration"]) == ("register", relied_on)

    return {
        "runs": owner["runs"],
        "records": last["records"],
        "dependencies": services,
        "status": status,
        "host_log": check_host_log(log, values, services),
        "values": values,
        "clock": clock,
        "reset_count": reset_count,
        "restart_count": restart_count,
    }
