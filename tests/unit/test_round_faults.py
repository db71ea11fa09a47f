"""The round's state machine under arbitrary interleavings, losses, crashes and false suspicion (hypothesis)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from peer_agent import signals as s
from peer_agent.outcome import Phase
from tests.fakes.round_world import Process, World

ROUNDS = 5


class Rounds(RuleBasedStateMachine):
    """Whatever happens, the world's own assertions hold; and once the faults are over, everybody comes to the end."""

    world: World
    steps = 0
    """Events that machines have handled, over all runs."""

    @initialize(
        peers=st.integers(1, 5),
        quorum=st.sampled_from([1.0, 1.0, 0.5, 0.75, 1, 2]),
        topology=st.sampled_from(["all_gather", "reduce_scatter"]),
        arrivals=st.lists(st.sampled_from([0, 1, 1, 1, 2]), min_size=1, max_size=40),
    )
    def begin(self, peers: int, quorum: int | float, topology: str, arrivals: list[int]) -> None:
        told = iter(range(10**9))
        quorum = min(quorum, peers) if isinstance(quorum, int) else quorum
        self.world = World(
            peers, ROUNDS, quorum=quorum, topology=topology, deliver=lambda: arrivals[next(told) % len(arrivals)]
        )

    def one(self, data: st.DataObject) -> Process:
        return data.draw(st.sampled_from(self.world.live))

    def anyone(self) -> bool:
        return bool(self.world.live)

    @precondition(anyone)
    @rule(data=st.data(), events=st.integers(1, 12))
    def work(self, data: st.DataObject, events: int) -> None:
        process = self.one(data)
        for _ in range(min(events, len(process.inbox))):
            if process.over:
                return
            self.world.step(process, data.draw(st.integers(0, len(process.inbox) - 1)))

    @precondition(anyone)
    @rule(data=st.data())
    def everybody_works(self, data: st.DataObject) -> None:
        for process in self.world.live:
            for _ in range(20):
                if process.inbox and not process.over:
                    self.world.step(process, data.draw(st.integers(0, min(3, len(process.inbox) - 1))))

    @precondition(anyone)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        self.world.handle(self.one(data), s.PollDue())

    @precondition(anyone)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        process = self.one(data)
        if process.inbox and not isinstance(process.inbox[0], s.Started):
            event = data.draw(st.sampled_from(process.inbox))
            if isinstance(event, s.FrameArrived | s.CommitFound | s.ResultFound | s.Heard | s.StopFound):
                process.inbox.remove(event)
                if isinstance(event, s.CommitFound | s.ResultFound):  # S3's own answers are never lost
                    process.inbox.append(s.PollDue())

    @precondition(lambda self: len(self.world.live) > 1)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.world.crash(self.one(data).ref.rank)

    @precondition(lambda self: len(self.world.processes) < self.world.peers)
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        gone = [rank for rank in range(self.world.peers) if rank not in self.world.processes]
        self.world.start(data.draw(st.sampled_from(gone)))

    @precondition(lambda self: len(self.world.live) > 1)
    @rule(data=st.data())
    def stand_still(self, data: st.DataObject) -> None:
        self.one(data).paused = True

    @rule(data=st.data())
    def wake_or_be_replaced(self, data: st.DataObject) -> None:
        for process in [p for p in self.world.processes.values() if p.paused]:
            if data.draw(st.booleans()):
                self.world.start(process.ref.rank)
            else:
                process.paused = False

    @precondition(lambda self: self.world.ghosts)
    @rule(data=st.data())
    def a_ghost_wakes(self, data: st.DataObject) -> None:
        ghost = data.draw(st.sampled_from(self.world.ghosts))
        while ghost.inbox and not ghost.over:
            self.world.step(ghost, 0)

    @precondition(anyone)
    @rule(data=st.data(), ranks=st.sets(st.integers(0, 4), max_size=3))
    def suspect(self, data: st.DataObject, ranks: set[int]) -> None:
        process = self.one(data)
        self.world.suspect(process, ranks - {process.ref.rank})

    @precondition(anyone)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        self.world.beat(self.one(data))

    @precondition(anyone)
    @rule(data=st.data(), hard=st.booleans())
    def a_deadline(self, data: st.DataObject, hard: bool) -> None:
        process = self.one(data)
        if process.machine.phase is not Phase.JOINING:
            event = s.DeadlineReached(600.0) if hard else s.RoundDeadline(process.machine.round)
            self.world.handle(process, event)

    @precondition(anyone)
    @rule(data=st.data(), chance=st.integers(0, 9))
    def interrupt(self, data: st.DataObject, chance: int) -> None:
        if chance == 0:
            self.world.handle(self.one(data), s.EndRequested("interrupted"))

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.heal()
        Rounds.steps += world.steps
        for process in world.processes.values():
            assert process.finished in ("epoch_limit", "interrupted"), (process.ref, process.failed)
        assert len({p.machine.base for p in world.processes.values() if p.machine.base and p.machine.round >= 0}) <= 1
        assert max(world.commits) <= ROUNDS


SETTINGS = settings(
    max_examples=150, stateful_step_count=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def test_arbitrary_interleavings_losses_and_crashes() -> None:
    """150 runs of up to 80 rules, each of which is up to dozens of steps: events that a peer's machine handles."""
    Rounds.steps = 0
    run_state_machine_as_test(Rounds, settings=SETTINGS)
    assert Rounds.steps >= 10_000
