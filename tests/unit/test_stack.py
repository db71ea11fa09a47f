"""Contributions on disk: what goes in comes out, in memory that does not grow with their number."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from contract import stack as module
from contract.codec import codec
from contract.config import AggregationConfig
from contract.errors import CorruptObject, WeightsMismatch
from contract.robust import aggregation
from contract.stack import Stack, sorted_rows
from contract.tensors import Entry, Layout

LAYOUT = Layout((Entry("w", (3000,)),), (Entry("a", (5,)), Entry("b", (2500,), "int16")))


@pytest.mark.parametrize("count", [*range(1, 34), 64, 100])
def test_columns_are_sorted(count: int) -> None:
    x = np.random.default_rng(count).integers(-20, 20, (count, 200)).astype(np.float32)
    np.testing.assert_array_equal(np.stack(sorted_rows(x.copy())), np.sort(x, axis=0))


@pytest.mark.parametrize(("block_bytes", "fewest"), [(1 << 20, 1024), (4 * 7 * 50, 16), (1, 1), (1, 2999)])
def test_blocks_cover_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, fewest: int
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(module, "FEWEST_COORDINATES", fewest)
    random = np.random.default_rng(1)
    gradients = random.standard_normal((7, 3000)).astype(np.float32)
    buffers = [
        {"a": random.standard_normal(5).astype(np.float32), "b": random.integers(-9, 9, 2500).astype(np.int16)}
        for _ in range(7)
    ]
    with Stack(LAYOUT, tmp_path) as stack:
        for gradient, own in zip(gradients, buffers, strict=True):
            stack.append(gradient, own)
        assert len(stack) == 7
        seen, out = np.zeros_like(gradients), np.empty(3000, np.float32)
        for part, x in stack.blocks():
            seen[:, part] += x
            x[...] = np.nan  # the caller's to overwrite
        np.testing.assert_array_equal(seen, gradients)
        for entry in LAYOUT.buffers:
            values = np.concatenate([x.copy() for _, x in stack.buffer_blocks(entry)], axis=1)
            assert values.dtype == np.dtype(entry.dtype)
            np.testing.assert_array_equal(values, [own[entry.name] for own in buffers])
        stack.read(4, out)
        np.testing.assert_array_equal(out, gradients[4])
        with pytest.raises(CorruptObject, match="cannot be read back"):
            stack.read(7, out)
        with pytest.raises(KeyError, match="no buffer c"):
            next(stack.buffer_blocks(Entry("c", (1,))))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with Stack(Layout((Entry("w", (4,)),)), tmp_path) as stack:
        with pytest.raises(CorruptObject, match=r"float32 \(3,\) came for 4 values"):
            stack.append(np.zeros(3, np.float32), {})
        with pytest.raises(CorruptObject, match="float64"):
            stack.append(np.zeros(4), {})  # type: ignore[arg-type]
        with pytest.raises(WeightsMismatch):
            stack.append(np.zeros(4, np.float32), {"x": np.zeros(1)})
        assert len(stack) == 0


def test_nothing_is_left_in_the_folder(tmp_path: Path) -> None:
    with Stack(LAYOUT, tmp_path) as stack:
        stack.append(np.zeros(3000, np.float32), {"a": np.zeros(5, np.float32), "b": np.zeros(2500, np.int16)})
        assert not list(tmp_path.iterdir())  # the file has no name even now
    with pytest.raises(ValueError, match="closed"):
        stack.read(0, np.empty(3000, np.float32))


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Stack(LAYOUT, tmp_path / "gone"):
        pass


@pytest.mark.parametrize("name", ["mean", "median", "trimmed_mean", "krum"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_memory_is_one_model_and_a_few_blocks(tmp_path: Path, name: str, clip_norm: float) -> None:
    """Measured by tracemalloc, which sees NumPy's memory. Buffers are as large as the gradient here."""
    size = 1 << 20
    layout = Layout((Entry("w", (size,)),), (Entry("mask", (size,), "float32"),))
    payload = codec("qsgd8").encode(np.ones(size, np.float32), 0)
    mask = {"mask": np.zeros(size, np.float32)}
    config = AggregationConfig.model_validate({"name": name, "clip_norm": clip_norm})

    def peak(count: int) -> int:
        tracemalloc.start(1)
        try:
            with aggregation(config, layout, count, tmp_path) as made:
                for _ in range(count):
                    made.add(payload, codec("qsgd8"), mask, 1)
                made.result(mask)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(5)
    few, many = peak(5), peak(20)
    assert many < few + 0.5 * module.BLOCK_BYTES
    if name != "mean":
        # The gradient; the packed buffers, or the new ones; and up to five blocks, widened to float64 for Krum.
        assert many < 8 * size + 6 * module.BLOCK_BYTES
