"""What a look for contributions into S3 costs, in requests."""

from __future__ import annotations

import pytest

from contract.keys import Place
from peer_agent import signals as s
from peer_agent.contributions import LOOKS
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import configuration, exchange

PEERS, THERE = 20, (3, 7, 15)


@pytest.mark.parametrize("topology", ["all_gather", "reduce_scatter"])
def test_a_look_for_many_is_one_listing_and_a_request_for_each_that_is_there(topology: str) -> None:
    config = configuration(peers=PEERS, exchange=exchange(codec="qsgd4", topology=topology))
    cast = Cast(config, (8,) * PEERS)
    requests: list[tuple[str, int | None]] = []

    def note(operation: str, place: Place) -> None:
        if "/contributions/" in place.key:
            name = place.key.rpartition("/")[2]
            requests.append((operation, int(name.partition("-")[0]) if name else None))

    try:
        for peer in cast.peers:
            peer.runner.start()
        for rank in THERE:
            while rank not in {member.rank for member in cast.peers[rank].runner.machine.members}:
                cast.advance(rank, cast.peers[rank].runner.step)
            cast.advance(rank, cast.peers[rank].runner.step)
        actions, machine = cast.peers[0].actions, cast.peers[0].runner.machine
        while machine.round < 0:
            cast.advance(0, cast.peers[0].runner.step)
        cast.store.before = note

        def look(count: int) -> list[int]:
            members = tuple(member for member in machine.members if member.rank != 0)[:count]
            found = list(actions.execute(s.FindContributions(0, members)))
            assert found[-1] == s.ContributionsSought(0, tuple(member.rank for member in members))
            return [event.header.rank for event in found if isinstance(event, s.FrameArrived)]

        assert look(PEERS - 1) == list(THERE)
        assert requests[0] == ("list", None)
        assert {rank for _, rank in requests[1:]} == set(THERE)
        each = len(requests[1:]) / len(THERE)
        assert each == {"all_gather": 1, "reduce_scatter": 2}[topology], "of a table its beginning, then all of it"

        requests.clear()
        assert look(LOOKS) == [rank for rank in THERE if rank <= LOOKS]
        assert "list" not in {operation for operation, _ in requests}
        assert {rank for _, rank in requests} == set(range(1, LOOKS + 1)), "of few each is asked for at once"
    finally:
        cast.store.before = None
        cast.close()
