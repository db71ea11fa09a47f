"""The extension module by itself: it is there, it counts right, and no call from Python makes it leave its memory."""

from __future__ import annotations

import shutil

import google_crc32c
import numpy as np
import pytest

import qsgd_compress as q
from qsgd_compress import loading

COMPILERS = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
MISTAKES = (TypeError, ValueError, OverflowError, BufferError)


@pytest.mark.skipif(not COMPILERS, reason="this machine has no C compiler")
def test_it_was_built():
    try:
        from qsgd_compress import _native
    except ImportError as error:
        pytest.fail(f"{COMPILERS[0]} is here and the C part is not; build it with pip install -e . ({error})")
    assert _native.instruction_sets()[0] == "baseline"
    assert q.backend() == ("numpy" if loading.NATIVE is None else "native")


class TestInstructionSets:
    def test_the_name_of_none_is_refused_and_changes_nothing(self, native):
        for name in ("", "AVX2", "sse2", "baseline "):
            with pytest.raises(ValueError, match="has no"):
                native.use(name)
        with pytest.raises(TypeError):
            native.use(None)

    def test_sets_of_the_processor(self, native):
        names = native.instruction_sets()
        assert names == tuple(name for name in ("baseline", "avx2", "avx512") if name in names)


class TestCrc32c:
    BORDERS = (256, 512, 768, 1_024, 2_560, 6_144, 12_288, 18_432, 104_448)
    SIZES = (*range(201), *(border + off for border in BORDERS for off in (-9, -8, -1, 0, 1, 7, 8, 9, 200)))
    DATA = np.random.default_rng(0).integers(0, 256, 6_144 * 18 + 16, dtype=np.uint8).tobytes()

    @pytest.mark.parametrize("form", [0, 1, 2])
    def test_known_values(self, native, form):
        """RFC 3720, appendix B.4, and the check value of the catalogue of CRCs."""
        for data, crc in [
            (b"", 0),
            (b"123456789", 0xE3069283),
            (bytes(32), 0x8A9136AA),
            (b"\xff" * 32, 0x62A8AB43),
            (bytes(range(32)), 0x46DD794E),
            (bytes(range(31, -1, -1)), 0x113FDB5C),
        ]:
            assert native.crc32c(data, 0, form) == crc

    @pytest.mark.parametrize("form", [0, 1, 2])
    def test_every_length_is_what_google_says(self, native, form):
        for size in self.SIZES:
            for start in (0, 1, 5):
                data = self.DATA[start : start + size]
                assert native.crc32c(data, 0, form) == google_crc32c.value(data), size

    @pytest.mark.parametrize("form", [0, 1, 2])
    def test_it_goes_on_from_what_stands_before(self, native, form):
        whole = google_crc32c.value(self.DATA)
        for size in self.SIZES:
            before = native.crc32c(self.DATA[:size], 0, form)
            assert native.crc32c(memoryview(self.DATA)[size:], before, form) == whole

    def test_two_pieces_are_put_together(self, native):
        whole = google_crc32c.value(self.DATA)
        for size in self.SIZES:
            first, second = (google_crc32c.value(piece) for piece in (self.DATA[:size], self.DATA[size:]))
            assert native.combine(first, second, len(self.DATA) - size) == whole

    def test_lengths_past_32_bits_are_put_together(self, native):
        """2**k zeros as twice 2**(k - 1) zeros; google-crc32c counts the first ones."""
        crc = google_crc32c.value(bytes(1 << 16))
        for k in range(16, 40):
            twice = native.combine(crc, crc, 1 << k)
            if k == 20:
                assert twice == google_crc32c.value(bytes(1 << 21))
            crc = twice
        assert native.combine(crc, 0, 0) == crc
        assert native.combine(0, crc, 1 << 40) == crc


def call(native, function, **changes):
    """A right call of the function, but for `changes` of its arguments; 1,000 values in buckets of 256."""
    frame = q.encode(np.arange(1_000, dtype=np.float32), bits=4, bucket_size=256)
    body = (frame[40:56], frame[56:], 4, 8, 1.0)
    arguments = {
        "quantise": {
            "frame": native.allocate(len(frame)),
            "x": np.arange(1_000, dtype=np.float32),
            "bits": 4,
            "log2_bucket": 8,
            "l2": False,
            "seed": 0,
            "first": 0,
            "last": 4,
        },
        "check": {"codes": frame[56:], "size": 1_000, "bits": 4, "first": 0, "last": 8},
        "decode": {"frame": body, "out": np.full(1_000, 3.0, np.float32), "start": 0, "stop": 1_000},
        "add": {"frames": (body, body), "acc": np.full(1_000, 3.0, np.float32), "start": 0, "stop": 1_000},
        "put": {"frame": native.allocate(48), "offset": 8, "data": b"d" * 40},
        "allocate": {"length": 48},
        "crc32c": {"data": b"data", "crc": 0, "portable": False},
        "combine": {"first": 1, "second": 2, "second_length": 3},
    }[function]
    assert set(changes) <= set(arguments)
    return getattr(native, function)(*(arguments | changes).values())


def body(scales: int = 16, codes: int = 512, bits: object = 4, log2_bucket: object = 8, weight: object = 1.0) -> tuple:
    return bytes(scales), b"\x77" * codes, bits, log2_bucket, weight


RANGES = [(-1, 1), (1, 0), (0, 2**62), (2**62, 2**62), (-(2**63), 2**63 - 1), (0, 2**64), ("0", 1), (0.5, 1), (None, 1)]
NO_BUFFER = [None, 7, "text", [1.0], np.zeros(2_000, np.float32)[::2]]
NO_BODY = [
    (),
    (b"", b""),
    (*body(), 1),
    (None, *body()[1:]),
    (bytes(16), "codes", 4, 8, 1.0),
    body(scales=15),
    body(scales=20),
    body(codes=511),
    body(codes=576),
    body(codes=0),
    body(bits=8),
    body(bits=0),
    body(bits=-4),
    body(bits=2**31),
    body(bits=4.0),
    body(log2_bucket=6),
    body(log2_bucket=9),
    body(log2_bucket=17),
    body(log2_bucket=64),
    body(log2_bucket=-1),
    body(weight="1"),
    body(weight=None),
    body(weight=10**400),
]


class TestWrongCalls:
    def test_the_right_ones_are_right(self, native):
        assert call(native, "quantise")[0] == -1
        assert call(native, "check")[0] == -1
        for function in ("decode", "add", "put"):
            assert call(native, function) is None
        assert len(call(native, "allocate")) == 48

    @pytest.mark.parametrize("function", ["quantise", "check", "decode", "add"])
    @pytest.mark.parametrize("between", RANGES)
    def test_ranges(self, native, function, between):
        names = ("first", "last") if function in ("quantise", "check") else ("start", "stop")
        with pytest.raises(MISTAKES):
            call(native, function, **dict(zip(names, between, strict=True)))

    @pytest.mark.parametrize("function", ["decode", "add"])
    @pytest.mark.parametrize(("start", "stop"), [(1, 128), (64, 128), (0, 64), (0, 999), (0, 1_001), (0, 1_024)])
    def test_ranges_that_cut_a_block(self, native, function, start, stop):
        with pytest.raises(ValueError, match="range"):
            call(native, function, start=start, stop=stop)

    @pytest.mark.parametrize("x", [*NO_BUFFER, bytes(4_001), bytes(3_999), bytes(3), b"", bytes(4_000 + 256 * 4)])
    def test_gradients(self, native, x):
        with pytest.raises(MISTAKES):
            call(native, "quantise", x=x)

    @pytest.mark.parametrize("length", [0, 39, 40, 567, 569, 10_000])
    def test_frames_of_another_length(self, native, length):
        with pytest.raises(ValueError, match="length"):
            call(native, "quantise", frame=native.allocate(length))

    @pytest.mark.parametrize("frame", [None, bytearray(568), memoryview(bytes(568)), "f" * 568])
    def test_frames_of_another_type(self, native, frame):
        with pytest.raises(TypeError):
            call(native, "quantise", frame=frame)
        with pytest.raises(TypeError):
            call(native, "put", frame=frame)

    @pytest.mark.parametrize("bits", [-4, 0, 1, 7, 16, 2**31, 2**64, "4", None])
    def test_bits(self, native, bits):
        for function in ("quantise", "check"):
            with pytest.raises(MISTAKES):
                call(native, function, bits=bits)

    @pytest.mark.parametrize("log2_bucket", [-1, 0, 6, 17, 31, 32, 63, 64, 2**31, None])
    def test_buckets(self, native, log2_bucket):
        with pytest.raises(MISTAKES):
            call(native, "quantise", log2_bucket=log2_bucket)

    @pytest.mark.parametrize("size", [-1, 0, 128, 1_025, 2**48, 2**48 + 1, 2**63 - 1, -(2**63), 2**63, None, 1.5])
    def test_sizes(self, native, size):
        with pytest.raises(MISTAKES):
            call(native, "check", size=size)

    @pytest.mark.parametrize("codes", [*NO_BUFFER, b"", bytes(511), bytes(576)])
    def test_codes(self, native, codes):
        with pytest.raises(MISTAKES):
            call(native, "check", codes=codes)

    @pytest.mark.parametrize("wrong", NO_BODY)
    def test_bodies_leave_what_they_would_have_changed(self, native, wrong):
        out = np.full(1_000, 3.0, np.float32)
        with pytest.raises(MISTAKES):
            call(native, "decode", frame=wrong, out=out)
        for frames in ((wrong,), (body(), wrong), (wrong, body())):
            with pytest.raises(MISTAKES):
                call(native, "add", frames=frames, acc=out)
        assert (out == 3.0).all()

    @pytest.mark.parametrize("wrong", [None, 3, [], "frame", {}, b"body"])
    def test_what_is_no_tuple(self, native, wrong):
        with pytest.raises(TypeError):
            call(native, "decode", frame=wrong)
        with pytest.raises(TypeError):
            call(native, "add", frames=wrong)
        with pytest.raises(TypeError):
            call(native, "add", frames=(wrong,))

    @pytest.mark.parametrize("target", [*NO_BUFFER, bytes(4_000), bytearray(), bytearray(3_999), bytearray(8_000)])
    def test_targets(self, native, target):
        for function, name in (("decode", "out"), ("add", "acc")):
            with pytest.raises(MISTAKES):
                call(native, function, **{name: target})

    def test_a_read_only_target(self, native):
        target = np.full(1_000, 3.0, np.float32)
        target.flags.writeable = False
        for function, name in (("decode", "out"), ("add", "acc")):
            with pytest.raises(MISTAKES):
                call(native, function, **{name: target})
        assert (target == 3.0).all()

    def test_more_frames_than_one_call_takes(self, native):
        nothing = (b"", b"", 4, 8, 1.0)
        native.add((nothing,) * 2**16, bytearray(), 0, 0)
        with pytest.raises(ValueError, match="too many"):
            native.add((nothing,) * (2**16 + 1), bytearray(), 0, 0)

    @pytest.mark.parametrize(
        ("offset", "length"), [(-1, 1), (9, 40), (49, 0), (0, 49), (2**63 - 1, 1), (2**63 - 40, 40), (-(2**63), 48)]
    )
    def test_data_that_does_not_fit(self, native, offset, length):
        with pytest.raises(MISTAKES):
            call(native, "put", offset=offset, data=bytes(length))

    def test_lengths(self, native):
        for length in (-1, -(2**63), 2**64, None, "48"):
            with pytest.raises(MISTAKES):
                native.allocate(length)
        with pytest.raises(MemoryError):
            native.allocate(2**60)

    def test_checksums_of_no_buffer(self, native):
        for data in NO_BUFFER:
            with pytest.raises(MISTAKES):
                native.crc32c(data)
        for wrong in (None, "1", 1.5):
            with pytest.raises(TypeError):
                native.crc32c(b"", wrong)
            with pytest.raises(TypeError):
                native.combine(0, 0, wrong)

    @pytest.mark.parametrize("function", ["quantise", "check", "decode", "add", "put", "allocate", "crc32c", "combine"])
    def test_another_number_of_arguments(self, native, function):
        for arguments in ((), (b"",) * 12):
            with pytest.raises(TypeError):
                getattr(native, function)(*arguments)


def test_more_frames_than_one_call_takes_are_added_all_the_same(native, arithmetic):
    """accumulate_many promises what accumulate one by one gives, for any number of frames."""
    count = 2**16 + 1
    with arithmetic(native.instruction_sets()[-1]):
        q.accumulate_many([q.encode(np.ones(1, np.float32))] * count, acc := np.zeros(1, np.float32), [1.0] * count)
    assert acc[0] == count
