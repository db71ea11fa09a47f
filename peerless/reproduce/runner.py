"""Runs an experiment's trainings on this machine, one after the other, and writes what comes of them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from peerless.reproduce import result as results
from peerless.reproduce.experiment import Experiment, Outcome, Scale
from peerless.reproduce.result import Result

#: Below the folder of the result, one folder for each run.
RUNS = "runs"


class Trainer(Protocol):
    """Trains a configuration in a folder and gives the run's summary and events."""

    def __call__(self, config: Mapping[str, Any], folder: Path) -> Outcome: ...


def reproduce(
    experiment: Experiment, scale: Scale, folder: Path, note: Callable[[str], None], trainer: Trainer | None = None
) -> tuple[Result, list[Path]]:
    """Run `experiment` and write its result into `folder`; gives the result and the written files.

    `note` hears which run goes on. `trainer` is a local run (`peerless.train`) without. Raises UserError where the
    folder cannot be used, before anything is run; RunFailed where a run fails; KeyboardInterrupt where one is
    interrupted: a result of half a run would mislead.
    """
    train = trainer or local_training
    results.check_folder(folder)
    trainings = experiment.trainings(scale)
    outcomes = {}
    for number, (name, config) in enumerate(trainings.items(), 1):
        note(f"{experiment.name}: run {number} of {len(trainings)}, {name}")
        outcome = train(config, folder / RUNS / name)
        if outcome.summary["reason"] == "interrupted":
            raise KeyboardInterrupt(f"run {name} was interrupted; {experiment.name} has no result")
        outcomes[name] = outcome
    made = experiment.result(scale, outcomes, machine())
    return made, results.write(made, folder)


def local_training(config: Mapping[str, Any], folder: Path) -> Outcome:
    """A run of all its peers on this machine. Raises what `peerless.train` raises."""
    from peerless import api
    from peerless.report.progress import Silent

    run = api.train(config, run_dir=folder, observer=Silent())
    return Outcome(summary=run.summary, events=run.metrics())


def machine() -> str:
    """Processor and cores that this process may use, for people."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", told.read_text()) if told.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{cores} {'core' if cores == 1 else 'cores'} of {name}"
