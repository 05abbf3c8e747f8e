"""Evidence checked by hand: the formulas of docs/evidence.md with hashlib, struct and cryptography.

Nothing of cima_runc is imported. Every check is an assertion; what is returned was proved.
"""

import base64
import hashlib
import hmac
import json
import struct
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

SHA256, ECDSA, RSASSA = 0x000B, 0x0018, 0x0014
ECC, RSA = 0x0023, 0x0001
FIXED_TPM, FIXED_PARENT, ORIGIN, RESTRICTED, DECRYPT, SIGN = 1, 4, 5, 16, 17, 18


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def hexed(text: str) -> bytes:
    assert text == text.lower()
    return bytes.fromhex(text)


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


def root_of(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """RFC 9162, 2.1.3.2."""
    assert 0 <= index < size
    fn, sn, r = index, size - 1, leaf
    for p in path:
        assert sn
        if fn & 1 or fn == sn:
            r = sha(b"\x01", p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = sha(b"\x01", r, p)
        fn, sn = fn >> 1, sn >> 1
    assert sn == 0
    return r


def check_path(part: dict[str, Any], root: bytes) -> None:
    """A partition's leaf under the tree's root."""
    value, slot = hexed(part["leaf"]), part["slot"]
    assert len(part["path"]) >= 10 and slot < 1 << len(part["path"])
    for sibling in map(hexed, part["path"]):
        value = sha(b"\x01", sibling, value) if slot & 1 else sha(b"\x01", value, sibling)
        slot >>= 1
    assert value == root


def canonical(value: Any) -> bytes:
    """RFC 8785, as far as records go: strings, integers, booleans, null; ASCII names."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def check_records(part: dict[str, Any], leaf: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Records add up to the register, and that with secret and count to the leaf."""
    assert part["since"] == 0
    value = bytes(32)
    for number, record in enumerate(part["records"]):
        assert (record["recnum"], record["cpcr"]) == (number, name)
        (digest,) = record["digests"]
        assert digest["hashAlg"] == "sha256"
        content = record["content"]
        if record["content_type"] == "ima_template":
            assert content["template_name"] == "cima-ng"
            measured = base64.b64decode(content["template_data"], validate=True)
        else:
            assert record["content_type"] == "cima"
            measured = canonical(content)
        assert sha(measured) == hexed(digest["digest"])
        value = sha(value, hexed(digest["digest"]))
    assert value == hexed(part["cpcr"])
    count = len(part["records"])
    assert count == leaf["count"]
    masked = hmac.digest(hexed(part["secret"]), value + struct.pack(">Q", count), "sha256")
    assert sha(b"\x00", masked) == hexed(leaf["leaf"])
    return list(part["records"])


def open_owner_part(evidence: dict[str, Any], private_pem: bytes | None) -> dict[str, Any]:
    """The owner's part: in the clear, or sealed with HPKE (RFC 9180)."""
    if private_pem is None:
        owner: dict[str, Any] = evidence["owner"]
        return owner
    assert "owner" not in evidence
    key: Any = serialization.load_pem_private_key(private_pem, password=None)
    own = sha(key.public_key().public_bytes_raw()).hex()
    (data,) = (one["data"] for one in evidence["sealed"] if one["key"] == own)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    info = b"cima-evidence-v1\0" + sha(evidence["container"].encode()) + hexed(evidence["nonce"])
    opened: dict[str, Any] = json.loads(suite.decrypt(base64.b64decode(data), key, info))
    return opened


def host_lines(entries: list[Any]) -> list[bytes]:
    """What each entry of the host's log extended the PCR with."""
    return [
        hexed(entry)
        if isinstance(entry, str)
        else b"\xff" * 32
        if entry["violation"]
        else sha(hexed(entry["data"]))
        for entry in entries
    ]


def verify(
    raw: bytes,
    nonce: bytes,
    ak_name: bytes,
    container: str,
    *,
    private_pem: bytes | None = None,
    boot_pcrs: tuple[int, ...] = (*range(10), 14),
) -> dict[str, Any]:
    """Check everything in the design's order; return records, dependencies, values and counters."""
    evidence = json.loads(raw)
    assert (evidence["type"], evidence["version"]) == ("cima-evidence", 1)

    area = base64.b64decode(evidence["ak"]["public"], validate=True)
    assert struct.pack(">H", SHA256) + sha(area) == ak_name
    attributes, key = parse_public(area)
    for bit in (FIXED_TPM, FIXED_PARENT, ORIGIN, RESTRICTED, SIGN):
        assert attributes & 1 << bit
    assert not attributes & 1 << DECRYPT

    attest = base64.b64decode(evidence["quote"]["attest"], validate=True)
    check_signature(key, base64.b64decode(evidence["quote"]["signature"], validate=True), attest)

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
    wanted = {*boot_pcrs, 12} | ({10} if log["disclosure"] != "none" else set())
    assert {pcr for pcr in range(24) if selected & 1 << pcr} == wanted
    values = {int(pcr): hexed(value) for pcr, value in evidence["quote"]["pcrs"].items()}
    assert set(values) == wanted

    assert hexed(evidence["nonce"]) == nonce and evidence["container"] == container
    place = evidence["aggregation"]
    request = sha(b"\x00", nonce, sha(container.encode()))
    assert root_of(request, place["index"], place["size"], list(map(hexed, place["path"]))) == extra
    assert sha(*(values[pcr] for pcr in sorted(values))) == digest

    binding = evidence["binding"]
    root = hexed(binding["root"])
    check_path(binding, root)
    bind = sha(b"cima-bind-v1\0", struct.pack(">Q", binding["seq"]), root)
    assert binding["pcr"] == 12 and sha(hexed(binding["history"]), bind) == values[12]

    owner = open_owner_part(evidence, private_pem)
    records = check_records(owner, binding, container)
    register = records[0]["content"]
    assert (register["type"], register["id"]) == ("register", container)
    relied_on = []
    part, leaf = owner.get("dependencies"), binding.get("dependencies")
    assert len({part is None, leaf is None, register["dependencies"] is None}) == 1
    if part is not None:
        check_path(leaf, root)
        relied_on = check_records(part, leaf, f"dependencies:{register['dependencies']}")
        assert relied_on[0]["content"]["registration"] == register["dependencies"]

    if log["disclosure"] != "none":
        value, seen = bytes(32), [bytes(32)]
        for line in host_lines(log["entries"]):
            value = sha(value, line)
            seen.append(value)
        assert log["pcr"] == 10 and values[10] in seen
    return {
        "records": records,
        "dependencies": relied_on,
        "values": values,
        "clock": clock,
        "reset_count": reset_count,
        "restart_count": restart_count,
    }
