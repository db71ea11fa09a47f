"""Whole runs with robust aggregation: who is left out or clipped is told by everybody alike, and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.peers import Cast
from tests.fakes.sync_runs import configuration, events

PEERS, ROUNDS = 5, 9


def play(folder: Path, **changes: Any) -> tuple[Cast, list[dict[str, Any]]]:
    """A run of five peers, and its events `aggregated`."""
    cast = Cast(configuration(peers=PEERS, **changes), (24,) * PEERS, events=folder / "events.jsonl")
    cast.play()
    cast.close()
    return cast, [event for event in events(folder) if event["event"] == "aggregated"]


def test_whom_krum_left_out_is_told_and_counted_by_everybody(tmp_path: Path) -> None:
    cast, told = play(tmp_path, aggregation={"name": "krum"})
    assert [(event["aggregator"], event["clipped"], event["note"]) for event in told] == [("krum", [], "")] * len(told)
    by_round: dict[int, set[tuple[int, ...]]] = {}
    for event in told:
        by_round.setdefault(event["round"], set()).add(tuple(event["left_out"]))
    assert len(told) == PEERS * ROUNDS
    assert list(by_round) == list(range(ROUNDS))
    assert all(len(said) == 1 for said in by_round.values()), "all peers say the same"
    left_out = [left for (left,) in by_round.values()]
    assert all(len(set(left)) == PEERS - 1 for left in left_out)
    counted = Counter(str(rank) for left in left_out for rank in left)
    assert [report.left_out for report in cast.reports()] == [dict(counted)] * PEERS
    assert [report.clipped for report in cast.reports()] == [{}] * PEERS


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_who_was_clipped_is_told_and_counted(tmp_path: Path, mode: str) -> None:
    """The points of ranks 0 to 4 are as many steps away from each other; in the first round 4 is the farthest."""
    cast, told = play(tmp_path, mode=mode, aggregation={"name": "mean", "clip_norm": 20.0})
    first = [event for event in told if event["round"] == 0]
    assert first
    assert all(4 in event["clipped"] and 0 not in event["clipped"] for event in first if mode == "sync")
    assert all((event["left_out"], event["note"]) == ([], "") for event in told)
    for report in cast.reports():
        own = Counter(str(rank) for event in told if event["rank"] == report.rank for rank in event["clipped"])
        assert report.clipped == dict(own)


def test_a_round_with_too_few_contributions_for_krum_says_what_it_took_instead(tmp_path: Path) -> None:
    cast = Cast(
        configuration(peers=PEERS, aggregation={"name": "krum"}), (24,) * PEERS, events=tmp_path / "events.jsonl"
    )

    def each(turn: int) -> None:
        if turn == 4:
            cast.memory_broker.silence(4)
            cast.peers[4].error = RuntimeError("never stepped again")

    cast.play(each_turn=each)
    cast.close()
    told = [e for e in events(tmp_path) if e["event"] == "aggregated"]
    (dropped,) = {e["round"] for e in events(tmp_path) if e["event"] == "member_dropped"}
    note = "krum with byzantine = 1 needs 5 contributions; the round has 4, whose median bears 1"
    after = [(e["round"], e["note"], e["left_out"]) for e in told if e["round"] >= dropped]
    assert sorted(after) == [(round, note, []) for round in range(dropped, ROUNDS) for _ in range(PEERS - 1)]


def test_a_plain_mean_says_nothing(tmp_path: Path) -> None:
    cast, told = play(tmp_path)
    assert told == []
    assert all(report.left_out == report.clipped == {} for report in cast.reports())
