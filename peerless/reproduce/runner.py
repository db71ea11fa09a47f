"""Runs an experiment's trainings on this machine, one after the other, and writes what comes of them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from contract.config import with_overrides
from peerless.reproduce import result as results
from peerless.reproduce.experiment import Experiment, Outcome, Scale
from peerless.reproduce.result import Result

#: Images that the saved model is tested on where a run uses only some of the training set.
SMALL_TEST = 512
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
    where = machine()
    trainings = experiment.trainings(scale)
    outcomes = {}
    for number, (name, config) in enumerate(trainings.items(), 1):
        note(f"{experiment.name}: run {number} of {len(trainings)}, {name}")
        outcome = train(config, folder / RUNS / name)
        if outcome.summary["reason"] == "interrupted":
            raise KeyboardInterrupt(f"run {name} was interrupted; {experiment.name} has no result")
        outcomes[name] = outcome
    made = experiment.result(scale, outcomes, where)
    return made, results.write(made, folder)


def local_training(config: Mapping[str, Any], folder: Path) -> Outcome:
    """A run of all its peers on this machine. Raises what `peerless.train` raises."""
    from peerless import api
    from peerless.report.progress import Silent

    run = api.train(config, dataset=_cut(config), run_dir=folder, observer=Silent())
    return Outcome(summary=run.summary, events=run.metrics())


def _cut(config: Mapping[str, Any]) -> Any:
    """The data of a run that uses only some of them, with as few test images; None where it uses all.

    The test of the saved model would otherwise take longer than such a run.
    """
    from peerless import data

    chosen = with_overrides(config, (), "experiment").data
    if not chosen.train_samples:
        return None
    whole, kept = data.load(chosen), chosen.train_samples + chosen.validation_samples
    return replace(
        whole,
        train_x=whole.train_x[:kept],
        train_y=whole.train_y[:kept],
        test_x=None if whole.test_x is None else whole.test_x[:SMALL_TEST],
        test_y=None if whole.test_y is None else whole.test_y[:SMALL_TEST],
    )


def machine() -> str:
    """Processor, cores that this process may use, and what else wants them now, for people."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", told.read_text()) if told.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{cores} {'core' if cores == 1 else 'cores'} of {name}, load average {os.getloadavg()[0]:.1f} before"
