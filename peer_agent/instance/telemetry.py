"""A peer's events as lines of the log, with metrics in CloudWatch's embedded metric format.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html:
a line that is a JSON object with a member `_aws` becomes metrics by itself, without a call and without a permission.
Names, units and dimensions are those of contract/metrics.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract import metrics

#: So often, in seconds, a peer without a new round says that it lives.
HEARTBEAT_SECONDS = 60.0


class Telemetry:
    """Turns the events of one process, in order, into log lines."""

    def __init__(self, deployment: str, rank: int) -> None:
        self._dimensions = {metrics.DEPLOYMENT: deployment, metrics.RANK: f"{rank:04d}"}
        self._round_began: float | None = None  # seconds since the epoch
        self._mode = "sync"

    def line(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The event itself, with its metrics where it has any."""
        values = {name: value for name, value in self._metrics(event).items() if value is not None}
        return {**event, **self._embedded(values, event["t"], event.get("stage"))}

    def heartbeat(self, now: float, run: str) -> dict[str, Any]:
        """A line that says: it runs, and no round has been committed since the last one."""
        return {
            "t": now,
            "run": run,
            "event": "heartbeat",
            **self._embedded({metrics.ROUNDS_COMMITTED: 0}, now, None),
        }

    def _metrics(self, event: Mapping[str, Any]) -> dict[str, float | None]:
        match event:
            case {"event": "peer_started", "mode": mode}:
                self._mode, self._round_began = mode, None
            case {"event": "round_started", "t": moment} if self._round_began is None:
                self._round_began = moment
            case {"event": "commit", "t": moment, "contributors": [_, *_], "validation_loss": loss}:
                return {**self._committed(moment), metrics.LOSS: loss}
            case {"event": "commit", "validation_loss": loss}:  # it closes the run; no round of its own
                return {metrics.LOSS: loss}
            case {"event": "averaged", "t": moment}:
                return self._committed(moment)
            case {"event": "validated", "validation_loss": loss} if self._mode == "async":
                return {metrics.LOSS: loss}
            case {"event": "stage", "seconds": seconds, "bytes_in": bytes_in, "bytes_out": bytes_out}:
                return {
                    metrics.STAGE_SECONDS: seconds,
                    metrics.BYTES_SENT: bytes_out or None,  # most stages move none
                    metrics.BYTES_RECEIVED: bytes_in or None,
                }
            case {"event": "bill", "usd": usd}:
                return {metrics.ESTIMATED_USD: usd}
        return {}

    def _committed(self, moment: float) -> dict[str, float | None]:
        """A round: it lasted from the one before, the first from its own begin."""
        began, self._round_began = self._round_began, moment
        return {metrics.ROUNDS_COMMITTED: 1, metrics.ROUND_SECONDS: None if began is None else moment - began}

    def _embedded(self, values: Mapping[str, float], moment: float, stage: str | None) -> dict[str, Any]:
        """The members that make metrics of `values`; none where there are none."""
        if not values:
            return {}
        by_dimensions: dict[tuple[tuple[str, ...], ...], list[str]] = {}
        for name in values:
            by_dimensions.setdefault(metrics.dimension_sets(name), []).append(name)
        directives = [
            {
                "Namespace": metrics.NAMESPACE,
                "Dimensions": [list(names) for names in sets],
                "Metrics": [{"Name": name, "Unit": metrics.UNITS[name]} for name in named],
            }
            for sets, named in by_dimensions.items()
        ]
        own = {} if stage is None else {metrics.STAGE: stage}
        embedded = {"Timestamp": int(moment * 1_000), "CloudWatchMetrics": directives}
        return {"_aws": embedded, **self._dimensions, **own, **values}
