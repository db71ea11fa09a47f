"""Synchronous runs with a quorum below all members and a peer that computes too slowly; virtual time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peer_agent.background import Finished
from tests.fakes.peer_ports import Inline
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import commits, configuration, events, exchange

SAMPLES = (24, 24, 12)


class Lagging(Inline):
    """Jobs end when `ready` says so; counts how many are under way at once."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        super().__init__()
        self._ready = ready
        self.most = 0

    def start(self, job: Callable[[], Any], then: Callable[[Any], Any]) -> None:
        super().start(job, then)
        self.most = max(self.most, len(self._jobs))

    def finished(self, timeout_seconds: float) -> list[Finished]:
        return super().finished(timeout_seconds) if self._ready() else []


@pytest.mark.parametrize("error_feedback", [True, False])
def test_a_gradient_of_a_round_that_others_went_on_from_is_kept_and_one_is_computed_at_a_time(
    error_feedback: bool, tmp_path: Path
) -> None:
    config = configuration(
        epochs=6,
        validate_every=100,
        membership={"quorum": 2, "deadline_floor_seconds": 1.0, "deadline_ceiling_seconds": 2.0},
        exchange=exchange(error_feedback=error_feedback),
    )
    cast = Cast(config, SAMPLES, events=tmp_path / "events.jsonl")
    slow = Lagging(lambda: not 2 <= cast.peers[0].runner.machine.round < 6)
    object.__setattr__(cast.peers[2].actions.ports, "background", slow)
    cast.play()
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    with_it = [2 in {c.rank for c in commit.contributors} for commit in commits(cast)[:-1]]
    assert with_it[:2] == [True, True]
    assert not any(with_it[2:6])
    assert all(with_it[6:]), "it counts again as soon as it keeps up"
    late = [e for e in events(tmp_path) if e["event"] == "gradient_late"]
    # The others commit round 5 while it catches up with their records.
    assert [(e["rank"], e["round"], e["kept"], e["samples"]) for e in late] == [
        (2, 2, error_feedback, 12),
        (2, 5, error_feedback, 12),
    ]
    assert slow.most == 1
    began = [e["round"] for e in events(tmp_path) if e["event"] == "round_started" and e["rank"] == 2]
    assert began[:5] == [0, 1, 2, 5, 6], "rounds that went by meanwhile are not computed"
    cast.close()
