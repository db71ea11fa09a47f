"""Parts of `python -m benchmarks codec`: QSGD in torch, the vectors, and the checks that both sides do equal work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import torch_qsgd
from benchmarks.codec import FORMS, equal, figures, import_milliseconds, medians, near, relative_error, same_values
from benchmarks.comparison import UnequalWorkError
from benchmarks.gradient import BLOCK, kurtosis, tiled

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
BUCKET, ROUNDS = 128, 2_000


def heavy_tailed(size: int) -> torch.Tensor:
    """(size,) values whose magnitudes span some orders, with zeros among them."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(size, generator=generator) ** 3
    values[::5] = 0
    return values


def encode(form: str, x: torch.Tensor, generator: torch.Generator) -> torch_qsgd.Encoded:
    if form == "plain":
        return torch_qsgd.encode(x, BUCKET, generator)
    return torch_qsgd.InPlace(x.numel(), BUCKET).encode(x, generator)


@pytest.mark.parametrize("form", ["plain", "in place"])
def test_torchs_rounding_is_unbiased_with_the_variance_of_stochastic_rounding(form: str) -> None:
    """Of the means over 2,000 draws: no z-score beyond 5, their deviation 1 ± 0.15 (some 230 values, hence three and a
    half standard errors); and the mean squared error within 3% of p (1 - p) scale squared."""
    x, generator = heavy_tailed(300), torch.Generator().manual_seed(5)
    draws = torch.stack([torch_qsgd.decode(encode(form, x, generator)) for _ in range(ROUNDS)]).double()
    scale = encode(form, x, generator).scale_n1.double().repeat_interleave(BUCKET)[:300]
    level = x.double().abs() / scale
    variance = (level - level.floor()) * (level.ceil() - level) * scale**2
    moving = variance > 1e-4 * scale**2  # the rest, zeros and each bucket's largest value, is exact but for rounding
    assert torch.allclose(draws[:, ~moving], x.double()[~moving].expand(ROUNDS, -1), rtol=0, atol=float(scale.max()))
    z = (draws.mean(0) - x.double())[moving] / (variance[moving] / ROUNDS).sqrt()
    assert z.abs().max() < 5
    assert abs(float(z.std()) - 1) < 0.15
    assert float((draws - x.double()).square().mean(0).sum() / variance.sum()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("form", ["plain", "in place"])
@pytest.mark.parametrize("size", [1, BUCKET - 1, BUCKET, BUCKET + 1, 5 * BUCKET])
def test_every_value_comes_back_within_one_level(form: str, size: int) -> None:
    x = heavy_tailed(5 * BUCKET)[-size:]
    encoded = encode(form, x, torch.Generator().manual_seed(7))
    back = torch_qsgd.decode(encoded)
    scale = encoded.scale_n1.repeat_interleave(BUCKET)[:size]
    assert back.shape == x.shape
    assert encoded.codes_nb.dtype == torch.int8
    assert bool(((back - x).abs() <= scale * (1 + 1e-5)).all())
    assert bool((back[x == 0] == 0).all())
    assert int(encoded.codes_nb.abs().max()) == torch_qsgd.LEVELS


@pytest.mark.parametrize("form", ["plain", "in place"])
def test_a_bucket_of_zeros_gives_zeros(form: str) -> None:
    assert not torch_qsgd.decode(encode(form, torch.zeros(BUCKET + 3), torch.Generator())).any()


def test_memory_that_is_kept_does_not_remember_the_last_vector() -> None:
    kept, generator = torch_qsgd.InPlace(130, BUCKET), torch.Generator().manual_seed(1)
    kept.encode(torch.full((130,), 100.0), generator)
    assert not torch_qsgd.decode(kept.encode(torch.zeros(130), generator)).any()


def test_torchs_sum_adds_what_it_decodes() -> None:
    x = heavy_tailed(300)
    encoded, acc = torch_qsgd.encode(x, BUCKET, torch.Generator().manual_seed(2)), torch.ones(300)
    torch_qsgd.accumulate(encoded, acc, 0.5)
    assert torch.allclose(acc, 1 + 0.5 * torch_qsgd.decode(encoded))


def test_tiling_repeats_the_gradient_with_a_positive_scale_for_each_block() -> None:
    gradient = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    size = 2 * BLOCK + 10
    tiles = tiled(gradient, size)
    assert tiles.shape == (size,)
    assert tiles.dtype == np.float32
    ratios = (tiles / np.resize(gradient, size)).astype(np.float64)
    scales = [float(ratios[start]) for start in range(0, size, BLOCK)]
    for index, scale in enumerate(scales):
        np.testing.assert_allclose(ratios[index * BLOCK : (index + 1) * BLOCK], scale, rtol=1e-5)
    assert len(set(scales)) == 3
    assert min(scales) > 0
    np.testing.assert_array_equal(tiles, tiled(gradient, size))


def test_kurtosis_is_that_of_known_distributions() -> None:
    rng = np.random.default_rng(1)
    assert kurtosis(rng.standard_normal(200_000, dtype=np.float32)) == pytest.approx(3, abs=0.1)
    assert kurtosis(rng.random(200_000, dtype=np.float32) + 5) == pytest.approx(1.8, abs=0.02)


def test_the_relative_error_spans_its_blocks() -> None:
    x = np.ones((1 << 20) + 100, np.float32)
    y = x.copy()
    y[-1] = 3
    assert relative_error(x, x) == 0
    assert relative_error(y, x) == pytest.approx(2 / np.sqrt(x.size))


def test_unequal_work_is_refused() -> None:
    ones = np.ones(3, np.float32)
    same_values("copy", ones, ones.copy())
    near("error", 1.009, 1.0, 0.01)
    near("error", 1e-7, 0.0, 1e-6)
    for what in (
        lambda: same_values("sign of zero", np.zeros(1, np.float32), -np.zeros(1, np.float32)),
        lambda: near("error", 1.02, 1.0, 0.01),
        lambda: near("error", float("nan"), 1.0, 0.01),
        lambda: near("error", 1e-5, 0.0, 1e-6),
        lambda: equal("frames", 1, 2),
    ):
        with pytest.raises(UnequalWorkError):
            what()


def test_both_sides_take_turns() -> None:
    order: list[str] = []
    first, second = medians("order", lambda: order.append("a"), lambda: order.append("b"))
    assert "".join(order) == "ab" * (len(order) // 2)
    assert first >= 0
    assert second >= 0


def test_import_is_measured_in_fresh_interpreters() -> None:
    assert 0 < import_milliseconds(times=1) < 60_000


def test_figures_are_complete_and_in_order() -> None:
    values = dict.fromkeys(FORMS, 1.0)
    assert [figure.name for figure in figures(values)] == list(FORMS)
    del values["kurtosis_of_the_gradient"]
    with pytest.raises(KeyError, match="kurtosis_of_the_gradient"):
        figures(values)


def test_a_limit_has_a_direction_and_an_aim_beyond_it() -> None:
    for name, form in FORMS.items():
        if form.must is None:
            assert form.aim is None, name
            continue
        assert form.better != "neither", name
        if form.aim is not None:
            assert (form.aim > form.must) == (form.better == "higher"), name


def test_the_page_names_every_figure() -> None:
    section = DOCS.read_text(encoding="utf-8").split("## `codec`")[1].split("\n## ")[0]
    missing = [name for name in FORMS if f"`{name}`" not in section]
    assert not missing
