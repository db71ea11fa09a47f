"""Random weather for the world of tests/fakes/round_world.py: a long run of faults from a seed.

    python -m tests.fakes.round_storm --steps 1000000 --seed 1

plays storms of different peers, quorums and loss until so many events have been handled, and prints how many.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

from peer_agent import signals as s
from peer_agent.outcome import Phase
from tests.fakes.round_world import Process, World

#: Faults by how often they come, out of a thousand things that happen.
FAULTS = {"crash": 6, "restart": 30, "pause": 4, "wake": 20, "ghost": 10, "suspect": 12, "deadline": 8, "interrupt": 0}


class Storm:
    """One run in bad weather, and then in good."""

    def __init__(self, seed: int, *, rounds: int = 8, turns: int = 1_500) -> None:
        self.random = random.Random(seed)  # noqa: S311 - reproducible, not secret
        draw, peers = self.random, self.random.randint(1, 6)
        loss, double = draw.choice([(0.0, 0.0), (0.1, 0.1), (0.4, 0.2), (1.0, 0.0)])
        quorum = draw.choice([1.0, 1.0, 0.5, 0.75, min(2, peers), 1])

        def deliver() -> int:
            if draw.random() < loss:
                return 0
            return 2 if draw.random() < double else 1

        topology = draw.choice(["all_gather", "reduce_scatter"])
        odd = draw.sample(range(peers), draw.choice([0, 0, 0, 1, peers // 2]))
        self.world = World(peers, rounds, quorum=quorum, deliver=deliver, topology=topology, odd=odd)
        self.turns = turns
        self.faults = dict(FAULTS)
        if odd:
            self.faults["deadline"] = (
                0  # who alone holds recorded weights may be gone for long, and comes back in the end
            )
        if draw.random() < 0.2:
            self.faults["interrupt"] = 2
        self.happened: Counter[str] = Counter()

    def play(self) -> World:
        """Bad weather for some turns, then good weather until all have ended."""
        for _ in range(self.turns):
            fault = self._draw()
            if fault:
                self._strike(fault)
            elif self.world.live:
                self._work(self.random.choice(self.world.live))
        self.world.heal()
        ended = [process for process in self.world.processes.values() if process not in self.world.lost]
        for process in ended:
            assert process.finished in ("epoch_limit", "interrupted"), (process.ref, process.failed)
        began = [process for process in ended if process.machine.round >= 0]
        assert len({process.machine.base for process in began}) <= 1
        return self.world

    def _draw(self) -> str:
        at = self.random.randrange(1_000)
        for name, weight in self.faults.items():
            if at < weight:
                return name
            at -= weight
        return ""

    def _work(self, process: Process) -> None:
        draw = self.random.random()
        if process.inbox and draw < 0.85:
            near = min(len(process.inbox), 1 if draw < 0.5 else 8)
            self.world.step(process, self.random.randrange(near))
        elif draw < 0.95:
            self.world.beat(process)
        else:
            self.world.handle(process, s.PollDue())

    def _strike(self, fault: str) -> None:
        world, draw = self.world, self.random
        self.happened[fault] += 1
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
                for process in [p for p in world.processes.values() if p.paused]:
                    if draw.random() < 0.5:
                        world.start(process.ref.rank)
                    else:
                        process.paused = False
            case "ghost" if world.ghosts:
                ghost = draw.choice(world.ghosts)
                while ghost.inbox and not ghost.over:
                    world.step(ghost, 0)
            case "suspect" if world.live:
                process = draw.choice(world.live)
                ranks = [r for r in range(world.peers) if r != process.ref.rank and draw.random() < 0.4]
                world.suspect(process, ranks if draw.random() < 0.6 else ())
            case "deadline" if world.live:
                process = draw.choice(world.live)
                if process.machine.phase is not Phase.JOINING:
                    hard = draw.random() < 0.3
                    world.handle(process, s.DeadlineReached(600.0) if hard else s.RoundDeadline(process.machine.round))
            case "interrupt" if world.live:
                world.handle(draw.choice(world.live), s.EndRequested("interrupted"))


def main() -> None:
    """Play storms until enough events were handled."""
    parser = argparse.ArgumentParser(description="Faults at random against the round's state machine.")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    steps, seed, happened = 0, arguments.seed, Counter[str]()
    while steps < arguments.steps:
        storm = Storm(seed)
        try:
            steps += storm.play().steps
        except BaseException:
            print(f"seed {seed}")
            raise
        happened += storm.happened
        seed += 1
    print(f"{steps} steps in {seed - arguments.seed} storms: {dict(happened)}")


if __name__ == "__main__":
    main()
