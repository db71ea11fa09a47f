"""The Huffman coder: what it writes is zstd, is the same from C and Python, and is what RFC 8878 allows."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qsgd_compress import huffman

try:
    from qsgd_compress import _native as native
except ImportError:  # no compiler; test_qsgd_native.py says so where there is one
    native = None

U8 = NDArray[np.uint8]
RAW, RLE, COMPRESSED = range(3)


def skewed(size: int, symbols: int, decay: float, seed: int = 0) -> U8:
    """Bytes of `symbols` kinds, each `decay` times as frequent as the one before, scattered over all 256 values."""
    rng = np.random.default_rng(seed)
    share_s = decay ** np.arange(symbols)
    return rng.permutation(256).astype(np.uint8)[rng.choice(symbols, size, p=share_s / share_s.sum())]


def block_types(frame: bytes) -> list[int]:
    """The type of each block of a frame with a nine-byte header (RFC 8878, section 3.1.1.2)."""
    kinds, at, last = [], 9, 0
    while not last:
        header = int.from_bytes(frame[at : at + 3], "little")
        last, kind = header & 1, header >> 1 & 3
        kinds.append(kind)
        at += 3 + (1 if kind == RLE else header >> 3)
    assert at == len(frame)
    return kinds


def both(codes: U8, bits: int) -> bytes:
    """The frame, which C and Python must write alike and zstd must read."""
    frame = huffman.zstd_frame(codes, bits)
    assert native is None or native.compress(codes, bits) == frame
    read = bytearray(zstandard.ZstdDecompressor().decompress(frame))
    assert len(read) == len(codes)
    again = bytearray(read)
    if bits == 4:
        (native or huffman).separate(read if native else np.frombuffer(read, np.uint8))
        huffman.separate(np.frombuffer(again, np.uint8))
    assert bytes(read) == codes.tobytes() == bytes(again)
    return frame


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("codes", "kinds"),
    [
        (np.full(64, 0x77, np.uint8), [RLE]),
        (np.full(3 * huffman.BLOCK_BYTES // 2, 0x77, np.uint8), [RLE, RLE]),
        (np.random.default_rng(1).integers(0, 256, 1 << 16, dtype=np.uint8), [RAW]),
        (skewed(huffman.BLOCK_BYTES, 225, 0.98), [COMPRESSED]),
        (skewed(huffman.BLOCK_BYTES + 64, 225, 0.9), [COMPRESSED, RAW]),
        (np.repeat(np.array([1, 2], np.uint8), 512), [COMPRESSED]),
        (np.repeat(np.array([0, 255], np.uint8), 512), [COMPRESSED]),
    ],
    ids=["one-symbol", "one-symbol-long", "random", "many-symbols", "two-blocks", "two-symbols", "far-symbols"],
)
def test_a_block_takes_the_form_that_fits_it(codes, kinds, bits):
    if bits == 4 and len(np.unique(codes)) == 2:
        codes = huffman.separate(codes.copy())  # so that the coder meets these bytes
    assert block_types(both(codes, bits)) == kinds


@settings(max_examples=150, deadline=None)
@given(
    groups=st.integers(1, 60),
    symbols=st.integers(1, 256),
    decay=st.sampled_from([0.3, 0.6, 0.9, 0.97, 1.0]),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**32),
)
def test_c_and_python_write_the_same_and_zstd_reads_it(groups, symbols, decay, bits, seed):
    both(skewed(64 * groups, symbols, decay, seed), bits)


@pytest.mark.parametrize("symbols", [2, 3, 12, 13, 20, 255, 256])
def test_lengths_stay_within_eleven_bits_however_rare_a_symbol(symbols):
    fibonacci = [1, 1]
    while len(fibonacci) < symbols:
        fibonacci.append(min(sum(fibonacci[-2:]), 1 << 20))
    length_s = [length for length in huffman.code_lengths(fibonacci) if length]
    assert len(length_s) == symbols
    assert max(length_s) <= 11
    assert sum(2**-length for length in length_s) == 1, "a complete code"


def test_lengths_are_optimal():
    """Against a plain Huffman tree, for counts whose tree is no deeper than eleven bits: the same number of bits."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        count_s = [int(c) for c in rng.integers(500, 2_000, 200)]
        heap, bits = sorted(count_s), 0
        while len(heap) > 1:
            pair = heap[0] + heap[1]
            bits += pair
            heap = sorted([*heap[2:], pair])
        assert sum(c * n for c, n in zip(count_s, huffman.code_lengths(count_s), strict=True)) == bits


def test_neighbours_share_a_byte_before_they_are_coded():
    words = np.zeros((1, 16), np.uint32)
    words[0, 2], words[0, 3] = 0x87654321, 0xFEDCBA98
    paired = huffman.interleave(words.view(np.uint8).reshape(-1))
    assert paired[8:16].tolist() == [0x81, 0x92, 0xA3, 0xB4, 0xC5, 0xD6, 0xE7, 0xF8]
    assert (huffman.separate(paired) == words.view(np.uint8).reshape(-1)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_golden_bytes(bits):
    """No release of zstd may change them, nor of this package without another version of the format."""
    k = np.arange(1 << 18, dtype=np.uint64)
    hashed = k * k * np.uint64(2654435761) >> np.uint64(20)
    codes = (hashed & hashed >> np.uint64(8) & hashed >> np.uint64(16) & np.uint64(0xFF)).astype(np.uint8)
    frame = both(codes, bits)
    assert block_types(frame) == [COMPRESSED, COMPRESSED]
    assert hashlib.sha256(frame).hexdigest()[:16] == GOLDEN[bits]


@pytest.mark.parametrize("codes_bytes_and_bits", [(63, 4), (65, 8), (64, 3)] if native else [])
def test_wrong_codes_are_refused(codes_bytes_and_bits):
    length, bits = codes_bytes_and_bits
    with pytest.raises(ValueError, match="no such codes"):
        native.compress(bytes(length), bits)
    with pytest.raises(ValueError, match="no whole groups"):
        native.separate(bytearray(65))


GOLDEN = {4: "3039019d9f71fe38", 8: "b3b303765d51d79d"}
