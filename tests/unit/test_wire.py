"""The frame: its bytes, its checks, and that no damage goes unnoticed."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import wire
from contract.errors import CorruptObject, NonFiniteGradient
from contract.wire import Extension, FrameHeader, Kind

HEADER = FrameHeader(
    kind=Kind.UPDATE,
    run="mnist-1",
    round=7,
    base_round=6,
    base_weights="ab" * 32,
    rank=3,
    incarnation=2,
    shard=1,
    shards=4,
    group=5,
    samples=256,
    loss=0.5,
    codec="qsgd4",
    seed=2**63 + 1,
    elements=12,
    extensions=(wire.accuracy_extension(0.75), Extension(900, False, b"hello")),
)
PAYLOAD, BUFFERS = b"payload bytes", b"buffers"
FRAME = wire.encode(HEADER, PAYLOAD, BUFFERS)
#: Offset and size of every field of the fixed part, straight from the module's text.
DIGEST, SIGNATURE, NAMES = 144, 176, 240


def decode(blob: bytes, **expected: Any) -> wire.Frame:
    return wire.decode(blob, **({"expected_elements": None, "expected_buffers_bytes": None} | expected))


def resealed(blob: bytes) -> bytes:
    """The frame with a digest that fits, as a malicious sender would write it."""
    zeroed = blob[:DIGEST] + bytes(NAMES - DIGEST) + blob[NAMES:]
    return blob[:DIGEST] + hashlib.sha256(zeroed).digest() + blob[DIGEST + 32 :]


def patched(offset: int, form: str, value: Any, blob: bytes = FRAME) -> bytes:
    changed = bytearray(blob)
    struct.pack_into("<" + form, changed, offset, value)
    return resealed(bytes(changed))


def test_a_frame_comes_back_as_it_was() -> None:
    frame = decode(FRAME, expected_elements=12, expected_buffers_bytes=len(BUFFERS))
    filled = dataclasses.replace(
        HEADER, payload_bytes=len(PAYLOAD), buffers_bytes=len(BUFFERS), digest=frame.header.digest
    )
    assert frame.header == filled
    assert (bytes(frame.payload), bytes(frame.buffers)) == (PAYLOAD, BUFFERS)
    assert frame.header.validation_accuracy == 0.75
    assert wire.encode(frame.header, frame.payload, frame.buffers) == FRAME


def test_the_layout_is_the_one_that_is_written_down() -> None:
    fields = {
        0: ("4s", b"PRL1"),
        4: ("B", 1),
        5: ("B", 2),
        6: ("H", 1),
        8: ("I", FRAME.index(PAYLOAD)),
        12: ("I", 8 + 8 + 8 + 5),
        16: ("Q", len(PAYLOAD)),
        24: ("Q", len(BUFFERS)),
        32: ("Q", 12),
        40: ("Q", 256),
        48: ("Q", 7),
        56: ("Q", 6),
        64: ("I", 3),
        68: ("I", 2),
        72: ("I", 1),
        76: ("I", 4),
        80: ("I", 5),
        84: ("B", len("mnist-1")),
        85: ("B", len("qsgd4")),
        86: ("H", 0),
        88: ("Q", 2**63 + 1),
        96: ("d", 0.5),
        104: ("d", 0.0),
        112: ("32s", b"\xab" * 32),
        176: ("64s", bytes(64)),
        240: ("12s", b"mnist-1qsgd4"),
        252: ("HBBId", None),
        268: ("HBBI5s", None),
        281: ("7s", bytes(7)),
    }
    for offset, (form, value) in fields.items():
        unpacked = struct.unpack_from("<" + form, FRAME, offset)
        expected = {252: (1, 0, 0, 8, 0.75), 268: (900, 0, 0, 5, b"hello")}.get(offset, (value,))
        assert unpacked == expected, f"offset {offset}"
    assert FRAME[288:] == PAYLOAD + BUFFERS
    zeroed = FRAME[:144] + bytes(96) + FRAME[240:]
    assert FRAME[144:176] == hashlib.sha256(zeroed).digest()
    assert hashlib.sha256(FRAME).hexdigest() == "535c907ec68851e10675ff2c4a42cb5ea47321ecaccd27e9c5dffe166edda80a"


def test_payload_and_buffers_are_views() -> None:
    blob = bytearray(FRAME)
    frame = wire.decode(blob, expected_elements=None, expected_buffers_bytes=None)
    blob[FRAME.index(PAYLOAD)] = ord("P")
    assert bytes(frame.payload[:1]) == b"P"


@pytest.mark.parametrize("run", ["r", "run-12", "x" * 63])
def test_payloads_are_aligned(run: str) -> None:
    blob = wire.encode(dataclasses.replace(HEADER, run=run), np.arange(3, dtype="<f4").tobytes())
    assert wire.decode_header(blob).payload_bytes == 12
    assert (len(blob) - 12) % 16 == 0


def test_no_single_bit_can_change_unnoticed() -> None:
    signature = range(SIGNATURE, NAMES)  # it signs the digest, so the digest cannot cover it
    for position in range(len(FRAME)):
        for bit in range(8):
            changed = bytearray(FRAME)
            changed[position] ^= 1 << bit
            if position in signature:
                assert decode(bytes(changed)).header.signature != HEADER.signature
            else:
                with pytest.raises(CorruptObject):
                    decode(bytes(changed))


def test_every_truncation_and_every_trailing_byte_is_noticed() -> None:
    for end in range(len(FRAME)):
        with pytest.raises(CorruptObject):
            decode(FRAME[:end])
    with pytest.raises(CorruptObject, match="but has"):
        decode(FRAME + b"\0")
    with pytest.raises(CorruptObject, match="but has"):
        decode(resealed(FRAME + b"\0"))


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "4s", b"PRL2"),
        (4, "B", 2),
        (5, "B", 0),
        (5, "B", 5),
        (6, "H", 5),
        (6, "H", 0),
        (8, "I", 0),
        (8, "I", 2**32 - 1),
        (8, "I", 272),
        (12, "I", 0),
        (12, "I", 2**32 - 1),
        (12, "I", 65_537),
        (16, "Q", HUGE),
        (16, "Q", len(PAYLOAD) + 1),
        (24, "Q", HUGE),
        (24, "Q", 0),
        (72, "I", 4),
        (76, "I", 0),
        (84, "B", 0),
        (84, "B", 8),
        (84, "B", 255),
        (85, "B", 0),
        (86, "H", 1),
        (96, "d", float("nan")),
        (96, "d", float("inf")),
        (104, "d", 0.5),
        (240, "B", ord("/")),
        (240, "B", 0xFF),
        (247, "B", ord("Q")),
        (254, "B", 2),
        (255, "B", 1),
        (256, "I", 7),
        (256, "I", 2**32 - 1),
        (260, "d", 1.5),
        (260, "d", float("nan")),
        (268, "H", 1),
        (270, "B", 1),
        (272, "I", 4),
        (272, "I", 6),
        (287, "B", 1),
    ],
)
def test_a_malformed_frame_is_refused_even_with_a_fitting_digest(offset: int, form: str, value: Any) -> None:
    with pytest.raises(CorruptObject):
        decode(patched(offset, form, value))


def test_resealing_alone_does_not_break_a_frame() -> None:
    assert resealed(FRAME) == FRAME
    assert decode(patched(48, "Q", 8)).header.round == 8


def test_the_receiver_says_what_fits() -> None:
    with pytest.raises(CorruptObject, match="12 elements, expected 13"):
        decode(FRAME, expected_elements=13)
    with pytest.raises(CorruptObject, match="7 bytes of buffers, expected 0"):
        decode(FRAME, expected_buffers_bytes=0)
    with pytest.raises(CorruptObject, match="announced was"):
        decode(FRAME, digest="00" * 32)
    assert decode(FRAME, digest=FRAME[144:176].hex()).header.round == 7


def test_the_leading_part_is_enough_for_a_claim_check() -> None:
    leading = wire.header_part(FRAME)
    assert FRAME.startswith(leading)
    assert len(leading) == FRAME.index(PAYLOAD)
    assert wire.decode_header(leading) == wire.decode_header(FRAME) == decode(FRAME).header
    for wrong in (leading[:-1], leading + b"\0", FRAME[:-1]):
        with pytest.raises(CorruptObject):
            wire.decode_header(wrong)
    with pytest.raises(CorruptObject, match="but has"):
        decode(leading)


def test_an_unknown_extension_is_kept_unless_it_must_be_understood() -> None:
    polite = dataclasses.replace(HEADER, extensions=(Extension(901, False, b"x"),))
    assert decode(wire.encode(polite, b"")).header.extensions == polite.extensions
    with pytest.raises(ValueError, match="901 understood"):
        wire.encode(dataclasses.replace(HEADER, extensions=(Extension(901, True, b"x"),)), b"")
    demanding = patched(270, "B", 1)
    with pytest.raises(CorruptObject, match="900 understood"):
        decode(demanding)
    with pytest.raises(CorruptObject, match="900 understood"):
        wire.decode_header(demanding)
    assert decode(wire.encode(dataclasses.replace(HEADER, extensions=()), b"")).header.validation_accuracy is None


def test_a_signature_has_its_room_outside_of_the_digest() -> None:
    signed = wire.encode(dataclasses.replace(HEADER, signature=bytes(range(64))), PAYLOAD, BUFFERS)
    assert signed[:176] + bytes(64) + signed[240:] == FRAME
    assert decode(signed).header.signature == bytes(range(64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["loss", "validation_loss"])
def test_a_loss_that_is_not_finite_is_never_sent(name: str, value: float) -> None:
    with pytest.raises(NonFiniteGradient, match="of round 7, rank 3"):
        wire.encode(dataclasses.replace(HEADER, **{name: value}), b"")


@pytest.mark.parametrize(
    "change",
    [
        {"run": "a/b"},
        {"run": ""},
        {"codec": "QSGD"},
        {"codec": "x" * 33},
        {"round": -1},
        {"rank": 2**32},
        {"seed": 2**64},
        {"shard": 4},
        {"base_weights": "ab"},
        {"base_weights": "AB" * 32},
        {"signature": b""},
        {"extensions": (Extension(65_536, False, b""),)},
        {"extensions": (Extension(9, False, bytes(65_529)),)},
        {"extensions": (wire.accuracy_extension(1.5),)},
        {"extensions": (wire.accuracy_extension(0.5), wire.accuracy_extension(0.5))},
    ],
)
def test_what_nobody_could_read_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wire.encode(dataclasses.replace(HEADER, **change), b"")


def test_a_loss_of_zero_is_a_loss() -> None:
    blob = wire.encode(dataclasses.replace(HEADER, loss=-0.0, validation_loss=None), b"")
    assert wire.decode_header(blob).loss == 0.0
    assert wire.decode_header(blob).validation_loss is None
    assert blob == wire.encode(dataclasses.replace(HEADER, loss=0.0), b"")


finite = st.none() | st.floats(allow_nan=False, allow_infinity=False)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
headers = st.builds(
    FrameHeader,
    kind=st.sampled_from(Kind),
    run=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True),
    round=u64,
    base_round=u64,
    base_weights=st.binary(min_size=32, max_size=32).map(bytes.hex),
    rank=u32,
    incarnation=u32,
    shard=st.integers(0, 9),
    shards=st.integers(10, 2**32 - 1),
    group=u32,
    samples=u64,
    loss=finite,
    validation_loss=finite,
    codec=st.from_regex(r"[a-z0-9_]{1,32}", fullmatch=True),
    seed=u64,
    elements=u64,
    extensions=st.lists(st.builds(Extension, st.integers(5, 65_535), st.just(False), st.binary(max_size=40))).map(
        tuple
    ),
    signature=st.binary(min_size=64, max_size=64),
)


@settings(max_examples=150)
@given(header=headers, payload=st.binary(max_size=60), buffers=st.binary(max_size=60))
def test_any_header_round_trips(header: FrameHeader, payload: bytes, buffers: bytes) -> None:
    blob = wire.encode(header, payload, buffers)
    frame = wire.decode(blob, expected_elements=header.elements, expected_buffers_bytes=len(buffers))
    lengths = {"payload_bytes": len(payload), "buffers_bytes": len(buffers), "digest": frame.header.digest}
    assert frame.header == dataclasses.replace(header, **lengths)
    assert (bytes(frame.payload), bytes(frame.buffers)) == (payload, buffers)


@settings(max_examples=300)
@given(blob=st.binary(max_size=400) | st.binary(max_size=300).map(lambda tail: FRAME[:12] + tail))
def test_noise_is_a_corrupt_object_and_nothing_else(blob: bytes) -> None:
    with pytest.raises(CorruptObject):
        decode(blob)
    with pytest.raises(CorruptObject):
        wire.header_part(blob)
