"""zstd frames (RFC 8878) of Huffman-coded literals and nothing else, byte for byte as native/huffman.c writes them.

In the codes of a gradient there is nothing to match; looking for it would cost time and some of the ratio. Any zstd
decoder reads these frames. Section numbers are those of RFC 8878. Letters: i symbols of a stream, w weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

BLOCK_BYTES = 1 << 17
_MAGIC_AND_DESCRIPTOR = bytes([0x28, 0xB5, 0x2F, 0xFD, 0xA0])  # single segment, content size in four bytes
_RAW, _RLE, _COMPRESSED = 0, 1, 2
_LONGEST = 11  # bits of a code; section 4.2.1
_STREAMS = 4
_WEIGHT_LOG = 6  # accuracy of the weights' own table; section 4.2.1.2
_WEIGHT_STATES = 1 << _WEIGHT_LOG
_LARGEST_TREE = 128
_SWAPS = ((16, 0x00000000FFFF0000), (8, 0x0000FF000000FF00), (4, 0x00F000F000F000F0))


def interleave(codes: U8) -> U8:
    """4-bit codes (whole groups) in the order in which they are coded: of words 2j and 2j + 1 the nibbles in turn."""
    return _swapped(codes.copy(), _SWAPS)


def separate(codes: U8) -> U8:
    """Undoes `interleave`, in place."""
    return _swapped(codes, _SWAPS[::-1])


def _swapped(codes: U8, swaps: tuple[tuple[int, int], ...]) -> U8:
    v: Any = codes.view(np.uint64)
    for shift, mask in swaps:
        t = (v ^ v >> np.uint64(shift)) & np.uint64(mask)
        v ^= t ^ t << np.uint64(shift)
    return codes


def zstd_frame(codes: U8, bits: int) -> bytes:
    """One zstd frame of whole groups of codes, (bytes,) uint8."""
    parts = [_MAGIC_AND_DESCRIPTOR, len(codes).to_bytes(4, "little")]
    coded = interleave(codes) if bits == 4 else codes
    for start in range(0, len(codes), BLOCK_BYTES):
        block = coded[start : start + BLOCK_BYTES]
        kind, content, size = _block(block)
        header = int(start + BLOCK_BYTES >= len(codes)) | kind << 1 | size << 3
        parts += [header.to_bytes(3, "little"), content]
    return b"".join(parts)


def _block(block: U8) -> tuple[int, bytes, int]:
    """Type, content, and the size that the block's header tells (section 3.1.1.2)."""
    count_s = np.bincount(block, minlength=256)
    if count_s[block[0]] == len(block):
        return _RLE, block[:1].tobytes(), len(block)
    literals = _literals(block, [int(count) for count in count_s])
    if literals is None:
        return _RAW, block.tobytes(), len(block)
    return _COMPRESSED, literals, len(literals)


def _literals(block: U8, count_s: list[int]) -> bytes | None:
    """A block's content as Huffman-coded literals and no sequences (sections 3.1.1.3.1 and 3.1.1.3.2), if smaller."""
    length_s = code_lengths(count_s)
    if sum(length * count for length, count in zip(length_s, count_s, strict=True)) // 8 >= len(block):
        return None
    tree = _tree(length_s)
    if tree is None:
        return None
    code_s = _codes(length_s)
    share = -(-len(block) // _STREAMS)
    streams = [_stream(block[s * share : (s + 1) * share], code_s, np.array(length_s)) for s in range(_STREAMS)]
    jumps = b"".join(len(stream).to_bytes(2, "little") for stream in streams[:-1])
    body = b"".join([tree, jumps, *streams])
    header = 2 | 3 << 2 | len(block) << 4 | len(body) << 22
    literals = header.to_bytes(5, "little") + body + b"\0"
    return literals if len(literals) < len(block) else None


def code_lengths(count_s: list[int]) -> list[int]:
    """Lengths of an optimal prefix code of at most 11 bits: package-merge (Larmore and Hirschberg 1990).

    Symbols in ascending order of (count, symbol), leaves before packages of the same weight; two occur at least.
    """
    leaves = sorted((count, symbol) for symbol, count in enumerate(count_s) if count)
    row = [count for count, _ in leaves]
    levels = [[True] * len(leaves)]
    for _ in range(1, _LONGEST):
        packages = [row[2 * p] + row[2 * p + 1] for p in range(len(row) // 2)]
        merged = sorted([(count, 0) for count, _ in leaves] + [(weight, 1) for weight in packages])
        levels.append([kind == 0 for _, kind in merged])
        row = [weight for weight, _ in merged]
    length_s = [0] * len(count_s)
    taken = 2 * len(leaves) - 2
    for level in reversed(levels):
        of_leaves = sum(level[:taken])
        for _, symbol in leaves[:of_leaves]:
            length_s[symbol] += 1
        taken = 2 * (taken - of_leaves)
    return length_s


def _codes(length_s: list[int]) -> NDArray[np.int64]:
    """The codes: the longest first from zero, symbols of a length in order (section 4.2.1.3)."""
    following, code_s = 0, np.zeros(len(length_s), np.int64)
    for length in range(max(length_s), 0, -1):
        for symbol, own in enumerate(length_s):
            if own == length:
                code_s[symbol] = following
                following += 1
        following >>= 1
    return code_s


def _stream(symbol_i: U8, code_s: NDArray[np.int64], length_s: NDArray[np.int64]) -> bytes:
    """Symbols from the last to the first, as decoders read backwards, and a last bit that ends them."""
    symbol_i = symbol_i[::-1]
    length_i = length_s[symbol_i]
    start_i = np.cumsum(length_i) - length_i
    within = np.arange(int(length_i.sum())) - np.repeat(start_i, length_i)
    bit = np.repeat(code_s[symbol_i], length_i) >> within & 1
    return np.packbits(np.append(bit, 1).astype(np.uint8), bitorder="little").tobytes()


# ---- the tree's description: weights by finite state entropy, section 4.1 ----


class _Bits:
    """Bits, from the lowest up."""

    def __init__(self) -> None:
        self.value = 0
        self.count = 0

    def put(self, value: int, count: int) -> None:
        self.value |= value << self.count
        self.count += count

    def finish(self) -> bytes:
        return self.value.to_bytes(-(-self.count // 8), "little")


def _tree(length_s: list[int]) -> bytes | None:
    """The weights of all symbols but the last, which goes without saying; None where they cannot be told."""
    longest, last = max(length_s), max(symbol for symbol, length in enumerate(length_s) if length)
    weights = [longest + 1 - length if length else 0 for length in length_s[:last]]
    count_w = [weights.count(w) for w in range(_LONGEST + 1)]
    if last > 2 and max(count_w) < last:
        share_w = _shares(count_w, last)
        coded = _share_bits(share_w) + _weight_bits(weights, share_w)
        if len(coded) < _LARGEST_TREE and (last > 128 or len(coded) < (last + 1) // 2):
            return bytes([len(coded)]) + coded
    if last > 128:
        return None
    padded = [*weights, 0]
    return bytes([127 + last, *(padded[i] << 4 | padded[i + 1] for i in range(0, last, 2))])


def _shares(count_w: list[int], total: int) -> list[int]:
    """Shares of the states: rounded down but at least one; what is missing or too much goes to or from the largest."""
    share_w = [max(1, count * _WEIGHT_STATES // total) if count else 0 for count in count_w]
    share_w[share_w.index(max(share_w))] += _WEIGHT_STATES - sum(share_w)
    return share_w


def _share_bits(share_w: list[int]) -> bytes:
    bits = _Bits()
    bits.put(_WEIGHT_LOG - 5, 4)
    left, threshold, width, symbol = _WEIGHT_STATES + 1, _WEIGHT_STATES, _WEIGHT_LOG + 1, 0
    while left > 1:
        share = share_w[symbol]
        symbol += 1
        spare = 2 * threshold - 1 - left
        coded = share + 1 + (spare if share + 1 >= threshold else 0)
        bits.put(coded, width - (coded < spare))
        left -= share
        while left < threshold and threshold > 1:
            width, threshold = width - 1, threshold >> 1
        if not share:  # how many more zeros follow, three at a time
            zeros = 0
            while not share_w[symbol]:
                symbol, zeros = symbol + 1, zeros + 1
            while zeros >= 3:
                bits.put(3, 2)
                zeros -= 3
            bits.put(zeros, 2)
    return bits.finish()


def _weight_bits(weights: list[int], share_w: list[int]) -> bytes:
    """Two states take turns, from the last weight to the first; an even one belongs to the first state."""
    spread, position = [0] * _WEIGHT_STATES, 0
    for w, share in enumerate(share_w):
        for _ in range(share):
            spread[position] = w
            position = (position + (_WEIGHT_STATES >> 1) + (_WEIGHT_STATES >> 3) + 3) % _WEIGHT_STATES
    states_w: list[list[int]] = [[] for _ in share_w]
    for i, w in enumerate(spread):
        states_w[w].append(_WEIGHT_STATES + i)

    bits = _Bits()
    state: list[int | None] = [None, None]
    for i in range(len(weights) - 1, -1, -1):
        w = weights[i]
        share, now = share_w[w], state[i % 2]
        most = _WEIGHT_LOG - ((share - 1).bit_length() - 1 if share > 1 else 0)
        if now is None:
            # Of the states of this weight the first that its successor can reach with the fewest bits.
            delta = most * 65536 - (share << most)
            width = delta + (1 << 15) >> 16
            state[i % 2] = states_w[w][(width * 65536 - delta >> width) - share]
            continue
        width = now + most * 65536 - (share << most) >> 16
        bits.put(now & (1 << width) - 1, width)
        state[i % 2] = states_w[w][(now >> width) - share]
    for now in (state[1], state[0]):
        bits.put((now or 0) - _WEIGHT_STATES, _WEIGHT_LOG)
    bits.put(1, 1)
    return bits.finish()
