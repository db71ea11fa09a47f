"""Names of the metrics that peers emit and that dashboard and alarms read, so that the two cannot drift apart.

Peers write them to their log in CloudWatch's embedded metric format, once with each of the sets of dimensions named
here. A set of dimensions is a metric of its own, billed for the hours in which it gets data; whatever is not worth that
stands in the log line beside the metric, where a query finds it.
"""

from __future__ import annotations

#: CloudWatch namespace.
NAMESPACE = "Peerless"

# Dimensions: the deployment's name, a peer's rank (four digits), a stage of the round (contract/events.py `STAGES`).
DEPLOYMENT, RANK, STAGE = "Deployment", "Rank", "Stage"

ROUNDS_COMMITTED = "RoundsCommitted"
"""1 when a round was committed, 0 about once a minute otherwise: no data at all means that the peer hangs."""
ROUND_SECONDS = "RoundSeconds"
BYTES_SENT = "BytesSent"
BYTES_RECEIVED = "BytesReceived"
LOSS = "Loss"
"""Validation loss, from the commit that carries one."""
ESTIMATED_USD = "EstimatedUsd"
"""The peer's own estimate of what its share of the run has cost so far, US dollars."""
STAGE_SECONDS = "StageSeconds"

#: Unit of each metric, as CloudWatch names it.
UNITS = {
    ROUNDS_COMMITTED: "Count",
    ROUND_SECONDS: "Seconds",
    BYTES_SENT: "Bytes",
    BYTES_RECEIVED: "Bytes",
    LOSS: "None",
    ESTIMATED_USD: "None",
    STAGE_SECONDS: "Seconds",
}

#: Sets of dimensions of every metric but STAGE_SECONDS: all peers together, and each.
BY_RANK = ((DEPLOYMENT,), (DEPLOYMENT, RANK))
#: Sets of dimensions of STAGE_SECONDS: by rank as well there would be five metrics more per peer.
BY_STAGE = ((DEPLOYMENT, STAGE),)


def dimension_sets(metric: str) -> tuple[tuple[str, ...], ...]:
    """The sets of dimensions under which `metric` is emitted. Raises KeyError for a name that is none of ours."""
    UNITS[metric]
    return BY_STAGE if metric == STAGE_SECONDS else BY_RANK
