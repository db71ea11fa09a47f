"""Buffers under robust aggregation: whoever sends a good gradient and bad BatchNorm statistics gets nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.codec import codec
from contract.config import AggregationConfig
from contract.errors import WeightsMismatch
from contract.robust import aggregation
from contract.tensors import Buffers, Entry, Layout

LAYOUT = Layout(
    (Entry("w", (2,)),),
    (
        Entry("mean", (2, 2)),
        Entry("wide", (3,), "float64"),
        Entry("half", (2,), "float16"),
        Entry("seen", (), "int64"),
        Entry("index", (2,), "int32"),
        Entry("on", (2,), "bool"),
        Entry("none", (0,)),
    ),
)
ROBUST = ("median", "trimmed_mean", "krum")
ANYTHING = st.floats(width=32, allow_nan=True, allow_infinity=True)


def buffers(
    value: float = 0.5, seen: int = 4, index: Sequence[int] = (3, 1), on: Sequence[bool] = (True, False)
) -> Buffers:
    return {
        "mean": np.full((2, 2), value, np.float32),
        "wide": np.full(3, value, np.float64),
        "half": np.full(2, value, np.float16),
        "seen": np.array(seen, np.int64),
        "index": np.array(index, np.int32),
        "on": np.array(on),
        "none": np.empty(0, np.float32),
    }


def aggregate(name: str, byzantine: int, sent: Sequence[Buffers], base: Buffers) -> Buffers:
    config = AggregationConfig.model_validate({"name": name, "byzantine": byzantine})
    with aggregation(config, LAYOUT, len(sent)) as made:
        for own in sent:
            made.add(np.ones(2, np.float32).tobytes(), codec("none"), own, 1)
        return made.result(base)[1]


@pytest.mark.parametrize("name", ROBUST)
@given(honest=st.lists(st.floats(-8, 8, width=16), min_size=4, max_size=4), evil=ANYTHING, at=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_floats_stay_within_the_honest_ones(name: str, honest: list[float], evil: float, at: int) -> None:
    sent = [buffers(value) for value in honest]
    with np.errstate(over="ignore"):
        sent.insert(at, buffers(evil))
    after = aggregate(name, 1, sent, buffers())
    for key in ("mean", "wide", "half"):
        assert after[key].dtype == buffers()[key].dtype
        assert after[key].shape == buffers()[key].shape
        assert (after[key] >= min(honest)).all()
        assert (after[key] <= max(honest)).all()


@given(x=hnp.arrays(np.float64, (7, 3), elements=st.floats(-100, 100)), byzantine=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_each_value_is_plain_numpys(x: np.ndarray, byzantine: int) -> None:
    sent = [{**buffers(), "wide": row} for row in x]
    kept = np.sort(x, axis=0)[byzantine : 7 - byzantine]
    trimmed = aggregate("trimmed_mean", byzantine, sent, buffers())["wide"]
    np.testing.assert_allclose(trimmed, kept.mean(axis=0), rtol=0, atol=1e-13 * 100)
    for name in ("median", "krum"):
        np.testing.assert_array_equal(aggregate(name, 1, sent, buffers())["wide"], np.median(x, axis=0) + 0.0)


@pytest.mark.parametrize("name", ROBUST)
def test_floats_on_which_all_agree_stay_exact(name: str) -> None:
    constant = buffers()
    constant["mean"][...] = -np.inf
    assert (0.1 + 0.1 + 0.1) / 3 != 0.1  # what a trimmed mean of five would give
    constant["wide"][...] = [0.1, 1 / 3, -np.inf]
    state = constant
    for _ in range(20):
        state = aggregate(name, 1, [state] * 5, state)
    assert state["mean"].tobytes() == constant["mean"].tobytes()
    assert state["wide"].tobytes() == constant["wide"].tobytes()


@pytest.mark.parametrize("name", ROBUST)
def test_counters_advance_by_one_and_one_peer_changes_no_index(name: str) -> None:
    ran = buffers(seen=5, on=(True, True))
    evil = buffers(seen=-(2**62), index=(2**30, 2**30), on=(False, False))
    after = aggregate(name, 1, [ran, evil, ran, ran, ran], buffers())
    assert after["seen"] == 5
    assert after["seen"].shape == ()
    assert after["index"].tolist() == [3, 1]
    assert after["on"].tolist() == [True, True]
    idle = aggregate(name, 1, [ran, evil, buffers(), buffers()], buffers())
    assert idle["seen"] == 4  # two of four are no majority


@pytest.mark.parametrize("name", ROBUST)
def test_base_buffers_are_left_alone_and_must_fit(name: str) -> None:
    base = buffers()
    before = {key: value.tobytes() for key, value in base.items()}
    for value in aggregate(name, 1, [buffers(seen=5)] * 5, base).values():
        value[...] = 1
    assert {key: value.tobytes() for key, value in base.items()} == before
    with pytest.raises(WeightsMismatch, match="lack wide"):
        aggregate(name, 1, [{key: value for key, value in base.items() if key != "wide"}], base)
    with pytest.raises(WeightsMismatch, match="lack wide"):
        aggregate(name, 1, [base], {key: value for key, value in base.items() if key != "wide"})


def test_a_clipped_mean_averages_buffers_by_samples() -> None:
    config = AggregationConfig(clip_norm=1.0)
    with aggregation(config, LAYOUT, 4) as made:
        made.add(np.full(2, 100, np.float32).tobytes(), codec("none"), buffers(1.0, seen=5), 3)
        made.add(np.zeros(2, np.float32).tobytes(), codec("none"), buffers(5.0, seen=5), 1)
        gradient, after = made.result(buffers())
    np.testing.assert_allclose(gradient, 0.75 / np.sqrt(2), rtol=1e-6)
    assert after["wide"].tolist() == [2.0, 2.0, 2.0]
    assert after["mean"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert after["seen"] == 5
