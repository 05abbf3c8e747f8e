"""Padding, so that the size of what is sealed tells its order of magnitude and little more.

Source: "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs" (PETS 2019),
section 4 (Padme); design, section 7.
"""

SMALLEST = 16_384
"""Bytes that are sealed at least."""


def padme(size: int) -> int:
    """Return the size, in bytes, that ``size`` bytes (two or more) are padded to.

    With E = floor(log2 size) and S = floor(log2 E) + 1, the next multiple of 2^(E - S): at most
    12 percent more.
    """
    if size < 2:
        raise ValueError("Padme is of sizes from 2")
    exponent = size.bit_length() - 1
    granule = 1 << (exponent - exponent.bit_length())
    return -(-size // granule) * granule


def padded(text: bytes) -> bytes:
    """Return JSON ``text`` with spaces after it, up to Padme of its size or of the smallest."""
    return text.ljust(padme(max(len(text), SMALLEST)))
