"""Slow and missing peers under a quorum: who is too slow is left out and stays; below the quorum a run waits."""

from __future__ import annotations

import numpy as np
import pytest

from contract import wire
from contract.codec import codec
from tests.chaos.conftest import Prepare
from tests.chaos.faults import Fault, plan
from tests.chaos.fleet import Fleet
from tests.chaos.test_kills import ENDLESS, PACE_SECONDS, ROUND, assert_together

#: The first three rounds wait for everyone, as nothing is known of how long a round takes; the fourth is this one.
ADAPTIVE = {"deadline_floor_seconds": 3.0, "deadline_ceiling_seconds": 90.0}


def contribution(fleet: Fleet, round: int, rank: int) -> np.ndarray | None:
    """What a peer's first process says in a round, decoded; None where it has contributed nothing."""
    found = fleet.store.find(fleet.spec.places.contribution(round, rank, 1))
    if found is None:
        return None
    frame = wire.decode(found[0], expected_elements=None, expected_buffers_bytes=None)
    return codec(frame.header.codec).decode(frame.payload, frame.header.elements)


def test_who_is_too_slow_is_left_out_and_stays(prepare: Prepare) -> None:
    """It stands with its contribution in hand. The codec loses nothing, so that its debt is known to the bit."""
    slow, others = 2, [0, 1, 3]
    gate = Fault(rank=slow, round=ROUND, at="before_upload", do="wait")
    fleet = prepare(
        membership={"quorum": 0.75, "heartbeat_timeout_seconds": 20.0, **ADAPTIVE},
        exchange={"codec": "none", "error_feedback": True},
    )
    fleet.start(plan(gate, keep_gradients=True))
    fleet.until_struck(gate)
    commit = fleet.until_committed(ROUND)
    assert [c.rank for c in commit.contributors] == others
    assert [(m.rank, m.incarnation) for m in commit.members] == [(rank, 1) for rank in range(4)]
    assert all([c.rank for c in earlier.contributors] == [0, 1, 2, 3] for earlier in fleet.commits()[:ROUND])
    # The round took its deadline, which followed the rounds before: their median is far below the floor.
    (begun,) = [event["t"] for event in fleet.events("round_started", 0, ROUND)]
    fleet.until(lambda: fleet.events("commit", 0, ROUND), "peer 0 does not go on")
    (ended,) = [event["t"] for event in fleet.events("commit", 0, ROUND)]
    assert 3.0 <= ended - begun < 30.0
    fleet.release(gate)

    assert_together(fleet)
    assert not fleet.events("member_dropped")
    assert {report.incarnation for report in map(fleet.report, range(4))} == {1}
    # All that it computed and no commit took is in its next contribution, and nothing else is.
    owed = np.zeros_like(fleet.gradient(slow, 0))
    taken = {c.round for c in fleet.commits() if slow in {peer.rank for peer in c.contributors}}
    for round in range(fleet.spec.rounds_limit):
        if (said := contribution(fleet, round, slow)) is not None:
            owed = fleet.gradient(slow, round) + owed
            assert said.tobytes() == owed.tobytes()
            owed = np.zeros_like(owed) if round in taken else owed
    assert ROUND not in taken
    assert max(taken) > ROUND, "it takes part again"


@pytest.mark.slow
def test_below_its_quorum_a_run_waits_says_so_and_goes_on(prepare: Prepare) -> None:
    """Three of four are needed. The two that are left wait for as long as the test wants."""
    lost = [1, 3]
    faults = [Fault(rank=rank, round=ROUND, at="before_compute", do="kill") for rank in lost]
    fleet = prepare(epochs=ENDLESS, membership={"quorum": 3, **ADAPTIVE})
    fleet.start(plan(*faults, pace_seconds=PACE_SECONDS))
    fleet.until_struck(*faults)
    fleet.until(lambda: all(fleet.events("waiting", rank, ROUND) for rank in (0, 2)), "the others do not say so")
    # By now the two are silent, and the round's deadline is over.
    told = [(e["rank"], e["for"], e["needed"]) for e in fleet.events("waiting", round=ROUND)]
    assert sorted(told) == [(0, lost, 3), (2, lost, 3)]
    assert len(fleet.commits()) == ROUND
    assert not fleet.exists(fleet.spec.places.stop())
    assert all(fleet.process(rank).status is None for rank in (0, 2))

    fleet.start(ranks=[1], plan=plan(pace_seconds=PACE_SECONDS))
    commit = fleet.until_committed(ROUND)
    assert [(c.rank, c.incarnation) for c in commit.contributors] == [(0, 1), (1, 2), (2, 1)]
    assert [m.rank for m in commit.members] == [0, 1, 2]
    fleet.start(ranks=[3], plan=plan(pace_seconds=PACE_SECONDS))
    fleet.until_member(3, 2)
    fleet.interrupt()
    assert_together(fleet)
    assert all(len(c.contributors) >= 3 for c in fleet.commits()[:-1])
