"""Table I: what each stage of an epoch takes, four peers that compute their own gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peerless.reproduce.configurations import training
from peerless.reproduce.experiment import Experiment, Outcome, Scale, Trainings
from peerless.reproduce.result import Origin, Result, Row, Table
from peerless.reproduce.tables import TABLE_1

STAGES = ("compute", "send", "receive", "update", "convergence")
_TITLES = {"squeezenet1_1": "SqueezeNet 1.1", "mobilenet_v3_small": "MobileNet V3 Small", "vgg11": "VGG-11"}
#: Data sets in the order of the paper's pairs of figures; the small scale takes the first.
_SOURCES = {"mnist": "MNIST", "cifar10": "CIFAR"}
EPOCHS = 4
_BYTES_A_MB = 1e6


def _trainings(scale: Scale) -> Trainings:
    small = scale is Scale.SMALL
    size: dict[str, Any] = {"batch_size": 64, "samples": 1_024} if small else {"batch_size": 512, "samples": 0}
    sources = list(_SOURCES)[:1] if small else list(_SOURCES)
    return {
        f"{model}-{source}": training(
            model, service="local", epochs=EPOCHS, source=source, options=_options(model, small), **size
        )
        for model in TABLE_1
        for source in sources
    }


def _options(model: str, small: bool) -> dict[str, Any]:
    return {"head": "cifar"} if model == "vgg11" and small else {}


def _result(scale: Scale, outcomes: Mapping[str, Outcome], machine: str) -> Result:
    tables = []
    for name, outcome in outcomes.items():
        model, source = name.split("-")
        tables.append(_table(model, source, outcome))
    return Result(
        name="table1",
        title="Table I: what each stage of an epoch takes",
        scale=scale.value,
        machine=machine,
        tables=tuple(tables),
        notes=(
            "The paper has 30 batches of a peer on a t2.medium or t2.large of its own; here four peers share this "
            "machine, each with one thread (so at most 100% of a core for gradients), and at the small scale a peer "
            "has four batches of 64. Seconds are not comparable; which stage takes most of them is.",
            "The paper heads its gradients `per batch`; its 104.37 s for VGG-11 are neither a batch nor the 30 batches "
            "of Table III (9.28 s and 278.4 s). They stand here as printed.",
            "`receive` is all waiting for others, so it holds what the slower peers' gradients take longer.",
            "Memory here is the largest resident set of a peer's process while the stage ran.",
            "Images have 32 pixels. VGG-11 has the paper's 128.8 million parameters only at full scale, 9.2 million "
            "at the small one.",
        ),
        runs=tuple(str(outcome.summary["run_id"]) for outcome in outcomes.values()),
    )


def _table(model: str, source: str, outcome: Outcome) -> Table:
    index = list(_SOURCES).index(source)
    paper = [TABLE_1[model][stage] for stage in STAGES]
    here = [outcome.summary["stages"][stage] for stage in STAGES]
    epochs = outcome.summary["rounds"]
    seconds = [row["seconds"] / epochs for row in here]
    rows = (
        (Origin.PAPER, "seconds per epoch", [stage.seconds[index] for stage in paper]),
        (Origin.MEASURED, "seconds per epoch", seconds),
        (Origin.COMPUTED, "paper: share of the epoch, %", _shares([stage.seconds[index] for stage in paper])),
        (Origin.COMPUTED, "here: share of the epoch, %", _shares(seconds)),
        (Origin.PAPER, "CPU, % of a core", [stage.cpu_percent[index] for stage in paper]),
        (Origin.MEASURED, "CPU, % of a core", [row["cpu_percent"] for row in here]),
        (Origin.PAPER, "memory, MB", [stage.memory_mb[index] for stage in paper]),
        (Origin.MEASURED, "memory, MB", [row["peak_rss_bytes"] / _BYTES_A_MB for row in here]),
    )
    return Table(
        title=f"{_TITLES[model]} on {_SOURCES[source]}",
        columns=STAGES,
        rows=tuple(Row(origin=origin, name=name, values=tuple(values)) for origin, name, values in rows),
    )


def _shares(seconds: list[float]) -> list[float]:
    whole = math.fsum(seconds)
    return [100 * each / whole for each in seconds]


TABLE1 = Experiment(name="table1", title="what each stage takes", trainings=_trainings, result=_result)
