"""Synchronous runs whose peers die, come back, fall behind, or send what nobody can use; virtual time, no sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import wire
from contract.errors import RunFailed
from contract.records import Commit
from peer_agent.conduct import CONTENT
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import commits, configuration, events, exchange, play

SAMPLES = (24, 24, 12)


def die(cast: Cast, rank: int) -> None:
    """As `kill -9` does it: no word to anybody."""
    cast.memory_broker.silence(rank)
    cast.peers[rank].error = RunFailed("killed")


def come_back(cast: Cast, rank: int) -> None:
    """A new process under the same identity."""
    cast.peers[rank].actions.close()
    cast.memory_broker.revive(rank)
    cast.peers[rank] = cast.add(rank)
    cast.advance(rank, cast.peers[rank].runner.start)


def listed(cast: Cast) -> list[list[int]]:
    """Contributors of each round."""
    return [[contributor.rank for contributor in commit.contributors] for commit in commits(cast)]


def rounds(cast: Cast) -> int:
    """The round at which the first peer stands."""
    return cast.peers[0].runner.machine.round


@pytest.mark.parametrize("options", [{}, {"optimizer": {"name": "adam", "lr": 0.01}}], ids=["sgd", "adam"])
@pytest.mark.parametrize("every", [2, 4, 50])
def test_a_dropped_peer_comes_back_with_the_others_weights(every: int, options: dict[str, Any], tmp_path: Path) -> None:
    config = configuration(epochs=5, checkpoint={"every_rounds": every}, **options)
    cast = Cast(config, SAMPLES, events=tmp_path / "events.jsonl")
    state = {"dead": False, "back": False}

    def each(turn: int) -> None:
        if not state["dead"] and rounds(cast) == 3:
            state["dead"] = True
            die(cast, 2)
        if state["dead"] and not state["back"] and rounds(cast) == 9:
            state["back"] = True
            come_back(cast, 2)

    cast.play(each_turn=each)
    assert all(state.values())
    reports = cast.reports()
    assert {(r.reason, r.weights_sha256) for r in reports} == {("epoch_limit", reports[0].weights_sha256)}
    assert reports[2].incarnation == 2
    with_it = [2 in ranks for ranks in listed(cast)[:-1]]
    assert with_it[:3] == [True] * 3
    assert not all(with_it)
    assert with_it[-1], "a member again"
    assert "weights_adopted" not in {e["event"] for e in events(tmp_path)}, "its arithmetic is the others'"
    (caught_up,) = [e for e in events(tmp_path) if e["event"] == "caught_up"]
    assert caught_up["rank"] == 2
    assert 0 < caught_up["replayed"] <= (9 + 1 if every == 50 else 2 * every + 2)
    cast.close()


def test_a_peer_that_is_back_before_anyone_misses_it_changes_nothing() -> None:
    """Within the heartbeat's timeout: it stands in for itself, and the same gradients are applied."""
    plain = play().reports()[0].weights_sha256
    cast = Cast(configuration(), SAMPLES)
    state = {"back": False}

    def each(turn: int) -> None:
        if not state["back"] and rounds(cast) == 4:
            state["back"] = True
            cast.peers[1].error = RunFailed("killed")
            come_back(cast, 1)

    cast.play(each_turn=each)
    assert {r.weights_sha256 for r in cast.reports()} == {plain}
    assert cast.reports()[1].incarnation == 2
    assert listed(cast) == [[0, 1, 2]] * 9 + [[]]
    cast.close()


def test_below_its_quorum_a_run_waits_says_so_and_goes_on(tmp_path: Path) -> None:
    config = configuration(membership={"quorum": 3, "deadline_ceiling_seconds": 20.0})
    cast = Cast(config, SAMPLES, events=tmp_path / "events.jsonl")
    at: dict[str, int] = {}

    def each(turn: int) -> None:
        if "dead" not in at and rounds(cast) == 2:
            at["dead"] = turn
            die(cast, 2)
        if "dead" in at and "back" not in at and turn > at["dead"] + 200:
            at["back"] = turn
            assert rounds(cast) <= 3
            come_back(cast, 2)

    cast.play(each_turn=each)
    assert listed(cast) == [[0, 1, 2]] * 9 + [[]], "no round without three"
    waits = [e for e in events(tmp_path) if e["event"] == "waiting"]
    assert waits
    assert all((e["for"], e["needed"]) == ([2], 3) for e in waits)
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    cast.close()


def test_all_die_and_come_back() -> None:
    plain = play().reports()[0].weights_sha256
    cast = Cast(configuration(), SAMPLES)
    state = {"done": False}

    def each(turn: int) -> None:
        if not state["done"] and rounds(cast) == 5:
            state["done"] = True
            for rank in range(3):
                die(cast, rank)
            for rank in range(3):
                come_back(cast, rank)

    cast.play(each_turn=each)
    assert {r.weights_sha256 for r in cast.reports()} == {plain}
    assert [r.incarnation for r in cast.reports()] == [2, 2, 2]
    cast.close()


def test_contributions_of_no_use_exclude_their_sender_with_evidence() -> None:
    """Peer 2 signs frames whose values are not finite. The codec none carries them as they are."""
    cast = Cast(configuration(epochs=4, exchange=exchange(codec="none"), trust={"rejections": 2}), SAMPLES)
    contributions = cast.peers[2].actions.contributions
    make = contributions.make

    def poisoned(round: int, *arguments: Any) -> bytes:
        frame = make(round, *arguments)
        if round < 2:
            return frame
        header = wire.decode_header(frame)
        values = np.full(header.elements, np.nan, np.float32).tobytes()
        return cast.peers[2].actions.trust.key.sign_frame(wire.encode(header, values))

    contributions.make = poisoned  # type: ignore[method-assign]
    cast.play()
    excluding = [commit for commit in commits(cast) if "excluded" in commit.extensions]
    assert len(excluding) == 1
    (entry,) = excluding[0].extensions["excluded"]
    assert (entry["rank"], entry["reason"]) == (2, CONTENT)
    assert len(entry["evidence"]) == 2
    after = [commit for commit in commits(cast) if commit.round >= excluding[0].round]
    assert all(2 not in {c.rank for c in commit.contributors} for commit in after)
    assert all(2 not in {m.rank for m in commit.members} for commit in after)
    assert {type(peer.error).__name__ for peer in cast.peers} == {"NoneType", "Superseded"}
    assert "excludes rank 2" in str(cast.peers[2].error)
    kept = [peer.report for peer in cast.peers[:2]]
    assert {report.reason for report in kept if report} == {"epoch_limit"}
    cast.close()


def test_an_accusation_without_proof_excludes_nobody() -> None:
    cast = Cast(configuration(epochs=2), SAMPLES)
    create = cast.peers[1].actions.records.create_commit

    def slander(draft: Commit) -> Any:
        claim = {"rank": 2, "incarnation": 1, "reason": CONTENT, "evidence": []}
        return create(draft.__class__(**{**draft.__dict__, "extensions": {"excluded": [claim]}}))

    cast.peers[1].actions.records.create_commit = slander  # type: ignore[method-assign]
    cast.play()
    assert {r.reason for r in cast.reports()} == {"epoch_limit"}
    assert listed(cast) == [[0, 1, 2]] * 6 + [[]]
    cast.close()
