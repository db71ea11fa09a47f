"""One dashboard: what the peers do, what computes for them, what carries their messages, what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from constructs import Construct

from contract import metrics
from infra.settings import Settings
from infra.stacks import readings
from infra.stacks.peers import PeersStack
from infra.stacks.workers import WorkersStack

_WIDTH, _HEIGHT = 8, 6  # of the grid's 24 columns: three graphs in a row


def make_dashboard(
    scope: Construct,
    settings: Settings,
    *,
    broker: str | None,
    workers: Sequence[WorkersStack],
    peers: Sequence[PeersStack],
    run_bucket: str,
    alarms: Sequence[cloudwatch.IAlarm],
) -> cloudwatch.Dashboard:
    """`broker` is its name. Costs 3 USD a month beyond an account's first three dashboards."""
    # Named, because people look for it. All stacks' names begin like that, so an account has it once in a region.
    dashboard = cloudwatch.Dashboard(
        scope, "Dashboard", dashboard_name=settings.prefix, default_interval=Duration.hours(3)
    )
    title = f"# Peerless deployment {settings.name}\nRecords of all runs: `s3://{run_bucket}/runs/`"
    dashboard.add_widgets(
        cloudwatch.TextWidget(markdown=title, width=_WIDTH, height=3),
        cloudwatch.AlarmStatusWidget(title="Alarms", alarms=list(alarms), width=2 * _WIDTH, height=3),
    )
    dashboard.add_widgets(*_training(settings))
    dashboard.add_widgets(*_traffic(settings))
    dashboard.add_widgets(*_money(settings, peers))
    if workers:
        dashboard.add_widgets(*_computing(workers))
    if broker is not None:
        dashboard.add_widgets(*_messaging(broker))
    return dashboard


def _training(settings: Settings) -> list[cloudwatch.GraphWidget]:
    stages = readings.found(settings, metrics.STAGE_SECONDS, metrics.STAGE, "Average")
    rounds = readings.found(settings, metrics.ROUNDS_COMMITTED, metrics.RANK, "Sum")
    return [
        _graph("Rounds committed, by rank", [_search(rounds)]),
        _graph("Seconds per stage, average of the peers", [_search(stages)]),
        _graph("Validation loss", [readings.emitted(settings, metrics.LOSS, "Average")]),
    ]


def _traffic(settings: Settings) -> list[cloudwatch.GraphWidget]:
    round_seconds = [readings.emitted(settings, metrics.ROUND_SECONDS, how) for how in ("Average", "Maximum")]
    return [
        _graph("Seconds per round", [one.with_(label=one.statistic) for one in round_seconds]),
        _graph("Bytes that peers sent", [readings.emitted(settings, metrics.BYTES_SENT, "Sum")]),
        _graph("Bytes that peers received", [readings.emitted(settings, metrics.BYTES_RECEIVED, "Sum")]),
    ]


def _money(settings: Settings, peers: Sequence[PeersStack]) -> list[cloudwatch.GraphWidget]:
    spent = readings.found(settings, metrics.ESTIMATED_USD, metrics.RANK, "Maximum")
    groups = [readings.in_service(name) for stack in peers for name in stack.group_names]
    return [
        _graph("Estimated cost of the run so far, USD", [_search(f"SUM({spent})", "all peers")]),
        _graph("Instances in service", [readings.total(groups, "instances")]),
    ]


def _computing(workers: Sequence[WorkersStack]) -> list[cloudwatch.GraphWidget]:
    functions = list({one.node.path: one for stack in workers for one in stack.functions.values()}.values())
    machines = [
        machine
        for stack in workers
        for machine in (*stack.inline_machines.values(), *stack.distributed_machines.values())
    ]
    period = readings.PERIOD
    longest = [one.metric_duration(period=period, statistic="Maximum") for one in functions]
    return [
        _graph(
            "Gradient workers",
            [
                readings.total([one.metric_invocations(period=period) for one in functions], "invocations"),
                readings.total([one.metric_errors(period=period) for one in functions], "errors"),
                readings.total([one.metric_throttles(period=period) for one in functions], "throttles"),
            ],
        ),
        _graph("Longest invocation, milliseconds", [readings.combined("MAX", longest, "longest")]),
        _graph(
            "Failed rounds (executions of state machines)",
            [readings.total([one.metric_failed(period=period) for one in machines], "failed")],
        ),
    ]


def _messaging(name: str) -> list[cloudwatch.GraphWidget]:
    return [
        _graph("Broker: memory", [readings.broker(name, metric) for metric in ("RabbitMQMemUsed", "RabbitMQMemLimit")]),
        _graph("Broker: queues and connections", [readings.broker(name, m) for m in ("QueueCount", "ConnectionCount")]),
        _graph("Broker: messages waiting", [readings.broker(name, "MessageCount")]),
    ]


def _search(expression: str, label: str = "") -> cloudwatch.MathExpression:
    return cloudwatch.MathExpression(expression=expression, using_metrics={}, label=label, period=readings.PERIOD)


def _graph(title: str, lines: Sequence[cloudwatch.IMetric]) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(lines), width=_WIDTH, height=_HEIGHT)
