"""The Debian releases that there are guests of."""

from pathlib import Path

LIST = Path(__file__).resolve().parent / "releases"


def releases() -> list[str]:
    """Return their names, in the order of the file `releases`."""
    lines = LIST.read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
