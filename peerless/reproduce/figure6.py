"""Figure 6: synchronous against asynchronous training; in the paper of MobileNet V3 Small."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from contract.errors import RunFailed
from peerless.report.axes import Axis
from peerless.report.charts import Line, lines, standalone
from peerless.reproduce.configurations import training
from peerless.reproduce.experiment import Experiment, Outcome, Scale, Trainings
from peerless.reproduce.result import Origin, Result, Row, Table
from peerless.reproduce.tables import SYNC_ACCURACY, SYNC_EPOCHS

MODES = {"sync": "synchronous", "async": "asynchronous"}
#: In 96 rounds the running statistics of MobileNet's normalisation, of momentum 0.01, have not got anywhere yet.
MODEL = {Scale.SMALL: "cnn", Scale.FULL: "mobilenet_v3_small"}
EPOCHS = {Scale.SMALL: 6, Scale.FULL: SYNC_EPOCHS}
#: Images of all peers at the small scale: 16 batches of 64 for each of four.
SMALL_SAMPLES = 4_096
VALIDATE_EVERY = 8
#: The paper's rate needs its 128 epochs; six of them need a larger one.
OPTIMIZER = {
    Scale.SMALL: {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    Scale.FULL: {"name": "sgd", "lr": 0.001},
}


def _trainings(scale: Scale) -> Trainings:
    return {mode: _training(scale, mode) for mode in MODES}


def _training(scale: Scale, mode: str) -> dict[str, Any]:
    config = training(
        MODEL[scale],
        service="local",
        batch_size=64,
        batches_per_round=1,
        samples=SMALL_SAMPLES if scale is Scale.SMALL else 0,
        epochs=EPOCHS[scale],
        mode=mode,
    )
    return {**config, "optimizer": dict(OPTIMIZER[scale]), "validate_every": VALIDATE_EVERY}


def _result(scale: Scale, outcomes: Mapping[str, Outcome], machine: str) -> Result:
    curves = {mode: validations(outcomes[mode]) for mode in MODES}
    measured = tuple(
        Row(
            origin=Origin.MEASURED,
            name=told,
            values=(
                outcomes[mode].summary["epochs"],
                outcomes[mode].summary["rounds"],
                100 * max(accuracy for _, _, accuracy in curves[mode]),
                100 * _largest_fall(curves[mode]),
                _percent(outcomes[mode].summary["test_accuracy"]),
                outcomes[mode].summary["seconds_training"],
            ),
        )
        for mode, told in MODES.items()
    )
    paper = Row(
        origin=Origin.PAPER,
        name="synchronous, MobileNet V3 Small",
        values=(SYNC_EPOCHS, None, 100 * SYNC_ACCURACY, None, None, None),
    )
    return Result(
        name="figure6",
        title="Figure 6: synchronous and asynchronous training",
        scale=scale.value,
        machine=machine,
        tables=(
            Table(
                title="Accuracy, batches of 64",
                columns=(
                    "epochs", "rounds", "best accuracy, %", "largest fall between validations, points",
                    "test accuracy, %", "seconds of training",
                ),
                rows=(paper, *measured),
                note="The largest fall says how unsteady training is; accuracies are means over those that validated "
                "in a round. Test accuracy belongs to the saved model.",
            ),
        ),
        notes=(
            "The figure is a drawing without printed values. The paper's text says that synchronous training reached "
            "84.3% after about 128 epochs, and that asynchronous training needed more epochs and was unstable.",
            "Here peers take a step for every batch of 64, where the paper's take one per epoch. At the small scale: "
            "the demo's CNN in place of MobileNet V3 Small, 4,096 images of MNIST, six epochs, SGD at 0.05 with "
            "momentum, where the paper has 0.001.",
            "A frame that is more than four rounds behind is rejected here (exchange.max_staleness), which bounds how "
            "outdated a gradient can be.",
        ),
        charts={
            "figure6-rounds.svg": _chart(curves, 0, "rounds"),
            "figure6-seconds.svg": _chart(curves, 1, "seconds since the first round"),
        },
        runs=tuple(str(outcome.summary["run_id"]) for outcome in outcomes.values()),
    )  # fmt: skip


def validations(outcome: Outcome) -> list[tuple[float, float, float]]:
    """By round, in order: the round, seconds since the first one began, and accuracy on the validation set.

    The means over the peers that validated: one in synchronous mode, in asynchronous mode each its own weights. Raises
    RunFailed where nothing was validated.
    """
    begun = min((event["t"] for event in outcome.events if event["event"] == "round_started"), default=0.0)
    rounds: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for event in outcome.events:
        if event["event"] == "validated" and event["validation_accuracy"] is not None:
            rounds[event["round"]].append((event["t"] - begun, event["validation_accuracy"]))
    if not rounds:
        raise RunFailed(f"run {outcome.summary['run_id']} has validated nothing")
    return [
        (float(number), statistics.fmean(at for at, _ in found), statistics.fmean(accuracy for _, accuracy in found))
        for number, found in sorted(rounds.items())
    ]


def _largest_fall(curve: list[tuple[float, float, float]]) -> float:
    return max((max(0.0, before[2] - after[2]) for before, after in pairwise(curve)), default=0.0)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _chart(curves: Mapping[str, list[tuple[float, float, float]]], at: int, label: str) -> str:
    drawn = lines(
        f"Accuracy over {label.split()[0]}",
        f"Accuracy on the validation set by {label}, synchronous and asynchronous, measured on one machine",
        [Line(name=told, points=[(point[at], point[2]) for point in curves[mode]]) for mode, told in MODES.items()],
        x=Axis(label=label, zero=True),
        y=Axis(label="accuracy", percent=True),
    )
    return standalone(drawn)


FIGURE6 = Experiment(
    name="figure6", title="synchronous against asynchronous training", trainings=_trainings, result=_result
)
