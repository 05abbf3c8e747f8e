"""A quote in the files that tpm2-tools' ``tpm2_checkquote`` takes.

Source: tpm2-tools 5.4, lib/files.c and lib/pcr.c: the PCR file is a TPML_PCR_SELECTION, a count and
TPML_DIGESTs as the C structures lie in memory, numbers little-endian.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from cima_runc.evidence.models import Evidence
from cima_runc.tpm.structures import parse_public, parse_quote

_BANKS, _DIGESTS = 16, 8
_DIGEST_BUFFER = 64


def write_tools_files(evidence: Evidence, directory: Path) -> str:
    """Write ``ak.pem``, ``quote.msg``, ``quote.sig`` and ``quote.pcrs``; return the command line.

    Raises:
        StructureError: the evidence's quote or key cannot be read.
        OSError: a file cannot be written.
    """
    body = parse_quote(evidence.quote.attest)
    values = {int(pcr): value for pcr, value in evidence.quote.pcrs.items()}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ak.pem").write_bytes(
        parse_public(evidence.ak.public).key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (directory / "quote.msg").write_bytes(evidence.quote.attest)
    (directory / "quote.sig").write_bytes(evidence.quote.signature)
    (directory / "quote.pcrs").write_bytes(pcr_file(values))
    qualification = body.extra_data.hex()
    return (
        "tpm2_checkquote --public ak.pem --message quote.msg --signature quote.sig"
        f" --pcr quote.pcrs --hash-algorithm sha256 --qualification {qualification}"
    )


def pcr_file(values: Mapping[int, bytes]) -> bytes:
    """Return the PCR file for values of the SHA-256 bank."""
    select = sum(1 << pcr for pcr in values).to_bytes(3, "little")
    bank = struct.pack("<HB4sx", 0x000B, 3, select)
    selection = struct.pack("<I", 1) + bank + bytes(8 * (_BANKS - 1))
    ordered = [values[pcr] for pcr in sorted(values)]
    lists = [ordered[at : at + _DIGESTS] for at in range(0, len(ordered), _DIGESTS)]
    return selection + struct.pack("<I", len(lists)) + b"".join(map(_digest_list, lists))


def _digest_list(digests: list[bytes]) -> bytes:
    packed = [struct.pack(f"<H{_DIGEST_BUFFER}s", len(digest), digest) for digest in digests]
    empty = bytes(2 + _DIGEST_BUFFER) * (_DIGESTS - len(digests))
    return struct.pack("<I", len(digests)) + b"".join(packed) + empty
