"""From the peers' reports to the run's result: the saved model, its test accuracy, and summary.json."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from contract import models, tensors, weights_file
from contract.config import RunConfig
from contract.errors import PeerlessError
from contract.joining import Joined
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.objective import evaluate
from contract.records import PeerReport
from contract.store import ObjectStore
from peerless.launch.follow import Told
from peerless.launch.run_folder import RunFolder

#: Why a peer's part has ended that joined after the start and did not stay.
LEFT = "left"
#: Reasons after which something is left to do.
UNFINISHED = ("interrupted", "failed")


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """The model that a run hands over."""

    sha256: str
    """Hash of weights and buffers (invariant 1)."""
    safetensors: bytes
    test_loss: float | None
    """None where there was no test set at hand, as `test_accuracy`."""
    test_accuracy: float | None


def read_reports(store: ObjectStore, places: Places, peers: int) -> tuple[PeerReport, ...]:
    """The reports of the peers that wrote one, in rank order."""
    found = (store.find(places.report(rank)) for rank in range(peers))
    return tuple(PeerReport.from_json(item[0]) for item in found if item is not None)


def fetch_model(
    store: ObjectStore,
    chain: Sequence[Places],
    spec: ModelSpec,
    reports: Sequence[PeerReport],
    loss: str,
    test_batches: Iterable[tuple[Tensor, Tensor]] | None,
) -> SavedModel | None:
    """Fetch the weights that the peers agreed to save, and test them. None when no peer got so far.

    `chain` are the places where they may lie, the likeliest first: the best weights may be of a run's earlier part.
    Raises WeightsMismatch or CorruptObject where the object is not what its name says.
    """
    sha256 = next((report.model_sha256 for report in reports if report.model_sha256), None)
    if sha256 is None:
        return None
    model = models.build(spec)
    layout = tensors.Layout.of(model)
    blob = next((found[0] for places in chain if (found := store.find(places.weights(sha256))) is not None), None)
    if blob is None:
        return None
    flat, buffers = tensors.decode_weights(layout, blob, sha256)
    tensors.load(model, layout, flat, buffers)
    tested = None if test_batches is None else evaluate(model, loss, test_batches)
    return SavedModel(
        sha256=sha256,
        safetensors=weights_file.to_safetensors(layout, flat, buffers),
        test_loss=tested.loss if tested else None,
        test_accuracy=tested.accuracy if tested else None,
    )


def summarise(
    *,
    run: str,
    config: RunConfig,
    reports: Sequence[PeerReport],
    model: SavedModel | None,
    counters: dict[str, Any],
    told: Told,
    joined: Sequence[Joined] = (),
    peak_memory_bytes: int | None,
    seconds_total: float,
    error: str | None,
    interrupted: bool = False,
    earlier: Sequence[PeerReport] = (),
    parts: int = 1,
    cost: Mapping[str, Any] | None = None,
    resume: str | None = None,
) -> dict[str, Any]:
    """The content of summary.json; every figure is measured, and null where nothing was.

    `told` says how far a run came that left no reports; `interrupted` says why it did. `earlier` are the reports of
    the parts of the run before this one, as far as they came to write any, `parts` how many there are with this one;
    `cost` is the run's bill, where there is one (peerless/cost/bill.py);
    `resume` is the command that goes on with the run, where one can. `joined` are the ranks that the run did not begin
    with; one that has left is not lost, and its last weights are not the run's.
    """
    ended = [report for report in reports if report.error is None]
    whole = [report for report in ended if report.reason != LEFT]
    ranks = {*range(config.peers), *(each.rank for each in joined)}
    lost = sorted(ranks - {report.rank for report in ended})
    every = [*earlier, *reports]
    raw = sum(report.gradient_bytes_raw for report in every)
    encoded = sum(report.gradient_bytes_encoded for report in every)
    reasons = sorted({report.reason for report in whole if report.reason})
    reason = "failed" if error else next(iter(reasons), "interrupted" if interrupted else "failed")
    bills = [report.estimated_usd for report in every if report.estimated_usd is not None]
    return {
        "run_id": run,
        "mode": config.mode,
        "seed": config.seed,
        "peers": config.peers,
        "joined": {str(each.rank): each.samples for each in joined},
        "left": [report.rank for report in ended if report.reason == LEFT],
        "peers_lost": len(lost),
        "lost_ranks": lost,
        "restarts": {str(rank): count for rank, count in sorted(told.restarts.items())},
        "parts": parts,
        "rounds": max((report.rounds for report in reports), default=told.rounds),
        "epochs": max((report.epochs for report in reports), default=0),
        "reason": reason,
        "error": error,
        "test_accuracy": model.test_accuracy if model else None,
        "test_loss": model.test_loss if model else None,
        "validation_loss": next((r.best_validation_loss for r in whole if r.best_validation_loss is not None), None),
        "weights_sha256": {str(report.rank): report.weights_sha256 for report in whole},
        "model_sha256": model.sha256 if model else None,
        "seconds_total": round(seconds_total, 3),
        "seconds_training": round(_longest(earlier) + _longest(reports), 3),
        "peak_memory_bytes": peak_memory_bytes,
        "bytes_sent": _by_rank(every, lambda report: report.bytes_sent),
        "bytes_received": _by_rank(every, lambda report: report.bytes_received),
        "codec": config.exchange.codec,
        "aggregation": config.aggregation.name,
        "compression_ratio": round(raw / encoded, 4) if encoded else None,
        "gradient_service": config.compute.service,
        "lambda_invocations": sum(report.lambda_invocations for report in every),
        "state_machine_executions": sum(report.state_machine_executions for report in every),
        "estimated_usd": round(sum(bills), 6) if bills else None,
        "cost": cost,
        "lambda_service": counters,
        "frames_rejected": {str(r.rank): r.frames_rejected for r in reports if r.frames_rejected},
        "rejected_by_sender": {sender: dict(reasons) for sender, reasons in sorted(told.rejected.items())},
        "batches_failed": {str(rank): count for rank, count in sorted(told.batches_failed.items())},
        "left_out": _rounds(every, lambda report: report.left_out),
        "clipped": _rounds(every, lambda report: report.clipped),
        "stages": mean_stages(whole),
        "resume": resume if reason in UNFINISHED else None,
    }


def conclude(
    folder: RunFolder,
    store: ObjectStore,
    places: Places,
    config: RunConfig,
    spec: ModelSpec,
    test_batches: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None,
    *,
    earlier: Sequence[Places] = (),
    joined: Sequence[Joined] = (),
    run: str | None = None,
    resume: str | None = None,
    counters: Callable[[], dict[str, Any]],
    bill: Callable[[Sequence[PeerReport], Mapping[str, Any]], dict[str, Any]] | None = None,
    peak_memory_bytes: int | None,
    seconds_total: Callable[[], float],
    error: str | None,
    interrupted: bool,
) -> dict[str, Any]:
    """Fetch and test the saved model, and write model.safetensors and summary.json; gives the summary.

    `error` is how the run failed, if it did: then the best weights so far are kept where they can be had, and nothing
    is raised that would hide it. `seconds_total` is asked last. `earlier` are the places of the run's earlier parts,
    the first part first, `bill` gives what the run cost from the reports of all parts and the counters, `joined` are
    the ranks that it did not begin with, `run` is its name where that is not the one of `places`, and `resume` the
    command that goes on with it once it has come to an end that is none.
    """
    unless_failed = functools.partial(contextlib.suppress, *([PeerlessError] if error else []))
    reports: tuple[PeerReport, ...] = ()
    before: list[PeerReport] = []
    model: SavedModel | None = None
    counted: dict[str, Any] = {}
    with unless_failed():
        peers = config.peers + len(joined)
        reports = read_reports(store, places, peers)
        before = [report for part in earlier for report in read_reports(store, part, peers)]
        if not error or any(report.rounds for report in reports):  # what killed every worker is not tried here too
            tests = None if test_batches is None else test_batches()
            model = fetch_model(store, [places, *reversed(earlier)], spec, reports, config.loss, tests)
    if model is not None:
        folder.write(folder.model, model.safetensors)
    with unless_failed():
        counted = counters()
    cost: dict[str, Any] | None = None
    with unless_failed():
        cost = None if bill is None else bill([*before, *reports], counted)
    told = Told.of(folder.events)
    summary = summarise(
        run=run or places.run,
        config=config,
        reports=reports,
        model=model,
        counters=counted,
        told=told,
        joined=joined,
        peak_memory_bytes=peak_memory_bytes,
        seconds_total=seconds_total(),
        error=error,
        interrupted=interrupted,
        earlier=before,
        parts=len(earlier) + 1,
        cost=cost,
        resume=resume if told.rounds else None,
    )
    folder.write_summary(summary)
    return summary


def _longest(reports: Sequence[PeerReport]) -> float:
    """Seconds of training over the parts of a run, of each the longest."""
    parts: dict[str, float] = {}
    for report in reports:
        parts[report.run] = max(parts.get(report.run, 0.0), report.seconds_training)
    return sum(parts.values())


def _by_rank(reports: Sequence[PeerReport], count: Callable[[PeerReport], int]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for report in reports:
        total[str(report.rank)] += count(report)
    return dict(total)


def _rounds(reports: Sequence[PeerReport], told: Callable[[PeerReport], dict[str, int]]) -> dict[str, int]:
    """By rank, over the parts of a run: all tell the same of a round, so whoever saw the most rounds is believed."""
    parts: dict[str, Counter[str]] = {}
    for report in reports:
        parts[report.run] = parts.get(report.run, Counter()) | Counter(told(report))
    total = sum(parts.values(), Counter[str]())
    return {rank: total[rank] for rank in sorted(total, key=int)}


def mean_stages(reports: Sequence[PeerReport]) -> dict[str, dict[str, float]]:
    """Per stage of the paper's Table I: means over the peers of seconds, CPU percent, bytes; of peaks the largest."""
    stages: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(stage for report in reports for stage in report.stages):
        rows = [report.stages[name] for report in reports if name in report.stages]
        stages[name] = {
            field: round(
                max(row[field] for row in rows)
                if field.startswith("peak")
                else sum(row[field] for row in rows) / len(rows),
                3,
            )
            for field in rows[0]
        }
    return stages
