"""The exchange of a round on AWS: contributions, the commit, the step, the new weights. Seconds and US dollars."""

from __future__ import annotations

from contract.prices import Prices
from peerless.planner.assumptions import Assumptions, Figure
from peerless.planner.job import Job
from peerless.planner.plan import Plan
from peerless.planner.terms import Part, Term
from peerless.planner.workers import Side, speed_of

#: Messages that one waits for in turn: contributions, the commit, the barrier; under reduce_scatter the averages too.
MESSAGES = {"all_gather": 3, "reduce_scatter": 4}
#: Records that are written and read in turn: the commit, and the result.
RECORDS = 2
#: Times that a shard is encoded and decoded once more where its owner averages for all.
_TWICE = 2


def exchange(job: Job, plan: Plan, known: Assumptions, prices: Prices) -> Side:
    """From a peer's own mean to everyone's new weights."""
    config, peers = job.config, plan.peers
    size, others = job.contribution_bytes(plan.codec), peers - 1
    line, request = known["aws.line_bytes_per_second"], known["aws.request_seconds"]
    put, speed = known.value("aws.put_weight"), known[speed_of(plan.instance_type)]
    update, decode = known["aws.update_seconds_per_value"], known["aws.decode_seconds_per_value"]
    broker = config.exchange.transport == "rabbitmq"
    inline = broker and size <= config.exchange.inline_bytes

    def term(name: str, seconds: float, figure: Figure, part: Part = "exchange") -> Term:
        return Term(name=name, part=part, value=seconds, spread=figure.spread, source=figure.source)

    messages = MESSAGES[plan.topology]
    if broker:
        told = term("messages", messages * known.value("aws.message_seconds"), known["aws.message_seconds"])
    else:
        # A record is found half a look later in the mean.
        looks = messages * config.exchange.poll_seconds / 2
        told = Term(name="looks into S3", part="exchange", value=looks, spread=0.5, source="exchange.poll_seconds")
    if plan.topology == "all_gather":
        sent, received, values = size, others * size, peers * job.elements
        gets, puts = (0 if inline else others), 1
    else:
        share = others / peers
        sent, received, values = int(size * (1 + 1 / peers)), int(2 * size * share), _TWICE * job.elements
        gets, puts = 2 * others, 1 + peers
    reads = 0.0 if inline and plan.topology == "all_gather" else request.value
    weights = job.weights_bytes if plan.service == "lambda" else 0  # S3 has them where somebody reads them
    terms = (
        term("contribution out", request.value + put * sent / line.value, line),
        told,
        term("contributions in", reads + received / line.value, line),
        term("decoding", values * decode.value / speed.value, decode),
        term("records", 2 * RECORDS * request.value, request),
        term("step and hash", job.elements * update.value / speed.value, update),
        term("weights out", (request.value if weights else 0.0) + put * weights / line.value, line),
    )
    once_a_round = 1 if weights else 0
    requests = peers * gets * prices.get_usd + (peers * (puts + RECORDS) + once_a_round) * prices.put_usd
    requests += peers * RECORDS * prices.get_usd
    usd = Term(name="S3 requests of peers", part="exchange", value=requests, spread=0.1, source="price book")
    return Side(terms=terms, usd=(usd,))
