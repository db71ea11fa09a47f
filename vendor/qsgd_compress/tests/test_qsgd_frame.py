"""Frames: what the bytes are, and that no other bytes are taken for one."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import tracemalloc

import google_crc32c
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import qsgd_compress as q


def vector(size: int) -> NDArray[np.float32]:
    """Exact on every machine: integers of 24 bits by powers of two that differ from block to block."""
    k = np.arange(size, dtype=np.uint64)
    value = (k * np.uint64(2654435761) >> np.uint64(7) & np.uint64(0xFFFFFF)).astype(np.float64) - 2.0**23
    return (value * 2.0 ** -(20.0 + (k // np.uint64(256) % np.uint64(9)).astype(np.float64))).astype(np.float32)


def sealed(header: bytes, body: bytes) -> bytes:
    """A frame of these header fields (up to the checksums) and this body, with the checksums that belong to it."""
    fields = header[:32] + struct.pack("<I", google_crc32c.value(body))
    return fields + struct.pack("<I", google_crc32c.value(fields)) + body


def changed(frame: bytes, offset: int, value: bytes) -> bytes:
    """The frame with some bytes replaced and both checksums made right again: what a forger can do."""
    whole = bytearray(frame)
    whole[offset : offset + len(value)] = value
    return sealed(bytes(whole[:40]), bytes(whole[40:]))


def untouched(frame: bytes, size: int) -> None:
    """Every reader refuses the frame with CorruptFrame, and leaves the caller's arrays alone."""
    out = np.full(size, 7.0, np.float32)
    with pytest.raises(q.CorruptFrame):
        q.decode(frame, size, out=out)
    with pytest.raises(q.CorruptFrame):
        q.check(frame, size)
    with pytest.raises(q.CorruptFrame):
        q.accumulate_many([q.encode(np.ones(size, np.float32)), frame], out, [1.0, 1.0])
    assert (out == 7.0).all()


@pytest.mark.usefixtures("in_form")
class TestGoldenBytes:
    """Any implementation must give these; a change of one of them is a change of the format's version."""

    def test_a_small_frame_byte_by_byte(self):
        x = np.array([0.0, -1.0, 0.5, 7.0, -7.0, 3.25], np.float32)
        assert q.encode(x, bucket_size=128, seed=0x0123456789ABCDEF).hex() == GOLDEN_SMALL

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("norm", ["max", "l2"])
    @pytest.mark.parametrize(("size", "bucket_size"), [(5_000, 512), (70_001, 4_096), (200_000, 65_536)])
    def test_digests(self, bits, norm, size, bucket_size):
        frame = q.encode(vector(size), bits=bits, norm=norm, bucket_size=bucket_size, seed=2**64 - 59)
        assert hashlib.sha256(frame).hexdigest()[:16] == GOLDEN_DIGESTS[bits, norm, size]

    @pytest.mark.parametrize("bits", [4, 8])
    def test_decoded_values(self, bits):
        frames = [q.encode(vector(5_000), bits=bits, seed=seed) for seed in (1, 2, 3)]
        acc = vector(5_000)
        q.accumulate_many(frames, acc, [0.3, -1.7, 2.0])
        decoded = q.decode(frames[0], 5_000)
        digests = [hashlib.sha256(y.tobytes()).hexdigest()[:16] for y in (decoded, acc)]
        assert digests == GOLDEN_VALUES[bits]


class TestHeader:
    def test_fields_stand_where_the_readme_says(self):
        frame = q.encode(vector(1_000), bits=8, bucket_size=256, norm="l2", seed=99)
        assert frame[:8] == b"QSG1" + bytes([1, 0b1, 8, 8])
        assert struct.unpack_from("<QQQ", frame, 8) == (1_000, 99, 1_024)
        assert struct.unpack_from("<II", frame, 32) == (
            google_crc32c.value(frame[40:]),
            google_crc32c.value(frame[:36]),
        )
        assert len(frame) == 40 + 4 * 4 + 1_024

    def test_inspect_reads_the_header_alone(self):
        frame = q.encode(vector(1_000), bits=4, seed=2**64 - 1)
        info = q.inspect(frame[:40])
        assert info == q.inspect(frame)
        assert (info.version, info.norm, info.bits, info.bucket_size, info.entropy) == (1, "max", 4, 512, None)
        assert (info.size, info.seed, info.payload_bytes, info.frame_bytes) == (1_000, 2**64 - 1, 512, len(frame))
        with pytest.raises(dataclasses.FrozenInstanceError):
            info.size = 3

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b"x" + b))[1:]])
    def test_any_flat_buffer_is_a_blob(self, wrap):
        x = vector(700)
        frame = q.encode(x, bits=8)
        assert (q.decode(wrap(frame), 700) == q.decode(frame, 700)).all()
        assert q.inspect(wrap(frame)).size == 700

    @pytest.mark.parametrize(
        ("offset", "value"),
        [
            (0, b"QSG2"),
            (4, b"\x00"),
            (4, b"\x02"),
            *((5, bytes([1 << bit])) for bit in (1, 3, 4, 5, 6, 7)),
            (5, bytes([0b1100])),
            *((6, bytes([bits])) for bits in (0, 1, 2, 3, 5, 7, 16, 255)),
            *((7, bytes([log2])) for log2 in (0, 6, 17, 63, 64, 255)),
            (24, struct.pack("<Q", 0)),
            (24, struct.pack("<Q", 2**64 - 1)),
        ],
    )
    def test_a_sealed_header_of_something_unknown_is_refused(self, offset, value):
        untouched(changed(q.encode(vector(300)), offset, value), 300)

    def test_another_size_is_a_mismatch(self):
        frame = q.encode(vector(300))
        for wrong in (0, 299, 301, 2**40):
            with pytest.raises(q.SizeMismatch):
                q.decode(frame, wrong)
            with pytest.raises(q.SizeMismatch):
                q.check(frame, wrong)
        with pytest.raises(q.SizeMismatch):
            q.accumulate(frame, np.zeros(301, np.float32))
        with pytest.raises(q.SizeMismatch):
            q.decode(frame, 300, out=np.zeros(301, np.float32))

    @pytest.mark.parametrize("size", [2**31, 2**40, 2**63, 2**64 - 1])
    def test_a_forged_size_allocates_nothing(self, size):
        frame = changed(q.encode(vector(300)), 8, struct.pack("<Q", size))
        tracemalloc.start()
        with pytest.raises(q.QsgdError):
            q.decode(frame, size)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()

    def test_a_consistent_huge_header_without_its_body_allocates_nothing(self):
        size = 2**40
        fields = b"QSG1" + bytes([1, 0, 4, 9]) + struct.pack("<QQQ", size, 0, size // 2)
        frame = sealed(fields, b"\x00" * 100)
        assert q.inspect(frame).size == size
        with pytest.raises(q.CorruptFrame):
            q.decode(frame, size)


@pytest.mark.usefixtures("in_form")
class TestCheck:
    """That it refuses what decode refuses is tested wherever that is."""

    @pytest.mark.parametrize("entropy", [None, "zstd"])
    @pytest.mark.parametrize("size", [0, 1, 300, 70_000])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_what_decode_takes_passes(self, bits, size, entropy):
        frame = q.encode(vector(size), bits=bits, bucket_size=128, entropy=entropy)
        assert q.check(frame, size) is None
        assert q.check(bytearray(frame), size, threads=3) is None
        assert q.check(memoryview(frame), size) is None

    def test_sealed_scales_and_codes_that_no_encoder_writes_are_named(self):
        frame = q.encode(vector(300), bucket_size=128)
        with pytest.raises(q.CorruptFrame, match="the scale of bucket 1 is nan"):
            q.check(changed(frame, 44, struct.pack("<f", float("nan"))), 300)
        with pytest.raises(q.CorruptFrame, match="reserved"):
            q.check(changed(frame, 40 + 3 * 4, b"\xff"), 300)

    def test_nothing_of_the_gradients_size_is_allocated(self):
        size = 1 << 20
        frame = q.encode(vector(size))
        tracemalloc.start()
        q.check(frame, size)
        assert tracemalloc.get_traced_memory()[1] < size
        tracemalloc.stop()


@pytest.mark.parametrize("entropy", [None, "zstd"])
@pytest.mark.parametrize(("bits", "size"), [(4, 200), (8, 130), (4, 0)])
class TestDamage:
    def test_every_flipped_bit_is_noticed(self, bits, size, entropy):
        frame = q.encode(vector(size), bits=bits, bucket_size=128, entropy=entropy)
        for offset in range(len(frame)):
            for bit in range(8):
                damaged = bytearray(frame)
                damaged[offset] ^= 1 << bit
                with pytest.raises(q.QsgdError) as refused:
                    q.decode(damaged, size)
                with pytest.raises(q.QsgdError) as found:
                    q.check(damaged, size)
                assert (type(found.value), str(found.value)) == (type(refused.value), str(refused.value))

    def test_every_replaced_byte_is_noticed(self, bits, size, entropy):
        frame = q.encode(vector(size), bits=bits, bucket_size=128, entropy=entropy)
        for offset in range(len(frame)):
            for value in (0x00, 0xFF, frame[offset] ^ 0xFF, frame[offset] + 1 & 0xFF):
                damaged = bytearray(frame)
                damaged[offset] = value
                if damaged != frame:
                    with pytest.raises(q.QsgdError):
                        q.accumulate(damaged, np.zeros(size, np.float32))

    def test_every_truncation_and_any_tail_is_noticed(self, bits, size, entropy):
        frame = q.encode(vector(size), bits=bits, bucket_size=128, entropy=entropy)
        for end in range(len(frame)):
            with pytest.raises(q.CorruptFrame):
                q.decode(frame[:end], size)
        for tail in (b"\x00", b"\x77" * 4, frame):
            with pytest.raises(q.CorruptFrame):
                q.decode(frame + tail, size)
            with pytest.raises(q.CorruptFrame):  # and with the body's checksum made to cover it
                q.decode(changed(frame + tail, 0, b"Q"), size)


class TestForgedBodies:
    @pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, -0.0, 3.4e38, 4.8613e37])
    def test_a_scale_that_no_encoder_writes(self, scale):
        frame = q.encode(vector(300), bucket_size=128)
        untouched(changed(frame, 44, struct.pack("<f", scale)), 300)

    @pytest.mark.parametrize("bits", [4, 8])
    def test_the_largest_scale_decodes_to_finite_values(self, bits):
        top = q.encode(np.full(4, np.finfo(np.float32).max, np.float32), bits=bits)
        assert np.isfinite(q.decode(top, 4)).all()
        following = int.from_bytes(top[40:44], "little") + 1
        untouched(changed(top, 40, following.to_bytes(4, "little")), 4)

    @pytest.mark.parametrize("nibble", range(8))
    @pytest.mark.parametrize("word", [0, 15, 16, 31])
    def test_the_reserved_code_at_4_bits(self, word, nibble):
        frame = q.encode(np.zeros(256, np.float32))
        code = (0x7777_7777 & ~(0xF << 4 * nibble)) | 0xF << 4 * nibble
        untouched(changed(frame, 44 + 4 * word, struct.pack("<I", code)), 256)

    @pytest.mark.parametrize("at", [0, 63, 64, 127])
    def test_the_reserved_code_at_8_bits(self, at):
        untouched(changed(q.encode(np.zeros(128, np.float32), bits=8), 44 + at, b"\xff"), 128)

    @pytest.mark.parametrize("code", [0x0, 0x6, 0x8, 0xE])
    def test_padding_that_is_not_zero(self, code):
        frame = q.encode(np.ones(127, np.float32))
        last = frame[-1]
        assert last >> 4 == 7  # element 127 is the upper nibble of the last word
        untouched(changed(frame, len(frame) - 1, bytes([last & 0xF | code << 4])), 127)

    @settings(max_examples=200, deadline=None)
    @given(body=st.binary(min_size=72, max_size=72), threads=st.sampled_from([1, 2]))
    def test_any_sealed_body_decodes_to_finite_values_or_is_refused(self, body, threads):
        fields = q.encode(np.ones(130, np.float32), bucket_size=128, bits=4)[:40]
        frame = sealed(fields[:24] + struct.pack("<Q", 64) + fields[32:], body)
        try:
            decoded = q.decode(frame, 130, threads=threads)
        except q.CorruptFrame:
            return
        assert np.isfinite(decoded).all()


class TestEntropy:
    def body(self, frame: bytes, payload: bytes) -> bytes:
        """The frame with another payload, sealed."""
        scales = frame[40 : 40 + 4 * -(-q.inspect(frame).size // q.inspect(frame).bucket_size)]
        return sealed(frame[:24] + struct.pack("<Q", len(payload)), scales + payload)

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("size", [0, 1, 512, 5_000, 2**21 + 2**13 + 5])
    def test_the_same_values_in_fewer_bytes(self, bits, size):
        x = vector(size)
        x[np.arange(size) % 3 == 0] = 0
        plain, packed = q.encode(x, bits=bits, seed=4), q.encode(x, bits=bits, seed=4, entropy="zstd")
        assert (q.decode(packed, size) == q.decode(plain, size)).all()
        assert packed == q.encode(x, bits=bits, seed=4, entropy="zstd", threads=3)
        assert q.inspect(packed).entropy == "zstd"
        assert q.inspect(packed).frame_bytes == len(packed)
        if size >= 5_000:
            assert len(packed) < 0.9 * len(plain)

    def test_blocks_are_whole_zstd_frames_of_a_mebibyte(self):
        packed = q.encode(vector(2**21 + 2**13 + 5), entropy="zstd")
        payload = packed[-q.inspect(packed).payload_bytes :]
        assert zstandard.get_frame_parameters(payload).content_size == 2**20

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"nonsense",
            zstandard.compress(b"\x77" * 192),
            zstandard.compress(b"\x77" * 320),
            zstandard.compress(b"\x77" * (1 << 24)),
            zstandard.compress(b"\x77" * 256) * 2,
            zstandard.compress(b"\x77" * 256) + b"\x00",
            zstandard.compress(b"\x77" * 128) * 2,
            zstandard.compress(b"\x77" * 256)[:-1],
            zstandard.ZstdCompressor(write_content_size=False).compress(b"\x77" * 256),
            b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstandard.compress(b"\x77" * 256),
            zstandard.compress(b"\x77" * 255 + b"\x7f"),
            zstandard.compress(b"\x77" * 255 + b"\xf7"),
        ],
        ids=[
            "empty",
            "nonsense",
            "short",
            "long",
            "bomb",
            "twice",
            "tail",
            "halves",
            "cut",
            "sizeless",
            "skippable",
            "reserved-low",
            "reserved-high",
        ],
    )
    def test_another_payload_is_refused(self, payload):
        untouched(self.body(q.encode(np.zeros(512, np.float32), entropy="zstd"), payload), 512)

    def test_another_encoder_of_zstd_is_understood(self):
        payload = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(b"\x77" * 255 + b"\x78")
        forged = self.body(q.encode(np.ones(512, np.float32), entropy="zstd"), payload)
        assert np.flatnonzero(q.decode(forged, 512)).tolist() == [510]

    def test_a_bomb_that_lies_about_its_size_is_cut_short(self):
        honest = zstandard.compress(b"\x77" * (1 << 26))
        assert honest[4] >> 6 == 2  # a four-byte content size, behind the descriptor and the window
        at = 5 if honest[4] & 0x20 else 6
        lying = honest[:at] + struct.pack("<I", 256) + honest[at + 4 :]
        forged = self.body(q.encode(np.zeros(512, np.float32), entropy="zstd"), lying)
        tracemalloc.start()
        untouched(forged, 512)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_damage_under_a_right_checksum_is_refused_or_harmless(self, data):
        frame = q.encode(vector(2_000), entropy="zstd")
        offset = data.draw(st.integers(40, len(frame) - 1))
        try:
            decoded = q.decode(changed(frame, offset, data.draw(st.binary(min_size=1, max_size=4))), 2_000)
        except q.QsgdError:
            return
        assert np.isfinite(decoded).all()


GOLDEN_SMALL = (
    "51534731010004070600000000000000efcdab89674523014000000000000000796cdc5393e28dc0"
    "0000803f7777777776777777787777777e777777707777777a777777777777777777777777777777"
    "77777777777777777777777777777777777777777777777777777777"
)
GOLDEN_DIGESTS = {
    (4, "max", 5000): "e5e9c687a5a4ed85",
    (4, "max", 70001): "e20c682bee0393c8",
    (4, "max", 200000): "9bdfff33ec4c60b1",
    (4, "l2", 5000): "41cf53a76088e9f2",
    (4, "l2", 70001): "3ee4e32973b02097",
    (4, "l2", 200000): "aaf1a458ced1ea03",
    (8, "max", 5000): "330406e1a0c57dfa",
    (8, "max", 70001): "f2c8f8daf4976eaf",
    (8, "max", 200000): "5098337bc7bd4581",
    (8, "l2", 5000): "f97a2c3c587f3a27",
    (8, "l2", 70001): "7ae54e8a048ef75d",
    (8, "l2", 200000): "bd47f4f61d89988e",
}
GOLDEN_VALUES = {
    4: ["dadafdf0281267e8", "a46553d3d071bba6"],
    8: ["a99a617f58196acc", "e5731d9916ecb266"],
}
