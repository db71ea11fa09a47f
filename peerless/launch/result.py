"""From the peers' reports to the run's result: the saved model, its test accuracy, and summary.json."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from contract import models, tensors
from contract.config import RunConfig
from contract.errors import ObjectMissing, PeerlessError
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.objective import evaluate
from contract.records import PeerReport
from contract.store import ObjectStore
from peerless.launch.follow import rounds_told
from peerless.launch.run_folder import RunFolder


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
    places: Places,
    spec: ModelSpec,
    reports: Sequence[PeerReport],
    loss: str,
    test_batches: Iterable[tuple[Tensor, Tensor]] | None,
) -> SavedModel | None:
    """Fetch the weights that the peers agreed to save, and test them. None when no peer got so far.

    Raises WeightsMismatch or CorruptObject where the object is not what its name says.
    """
    sha256 = next((report.model_sha256 for report in reports if report.model_sha256), None)
    if sha256 is None:
        return None
    model = models.build(spec)
    layout = tensors.Layout.of(model)
    try:
        blob = store.get(places.weights(sha256))
    except ObjectMissing:
        return None
    flat, buffers = tensors.decode_weights(layout, blob, sha256)
    tensors.load(model, layout, flat, buffers)
    tested = None if test_batches is None else evaluate(model, loss, test_batches)
    return SavedModel(
        sha256=sha256,
        safetensors=tensors.to_safetensors(layout, flat, buffers),
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
    rounds_told: int,
    peak_memory_bytes: int | None,
    seconds_total: float,
    error: str | None,
    interrupted: bool = False,
) -> dict[str, Any]:
    """The content of summary.json; every figure is measured, and null where nothing was.

    `rounds_told` is how far the run came by its events, for a run that left no reports; `interrupted` says why it did.
    """
    whole = [report for report in reports if report.error is None]
    lost = sorted(set(range(config.peers)) - {report.rank for report in whole})
    raw = sum(report.gradient_bytes_raw for report in reports)
    encoded = sum(report.gradient_bytes_encoded for report in reports)
    reasons = sorted({report.reason for report in whole if report.reason})
    bills = [report.estimated_usd for report in reports if report.estimated_usd is not None]
    return {
        "run_id": run,
        "mode": config.mode,
        "seed": config.seed,
        "peers": config.peers,
        "peers_lost": len(lost),
        "lost_ranks": lost,
        "rounds": max((report.rounds for report in reports), default=rounds_told),
        "epochs": max((report.epochs for report in reports), default=0),
        "reason": "failed" if error else next(iter(reasons), "interrupted" if interrupted else "failed"),
        "error": error,
        "test_accuracy": model.test_accuracy if model else None,
        "test_loss": model.test_loss if model else None,
        "validation_loss": next((r.best_validation_loss for r in whole if r.best_validation_loss is not None), None),
        "weights_sha256": {str(report.rank): report.weights_sha256 for report in whole},
        "model_sha256": model.sha256 if model else None,
        "seconds_total": round(seconds_total, 3),
        "seconds_training": round(max((report.seconds_training for report in reports), default=0.0), 3),
        "peak_memory_bytes": peak_memory_bytes,
        "bytes_sent": {str(report.rank): report.bytes_sent for report in reports},
        "bytes_received": {str(report.rank): report.bytes_received for report in reports},
        "codec": config.exchange.codec,
        "compression_ratio": round(raw / encoded, 4) if encoded else None,
        "gradient_service": config.compute.service,
        "lambda_invocations": sum(report.lambda_invocations for report in reports),
        "state_machine_executions": sum(report.state_machine_executions for report in reports),
        "estimated_usd": round(sum(bills), 6) if bills else None,
        "lambda_service": counters,
        "frames_rejected": {str(r.rank): r.frames_rejected for r in reports if r.frames_rejected},
        "stages": mean_stages(whole),
    }


def conclude(
    folder: RunFolder,
    store: ObjectStore,
    places: Places,
    config: RunConfig,
    spec: ModelSpec,
    test_batches: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None,
    *,
    counters: Callable[[], dict[str, Any]],
    peak_memory_bytes: int | None,
    seconds_total: Callable[[], float],
    error: str | None,
    interrupted: bool,
) -> dict[str, Any]:
    """Fetch and test the saved model, and write model.safetensors and summary.json; gives the summary.

    `error` is how the run failed, if it did: then the best weights so far are kept where they can be had, and nothing
    is raised that would hide it. `seconds_total` is asked last.
    """
    unless_failed = functools.partial(contextlib.suppress, *([PeerlessError] if error else []))
    reports: tuple[PeerReport, ...] = ()
    model: SavedModel | None = None
    counted: dict[str, Any] = {}
    with unless_failed():
        reports = read_reports(store, places, config.peers)
        if not error or any(report.rounds for report in reports):  # what killed every worker is not tried here too
            tests = None if test_batches is None else test_batches()
            model = fetch_model(store, places, spec, reports, config.loss, tests)
    if model is not None:
        folder.write(folder.model, model.safetensors)
    with unless_failed():
        counted = counters()
    summary = summarise(
        run=places.run,
        config=config,
        reports=reports,
        model=model,
        counters=counted,
        rounds_told=rounds_told(folder.events),
        peak_memory_bytes=peak_memory_bytes,
        seconds_total=seconds_total(),
        error=error,
        interrupted=interrupted,
    )
    folder.write_summary(summary)
    return summary


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
