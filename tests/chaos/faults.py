"""What goes wrong where: the plan that a test gives its peers, as plain values. Imports neither torch nor the agent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

#: The variable of a peer's environment that carries its plan.
PLAN = "PEERLESS_CHAOS_PLAN"

#: Where a fault can strike in a round, in the order of a round. "before" is just before the call of the port, "after"
#: when it has succeeded and nothing has followed from it yet.
POINTS = (
    "before_hello",  # the rank is claimed, nobody knows
    "before_compute",
    "during_map",  # at the round's second batch: the first one's gradient is there or on its way
    "after_compute",
    "before_upload",
    "after_upload",  # the contribution lies in S3 and is not announced
    "after_publish",  # it is announced, and there is no commit
    "before_commit",  # about to create the commit record: whoever leads
    "after_commit",  # the record lies in S3 and is not announced
    "before_update",
    "during_barrier",  # the step is taken: between the update and the barrier
    "before_shard",
    "after_shard",
    "before_result",
    "after_result",  # the record lies in S3 and is not announced
    "before_checkpoint",
    "after_checkpoint",
)

#: What a peer does to its own gradient, every round: the attacks of issue 5's case 4.
ATTACKS = ("scaled", "flipped", "random")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that happens once, to one process.

    `kill` and `stop` are SIGKILL and SIGSTOP to itself, from the thread that is there. `raise` is an error of no known
    kind. `wait` holds the thread that is there until the test lets it go (`Fleet.release`).
    """

    rank: int
    round: int
    at: str
    do: Literal["kill", "stop", "raise", "wait"]

    def __post_init__(self) -> None:
        if self.at not in POINTS:
            raise ValueError(f"{self.at!r} is none of {', '.join(POINTS)}")

    @property
    def gate(self) -> str:
        """Name of the pipe at which a `wait` waits, in the run's folder."""
        return f"gate-{self.rank}-{self.round}-{self.at}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is to go wrong in a run's first processes; one that is started again has an empty plan."""

    faults: tuple[Fault, ...] = ()
    attacks: dict[int, str] = field(default_factory=dict)
    """By rank, one of ATTACKS."""
    unusable: dict[int, int] = field(default_factory=dict)
    """By rank the round from which on its contributions say that they come of no sample at all."""
    pace_seconds: float = 0.0
    """So long a gradient takes at least, as one on Lambda would: what is to happen meanwhile has the processors."""
    keep_gradients: bool = False
    """Every gradient is kept in the run's folder (`Fleet.gradient`), so that a test can see what became of it."""

    def __post_init__(self) -> None:
        if unknown := set(self.attacks.values()) - set(ATTACKS):
            raise ValueError(f"{min(unknown)!r} is none of {', '.join(ATTACKS)}")

    def to_json(self) -> str:
        """For PLAN."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Inverse of `to_json`."""
        form = json.loads(text)
        return cls(
            faults=tuple(Fault(**fault) for fault in form["faults"]),
            attacks={int(rank): attack for rank, attack in form["attacks"].items()},
            unusable={int(rank): round for rank, round in form["unusable"].items()},
            pace_seconds=form["pace_seconds"],
            keep_gradients=form["keep_gradients"],
        )


def plan(
    *faults: Fault, attacks: dict[int, str] | None = None, pace_seconds: float = 0.0, keep_gradients: bool = False
) -> Plan:
    """A plan in one line."""
    return Plan(faults=faults, attacks=attacks or {}, pace_seconds=pace_seconds, keep_gradients=keep_gradients)


def gradient_name(rank: int, round: int) -> str:
    """Name of the file that keeps a gradient, in the run's folder."""
    return f"gradient-{rank}-{round}.npy"


def everywhere(ranks: Sequence[int], round: int, at: str) -> tuple[Fault, ...]:
    """All these peers wait at the same place."""
    return tuple(Fault(rank=rank, round=round, at=at, do="wait") for rank in ranks)
