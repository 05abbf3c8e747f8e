#!/usr/bin/python3
"""Recomputes two containers' registers and PCR 12 from what is stored, without cima-runc's code.

SHA-256, base64 and JSON are all it takes, and `tpm2_pcrread` for the TPM's own word. Arguments: the
ids of the containers. Exit status 1: something does not add up.
"""

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

STATE = Path("/var/lib/cima")


def sha256(data: bytes) -> bytes:
    """Return the SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


def digest(record: dict) -> bytes:
    """Return what a record measures: IMA's template data, or the canonical JSON of its content."""
    content = record["content"]
    if record["content_type"] == "ima_template":
        return sha256(base64.b64decode(content["template_data"]))
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(canonical.encode())


def cpcr(records: list[dict]) -> str:
    """Fold records into a register, which starts at 32 zero bytes."""
    value = bytes(32)
    for record in records:
        value = sha256(value + digest(record))
    return value.hex()


def pcr12(bind: dict) -> str:
    """Return PCR 12 after a bind, from its value before and from what was bound."""
    status, host, root = (bytes.fromhex(bind[name]) for name in ("status", "host", "root"))
    bound = sha256(b"cima-bind-v2\0" + status + host + root)
    return sha256(bytes.fromhex(bind["history"]) + bound).hex()


def stored(path: Path) -> list[dict]:
    """Read a file of JSON objects, one a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def agree(what: str, computed: str, shown: str) -> bool:
    """Print a value recomputed and as it was shown, and return whether they are equal."""
    verdict = "agree" if computed == shown else "DIFFER"
    print(f"  {what:25} {computed[:24]}...  {shown[:24]}...  {verdict}")
    return computed == shown


def main() -> int:
    """Recompute, compare, and then try it with a log that somebody touched."""
    listed = subprocess.run(["cima", "ps", "--json"], capture_output=True, text=True, check=True)
    shown = {row["id"]: row["cpcr"] for row in json.loads(listed.stdout)}
    logs = {}
    for path in STATE.glob("containers/*/records.jsonl"):
        records = stored(path)
        logs[records[0]["cpcr"]] = records

    print(f"  {'':25} {'recomputed':27}  as shown")
    right = [agree(f"cPCR of {name[:12]}", cpcr(logs[name]), shown[name]) for name in sys.argv[1:]]
    read = subprocess.run(["tpm2_pcrread", "sha256:12"], capture_output=True, text=True, check=True)
    tpm = read.stdout.partition("0x")[2].strip().lower()
    asked = subprocess.run(["cima", "status", "--json"], capture_output=True, text=True, check=True)
    right.append(agree("PCR 12, read from the TPM", pcr12(json.loads(asked.stdout)["bind"]), tpm))

    name = sys.argv[1]
    files = [record for record in logs[name] if record["content_type"] == "ima_template"]
    data = bytearray(base64.b64decode(files[0]["content"]["template_data"]))
    data[-1] ^= 1
    files[0]["content"]["template_data"] = base64.b64encode(data).decode()
    caught = not agree("with one bit changed", cpcr(logs[name]), shown[name])
    return 0 if all(right) and caught else 1


sys.exit(main())
