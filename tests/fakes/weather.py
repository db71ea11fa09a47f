"""Random weather from a seed, for the storms of both machines: who is struck when, and which messages are lost."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

#: Faults by how often they come, out of a thousand things that happen.
FAULTS = {"crash": 6, "restart": 30, "pause": 4, "wake": 20, "ghost": 10, "suspect": 12, "deadline": 0, "interrupt": 0}
#: Shares of the messages that are lost, and of the rest that come twice.
LOSSES = [(0.0, 0.0), (0.1, 0.1), (0.4, 0.2), (1.0, 0.0)]
MOST_PEERS = 6


class Pausable(Protocol):
    """A process that can stand still."""

    paused: bool


class World(Protocol):
    """What a storm passes over."""

    steps: int


class Storm(Protocol):
    """One run in bad weather, and then in good."""

    weather: Weather

    def play(self) -> World: ...


PausableT = TypeVar("PausableT", bound=Pausable)
StormT = TypeVar("StormT", bound=Storm)


class Weather:
    """What one storm does, draw by draw."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - reproducible, not secret
        self.peers = self.random.randint(1, MOST_PEERS)
        self._loss, self._double = self.random.choice(LOSSES)
        self.faults = dict(FAULTS)
        self.happened: Counter[str] = Counter()

    def deliver(self) -> int:
        """How often a message arrives: 0, 1 or 2 times."""
        if self.random.random() < self._loss:
            return 0
        return 2 if self.random.random() < self._double else 1

    def may_interrupt(self) -> None:
        """One storm in five ends its run before its time."""
        if self.random.random() < 0.2:
            self.faults["interrupt"] = 2

    def fault(self) -> str:
        """The fault that comes now, which is counted; mostly there is none, and it is empty."""
        at = self.random.randrange(1_000)
        for name, weight in self.faults.items():
            if at < weight:
                self.happened[name] += 1
                return name
            at -= weight
        return ""

    def wake(self, paused: Iterable[PausableT], replace: Callable[[PausableT], object]) -> None:
        """Each goes on or is replaced."""
        for process in paused:
            if self.random.random() < 0.5:
                replace(process)
            else:
                process.paused = False

    def suspects(self, by: int) -> list[int]:
        """Who seems silent to one rank."""
        ranks = [rank for rank in range(self.peers) if rank != by and self.random.random() < 0.4]
        return ranks if self.random.random() < 0.6 else []


def played(storm: Callable[[int], StormT], description: str) -> Iterator[StormT]:
    """Storms from one seed after another, each after it was played, until so many events as the command line wants were
    handled. Prints how many that were; and, where one breaks, its seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    steps, seed, happened = 0, arguments.seed, Counter[str]()
    while steps < arguments.steps:
        one = storm(seed)
        try:
            steps += one.play().steps
        except BaseException:
            print(f"seed {seed}")
            raise
        happened += one.weather.happened
        seed += 1
        yield one
    print(f"{steps} steps in {seed - arguments.seed} storms: {dict(happened)}")
