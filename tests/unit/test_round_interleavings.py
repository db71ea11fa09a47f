"""Many peers' state machines against one another: random order, lost, doubled and delayed messages, no I/O.

tests/fakes/round_world.py asserts what must hold at every step; here no process fails, so the run's course is known.
"""

from __future__ import annotations

import random

import pytest

from peer_agent import signals as s
from tests.fakes.round_storm import Storm
from tests.fakes.round_world import World


def play(seed: int, peers: int, rounds: int, *, loss: float, interrupt_at: int | None = None) -> World:
    """Events in an order that a seeded generator draws, until everybody has ended."""
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    world = World(peers, rounds, deliver=lambda: 0 if draw.random() < loss else draw.choice((1, 1, 2)))
    for turn in range(60_000):
        live = world.live
        if not live:
            return world
        if turn == interrupt_at:
            world.handle(draw.choice(live), s.EndRequested("interrupted"))
            continue
        process = draw.choice(live)
        if process.inbox and draw.random() < 0.9:
            world.step(process, draw.randrange(len(process.inbox)))
        elif draw.random() < 0.2:
            world.handle(process, s.PollDue())
    raise AssertionError([(p.machine.phase, p.machine.round) for p in world.live])


@pytest.mark.parametrize("loss", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("peers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_every_interleaving_ends_at_the_epoch_limit_with_the_same_weights(seed: int, peers: int, loss: float) -> None:
    world = play(seed, peers, 6, loss=loss)
    assert {process.finished for process in world.processes.values()} == {"epoch_limit"}
    assert {process.machine.base for process in world.processes.values()} == {world.results[5].weights_sha256}
    assert sorted(world.commits) == list(range(7))
    assert [len(world.commits[t].contributors) for t in range(7)] == [peers] * 6 + [0]
    assert [world.commits[t].validation_loss for t in range(7)] == [None, 0.5, None, 0.5, None, 0.5, 0.5]
    assert set(world.rejections) <= {"stale", "late", "ahead"}


@pytest.mark.parametrize("loss", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_an_interrupt_at_any_moment_ends_all_after_the_same_round(seed: int, loss: float) -> None:
    world = play(seed, 4, 1_000, loss=loss, interrupt_at=1 + seed * 40)
    assert {process.finished for process in world.processes.values()} == {"interrupted"}
    began = [process.machine for process in world.processes.values() if process.machine.round >= 0]
    assert len({machine.round for machine in began}) <= 1
    assert len({machine.base for machine in began}) <= 1


@pytest.mark.parametrize("seed", range(60))
def test_storms_of_crashes_twins_and_false_suspicion_end_well(seed: int) -> None:
    """Some 45,000 steps; `python -m tests.fakes.round_storm` makes millions."""
    assert Storm(seed).play().steps > 0
