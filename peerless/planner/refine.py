"""A calibration refined by a measured run: its folder's configuration, events and summary.

What a run shows: seconds of a batch where workers computed them, the time of compute stages beside that, and the time
from the contribution's departure to the next round. The first rounds are left out: processes and caches warm up.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contract.config
from contract.config import RunConfig
from contract.errors import UserError
from peerless.launch.run_folder import RunFolder
from peerless.planner.calibration import LEAST_SPREAD, Calibration, Correction
from peerless.planner.terms import Term, deviation, total

#: Rounds that warm up.
WARM = 2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run took per round, medians over rounds and peers, in seconds."""

    run: str
    config: RunConfig
    where: str
    """`aws.lambda`, `aws.local` (in the peers' own processes), and `local.lambda`, `local.local` of the local stack."""
    rounds: int
    """Rounds that count."""
    round_seconds: float
    """From one commit to the next."""
    round_spread: float
    step_seconds: float | None
    """Forward and backward of a batch, as workers measured it."""
    step_spread: float
    compute_seconds: float
    accuracy: tuple[tuple[float, ...], ...]
    """(rounds, validation accuracy), as it came."""


def read(run: str) -> Measured:
    """Of a run by its name under runs/, or its folder. Raises UserError."""
    path = Path(run) if Path(run).is_dir() else Path("runs") / run
    folder = RunFolder(path)
    if not folder.events.exists() or not folder.config.exists():
        raise UserError(f"--from-run {run}: there is no run of that name here, nor such a folder")
    events = [json.loads(line) for line in folder.events.read_bytes().split(b"\n")[:-1]]
    config = contract.config.from_toml(folder.config)
    # A run on AWS is told by its instances' events; everything else was trained here.
    place = "aws" if any(event["event"] == "instance_started" for event in events) else "local"
    return measured(path.name, config, events, f"{place}.{config.compute.service}")


def measured(run: str, config: RunConfig, events: Sequence[dict[str, Any]], where: str) -> Measured:
    """From a run's events. Raises UserError for a run of too few rounds."""
    moments: dict[int, float] = {}
    for event in events:
        if event["event"] == "commit" and event["contributors"]:
            moments[event["round"]] = min(event["t"], moments.get(event["round"], event["t"]))
    rounds = [number for number in sorted(moments) if number >= WARM and number + 1 in moments]
    if not rounds:
        raise UserError(f"--from-run {run}: it has {len(moments)} rounds, and {WARM + 2} are needed to learn from it")
    times = [moments[number + 1] - moments[number] for number in rounds]
    seen = {name: _of(events, rounds, name) for name in ("worked", "stage")}
    steps = [event["step_seconds"] for event in seen["worked"]]
    compute = [event["seconds"] for event in seen["stage"] if event["stage"] == "compute"]
    accuracy = [
        (float(event["round"] + 1), float(event["validation_accuracy"]))
        for event in events
        if event["event"] == "validated" and event.get("validation_accuracy") is not None
    ]
    return Measured(
        run=run,
        config=config,
        where=where,
        rounds=len(times),
        round_seconds=statistics.median(times),
        round_spread=deviation(times),
        step_seconds=statistics.median(steps) if steps else None,
        step_spread=deviation(steps),
        compute_seconds=statistics.median(compute) if compute else 0.0,
        accuracy=tuple(sorted(accuracy)),
    )


def refined(calibration: Calibration, found: Measured, terms: Sequence[Term], step_seconds: float) -> Calibration:
    """With what the run has shown, in place of what runs of its kind have shown before.

    `terms` and `step_seconds` (of one batch) are predictions of the same run's round, made from the calibration without
    corrections. What a round takes beyond the compute stage is the exchange's.
    """
    predicted = {part: total([term for term in terms if term.part == part]) for part in ("step", "compute", "exchange")}
    told = found.step_seconds is not None and step_seconds > 0
    # Without workers to tell, the compute stage is all that is known of the steps.
    step = (found.step_seconds or 0.0) / step_seconds if told else found.compute_seconds / predicted["step"]
    factors = {"step": (step, found.step_spread if told else found.round_spread)}
    beside = found.compute_seconds - step * predicted["step"]
    rest = found.round_seconds - found.compute_seconds
    for part, seconds in (("compute", beside if told else 0.0), ("exchange", rest)):
        if predicted[part] > 0 and (told or part == "exchange"):
            # A difference of medians may come out at nothing; a tenth of the prediction is the least that is believed.
            factors[part] = max(0.1, seconds / predicted[part]), found.round_spread
    new = [
        Correction(where=found.where, part=part, factor=factor, spread=spread, run=found.run)
        for part, (factor, spread) in factors.items()
    ]
    kept = [each for each in calibration.corrections if each.where != found.where]
    return dataclasses.replace(
        calibration,
        corrections=(*kept, *new),
        accuracy=found.accuracy or calibration.accuracy,
        accuracy_run=found.run if found.accuracy else calibration.accuracy_run,
    )


def corrected(calibration: Calibration, where: str, terms: Sequence[Term]) -> tuple[Term, ...]:
    """Predicted terms of a round `where` (Measured.where), as runs there have shown them to be."""
    return tuple(_corrected(calibration.correction(where, term.part), term) for term in terms)


def _corrected(found: Correction | None, term: Term) -> Term:
    if found is None:
        return term
    return term.times(found.factor, spread=max(found.spread, LEAST_SPREAD), source=f"corrected by run {found.run}")


def _of(events: Sequence[dict[str, Any]], rounds: Sequence[int], name: str) -> list[dict[str, Any]]:
    """Events of one kind in the rounds that count, whole ones."""
    return [event for event in events if event["event"] == name and event["round"] in set(rounds)]
