"""The metrics that alarms and the dashboard read, each named in one place."""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_lambda as lambda_

from contract import metrics
from infra.settings import Settings

Function = lambda_.IFunction
PERIOD = Duration.minutes(5)
#: As a search expression has it, in seconds.
SECONDS = 300


def rounds(settings: Settings) -> cloudwatch.Metric:
    """Commits that peers saw: one round counts once per peer."""
    return emitted(settings, metrics.ROUNDS_COMMITTED, "Sum")


def emitted(settings: Settings, name: str, statistic: str) -> cloudwatch.Metric:
    """A metric of the peers, all together."""
    return cloudwatch.Metric(
        namespace=metrics.NAMESPACE,
        metric_name=name,
        dimensions_map={metrics.DEPLOYMENT: settings.name},
        statistic=statistic,
        period=PERIOD,
    )


def found(settings: Settings, name: str, dimension: str, statistic: str) -> str:
    """A search for a metric of the peers by one more dimension. Dashboards take it, alarms do not."""
    schema = ",".join((metrics.NAMESPACE, metrics.DEPLOYMENT, dimension))
    wanted = f'{{{schema}}} MetricName="{name}" {metrics.DEPLOYMENT}="{settings.name}"'
    return f"SEARCH('{wanted}', '{statistic}', {SECONDS})"


def in_service(group: str) -> cloudwatch.Metric:
    """Instances in service of the group of this name; reported every minute, also while there are none."""
    return cloudwatch.Metric(
        namespace="AWS/AutoScaling",
        metric_name="GroupInServiceInstances",
        dimensions_map={"AutoScalingGroupName": group},
        statistic="Maximum",
        period=PERIOD,
    )


def broker(name: str, metric: str, statistic: str = "Average") -> cloudwatch.Metric:
    """A metric of the broker; for a cluster the sum of its nodes."""
    return cloudwatch.Metric(
        namespace="AWS/AmazonMQ",
        metric_name=metric,
        dimensions_map={"Broker": name},
        statistic=statistic,
        period=PERIOD,
    )


def total(parts: Sequence[cloudwatch.IMetric], label: str) -> cloudwatch.MathExpression:
    """The sum of metrics; what is missing counts as nothing where another has a value. In alarms at most ten."""
    return combined("SUM", parts, label)


def combined(function: str, parts: Sequence[cloudwatch.IMetric], label: str) -> cloudwatch.MathExpression:
    """SUM or MAX of metrics. The label names them in the expression too, so it must differ within a graph."""
    name = "".join(letter for letter in label.lower() if letter.isascii() and letter.isalpha())
    ids = [f"{name}{number}" for number in range(len(parts))]
    return cloudwatch.MathExpression(
        expression=f"{function}([{', '.join(ids)}])",
        using_metrics=dict(zip(ids, parts, strict=True)),
        label=label,
        period=PERIOD,
    )


def ratio(part: cloudwatch.IMetric, whole: cloudwatch.IMetric, label: str) -> cloudwatch.MathExpression:
    """Part by whole."""
    return cloudwatch.MathExpression(
        expression="part / whole", using_metrics={"part": part, "whole": whole}, label=label, period=PERIOD
    )
