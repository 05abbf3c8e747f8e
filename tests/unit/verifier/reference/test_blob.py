import gzip
import io
import os
import time

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cima_runc.base import limits
from cima_runc.verifier.reference.blob import BlobError, BlobReader, LayerStream, read_blob
from tests.support.oci import COMPRESS, sha256


def unpack(blob: bytes, diff_id: str, piece: int = 1000) -> bytes:
    reader = BlobReader(io.BytesIO(blob), sha256(blob), len(blob))
    stream = LayerStream(reader, diff_id)
    parts = []
    while part := stream.read(piece):
        parts.append(part)
    stream.finish()
    return b"".join(parts)


@given(st.binary(max_size=5000), st.sampled_from(sorted(COMPRESS)), st.integers(1, 10000))
def test_every_compression(data: bytes, compression: str, piece: int) -> None:
    if compression == "" and data[:1] in b"\x1f\x28\x42\xfd":
        data = b"x" + data
    assert unpack(COMPRESS[compression](data), sha256(data), piece) == data


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_several_members(parts: list[bytes]) -> None:
    """As pigz, and eStargz, which is a gzip member for each file."""
    data = b"".join(parts)
    assert unpack(b"".join(map(gzip.compress, parts)) + bytes(600), sha256(data)) == data
    frames = b"".join(map(zstandard.ZstdCompressor().compress, parts))
    assert unpack(b"\x50\x2a\x4d\x18\x03\0\0\0abc" + frames, sha256(data)) == data


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (gzip.compress(b"x" * 1000)[:-9], "cut off"),
        (gzip.compress(b"x" * 1000)[:-4] + b"abcd", "decompressed"),
        (gzip.compress(b"x") + b"rubbish", "decompressed"),
        (b"\x1f\x8b" + os.urandom(50), "decompressed"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "decompressed"),
        (b"BZh91AY&SY", "bzip2 or xz"),
        (b"\xfd7zXZ\0", "bzip2 or xz"),
        (b"plain", "has the digest"),
        (zstandard.ZstdCompressor().compress(b"x" * 1000)[:-3], "has the digest"),
    ],
    ids=[
        "gzip cut",
        "gzip of another sum",
        "gzip and rubbish",
        "gzip of nothing",
        "zstandard of nothing",
        "bzip2",
        "xz",
        "plain",
        "zstandard cut",
    ],
)
def test_damaged(blob: bytes, reason: str) -> None:
    with pytest.raises(BlobError, match=reason):
        unpack(blob, sha256(b"x" * 1000))


def test_a_zstd_frame_that_wants_too_much_memory() -> None:
    window = zstandard.ZstdCompressionParameters(window_log=28)
    data = os.urandom(1000)
    compressor = zstandard.ZstdCompressor(compression_params=window).compressobj()
    blob = compressor.compress(data) + compressor.flush()
    with pytest.raises(BlobError, match="decompressed"):
        unpack(blob, sha256(data))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IMAGE_RATIO_FROM", 8 * limits.MIB)
    blob = COMPRESS[compression](bytes(64 * limits.MIB))
    start = time.process_time()
    with pytest.raises(BlobError, match="become more than"):
        unpack(blob, sha256(b""), limits.MIB)
    assert time.process_time() - start < 5


def test_what_is_packed_well_is_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IMAGE_RATIO_FROM", limits.MIB)
    data = b"".join(b"all work and no play makes a dull layer %d\n" % n for n in range(100_000))
    assert unpack(gzip.compress(data), sha256(data), limits.MIB) == data


def test_too_large_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LAYER_BYTES", 100)
    with pytest.raises(BlobError, match="more than 100 bytes"):
        unpack(b"x" * 101, sha256(b"x" * 101))


def test_a_blob_is_the_one_that_its_digest_says() -> None:
    data = b"hello"
    assert read_blob(io.BytesIO(data), sha256(data), 5, 100) == data
    for digest, size, most, reason in (
        (sha256(b"other"), 5, 100, "not sha256"),
        (sha256(data), 4, 100, "more than its 4"),
        (sha256(data), 6, 100, "5 bytes, not 6"),
        (sha256(data), 5, 4, "more than 4"),
        ("sha256:../../x", 5, 100, "not a sha256"),
        ("md5:" + "0" * 32, 5, 100, "not a sha256"),
    ):
        with pytest.raises(BlobError, match=reason):
            read_blob(io.BytesIO(data), digest, size, most)
