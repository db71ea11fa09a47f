"""An experiment of the paper: the runs that it takes, and what becomes of them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from contract.errors import RunFailed
from peerless.reproduce.result import Result


class Scale(StrEnum):
    """How large an experiment is."""

    SMALL = "small"
    """Ends within ten minutes on two cores."""
    FULL = "full"
    """The paper's numbers of images, batches, peers and epochs: hours on two cores."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run left: summary.json and events.jsonl."""

    summary: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]

    def stage(self, name: str, field: str = "seconds") -> float:
        """What a peer's round takes of a stage: seconds, or another additive field of its event (bytes_in, bytes_out).

        The median over the rounds after the first, in which weights are unpacked and workers started, of the mean over
        the peers. Raises RunFailed where no later round has that stage.
        """
        rounds: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for event in self.events:
            if event["event"] == "stage" and event["stage"] == name and event["round"] > 0:
                rounds[event["round"]][event["rank"]] += event[field]
        if not rounds:
            raise RunFailed(f"run {self.summary['run_id']} has no stage {name} after its first round")
        return statistics.median(math.fsum(ranks.values()) / len(ranks) for ranks in rounds.values())

    def worked(self, field: str) -> float:
        """What the gradient workers of a peer's round told (event `worked`): the median over peers and rounds.

        Rounds as in `stage`. Raises RunFailed where no workers told anything.
        """
        values = [
            event[field]
            for event in self.events
            if event["event"] == "worked" and event["round"] > 0 and event[field] is not None
        ]
        if not values:
            raise RunFailed(f"run {self.summary['run_id']} has nothing of its workers' {field} after its first round")
        return float(statistics.median(values))


#: Runs by name, as configurations of `peerless.train` without their name and folder.
Trainings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One table or figure."""

    name: str
    """table1 … figure6."""
    title: str
    trainings: Callable[[Scale], Trainings]
    result: Callable[[Scale, Mapping[str, Outcome], str], Result]
    """From the scale, the outcome of every training by its name, and the machine's description."""
