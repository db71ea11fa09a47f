"""Table III: time and cost of gradients without serverless, VGG-11 on MNIST, four peers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from peerless.cost.paper import instance_cost_usd, instance_usd_per_second
from peerless.reproduce import workload
from peerless.reproduce.configurations import vgg_on_workers
from peerless.reproduce.experiment import Experiment, Outcome, Scale, Trainings
from peerless.reproduce.measured import MEASURED_NOTE, WITHOUT, gradients_table, with_and_without
from peerless.reproduce.result import Origin, Result, Row, Table
from peerless.reproduce.tables import TABLE_3

#: What else could compute the same batches: two vCPUs each, and as fast as a t2.large's if nothing else is known.
OTHERS = ("t3.large", "t4g.large", "c7g.large")


def _trainings(scale: Scale) -> Trainings:
    return with_and_without(scale, vgg_on_workers, services=(WITHOUT,))


def _result(scale: Scale, outcomes: Mapping[str, Outcome], machine: str) -> Result:
    return Result(
        name="table3",
        title="Table III: gradients without serverless",
        scale=scale.value,
        machine=machine,
        tables=(_formula(), gradients_table(outcomes)),
        notes=(
            "All four costs come out as printed.",
            "Work per batch is what the times of Table III give for two vCPUs; it is what Table II's times are "
            "explained with (peerless reproduce table2).",
            MEASURED_NOTE,
        ),
        runs=tuple(str(outcome.summary["run_id"]) for outcome in outcomes.values()),
    )


def _formula() -> Table:
    def row(origin: Origin, name: str, *values: float) -> Row:
        return Row(origin=origin, name=name, values=values)

    return Table(
        title="Table III and formula (2)",
        columns=tuple(f"batches of {column.batch_size}" for column in TABLE_3),
        rows=(
            row(Origin.PAPER, "time to compute gradients, s", *(column.seconds for column in TABLE_3)),
            row(Origin.PAPER, "t2.large, USD per second", *(column.ec2_usd_per_second for column in TABLE_3)),
            row(Origin.PAPER, "cost per peer, USD", *(column.usd for column in TABLE_3)),
            row(Origin.COMPUTED, "formula (2), USD", *(column.formula_usd() for column in TABLE_3)),
            row(
                Origin.COMPUTED,
                "the same, cut off after five decimals",
                *(math.floor(column.formula_usd() * 1e5) / 1e5 for column in TABLE_3),
            ),
            *(
                row(
                    Origin.COMPUTED,
                    f"the same seconds on a {kind} by the price book, USD",
                    *(instance_cost_usd(instance_usd_per_second(kind), column.seconds) for column in TABLE_3),
                )
                for kind in ("t2.large", *OTHERS)
            ),
            row(
                Origin.DERIVED,
                "work of a batch, vCPU-seconds",
                *(workload.vcpu_seconds(column.batch_size) for column in TABLE_3),
            ),
            row(
                Origin.DERIVED,
                "work of an image, vCPU-milliseconds",
                *(1e3 * workload.vcpu_seconds(column.batch_size) / column.batch_size for column in TABLE_3),
            ),
        ),
    )


TABLE3 = Experiment(
    name="table3", title="gradients without serverless: time and cost", trainings=_trainings, result=_result
)
