"""Robust aggregation: against plain NumPy, and what contributions that may be anything can do to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.codec import F32, codec
from contract.config import BUILT_IN_AGGREGATORS, AggregationConfig, RunConfig
from contract.errors import ConfigError, CorruptObject
from contract.robust import aggregation, aggregators, by_rule, strategy
from contract.stack import Stack
from contract.tensors import Entry, Layout

ROBUST = ("median", "trimmed_mean", "krum")
COORDINATES = ("median", "trimmed_mean")
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


def config(name: str, byzantine: int = 1, clip_norm: float = 0.0) -> AggregationConfig:
    return AggregationConfig.model_validate({"name": name, "byzantine": byzantine, "clip_norm": clip_norm})


def aggregate(
    how: AggregationConfig, gradients: Sequence[F32], samples: Sequence[int] = (), name: str = "none"
) -> tuple[F32, str]:
    """The gradient, and the note."""
    layout = Layout((Entry("w", (gradients[0].size,)),))
    counts = samples or [1] * len(gradients)
    with aggregation(how, layout, sum(counts)) as made:
        for rank, (gradient, count) in enumerate(zip(gradients, counts, strict=True)):
            made.add(codec(name).encode(gradient, rank), codec(name), {}, count)
        return made.result({})[0], made.remarks.note


@st.composite
def stacks(draw: st.DrawFn, fewest: int = 1, elements: st.SearchStrategy[float] = ANY) -> F32:
    """(P, n): gradients with anything finite in them, often equal values."""
    shape = draw(st.tuples(st.integers(fewest, 13), st.integers(1, 7)))
    return draw(hnp.arrays(np.float32, shape, elements=elements))


def honest_and_others(draw: st.DrawFn, honest_more: int) -> tuple[F32, F32, list[int]]:
    """Honest gradients (P - f, n), others (f, n), and the order in which they come."""
    byzantine, elements = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    count = 2 * byzantine + honest_more + draw(st.integers(0, 3))
    honest = draw(
        hnp.arrays(
            np.float32, (count - byzantine, elements), elements=st.floats(-1, 1, width=32, allow_subnormal=False)
        )
    )
    others = draw(hnp.arrays(np.float32, (byzantine, elements), elements=ANY))
    return honest, others, draw(st.permutations(range(count)))


@given(x=stacks())
@settings(max_examples=150, deadline=None)
@example(x=np.array([[3e38], [3.2e38]], np.float32))  # whose sum is no float32
def test_the_median_is_numpys(x: F32) -> None:
    got, _ = aggregate(config("median", 0), x)
    np.testing.assert_array_equal(got, np.median(x.astype(np.float64), axis=0).astype(np.float32))
    assert got.dtype == np.float32


@given(x=stacks(), byzantine=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_the_trimmed_mean_is_the_mean_of_what_sorting_leaves(x: F32, byzantine: int) -> None:
    byzantine = min(byzantine, (len(x) - 1) // 2)
    got, note = aggregate(config("trimmed_mean", byzantine), x)
    kept = np.sort(x.astype(np.float64), axis=0)[byzantine : len(x) - byzantine]
    largest = np.abs(kept).max(axis=0)
    # One rounding to float32 at the end; float64 sums of at most 13 values before.
    assert (np.abs(got - kept.mean(axis=0)) <= largest * 2.0**-23 + 2.0**-149).all()
    assert note == ""


@given(x=stacks(fewest=3), byzantine=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_krum_takes_the_contribution_with_the_least_score(x: F32, byzantine: int) -> None:
    byzantine = min(byzantine, (len(x) - 3) // 2)
    got, _ = aggregate(config("krum", byzantine), x)
    wide = x.astype(np.float64)
    distances = np.square(wide[:, None] - wide[None]).sum(axis=2)
    others = [np.sort(np.delete(row, i)) for i, row in enumerate(distances)]
    scores = np.array([row[: len(x) - byzantine - 2].sum() for row in others])
    chosen = [i for i, row in enumerate(x) if np.array_equal(row, got)]
    assert min(scores[chosen]) <= scores.min() * (1 + 1e-12)


def test_krum_breaks_ties_by_rank() -> None:
    near, far = np.array([1, 1, 0], np.float32), np.array([-1, -1, 0], np.float32)
    got, _ = aggregate(config("krum"), [far, near, far, near, near, far])
    assert got.tolist() == far.tolist()


@pytest.mark.parametrize("name", COORDINATES)
@given(x=stacks(fewest=3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_contributions_does_not_change_a_bit(name: str, x: F32, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(x))))
    assert aggregate(config(name), x)[0].tobytes() == aggregate(config(name), x[order])[0].tobytes()


@pytest.mark.parametrize("name", COORDINATES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_f_contributions_that_are_anything_cannot_move_it_beyond_the_honest_ones(
    name: str, data: st.DataObject
) -> None:
    honest, others, order = honest_and_others(data.draw, honest_more=1)
    got, _ = aggregate(config(name, len(others)), np.concatenate([honest, others])[order])
    assert (honest.min(axis=0) <= got).all()
    assert (got <= honest.max(axis=0)).all()


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_krum_takes_an_honest_one_where_f_are_far_off(data: st.DataObject) -> None:
    honest, others, order = honest_and_others(data.draw, honest_more=3)
    # Farther than the honest ones' scores can be: at most P honest neighbours at a squared distance of 4 n.
    others = np.where(np.abs(others) < 1e3, np.copysign(np.float32(1e3), others), others)
    got, _ = aggregate(config("krum", len(others)), np.concatenate([honest, others])[order])
    assert any(np.array_equal(got, row) for row in honest)


def test_the_mean_is_moved_at_will_by_one() -> None:
    honest = [np.ones(4, np.float32)] * 9
    assert aggregate(config("mean"), [*honest, np.full(4, -1e6, np.float32)])[0].max() < -1e4


@pytest.mark.parametrize("name", ROBUST)
def test_a_claim_of_many_samples_buys_no_weight(name: str) -> None:
    honest = [np.full(3, value, np.float32) for value in (1.0, 1.1, 1.2, 1.3)]
    got, _ = aggregate(config(name), [*honest, np.full(3, 9.0, np.float32)], samples=[1, 1, 1, 1, 2**40])
    assert (got >= 1.0).all()
    assert (got <= 1.3).all()


@pytest.mark.parametrize("name", list(aggregators))
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_all(name: str, clip_norm: float, bad: float) -> None:
    layout = Layout((Entry("w", (3,)),))
    payload = np.array([0.0, bad, 1.0], np.float32).tobytes()
    with aggregation(config(name, clip_norm=clip_norm), layout, 2) as made, pytest.raises(CorruptObject, match="NaN"):
        made.add(payload, codec("none"), {}, 1)


@pytest.mark.parametrize("name", list(aggregators))
@pytest.mark.parametrize("codec_name", ["none", "fp16", "qsgd8", "qsgd4"])
def test_every_codec_is_decoded(name: str, codec_name: str) -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((5, 1300)).astype(np.float32)
    decoded = [codec(codec_name).decode(codec(codec_name).encode(g, k), g.size) for k, g in enumerate(x)]
    direct, _ = aggregate(config(name), decoded)
    got, _ = aggregate(config(name), x, name=codec_name)
    np.testing.assert_allclose(got, direct, rtol=0, atol=1e-6 if name == "mean" else 0)


@pytest.mark.parametrize("name", list(aggregators))
def test_clipping_comes_before_aggregation(name: str) -> None:
    random = np.random.default_rng(4)
    x = random.standard_normal((6, 700)).astype(np.float32) * np.float32([[0.01], [0.02], [1], [2], [3], [1e30]])
    samples = [3, 1, 1, 5, 2, 4]
    norms = np.linalg.norm(x.astype(np.float64), axis=1)
    clipped = (x * np.minimum(1, 10 / norms)[:, None].astype(np.float32)).astype(np.float32)
    expected, _ = aggregate(config(name), clipped, samples)
    got, _ = aggregate(config(name, clip_norm=10.0), x, samples)
    # The mean rounds weight * scale once where clipping first rounds each value.
    np.testing.assert_allclose(got, expected, rtol=0, atol=2.0**-22 * np.abs(clipped).max() if name == "mean" else 0)
    assert np.linalg.norm(got) <= 10 * (1 + 1e-6)


@pytest.mark.parametrize("name", list(aggregators))
def test_a_clip_that_clips_nothing_leaves_every_bit(name: str) -> None:
    x = np.random.default_rng(5).standard_normal((5, 900)).astype(np.float32)
    x[2] = 0  # has no norm to divide by
    plain, _ = aggregate(config(name), x, [4, 1, 2, 9, 5], "qsgd4")
    clipped, _ = aggregate(config(name, clip_norm=1e6), x, [4, 1, 2, 9, 5], "qsgd4")
    assert plain.tobytes() == clipped.tobytes()


@pytest.mark.parametrize(
    ("name", "byzantine", "count", "bears"),
    [("trimmed_mean", 2, 4, 1), ("trimmed_mean", 1, 2, 0), ("krum", 1, 4, 1), ("krum", 3, 7, 3), ("krum", 1, 1, 0)],
)
def test_with_too_few_contributions_it_is_the_median_and_says_so(
    name: str, byzantine: int, count: int, bears: int
) -> None:
    x = np.random.default_rng(6).standard_normal((count, 50)).astype(np.float32)
    got, note = aggregate(config(name, byzantine), x)
    np.testing.assert_array_equal(got, np.median(x.astype(np.float64), axis=0).astype(np.float32))
    needed = strategy(name).fewest(byzantine)
    assert note == (
        f"{name} with byzantine = {byzantine} needs {needed} contributions; "
        f"the round has {count}, whose median bears {bears}"
    )


def test_enough_contributions_are_nothing_to_tell() -> None:
    for name in aggregators:
        x = np.ones((strategy(name).fewest(2), 3), np.float32)
        assert aggregate(config(name, 2), x)[1] == ""
    assert aggregate(config("median", 1), np.ones((2, 3), np.float32))[1].endswith("2, whose median bears 0")


@pytest.mark.parametrize("name", list(aggregators))
def test_the_configuration_knows_the_same_strategies_and_limits(name: str) -> None:
    byzantine = 2
    needed = strategy(name).fewest(byzantine) if name in ("trimmed_mean", "krum") else 1
    section = {"name": name, "byzantine": byzantine}
    RunConfig.model_validate({"peers": needed, "aggregation": section})
    if needed > 1:
        with pytest.raises(ValueError, match=f"needs {needed} peers"):
            RunConfig.model_validate({"peers": needed - 1, "aggregation": section})
    sharded = {"peers": 9, "aggregation": section, "exchange": {"topology": "reduce_scatter"}}
    if strategy(name).whole:
        with pytest.raises(ValueError, match="whole gradients"):
            RunConfig.model_validate(sharded)
    else:
        RunConfig.model_validate(sharded)


@pytest.mark.parametrize("name", ["mean", *COORDINATES])
def test_shards_together_are_the_whole(name: str) -> None:
    """What a shard's owner averages are the same values, because no coordinate depends on another."""
    x = np.random.default_rng(7).standard_normal((5, 3000)).astype(np.float32)
    whole, _ = aggregate(config(name), x, [1, 2, 3, 4, 5])
    shards = [aggregate(config(name), x[:, part], [1, 2, 3, 4, 5])[0] for part in (slice(1024), slice(1024, 3000))]
    assert np.concatenate(shards).tobytes() == whole.tobytes()


@pytest.mark.parametrize(("name", "clip_norm"), [("krum", 0.0), ("mean", 1.0), ("median", 1.0)])
def test_what_needs_whole_gradients_is_refused_a_shard(name: str, clip_norm: float) -> None:
    with pytest.raises(ConfigError, match="needs whole gradients"):
        aggregation(config(name, clip_norm=clip_norm), Layout((Entry("w", (2,)),)), 1, whole=False)


@pytest.mark.parametrize("name", list(aggregators))
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_samples_have_to_add_up(name: str, clip_norm: float) -> None:
    layout, payload = Layout((Entry("w", (2,)),)), bytes(8)
    how = config(name, clip_norm=clip_norm)
    with aggregation(how, layout, 3) as made:
        made.add(payload, codec("none"), {}, 2)
        with pytest.raises(CorruptObject, match="stands for 0"):
            made.add(payload, codec("none"), {}, 0)
        with pytest.raises(CorruptObject, match="at least 4 samples, but 3"):
            made.add(payload, codec("none"), {}, 2)
        with pytest.raises(CorruptObject, match="hold 2 samples, but 3"):
            made.result({})
    with pytest.raises(CorruptObject, match="mean over 0 samples"), aggregation(how, layout, 0):
        pass


def majority(stack: Stack, byzantine: int, out: F32) -> tuple[int, ...]:
    """The majority of signs (Bernstein et al. 2019, arXiv 1810.05291)."""
    for part, x in stack.blocks():
        out[part] = np.sign(np.sign(x).sum(axis=0))
    return ()


#: A strategy of one's own; clipping, notes and buffers come with it.
SIGNS = by_rule("signs", majority, lambda f: 2 * f + 1)


def test_a_strategy_of_ones_own_is_imported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plug_in", ModuleType("plug_in"))
    monkeypatch.setattr("plug_in.SIGNS", SIGNS, raising=False)
    x = np.array([[1, -2, 3], [4, -5, -6], [-1e9, -1e9, -1e9]], np.float32)
    got, note = aggregate(config("plug_in:SIGNS"), x)
    assert got.tolist() == [1, -1, -1]
    assert note == ""
    assert aggregate(config("plug_in:SIGNS", byzantine=2), x)[1].startswith("signs with byzantine = 2 needs 5")


def test_a_strategy_that_is_none_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plug_in", ModuleType("plug_in"))
    monkeypatch.setattr("plug_in.rule", majority, raising=False)
    assert tuple(aggregators) == BUILT_IN_AGGREGATORS
    with pytest.raises(ValueError, match="'kurm' is none of mean, median, trimmed_mean, krum, nor of the form"):
        config("kurm")
    for name, what in (
        ("kurm", "'kurm' is none of mean, median, trimmed_mean, krum"),
        ("plug_out:SIGNS", "plug_out:SIGNS: No module named 'plug_out'"),
        ("plug_in:SIGNS", "has no attribute 'SIGNS'"),
        ("plug_in:rule", "is a function instead of a contract.robust.Strategy"),
    ):
        with pytest.raises(ConfigError, match=what):
            strategy(name)
