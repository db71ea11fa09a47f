"""Error feedback in whole runs: what the codec loses and what a commit leaves out comes back; nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.codec import codec
from contract.config import RunConfig
from contract.errors import NonFiniteGradient
from contract.records import Commit
from contract.wire import Frame, decode, encode
from peer_agent.ports import RoundGradient
from tests.fakes.peer_ports import QuadraticGradients
from tests.fakes.peers import Cast, Peer
from tests.fakes.sync_runs import commits, configuration, events, exchange, play

N = 51  # parameters of the model


def feeding(codec: str = "qsgd4", **changes: Any) -> RunConfig:
    return configuration(exchange=exchange(codec=codec, error_feedback=True), **changes)


def frame(cast: Cast, round: int, rank: int) -> Frame:
    data = cast.store.get(cast.spec.places.contribution(round, rank, 1))
    return decode(data, expected_elements=N, expected_buffers_bytes=0)


def residual(cast: Cast, rank: int) -> np.ndarray:
    feedback = cast.peers[rank].actions.contributions.feedback
    assert feedback is not None
    return feedback.state


class Seen(QuadraticGradients):
    """Keeps what it gave."""

    def __init__(self, rank: int, samples: int, elements: int) -> None:
        super().__init__(rank, samples, elements)
        self.given: list[np.ndarray] = []

    def compute(self, **arguments: Any) -> Any:
        found = super().compute(**arguments)
        self.given.append(found.gradient.copy())
        return found


def seen(spec: Any, store: Any, rank: int) -> Seen:
    return Seen(rank, (24, 24, 12)[rank], N)


def without_deletion(cast: Cast) -> Cast:
    cast.store.delete = lambda places: None  # type: ignore[method-assign]
    return cast


@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("name", ["qsgd4", "qsgd8", "fp16"])
def test_all_that_was_committed_and_the_residuals_are_all_gradients(name: str, broker: bool) -> None:
    cast = without_deletion(Cast(feeding(name), (24, 24, 12), gradients=seen, broker=broker))
    cast.play()
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    for rank in range(3):
        sent = sum(codec(name).decode(frame(cast, t, rank).payload, N) for t in range(9))
        given = np.sum(cast.peers[rank].gradients.given, axis=0)
        np.testing.assert_allclose(sent + residual(cast, rank), given, rtol=0, atol=9 * 2e-6)
        assert residual(cast, rank).any()
    cast.close()


def test_two_runs_of_one_seed_end_with_the_same_bits_and_others_than_without_feedback() -> None:
    first, second = play(feeding()), play(feeding())
    assert first.reports()[0].weights_sha256 == second.reports()[0].weights_sha256
    plain = play(configuration(exchange=exchange(codec="qsgd4")))
    assert plain.reports()[0].weights_sha256 != first.reports()[0].weights_sha256


def test_peers_in_threads_end_with_the_weights_of_the_stepped_run() -> None:
    cast = Cast(feeding(), (24, 24, 12), threads=True)
    cast.play_in_threads()
    assert {r.weights_sha256 for r in cast.reports()} == {play(feeding()).reports()[0].weights_sha256}


def test_events_and_figures_are_those_of_a_run_without_it(tmp_path: Path) -> None:
    def told(name: str, config: RunConfig) -> tuple[list[Any], list[Any]]:
        (tmp_path / name).mkdir()
        cast = play(config, events=tmp_path / name / "events.jsonl")
        shown = [(e["event"], e["rank"], e["round"], set(e)) for e in events(tmp_path / name)]
        fields = ("rounds", "bytes_sent", "gradient_bytes_raw", "gradient_bytes_encoded", "frames_rejected", "stages")
        return shown, [[getattr(report, field) for field in fields] for report in cast.reports()]

    with_it, without = told("with", feeding()), told("without", configuration(exchange=exchange(codec="qsgd4")))
    assert with_it[0] == without[0]
    sizes = [[report[2:5] for report in reports] for reports in (with_it[1], without[1])]
    assert sizes[0] == sizes[1]


def test_a_codec_that_loses_nothing_gives_the_frames_and_weights_of_a_run_without_it() -> None:
    cast, plain = (without_deletion(Cast(config, (24, 24, 12))) for config in (feeding("none"), configuration()))
    for each in (cast, plain):
        each.play()
        each.close()
    for t in range(9):
        assert [c.digest for c in commits(cast)[t].contributors] == [c.digest for c in commits(plain)[t].contributors]
    assert cast.reports()[0].weights_sha256 == plain.reports()[0].weights_sha256
    assert not residual(cast, 0).any()


def leave_out(peer: Peer, round: int, rank: int) -> None:
    """Whatever commit record this peer writes for `round` does not list `rank`."""
    create = peer.actions.records.create_commit

    def without(draft: Commit) -> tuple[Commit, bool]:
        kept = tuple(c for c in draft.contributors if (draft.round, c.rank) != (round, rank))
        return create(replace(draft, contributors=kept))

    peer.actions.records.create_commit = without  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["none", "qsgd4"])
def test_a_contribution_that_a_commit_leaves_out_comes_with_the_next_one(name: str) -> None:
    """As with a quorum below all members: commit 3 lists ranks 0 and 1 only, although all three have contributed."""
    cast = without_deletion(Cast(feeding(name), (24, 24, 12), gradients=seen))
    for peer in cast.peers:
        leave_out(peer, round=3, rank=2)
    cast.play()
    assert [[c.rank for c in commit.contributors] for commit in commits(cast)[3:5]] == [[0, 1], [0, 1, 2]]
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    assert all(r.error is None for r in cast.reports())

    given = cast.peers[2].gradients.given
    assert np.abs(given[3]).min() > 0.1, "there was something to lose"
    # Round 4 carries its own gradient and all of round 3's, to within the rounding of rounds 2 and 4.
    arrived = codec(name).decode(frame(cast, 4, 2).payload, N)
    level = np.abs(given[3] + given[4]).max() / 7 if name == "qsgd4" else 2e-6
    np.testing.assert_allclose(arrived, given[3] + given[4], rtol=0, atol=2 * level)
    taken = sum(codec(name).decode(frame(cast, t, 2).payload, N) for t in range(9) if t != 3)
    np.testing.assert_allclose(taken + residual(cast, 2), np.sum(given, axis=0), rtol=0, atol=9 * 4e-6)
    cast.close()


def test_earlier_bytes_that_lie_in_s3_are_what_was_sent() -> None:
    """The contribution to round 2 is there already, rounded otherwise; all apply it, and the residual follows it."""
    cast = without_deletion(Cast(feeding(), (24, 24, 12), gradients=seen))
    contributions = cast.peers[1].actions.contributions
    store_own = contributions.store_own

    def another_rounding(made: bytes, members: Any = ()) -> Any:
        found = decode(made, expected_elements=N, expected_buffers_bytes=0)
        if found.header.round == 2:
            values = codec("qsgd4").decode(found.payload, N)
            payload = codec("qsgd4").encode(values * np.float32(0.9), seed=1)
            earlier = cast.peers[1].actions.trust.key.sign_frame(encode(found.header, payload, found.buffers))
            cast.store.create(contributions.place(2, cast.peers[1].actions.me), earlier)
        return store_own(made, members)

    contributions.store_own = another_rounding  # type: ignore[method-assign]
    cast.play()
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    sent = sum(codec("qsgd4").decode(frame(cast, t, 1).payload, N) for t in range(9))
    given = np.sum(cast.peers[1].gradients.given, axis=0)
    np.testing.assert_allclose(sent + residual(cast, 1), given, rtol=0, atol=9 * 2e-6)
    cast.close()


def test_a_round_that_this_process_did_not_compute_leaves_the_residual_alone() -> None:
    """A predecessor's contribution may be applied after a restart: it stands for no gradient of this process."""
    cast = without_deletion(Cast(feeding(), (24, 24, 12)))
    cast.play()
    contributions, kept = cast.peers[1].actions.contributions, residual(cast, 1)
    header = contributions.fetch(commits(cast)[7].contributors[1], 7)
    contributions.settle([header])
    np.testing.assert_array_equal(residual(cast, 1), kept)
    cast.close()


def test_a_gradient_that_is_not_finite_leaves_the_residual_alone() -> None:
    cast = Cast(feeding(), (24, 24, 12))
    cast.play()
    contributions, kept = cast.peers[1].actions.contributions, residual(cast, 1)
    broken = RoundGradient(
        gradient=np.full(N, np.nan, np.float32), buffers={}, samples=24, loss=0.0, invocations=0, executions=0,
        bytes_in=0, bytes_out=0,
    )  # fmt: skip
    with pytest.raises(NonFiniteGradient):
        contributions.make(9, "0" * 64, broken, None)
    np.testing.assert_array_equal(residual(cast, 1), kept)
    cast.close()


def test_asynchronous_peers_count_each_frame_of_theirs_as_sent() -> None:
    """They apply their own at once; what others do with it they are not told."""
    cast = without_deletion(Cast(feeding(mode="async"), (24, 24, 12), gradients=seen))
    cast.play(order=lambda turn: [rank for rank, pace in enumerate((1, 2, 3)) if turn % pace == 0])
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    for rank, report in enumerate(cast.reports()):
        assert report.rounds > 2
        sent = sum(codec("qsgd4").decode(frame(cast, t, rank).payload, N) for t in range(report.rounds))
        given = np.sum(cast.peers[rank].gradients.given[: report.rounds], axis=0)
        np.testing.assert_allclose(sent + residual(cast, rank), given, rtol=0, atol=9 * 2e-6)
    cast.close()
