"""Random weather for the world of tests/fakes/round_world.py: a long run of faults from a seed.

    python -m tests.fakes.round_storm --steps 1000000 --seed 1

plays storms of different peers, quorums and loss until so many events have been handled, and prints how many.
"""

from __future__ import annotations

from peer_agent import signals as s
from peer_agent.outcome import Phase
from tests.fakes.round_world import Process, World
from tests.fakes.weather import Weather, played

#: Out of a thousand things that happen.
DEADLINES = 8


class Storm:
    """One run in bad weather, and then in good."""

    def __init__(self, seed: int, *, rounds: int = 8, turns: int = 1_500) -> None:
        self.weather = Weather(seed)
        draw, peers = self.weather.random, self.weather.peers
        quorum = draw.choice([1.0, 1.0, 0.5, 0.75, min(2, peers), 1])
        topology = draw.choice(["all_gather", "reduce_scatter"])
        odd = draw.sample(range(peers), draw.choice([0, 0, 0, 1, peers // 2]))
        self.world = World(peers, rounds, quorum=quorum, deliver=self.weather.deliver, topology=topology, odd=odd)
        self.turns = turns
        # Who alone holds recorded weights may be gone for long, and comes back in the end.
        self.weather.faults["deadline"] = 0 if odd else DEADLINES
        self.weather.may_interrupt()

    def play(self) -> World:
        """Bad weather for some turns, then good weather until all have ended."""
        for _ in range(self.turns):
            if fault := self.weather.fault():
                self._strike(fault)
            elif self.world.live:
                self._work(self.weather.random.choice(self.world.live))
        self.world.heal()
        ended = [process for process in self.world.processes.values() if process not in self.world.lost]
        for process in ended:
            assert process.finished in ("epoch_limit", "interrupted"), (process.ref, process.failed)
        began = [process for process in ended if process.machine.round >= 0]
        assert len({process.machine.base for process in began}) <= 1
        return self.world

    def _work(self, process: Process) -> None:
        draw = self.weather.random.random()
        if process.inbox and draw < 0.85:
            near = min(len(process.inbox), 1 if draw < 0.5 else 8)
            self.world.step(process, self.weather.random.randrange(near))
        elif draw < 0.95:
            self.world.beat(process)
        else:
            self.world.handle(process, s.PollDue())

    def _strike(self, fault: str) -> None:
        world, draw = self.world, self.weather.random
        match fault:
            case "crash" if len(world.live) > 1:
                world.crash(draw.choice(world.live).ref.rank)
            case "restart":
                for rank in range(world.peers):
                    if rank not in world.processes or world.processes[rank].failed:
                        world.start(rank)
            case "pause" if len(world.live) > 1:
                draw.choice(world.live).paused = True
            case "wake":
                paused = [process for process in world.processes.values() if process.paused]
                self.weather.wake(paused, lambda process: world.start(process.ref.rank))
            case "ghost" if world.ghosts:
                ghost = draw.choice(world.ghosts)
                while ghost.inbox and not ghost.over:
                    world.step(ghost, 0)
            case "suspect" if world.live:
                process = draw.choice(world.live)
                world.suspect(process, self.weather.suspects(process.ref.rank))
            case "deadline" if world.live:
                process = draw.choice(world.live)
                if process.machine.phase is not Phase.JOINING:
                    hard = draw.random() < 0.3
                    world.handle(process, s.DeadlineReached(600.0) if hard else s.RoundDeadline(process.machine.round))
            case "interrupt" if world.live:
                world.handle(draw.choice(world.live), s.EndRequested("interrupted"))


if __name__ == "__main__":
    for _ in played(Storm, "Faults at random against the round's state machine."):
        pass
