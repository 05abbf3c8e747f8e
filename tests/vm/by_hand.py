"""cPCRs and PCR 12 from what is stored, with hashlib and tpm2_pcrread alone."""

import hashlib
import json
import subprocess
import sys


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def register(lines: list[str]) -> str:
    value = bytes(32)
    for line in lines:
        value = sha(value + bytes.fromhex(json.loads(line)["digests"][0]["digest"]))
    return value.hex()


def binding(lines: list[str]) -> str:
    """What a binding journal adds up to, each bind over what was there before it."""
    value, pending = None, None
    for entry in map(json.loads, lines):
        match entry["type"]:
            case "state" | "initial":
                value = entry["value"]
            case "bind":
                known = {value} if pending is None else set(pending.values()) - {"bind"}
                assert entry["before"] in known
                value, pending = entry["before"], entry
            case "done":
                value, pending = pending["expected"], None
            case "abandoned":
                assert entry["value"] in (pending["before"], pending["history"])
                value, pending = entry["value"], None
            case "foreign":
                value, pending = entry["value"], None
    if pending is not None:
        value = pending["expected"]
    return value or ""


def bound(bind: dict[str, str]) -> str:
    """PCR 12 after the bind that `cima status --json` shows."""
    parts = (bytes.fromhex(bind[name]) for name in ("status", "host", "root"))
    digest = sha(b"cima-bind-v2\0" + b"".join(parts))
    return sha(bytes.fromhex(bind["history"]) + digest).hex()


def pcr(number: int) -> str:
    shown = subprocess.run(
        ["tpm2_pcrread", f"sha256:{number}"], capture_output=True, text=True, check=True
    ).stdout
    return shown.rpartition("0x")[2].strip().lower()


if __name__ == "__main__":
    print(register(sys.stdin.read().splitlines()))
