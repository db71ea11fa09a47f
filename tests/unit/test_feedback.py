"""Error feedback: nothing that a peer computes is lost, whatever its codec and whichever rounds leave it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import qsgd_compress
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.codec import CODECS, F32, Blob, GradientCodec, codec
from contract.errors import CorruptObject, NonFiniteGradient
from contract.feedback import ErrorFeedback

ALL = list(CODECS.values())
N = 1_300  # two buckets of 512 and a part


def gradient(round: int, elements: int = N) -> F32:
    """Heavy-tailed, as gradients are, with a mean that stays from round to round."""
    draw = np.random.default_rng(round)
    return (0.1 * draw.standard_t(3, elements) + np.linspace(-1, 1, elements)).astype(np.float32)


def norm(x: F32) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


@pytest.mark.parametrize("tested", ALL, ids=lambda tested: tested.name)
@given(left_out=st.lists(st.booleans(), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_what_was_taken_and_the_residual_are_the_sum_of_all_gradients(
    tested: GradientCodec, left_out: list[bool]
) -> None:
    feedback = ErrorFeedback(tested, N)
    taken = np.zeros(N)
    for round, out in enumerate(left_out):
        payload = feedback.encode(gradient(round), seed=round)
        if not out:
            feedback.taken(payload)
            taken += tested.decode(payload, N)
    expected = sum(gradient(round).astype(np.float64) for round in range(len(left_out)))
    # Two additions a round in float32, of values below 32 in sum.
    np.testing.assert_allclose(taken + feedback.state, expected, rtol=0, atol=2 * len(left_out) * 32 * 2**-24)


@pytest.mark.parametrize("tested", ALL, ids=lambda tested: tested.name)
def test_the_residual_is_what_the_payload_lacks_bit_for_bit(tested: GradientCodec) -> None:
    feedback = ErrorFeedback(tested, N)
    owed = np.zeros(N, np.float32)
    for round in range(4):
        owed = gradient(round) + owed
        payload = feedback.encode(gradient(round), seed=round)
        assert payload == tested.encode(owed, seed=round)
        np.testing.assert_array_equal(feedback.state, owed)
        feedback.taken(payload)
        owed = owed - tested.decode(payload, N)
        np.testing.assert_array_equal(feedback.state, owed)


def test_without_loss_the_bytes_are_those_of_the_codec_alone() -> None:
    feedback, x = ErrorFeedback(codec("none"), N), gradient(1)
    x[7] = -0.0  # which adding a zero would turn into 0.0
    for seed in range(3):
        payload = feedback.encode(x, seed)
        assert payload == x.tobytes()
        feedback.taken(payload)
        assert not feedback.state.any()
    feedback.encode(x, 4)
    assert feedback.encode(x, 5) == (x + x).tobytes(), "left out, so it comes with the next one"


def test_other_bytes_than_the_own_may_have_been_taken() -> None:
    """Earlier bytes that lie in S3 win: the ledger is of what the others have got."""
    tested = codec("qsgd4")
    feedback, earlier = ErrorFeedback(tested, N), tested.encode(gradient(0), seed=99)
    feedback.encode(gradient(0), seed=1)
    feedback.taken(earlier)
    np.testing.assert_array_equal(feedback.state, gradient(0) - tested.decode(earlier, N))


def test_state_goes_there_and_back_and_belongs_to_nobody_else() -> None:
    first, second = (ErrorFeedback(codec("qsgd4"), N) for _ in range(2))
    first.taken(first.encode(gradient(0), seed=0))
    state = first.state
    second.load(state)
    state[:] = 7
    assert first.encode(gradient(1), seed=1) == second.encode(gradient(1), seed=1)
    np.testing.assert_array_equal(first.state, second.state)
    second.load(np.zeros(N, np.float32))
    assert second.encode(gradient(1), seed=1) == codec("qsgd4").encode(gradient(1), seed=1)


def test_a_gradient_that_the_state_includes_is_not_added_again() -> None:
    """The round that was under way when the state was taken is computed again, from the same weights."""
    whole, resumed = (ErrorFeedback(codec("qsgd4"), N) for _ in range(2))
    whole.taken(whole.encode(gradient(0), seed=0))
    payload = whole.encode(gradient(1), seed=1)
    resumed.load(whole.state, includes_next=True)
    assert resumed.encode(gradient(1), seed=1) == payload
    for each in (whole, resumed):
        each.taken(payload)
    assert resumed.encode(gradient(2), seed=2) == whole.encode(gradient(2), seed=2), "that counts once"
    resumed.load(np.zeros(N, np.float32), includes_next=True)
    assert resumed.encode(gradient(1), seed=1) == codec("qsgd4").encode(np.zeros(N, np.float32), seed=1)
    for forget in (resumed.forget, lambda: resumed.load(np.zeros(N, np.float32))):
        resumed.load(whole.state, includes_next=True)
        forget()
        assert not resumed.state.any()
        assert resumed.encode(gradient(1), seed=1) == codec("qsgd4").encode(gradient(1), seed=1)


def test_the_given_gradient_is_left_alone() -> None:
    feedback, x = ErrorFeedback(codec("qsgd4"), N), gradient(0)
    feedback.taken(feedback.encode(x, seed=0))
    np.testing.assert_array_equal(x, gradient(0))


@pytest.mark.parametrize(
    "state", [np.zeros(N - 1, np.float32), np.zeros(N), np.zeros((1, N), np.float32), np.full(N, np.nan, np.float32)]
)
def test_a_state_that_does_not_fit_is_refused(state: F32) -> None:
    feedback = ErrorFeedback(codec("qsgd4"), N)
    feedback.encode(gradient(0), seed=0)
    with pytest.raises(CorruptObject, match="1300 finite values of float32"):
        feedback.load(state)
    np.testing.assert_array_equal(feedback.state, gradient(0))


@pytest.mark.parametrize("tested", ALL, ids=lambda tested: tested.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, np.finfo(np.float32).max])
def test_what_is_not_finite_leaves_the_residual_alone(tested: GradientCodec, bad: float) -> None:
    """The largest float32 is finite, and with a residual of its size the sum is not."""
    feedback = ErrorFeedback(tested, N)
    feedback.load(np.full(N, np.finfo(np.float32).max))
    before, x = feedback.state, np.zeros(N, np.float32)
    x[700] = bad
    with pytest.raises(NonFiniteGradient, match="700"):
        feedback.encode(x, seed=0)
    np.testing.assert_array_equal(feedback.state, before)


@pytest.mark.parametrize("tested", ALL, ids=lambda tested: tested.name)
def test_damaged_bytes_leave_the_residual_alone(tested: GradientCodec) -> None:
    feedback = ErrorFeedback(tested, N)
    payload = feedback.encode(gradient(0), seed=0)
    with pytest.raises(CorruptObject):
        feedback.taken(payload[:-1])
    np.testing.assert_array_equal(feedback.state, gradient(0))


# ----------------------------------------------------------------------------------- when it helps (decision 0012)


def errors_of_sums(tested: GradientCodec, rounds: int) -> tuple[float, float, float]:
    """Error of the sum of all decoded gradients without and with error feedback, and the largest residual; in norms
    of one gradient."""
    feedback, bare, fed, largest = ErrorFeedback(tested, N), np.zeros(N), np.zeros(N), 0.0
    for round in range(rounds):
        bare += tested.decode(tested.encode(gradient(round), seed=round), N)
        payload = feedback.encode(gradient(round), seed=round)
        feedback.taken(payload)
        fed += tested.decode(payload, N)
        largest = max(largest, norm(feedback.state))
    total, one = sum(gradient(round).astype(np.float64) for round in range(rounds)), norm(gradient(0))
    return norm(bare - total) / one, norm(fed - total) / one, largest / one


def test_errors_of_qsgd4_grow_with_the_root_of_the_rounds_and_not_at_all_with_feedback() -> None:
    few, many = errors_of_sums(codec("qsgd4"), 16), errors_of_sums(codec("qsgd4"), 256)
    assert 3 < many[0] / few[0] < 5.3, "unbiased, hence the root of 16"
    assert 1.5 < many[0] < 4
    assert max(few[1], many[1]) < 0.25
    assert many[2] < 1, "in every one of the rounds"


@dataclass(frozen=True)
class QsgdL2:
    """QSGD as in the paper, scaled by the L2 norm; the stack has no such codec."""

    name: str = "test"

    def encode(self, x: F32, seed: int) -> bytes:
        return qsgd_compress.encode(x, 4, 512, "l2", seed)

    def decode(self, blob: Blob, expected_size: int, out: F32 | None = None) -> F32:
        return qsgd_compress.decode(blob, expected_size, out)

    def check(self, blob: Blob, expected_size: int) -> None:
        qsgd_compress.check(blob, expected_size)

    def accumulate(self, blob: Blob, acc: F32, weight: float) -> None:
        qsgd_compress.accumulate(blob, acc, weight)

    def accumulate_many(self, blobs: Sequence[Blob], acc: F32, weights: Sequence[float]) -> None:
        qsgd_compress.accumulate_many(blobs, acc, weights)


def test_scaled_by_the_l2_norm_the_residual_grows_without_bound() -> None:
    """512 values of a residual have a relative variance of some 1.6 there, so each round adds more than it takes."""
    few, many = errors_of_sums(QsgdL2(), 16), errors_of_sums(QsgdL2(), 64)
    assert many[2] > 10 * few[2] > 100
    assert many[0] < 20, "without feedback, errors average out as unbiased ones do"


def test_a_gradient_that_came_too_late_comes_with_the_next_one() -> None:
    feedback = ErrorFeedback(codec("none"), N)
    feedback.owe(gradient(0))
    assert feedback.encode(gradient(1), 5) == (gradient(1) + gradient(0)).tobytes()
    feedback.taken((gradient(1) + gradient(0)).tobytes())
    feedback.load(gradient(2), includes_next=True)
    feedback.owe(gradient(2))
    np.testing.assert_array_equal(feedback.state, gradient(2))
