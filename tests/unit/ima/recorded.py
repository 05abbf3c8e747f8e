"""The logs in tests/fixtures/ima, as the kernels gave them."""

from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).parents[2] / "fixtures" / "ima"


@dataclass(frozen=True)
class RecordedLog:
    kernel: str
    directory: Path
    ascii: bytes
    binary: bytes
    pcrs: dict[str, dict[int, bytes]]


def _read_pcrs(text: str) -> dict[str, dict[int, bytes]]:
    banks: dict[str, dict[int, bytes]] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(":")
        if not value:
            banks[name] = bank = {}
        else:
            bank[int(name)] = bytes.fromhex(value.strip().removeprefix("0x"))
    return banks


def _load(directory: Path) -> RecordedLog:
    return RecordedLog(
        directory.name,
        directory,
        (directory / "ascii").read_bytes(),
        (directory / "binary").read_bytes(),
        _read_pcrs((directory / "pcrs").read_text()),
    )


RECORDED = [_load(path) for path in sorted(_DIRECTORY.iterdir()) if path.is_dir()]
