"""Work in several threads: the same bytes, the same error, the interpreter's lock free for others meanwhile."""

from __future__ import annotations

import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
import pytest

import qsgd_compress as q
from qsgd_compress.threads import SMALLEST_SHARE, Threads

SIZE = 5 * SMALLEST_SHARE + 4_321  # enough for five threads, and a last bucket that is not whole


def gradient(seed: int, size: int = SIZE) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(2, size) * 1e-3).astype(np.float32)


class TestSplit:
    @pytest.mark.parametrize("threads", [1, 2, 3, 4, 5])
    def test_so_many_ranges_cover_everything_in_order(self, threads):
        ranges = Threads(threads).split(SIZE, 1, lambda first, last: (first, last))
        assert len(ranges) == threads
        assert [first for first, _ in ranges[1:]] == [last for _, last in ranges[:-1]]
        assert (ranges[0][0], ranges[-1][1]) == (0, SIZE)

    def test_nothing_is_split_below_the_smallest_share(self):
        assert len(Threads(5).split(SMALLEST_SHARE, 1, lambda first, last: last)) == 1
        assert len(Threads(5).split(SMALLEST_SHARE + 1, 1, lambda first, last: last)) == 2
        assert Threads(5).split(0, 1, lambda first, last: last) == []


@pytest.mark.usefixtures("in_form")
class TestOneCall:
    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("norm", ["max", "l2"])
    @pytest.mark.parametrize("bucket_size", [128, 65_536])
    def test_the_same_bytes_and_values(self, bits, norm, bucket_size):
        options = {"bits": bits, "norm": norm, "bucket_size": bucket_size, "seed": 11}
        frame = q.encode(gradient(1), **options)
        values, total = q.decode(frame, SIZE), gradient(2)
        q.accumulate_many([frame, frame], total, [0.5, -3.0])
        for threads in (2, 3, 4, 5):
            assert q.encode(gradient(1), **options, threads=threads) == frame
            np.testing.assert_array_equal(q.decode(frame, SIZE, threads=threads), values)
            acc = gradient(2)
            q.accumulate_many([frame, frame], acc, [0.5, -3.0], threads=threads)
            np.testing.assert_array_equal(acc, total)

    @pytest.mark.parametrize("threads", [1, 2, 3, 4, 5])
    def test_the_first_value_that_is_not_finite_is_named_whichever_thread_meets_it(self, threads):
        """The last value of each thread's range, and the very next, which another thread comes to at once."""
        buckets = -(-SIZE // 512)
        for part in range(1, threads + 1):
            last = min(512 * (buckets * part // threads), SIZE) - 1
            x = gradient(1)
            x[last], x[last + 1 :][:1], x[-1] = -np.inf, np.nan, np.nan if last < SIZE - 1 else -np.inf
            with pytest.raises(q.NonFiniteGradient) as caught:
                q.encode(x, threads=threads)
            assert (caught.value.index, caught.value.value) == (last, -np.inf)

    @pytest.mark.parametrize("threads", [1, 5])
    @pytest.mark.parametrize("at", [0, SIZE // 2, SIZE - 1])
    def test_a_reserved_code_in_any_range_is_found(self, threads, at):
        frame = bytearray(q.encode(gradient(1), bits=8))
        group, within = divmod(at, 64)
        codes = len(frame) - 64 * -(-SIZE // 64)
        frame[codes + 64 * group + 4 * (within % 16) + within // 16] = 0xFF
        frame[32:36] = struct.pack("<I", google_crc32c.value(bytes(frame[40:])))
        frame[36:40] = struct.pack("<I", google_crc32c.value(bytes(frame[:36])))
        out = np.full(SIZE, 3.0, np.float32)
        with pytest.raises(q.CorruptFrame, match="reserved"):
            q.decode(frame, SIZE, out=out, threads=threads)
        assert (out == 3.0).all()

    @pytest.mark.parametrize("threads", [2, 5])
    @pytest.mark.parametrize("at", [40, 41_000, -1])
    def test_damage_in_any_range_is_found(self, threads, at):
        frame = bytearray(q.encode(gradient(1)))
        frame[at] ^= 1
        with pytest.raises(q.CorruptFrame, match="checksum"):
            q.decode(frame, SIZE, threads=threads)


class TestSeveralCallers:
    @pytest.mark.parametrize("threads", [1, 3])
    def test_calls_at_the_same_time_do_not_disturb_each_other(self, in_form, threads):
        callers = 4
        wanted = []
        for seed in range(callers):
            frame = q.encode(gradient(seed), bits=4 + 4 * (seed % 2), seed=seed)
            acc = gradient(100 + seed)
            q.accumulate(frame, acc, 0.5)
            wanted.append((frame, q.decode(frame, SIZE), acc))
        together = threading.Barrier(callers, timeout=60)

        def call(seed):
            together.wait()
            for _ in range(2):
                frame = q.encode(gradient(seed), bits=4 + 4 * (seed % 2), seed=seed, threads=threads)
                acc = gradient(100 + seed)
                q.accumulate(frame, acc, 0.5, threads=threads)
                yield frame, q.decode(frame, SIZE, threads=threads), acc

        with ThreadPoolExecutor(callers) as pool:
            for results, (frame, values, total) in zip(
                pool.map(lambda seed: list(call(seed)), range(callers)), wanted, strict=True
            ):
                for result in results:
                    assert result[0] == frame
                    np.testing.assert_array_equal(result[1], values)
                    np.testing.assert_array_equal(result[2], total)


class TestTheInterpretersLock:
    """With a switch interval of an hour no thread gets the lock until another lets go of it by itself."""

    CALLS = 400

    def others_run_during(self, call) -> bool:
        ran, ready, gate = [], threading.Event(), threading.Lock()

        def other() -> None:
            ready.set()
            with gate:
                ran.append(True)

        before = sys.getswitchinterval()
        sys.setswitchinterval(3_600)
        gate.acquire()
        waiting = threading.Thread(target=other)
        try:
            waiting.start()
            ready.wait()
            gate.release()  # from here on it wants nothing but the interpreter's lock
            for _ in range(self.CALLS):
                if ran:
                    return True
                call()
            return False
        finally:
            sys.setswitchinterval(before)
            waiting.join()

    @pytest.mark.parametrize("function", ["quantise", "check", "decode", "add", "crc32c"])
    def test_is_free_while_c_computes(self, native, function):
        size = 1 << 22
        x = np.ones(size, np.float32)
        frame = q.encode(x)
        body = (memoryview(frame)[40 : 40 + size // 128], memoryview(frame)[40 + size // 128 :], 4, 9, 1.0)
        to = native.allocate(len(frame))
        calls = {
            "quantise": lambda: native.quantise(to, x, 4, 9, True, 0, 0, size // 512),
            "check": lambda: native.check(body[1], size, 4, 0, size // 128),
            "decode": lambda: native.decode(body, x, 0, size),
            "add": lambda: native.add((body,), x, 0, size),
            "crc32c": lambda: native.crc32c(x),
        }
        assert self.others_run_during(calls[function])

    def test_is_not_let_go_of_by_what_does_not(self, native):
        """The measure itself: without a release nobody else runs."""
        assert not self.others_run_during(lambda: native.combine(1, 2, 3))
