"""Figure 4: time for gradients and for communication by number of peers; VGG-11 and MobileNet V3 Small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peerless.report.axes import Axis
from peerless.report.charts import Line, lines, standalone
from peerless.reproduce.configurations import training, vgg11
from peerless.reproduce.experiment import Experiment, Outcome, Scale, Trainings
from peerless.reproduce.result import Origin, Result, Row, Table

MODELS = {"vgg11": "VGG-11", "mobilenet_v3_small": "MobileNet V3 Small"}
PEERS = {Scale.SMALL: (2, 4, 8), Scale.FULL: (4, 8, 12)}
EPOCHS = 3
_BYTES_A_MB = 1e6


def _trainings(scale: Scale) -> Trainings:
    return {f"{model}-{peers}": _training(scale, model, peers) for model in MODELS for peers in PEERS[scale]}


def _training(scale: Scale, model: str, peers: int) -> Mapping[str, Any]:
    size = {"batch_size": 128, "samples": 1_024} if scale is Scale.SMALL else {"batch_size": 1_024, "samples": 0}
    chosen: dict[str, Any] = {"service": "local", "epochs": EPOCHS, "peers": peers, **size}
    return vgg11(scale, **chosen) if model == "vgg11" else training(model, **chosen)


def _result(scale: Scale, outcomes: Mapping[str, Outcome], machine: str) -> Result:
    counts = PEERS[scale]
    tables, charts = [], {}
    for model, told in MODELS.items():
        runs = [outcomes[f"{model}-{peers}"] for peers in counts]
        rows = {
            "gradients: seconds": [run.stage("compute") for run in runs],
            "sending: seconds": [run.stage("send") for run in runs],
            "receiving, with waiting: seconds": [run.stage("receive") for run in runs],
            "communication: seconds": [run.stage("send") + run.stage("receive") for run in runs],
            "sent and received: MB": [_megabytes(run) for run in runs],
        }
        tables.append(
            Table(
                title=f"{told}: a peer's epoch, by number of peers",
                columns=tuple(f"{peers} peers" for peers in counts),
                rows=tuple(
                    Row(origin=Origin.MEASURED, name=name, values=tuple(values)) for name, values in rows.items()
                ),
            )
        )
        charts[f"figure4-{model}.svg"] = _chart(
            told, counts, rows["gradients: seconds"], rows["communication: seconds"]
        )
    return Result(
        name="figure4",
        title="Figure 4: gradients and communication by number of peers",
        scale=scale.value,
        machine=machine,
        tables=tuple(tables),
        notes=(
            "The figure is a drawing without printed values. The paper's text says that computation time decreases and "
            "communication time increases with the number of peers, much more so for VGG-11.",
            "In the paper each peer has an instance. Here all share the same few cores: the batches of a peer become "
            "fewer as peers are added, and so do the cores that it has, so that its seconds for gradients need not "
            "decrease.",
            "`receiving` is the time between the own contribution's departure and the others' arrival, so it holds "
            "what slower peers' gradients take longer. Bytes do not depend on the machine.",
            "Gradients are not compressed. Small: batches of 128, and VGG-11 with 9.2 million parameters; full: "
            "batches of 1024 and 128.8 million.",
        ),
        charts=charts,
        runs=tuple(str(outcome.summary["run_id"]) for outcome in outcomes.values()),
    )


def _megabytes(run: Outcome) -> float:
    moved = sum(run.stage(stage, field) for stage in ("send", "receive") for field in ("bytes_in", "bytes_out"))
    return moved / _BYTES_A_MB


def _chart(told: str, counts: tuple[int, ...], gradients: list[float], communication: list[float]) -> str:
    drawn = lines(
        f"{told}: gradients and communication",
        "Seconds of a peer's epoch for gradients and for communication by number of peers, measured on one machine",
        [
            Line(name=name, points=list(zip(map(float, counts), seconds, strict=True)))
            for name, seconds in (("gradients", gradients), ("communication", communication))
        ],
        x=Axis(label="peers", whole=True),
        y=Axis(label="seconds", zero=True),
    )
    return standalone(drawn)


FIGURE4 = Experiment(name="figure4", title="gradients and communication by peers", trainings=_trainings, result=_result)
