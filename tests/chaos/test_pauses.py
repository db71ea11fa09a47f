"""Case 5: a process is stopped until another has taken its rank over, and then goes on as if nothing had been.

It must notice before it does anything: it stops itself, and nothing that it still had in hand is committed.
"""

from __future__ import annotations

import signal

import pytest

from contract.errors import EXIT_SUPERSEDED
from tests.chaos.conftest import Prepare
from tests.chaos.faults import Fault, plan
from tests.chaos.test_kills import ENDLESS, LEADER, PACE_SECONDS, ROUND, assert_together

CASES = [
    (1, "before_compute"),
    pytest.param(1, "after_compute", marks=pytest.mark.slow),
    pytest.param(1, "before_upload", marks=pytest.mark.slow),
    pytest.param(LEADER, "before_commit", marks=pytest.mark.slow),
    pytest.param(LEADER, "before_result", marks=pytest.mark.slow),
]
#: Whose contribution to round 3 counts, by point: the stopped process's, or its successor's to the same round. At the
#: commit both are right, and whoever commits in its place decides by what it has seen.
FROM_FIRST = {"before_commit": (0, 1), "before_result": (1,)}


@pytest.mark.parametrize(("rank", "at"), CASES)
def test_a_twin_that_wakes_up_stops_itself(prepare: Prepare, rank: int, at: str) -> None:
    fault = Fault(rank=rank, round=ROUND, at=at, do="stop")
    fleet = prepare(epochs=ENDLESS)
    fleet.start(plan(fault, pace_seconds=PACE_SECONDS))
    fleet.until_struck(fault)
    first = fleet.process(rank)

    fleet.start(ranks=[rank], plan=plan(pace_seconds=PACE_SECONDS))
    fleet.until_member(rank, 2)
    assert first.stopped
    first.send(signal.SIGCONT)
    fleet.until(lambda: first.status is not None or None, "the first process goes on")
    assert first.status == EXIT_SUPERSEDED
    assert "Superseded" in first.errors
    (failed,) = fleet.events("failed", rank)
    assert f"rank {rank}" in failed["error"]

    # The run goes on as if the other had never woken up.
    fleet.until_committed(len(fleet.commits()) + 2)
    fleet.interrupt()
    assert_together(fleet)
    commits = fleet.commits()
    own = [c.round for c in commits for peer in c.contributors if (peer.rank, peer.incarnation) == (rank, 1)]
    assert own in [list(range(ROUND + more)) for more in FROM_FIRST.get(at, (0,))]
    writers = [commit.writer for commit in commits[ROUND + (at == "before_result") :]]
    writers += [fleet.result(commit.round).writer for commit in commits[ROUND:-1]]
    assert not any((writer.rank, writer.incarnation) == (rank, 1) for writer in writers)
    assert fleet.report(rank).incarnation == 2
