"""Figure 5: what compression does to the time for communication; VGG-11 on MNIST, four peers."""

from __future__ import annotations

from collections.abc import Mapping

from peerless.report.axes import Axis
from peerless.report.charts import Bars, bars, standalone
from peerless.reproduce.configurations import vgg11
from peerless.reproduce.experiment import Experiment, Outcome, Scale, Trainings
from peerless.reproduce.result import Origin, Result, Row, Table

CODECS = {"none": "uncompressed", "qsgd8": "QSGD, 8 bits", "qsgd4": "QSGD, 4 bits"}
SIZES = {Scale.SMALL: (64, 128), Scale.FULL: (64, 128, 512, 1024)}
#: Images of all peers at the small scale: two batches of 64 for each.
SMALL_SAMPLES = 512
EPOCHS = 5
_BYTES_A_MB = 1e6


def _trainings(scale: Scale) -> Trainings:
    samples = SMALL_SAMPLES if scale is Scale.SMALL else 0
    return {
        f"{codec}-{size}": vgg11(scale, service="local", batch_size=size, samples=samples, epochs=EPOCHS, codec=codec)
        for size in SIZES[scale]
        for codec in CODECS
    }


def _result(scale: Scale, outcomes: Mapping[str, Outcome], machine: str) -> Result:
    sizes = SIZES[scale]
    return Result(
        name="figure5",
        title="Figure 5: compression and the time for communication",
        scale=scale.value,
        machine=machine,
        tables=tuple(_table(size, outcomes) for size in sizes),
        notes=(
            "The figure is a drawing without printed values. The paper's text says that compression reduces the time "
            "for communication at every batch size.",
            "Here S3 and the broker are on the same machine, where a byte costs next to nothing and compression costs "
            "processor time; what a network of limited speed gains follows from the bytes.",
            "`receiving` is the time between the own contribution's departure and the others' arrival, so it holds "
            "what slower peers' gradients take longer.",
            "The paper's QSGD has the L2 norm; here each bucket of 512 values has its maximum, at the same size and "
            "with a quarter of the error.",
        ),
        charts={f"figure5-{size}.svg": _chart(size, outcomes) for size in sizes},
        runs=tuple(str(outcome.summary["run_id"]) for outcome in outcomes.values()),
    )


def _table(size: int, outcomes: Mapping[str, Outcome]) -> Table:
    runs = [outcomes[f"{codec}-{size}"] for codec in CODECS]
    rows = {
        "sending: seconds": [run.stage("send") for run in runs],
        "receiving, with waiting: seconds": [run.stage("receive") for run in runs],
        "update: seconds": [run.stage("update") for run in runs],
        "sent: MB": [run.stage("send", "bytes_out") / _BYTES_A_MB for run in runs],
        "received: MB": [run.stage("receive", "bytes_in") / _BYTES_A_MB for run in runs],
        "gradients are smaller by": [run.summary["compression_ratio"] for run in runs],
    }
    return Table(
        title=f"Batches of {size}: a peer's epoch",
        columns=tuple(CODECS.values()),
        rows=tuple(Row(origin=Origin.MEASURED, name=name, values=tuple(values)) for name, values in rows.items()),
    )


def _chart(size: int, outcomes: Mapping[str, Outcome]) -> str:
    runs = [outcomes[f"{codec}-{size}"] for codec in CODECS]
    drawn = bars(
        f"Sending and receiving, batches of {size}",
        "Seconds of a peer's epoch for sending and for receiving by codec, measured on one machine",
        list(CODECS.values()),
        [Bars(name="sending", values=[run.stage("send") for run in runs]),
         Bars(name="receiving, with waiting", values=[run.stage("receive") for run in runs])],
        axis=Axis(label="seconds", zero=True),
    )  # fmt: skip
    return standalone(drawn)


FIGURE5 = Experiment(name="figure5", title="compression and communication", trainings=_trainings, result=_result)
