"""Frames whose shards can be fetched and checked one by one: their table, and that no damage goes unnoticed."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import extensions, wire
from contract.errors import CorruptObject
from contract.header import declared_length, header_length
from contract.wire import Extension, FrameHeader, Kind

HEADER = FrameHeader(
    kind=Kind.UPDATE,
    run="mnist-1",
    round=7,
    base_round=7,
    base_weights="ab" * 32,
    rank=3,
    incarnation=2,
    samples=256,
    loss=0.5,
    codec="qsgd4",
    seed=11,
    elements=12,
    extensions=(wire.accuracy_extension(0.75),),
)
PARTS = [(b"first", b"a"), (b"", b""), (b"third shard", b"bc")]
FRAME = wire.encode_shards(HEADER, PARTS)
LEADING = wire.header_part(FRAME)
DIGEST, SIGNATURE, NAMES = 144, 176, 240
#: Names are 12 bytes, the accuracy 16; the table's 8 bytes of head follow, then 48 bytes a shard.
TABLE = 240 + 12 + 16
ROWS = TABLE + 8


def decode(blob: bytes, **expected: Any) -> wire.Frame:
    return wire.decode(blob, **({"expected_elements": None, "expected_buffers_bytes": None} | expected))


def resealed(blob: bytes) -> bytes:
    """The frame with a digest that fits, as a malicious sender would write it."""
    zeroed = blob[:DIGEST] + bytes(NAMES - DIGEST) + blob[NAMES : len(LEADING)]
    return blob[:DIGEST] + hashlib.sha256(zeroed).digest() + blob[DIGEST + 32 :]


def patched(offset: int, form: str, *values: Any) -> bytes:
    changed = bytearray(FRAME)
    struct.pack_into("<" + form, changed, offset, *values)
    return resealed(bytes(changed))


def cut(frame: bytes, header: FrameHeader, shard: int) -> tuple[bytes, bytes]:
    """A shard's parts by their byte ranges, as a store would give them."""
    assert header.table is not None
    entry = header.table[shard]
    payload_at = header.header_bytes + entry.payload_offset
    buffers_at = header.header_bytes + header.payload_bytes + entry.buffers_offset
    return frame[payload_at : payload_at + entry.payload_bytes], frame[buffers_at : buffers_at + entry.buffers_bytes]


def test_a_frame_with_shards_comes_back_as_it_was() -> None:
    frame = decode(FRAME, expected_elements=12, expected_buffers_bytes=3)
    assert (bytes(frame.payload), bytes(frame.buffers)) == (b"firstthird shard", b"abc")
    assert frame.header.validation_accuracy == 0.75
    assert wire.encode(frame.header, frame.payload, frame.buffers) == FRAME
    assert wire.encode_shards(frame.header, PARTS) == FRAME


def test_the_layout_is_the_one_that_is_written_down() -> None:
    assert struct.unpack_from("<HBBI", FRAME, TABLE) == (2, 1, 0, 3 * 48)
    for number, (payload, buffers) in enumerate(PARTS):
        row = struct.unpack_from("<QQ32s", FRAME, ROWS + 48 * number)
        assert row == (len(payload), len(buffers), hashlib.sha256(payload + buffers).digest())
    zeroed = FRAME[:DIGEST] + bytes(NAMES - DIGEST) + FRAME[NAMES : len(LEADING)]
    assert FRAME[DIGEST : DIGEST + 32] == hashlib.sha256(zeroed).digest()
    assert FRAME[len(LEADING) :] == b"firstthird shard" + b"abc"


def test_the_leading_part_proves_itself_and_every_shard() -> None:
    header = wire.verify_header(LEADING)
    assert header == wire.decode_header(FRAME) == decode(FRAME).header
    assert header.header_bytes == len(LEADING)
    assert header.table is not None
    for shard, parts in enumerate(PARTS):
        assert cut(FRAME, header, shard) == parts
        header.table[shard].check(*parts)
    for wrong in ((b"first", b"b"), (b"firsu", b"a"), (b"firsta", b""), (b"firs", b"ta"), (b"", b"")):
        with pytest.raises(CorruptObject):
            header.table[0].check(*wrong)


def test_a_leading_part_must_be_one_and_no_more() -> None:
    plain = wire.encode(HEADER, b"payload")
    for wrong in (FRAME, LEADING[:-1], LEADING + b"\0", plain, wire.header_part(plain), b""):
        with pytest.raises(CorruptObject):
            wire.verify_header(wrong)


def test_no_single_bit_can_change_unnoticed() -> None:
    signature = range(SIGNATURE, NAMES)  # it signs the digest, so the digest cannot cover it
    for position in range(len(FRAME)):
        for bit in range(8):
            changed = bytearray(FRAME)
            changed[position] ^= 1 << bit
            if position in signature:
                assert decode(bytes(changed)).header.signature != HEADER.signature
                continue
            with pytest.raises(CorruptObject):
                decode(bytes(changed))
            if position < len(LEADING):
                with pytest.raises(CorruptObject):
                    wire.verify_header(bytes(changed[: len(LEADING)]))


def test_every_truncation_and_every_trailing_byte_is_noticed() -> None:
    for end in range(len(FRAME)):
        with pytest.raises(CorruptObject):
            decode(FRAME[:end])
        if end != len(LEADING):
            with pytest.raises(CorruptObject):
                wire.verify_header(FRAME[:end])
    with pytest.raises(CorruptObject):
        decode(FRAME + b"\0")


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("offset", "form", "values"),
    [
        (5, "B", (1,)),  # a gradient, weights or a shard with shards
        (5, "B", (3,)),
        (5, "B", (4,)),
        (72, "II", (0, 2)),
        (16, "Q", (17,)),  # payload and buffers of other sizes than their shards
        (24, "Q", (2,)),
        (16, "QQ", (19, 0)),
        (TABLE, "H", (9,)),  # must be understood, and is unknown
        (TABLE + 2, "B", (0,)),  # a table that may be skipped
        (TABLE + 2, "B", (3,)),
        (TABLE + 3, "B", (1,)),
        (TABLE + 4, "I", (0,)),
        (TABLE + 4, "I", (143,)),
        (TABLE + 4, "I", (96,)),
        (TABLE + 4, "I", (2**32 - 1,)),
        (ROWS, "Q", (HUGE,)),
        (ROWS, "QQ", (HUGE, HUGE)),
        (ROWS, "Q", (6,)),
        (ROWS + 8, "Q", (HUGE,)),
        (ROWS + 16, "32s", (bytes(32),)),
        (ROWS + 48, "Q", (1,)),
        (252, "H", (2,)),  # the accuracy turned into a second table
    ],
)
def test_a_hostile_table_is_refused_even_with_a_fitting_digest(offset: int, form: str, values: tuple[Any, ...]) -> None:
    with pytest.raises(CorruptObject):
        decode(patched(offset, form, *values))


def test_lengths_that_only_add_up_are_caught_by_the_shards_own_digests() -> None:
    """Bytes moved from one shard to another: the frame's size fits, and the leading part is in itself sound."""
    moved = patched(ROWS, "Q", 4)
    moved = resealed(moved[: ROWS + 48] + struct.pack("<Q", 1) + moved[ROWS + 56 :])
    header = wire.verify_header(moved[: len(LEADING)])
    assert header.table is not None
    with pytest.raises(CorruptObject, match="does not match"):
        header.table[0].check(*cut(moved, header, 0))
    with pytest.raises(CorruptObject, match="does not match"):
        decode(moved)
    swapped = resealed(FRAME[: ROWS + 8] + struct.pack("<Q", 0) + FRAME[ROWS + 16 :])
    with pytest.raises(CorruptObject, match="shards hold"):
        decode(swapped)


def test_a_payload_that_the_table_does_not_know_is_not_written() -> None:
    frame = decode(FRAME)
    for payload, buffers in ((b"firstthird share", b"abc"), (b"firstthird shard", b"abd"), (b"", b"")):
        with pytest.raises(ValueError, match="shard"):
            wire.encode(frame.header, payload, buffers)
    for kind in (Kind.GRADIENT, Kind.WEIGHTS, Kind.SHARD):
        with pytest.raises(ValueError, match="cannot have a shard table"):
            wire.encode_shards(dataclasses.replace(HEADER, kind=kind), PARTS)
    with pytest.raises(ValueError, match="cannot have a shard table"):
        wire.encode_shards(dataclasses.replace(HEADER, shards=2), PARTS)
    with pytest.raises(ValueError, match="malformed"):
        wire.encode(dataclasses.replace(HEADER, extensions=(Extension(2, True, b""),)), b"")
    twice = dataclasses.replace(frame.header, extensions=frame.header.extensions[1:] * 2)
    with pytest.raises(ValueError, match="occurs twice"):
        wire.encode(twice, frame.payload, frame.buffers)


def test_the_most_shards_fit_beside_an_accuracy_and_no_more() -> None:
    most = [(b"p", b"")] * extensions.MAX_SHARDS
    frame = wire.encode_shards(HEADER, most)
    assert decode(frame).header.validation_accuracy == 0.75
    assert wire.header_part(frame) == frame[: -len(most)]
    for count in (0, extensions.MAX_SHARDS + 1):
        with pytest.raises(ValueError, match="1 to 1364 shards"):
            wire.encode_shards(HEADER, [(b"p", b"")] * count)
    one_more = extensions.table_extension(most)
    bigger = dataclasses.replace(one_more, value=one_more.value + one_more.value[:48])
    header = dataclasses.replace(HEADER, extensions=(*HEADER.extensions, bigger))
    with pytest.raises(ValueError, match="bytes of extensions"):
        wire.encode(header, b"p" * (extensions.MAX_SHARDS + 1))


@pytest.mark.parametrize("blob", [FRAME, wire.encode(HEADER, b"payload", b"buffers")])
def test_a_header_packs_to_the_bytes_it_came_from(blob: bytes) -> None:
    leading = wire.header_part(blob)
    signed = leading[:SIGNATURE] + bytes(range(64)) + leading[NAMES:]
    for part in (leading, signed):
        assert wire.pack_header(wire.decode_header(part)) == part
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        wire.pack_header(HEADER)


def test_the_fixed_fields_tell_how_long_the_header_is() -> None:
    assert declared_length(FRAME) == declared_length(FRAME[:NAMES]) == len(LEADING)
    assert header_length("mnist-1", "qsgd4", wire.decode_header(FRAME).extensions) == len(LEADING)
    for wrong in (b"", FRAME[: NAMES - 1], b"X" + FRAME[1:]):
        with pytest.raises(CorruptObject, match="not the beginning"):
            declared_length(wrong)
    for length in (0, 240, 2**32 - 1):
        with pytest.raises(CorruptObject, match=f"has {length} bytes"):
            declared_length(FRAME[:8] + struct.pack("<I", length) + FRAME[12:])


part = st.binary(max_size=40)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.tuples(part, part), min_size=1, max_size=20))
def test_any_shards_round_trip(parts: list[tuple[bytes, bytes]]) -> None:
    frame = wire.encode_shards(HEADER, parts)
    header = wire.verify_header(wire.header_part(frame))
    assert header.table is not None
    assert len(header.table) == len(parts)
    for shard, expected in enumerate(parts):
        assert cut(frame, header, shard) == expected
        header.table[shard].check(*cut(frame, header, shard))
    assert bytes(decode(frame).payload) == b"".join(payload for payload, _ in parts)


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(min_size=1, max_size=160), at=st.integers(TABLE, len(LEADING)))
def test_noise_in_the_table_is_a_corrupt_object_and_nothing_else(noise: bytes, at: int) -> None:
    changed = resealed((FRAME[:at] + noise + FRAME[at + len(noise) :])[: len(FRAME)])
    if changed != FRAME:
        with pytest.raises(CorruptObject):
            decode(changed)
