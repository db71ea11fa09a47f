"""Averaging 25 MB of float32 among four peers, against torch.distributed's all-reduce over gloo.

Peers are real ones on a real RabbitMQ and a local S3: `qsgd4`, commit, optimizer step, barrier and all the rest; only
their gradients cost nothing. A round lasts from the moment in which all gradients are there until the last peer has
passed the barrier. Nothing is hidden: the next round begins at once, so that what a peer does late in a round, such as
deleting old objects, counts in the next. Gloo's side lasts from the moment in which all vectors are there until the
last process has the mean; it takes float32 as it is. Both are timed alike (benchmarks/meeting.py), gloo before and
after the peers, and the median over all rounds counts, without the first ones.

Both topologies are measured; and the same again on links of 100 Mbit/s, in network namespaces (benchmarks/links.py),
where these can be made. These model peers at different owners, each behind a line of its own, full duplex; S3 and the
broker are services that serve many at once, so their side is not shaped. With P peers, V bytes of float32 and C of a
compressed gradient there cross each peer's line, at least, one after the other where a line stands between them:

    gloo, a ring      2 (P - 1)/P V out, as much in at the same time
    all_gather        C out, then (P - 1) C in
    reduce_scatter    C out with (P - 1)/P C in at the same time, C/P out, (P - 1)/P C in

At P = 4, V = 25 MB and 12.5 MB/s the ring takes 3.0 s. C is 3.17 MB, or 2.58 MB packed (`exchange.packing = "zstd"`, as
who has such a line would configure it, and as is measured here): 0.83 s and 0.41 s. So `all_gather` cannot be 4 times
faster than a ring that wastes nothing, whatever it costs beside its bytes, and `reduce_scatter` can.

On one machine nothing of this counts. There a round costs what it takes of the processors, which peers, S3 and broker
share: the local S3 is one Python process, which keeps its objects in memory here as gloo does its buffers (a user's run
has them in files as well, to be taken up again). `cpu_seconds` has the peers' part.

That both sides do equal work is checked by value, and a difference ends the benchmark: gloo's result is the exact mean
but for float32 rounding; what the peers applied is the mean of the decoded contributions, and the same on all. How far
that is from the exact mean is a figure.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import links
from benchmarks.comparison import UnequalWorkError
from benchmarks.crew import ELEMENTS, ROOT, Crew, Prefix, configuration, environment, finish
from benchmarks.meeting import Meeting
from benchmarks.reporting import Figure
from benchmarks.vectors import exact_mean, relative_error
from infra.local.cloud import LocalCloud
from infra.local.processes import Child

PEERS = 4
#: Relative distance up to which two float32 means of the same values count as equal.
FLOAT32_ROUNDING = 1e-5
STAGES = ("send", "receive", "update")
#: Each is measured by itself; the first is the default, and its figures have no suffix.
TOPOLOGIES = ("all_gather", "reduce_scatter")
#: What is configured where lines are slow. What must be is asked of the default on one machine and of this on links.
FOR_SLOW_LINES = "reduce_scatter"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    elements: int = ELEMENTS
    rounds: int = 45
    warm: int = 5
    """Rounds at the beginning that do not count: memory is traced in the first three."""
    gloo_rounds: int = 20
    gloo_warm: int = 2
    seconds: float = 300.0
    """Limit for each side."""
    topology: str = "all_gather"
    packing: str = "none"


def shaped_plan(topology: str) -> Plan:
    """On slow links rounds take seconds and differ little."""
    return Plan(rounds=12, warm=4, gloo_rounds=4, gloo_warm=1, topology=topology, packing="zstd")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds per round of both sides, and how far the peers' average was from the exact mean."""

    gloo: list[float]
    peers: list[float]
    error: float
    stages: dict[str, float]
    """Median seconds by stage."""
    counts: dict[str, float]
    """Per peer and round, on average: bytes and messages, requests to S3, seconds of the processors."""
    gloo_cpu_seconds: float
    """Per process and all-reduce, on average."""

    @property
    def ratio(self) -> float:
        """A round of the peers' relative to gloo's."""
        return statistics.median(self.peers) / statistics.median(self.gloo)


def run() -> list[Figure]:
    """Measure, and give the figures. Raises UnequalWorkError."""
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as name:
        folder = Path(name)
        with LocalCloud.start(folder / "servers", durable=False, log=_tell) as cloud:
            here = {topology: measure(cloud, folder / topology, Plan(topology=topology)) for topology in TOPOLOGIES}
        refusal = links.refusal()
        if refusal:
            _tell(f"no figures for links of {links.MEGABITS} Mbit/s: {refusal}")
        shaped = {} if refusal else {topology: on_links(folder, topology) for topology in TOPOLOGIES}
    return figures(here, shaped)


def figures(here: dict[str, Measured], shaped: dict[str, Measured]) -> list[Figure]:
    """What the measurements come to, by topology; `shaped` is empty where links cannot be shaped."""
    found = []
    for topology, measured in here.items():
        suffix = _suffix(topology)
        ratio, error, unit = measured.ratio, measured.error, "s per peer and round"
        must, aim = (4.0, 1.7) if topology == TOPOLOGIES[0] else (None, None)
        found += [
            Figure(name=f"exchange_over_gloo{suffix}", value=ratio, unit="x", better="lower", must=must, aim=aim),
            Figure(name=f"relative_error{suffix}", value=error, unit="of the mean's norm", better="lower"),
            *_seconds(suffix, measured),
            *_counts(suffix, measured),
        ]
        for stage, seconds in measured.stages.items():
            found.append(Figure(name=f"seconds_{stage}{suffix}", value=seconds, unit=unit, better="lower"))
    for topology, measured in shaped.items():
        suffix = f"_{links.MEGABITS}_mbit{_suffix(topology)}"
        value, unit = 1 / measured.ratio, "x faster"
        must, aim = (4.0, 6.0) if topology == FOR_SLOW_LINES else (None, None)
        found += [
            Figure(name=f"gloo_over_exchange{suffix}", value=value, unit=unit, better="higher", must=must, aim=aim),
            *_seconds(suffix, measured),
        ]
    return found


def _suffix(topology: str) -> str:
    return "" if topology == TOPOLOGIES[0] else f"_{topology}"


def _seconds(suffix: str, measured: Measured) -> list[Figure]:
    peers, gloo = statistics.median(measured.peers), statistics.median(measured.gloo)
    return [
        Figure(name=f"seconds_exchange{suffix}", value=peers, unit="s per round", better="lower"),
        Figure(name=f"seconds_gloo{suffix}", value=gloo, unit="s per round", better="neither"),
    ]


def _counts(suffix: str, measured: Measured) -> list[Figure]:
    counts, unit = measured.counts, "per peer and round"
    sent, received, cpu = counts["bytes_sent"] / 1e6, counts["bytes_received"] / 1e6, counts["cpu_seconds"]
    return [
        Figure(name=f"megabytes_sent{suffix}", value=sent, unit=f"MB {unit}", better="lower"),
        Figure(name=f"megabytes_received{suffix}", value=received, unit=f"MB {unit}", better="lower"),
        Figure(name=f"requests{suffix}", value=counts["requests"], unit=f"to S3 {unit}", better="lower"),
        Figure(name=f"cpu_seconds{suffix}", value=cpu, unit=f"s {unit}", better="lower"),
        Figure(
            name=f"cpu_seconds_gloo{suffix}",
            value=measured.gloo_cpu_seconds,
            unit="s per process and all-reduce",
            better="neither",
        ),
    ]


def measure(
    cloud: LocalCloud, folder: Path, plan: Plan, prefix: Prefix | None = None, interface: str = "lo"
) -> Measured:
    """Gloo, the peers, and gloo again, each rank's process behind `prefix`. Raises UnequalWorkError, RunFailed."""
    folder.mkdir(parents=True)
    exact = exact_mean(PEERS, plan.elements)
    before, cpu_before = reduce_by_gloo(folder / "gloo-before", plan, exact, prefix, interface)
    exchange = {"topology": plan.topology, "packing": plan.packing}
    config = configuration(PEERS, plan.rounds, plan.elements, exchange=exchange)
    crew = Crew(cloud, folder / "peers", config, f"bench-{plan.topology.replace('_', '-')}", prefix)
    with Meeting(folder / "meeting", PEERS) as meeting, crew.working(meeting):
        crew.wait(plan.seconds)
        peers, counts = meeting.seconds(plan.warm), meeting.counted(plan.warm)
    error = check_peers(crew, exact)
    after, cpu_after = reduce_by_gloo(folder / "gloo-after", plan, exact, prefix, interface)
    stages = crew.stages(plan.warm, plan.rounds - 2)
    medians = {stage: statistics.median(stages[stage]) for stage in STAGES if stage in stages}
    _tell(f"gloo {_short(before)} and {_short(after)}, peers {_short(peers)} s; {medians}; {counts}")
    return Measured(
        gloo=before + after,
        peers=peers,
        error=error,
        stages=medians,
        counts=counts,
        gloo_cpu_seconds=(cpu_before + cpu_after) / 2,
    )


def reduce_by_gloo(
    folder: Path, plan: Plan, exact: np.ndarray, prefix: Prefix | None = None, interface: str = "lo"
) -> tuple[list[float], float]:
    """Seconds of each all-reduce, and how many of the processors' a process takes for one on average.

    Raises UnequalWorkError when its result is not the mean.
    """
    folder.mkdir()
    with Meeting(folder / "meeting", PEERS) as meeting, ExitStack() as stack:
        children = []
        for rank in range(PEERS):
            command = [*(prefix(rank) if prefix else ()), sys.executable, "-m", "benchmarks.gloo"]
            options = {"rank": rank, "peers": PEERS, "elements": plan.elements, "rounds": plan.gloo_rounds}
            paths = {"meeting": meeting.path, "store": folder / "store", "out": folder / f"{rank}.npy"}
            for key, value in {**options, **paths}.items():
                command += [f"--{key}", str(value)]
            child = Child.start(
                f"gloo {rank}",
                command,
                env={**environment(), "GLOO_SOCKET_IFNAME": interface},
                cwd=ROOT,
                log_path=folder / f"{rank}.log",
            )
            stack.callback(child.kill)
            children.append(child)
        finish(children, plan.seconds)
        seconds = meeting.seconds(2 * plan.gloo_warm, step=2)
        cpu_seconds = meeting.counted(2 * plan.gloo_warm, step=2)["cpu_seconds"]
    for rank in range(PEERS):
        off = relative_error(np.load(folder / f"{rank}.npy"), exact)
        if not off <= FLOAT32_ROUNDING:
            raise UnequalWorkError(f"gloo's result on rank {rank} is {off:.3g} off the mean")
    return seconds, cpu_seconds


def check_peers(crew: Crew, exact: np.ndarray) -> float:
    """The relative error of what the peers applied, against the exact mean.

    Raises UnequalWorkError unless all applied the same, and that is the mean of the decoded contributions. Under
    `reduce_scatter` averages are encoded again: then it must be these, and what they are off that mean no more than the
    contributions themselves are.
    """
    first, *others = crew.applied()
    if not all(np.array_equal(first, other) for other in others):
        raise UnequalWorkError("the peers applied different averages")
    contributed = crew.contributed()
    off = relative_error(first, crew.averaged() if crew.in_shards else contributed)
    if not off <= FLOAT32_ROUNDING:
        raise UnequalWorkError(f"the peers applied what is {off:.3g} off the average of their contributions")
    again = relative_error(first, contributed)
    if not again <= max(FLOAT32_ROUNDING, 1.5 * relative_error(contributed, exact)):
        raise UnequalWorkError(f"averages that were encoded again are {again:.3g} off the mean of the contributions")
    adopted = [event for event in crew.events() if event["event"] in ("weights_adopted", "frame_rejected")]
    if adopted:
        raise UnequalWorkError(f"the peers did not agree on every round: {adopted[0]}")
    return relative_error(first, exact)


def on_links(folder: Path, topology: str) -> Measured:
    """The same in network namespaces, which are this call's own and end with it."""
    name = f"links-{topology}"
    out, log = folder / f"{name}.json", folder / f"{name}.log"
    child = Child.start(
        "benchmark on shaped links",
        [*links.namespace(), sys.executable, "-m", "benchmarks.exchange", topology, str(folder / name), str(out)],
        env={**environment(), "PEERLESS_BROKER_URL": ""},
        cwd=ROOT,
        log_path=log,
    )
    try:
        finish([child], 4 * shaped_plan(topology).seconds)
    finally:
        child.kill()
        _tell(log.read_text())
    return Measured(**json.loads(out.read_text()))


def main(topology: str, folder: Path, out: Path) -> None:
    """In a namespace of our own: wire it up, measure, and leave the result in `out`."""
    with links.Links(PEERS, folder) as wired, links.servers(folder / "servers") as cloud:
        measured = measure(cloud, folder / "links", shaped_plan(topology), wired.enter, links.INTERFACE)
    out.write_text(json.dumps(asdict(measured)))


def _short(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.4f} ({min(seconds):.4f} to {max(seconds):.4f}, {len(seconds)})"


def _tell(note: str) -> None:
    print(note, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
