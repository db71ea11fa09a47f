"""Alarms, where they go, the budget, the dashboard, and the time limit that AWS keeps by itself."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from contract import metrics
from infra import outputs
from infra.settings import MOST_PEERS
from peerless import cost
from tests.infra.deployment import Deployment
from tests.infra.simulator import Request

ALARM = "AWS::CloudWatch::Alarm"
#: CloudWatch's limits: metrics in one alarm, graphs' metrics in one dashboard and in one graph, alarms in one widget.
METRICS_PER_ALARM, METRICS_PER_DASHBOARD, METRICS_PER_GRAPH, ALARMS_PER_WIDGET = 10, 2_500, 500, 100
GROUP_ARN = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:0a1b:autoScalingGroupName"


def alarms(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Properties of the alarms by the beginning of their logical id."""
    found = {}
    for where, _, properties in deployment.of(ALARM):
        id = where.rpartition("/")[2]
        found[re.sub(r"[0-9A-F]{8}\Z", "", id)] = properties
    return found


def read_by(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics that an alarm reads: namespace, name, dimensions."""
    if "MetricName" in alarm:
        return [{name: alarm.get(name) for name in ("Namespace", "MetricName", "Dimensions")}]
    return [part["MetricStat"]["Metric"] for part in alarm["Metrics"] if "MetricStat" in part]


def dashboard(deployment: Deployment) -> list[dict[str, Any]]:
    """The dashboard's widgets."""
    ((_, _, properties),) = deployment.of("AWS::CloudWatch::Dashboard")
    assert properties["DashboardName"] == deployment.settings.prefix
    widgets: list[dict[str, Any]] = json.loads(properties["DashboardBody"])["widgets"]
    return widgets


def test_there_is_an_alarm_for_whatever_can_go_wrong(on_aws: Deployment) -> None:
    groups = range(len(on_aws.settings.groups))
    wanted = {"RoundStuck", "LimitFailure"}
    wanted |= {f"{kind}Failures{number}" for kind in ("Inline", "Distributed") for number in groups}
    functions = groups[:1] if on_aws.settings.shared_worker else groups
    wanted |= {f"Worker{what}{number}" for what in ("Errors", "Throttles") for number in functions}
    if on_aws.settings.broker:
        wanted |= {"BrokerMemory", "BrokerDisk"}
    assert set(alarms(on_aws)) == wanted


def test_no_alarm_rings_for_missing_data_and_each_says_what_to_do(on_aws: Deployment) -> None:
    for name, alarm in alarms(on_aws).items():
        assert alarm["TreatMissingData"] == "notBreaching", name
        assert on_aws.settings.name in alarm["AlarmDescription"], name
        assert len(alarm["AlarmDescription"]) > 80, name
        assert len(read_by(alarm)) <= METRICS_PER_ALARM, name


def test_the_price_of_alarms_counts_what_they_read(on_aws: Deployment) -> None:
    assert cost.alarm_metrics(on_aws.settings) == sum(len(read_by(alarm)) for alarm in alarms(on_aws).values())


def test_every_function_and_every_machine_of_peers_is_watched_once(on_aws: Deployment) -> None:
    settings = on_aws.settings
    groups = range(len(settings.groups))

    def told(name: str) -> list[str]:
        return [value for k in groups for value in on_aws.output(f"{outputs.WORKERS}{k}", name).split(",")]

    found = alarms(on_aws)
    watched = [
        metric["Dimensions"][0]["Value"]
        for name, alarm in found.items()
        if name.startswith("WorkerErrors")
        for metric in read_by(alarm)
    ]
    assert sorted(watched) == sorted(set(told(outputs.FUNCTIONS)))
    failing = [
        metric["Dimensions"][0]["Value"]
        for name, alarm in found.items()
        if "Failures" in name
        for metric in read_by(alarm)
    ]
    assert sorted(failing) == sorted(told(outputs.INLINE_MACHINES) + told(outputs.DISTRIBUTED_MACHINES))


def test_a_stuck_round_is_told_by_what_peers_emit_and_groups_report(on_aws: Deployment) -> None:
    alarm = alarms(on_aws)["RoundStuck"]
    read = read_by(alarm)
    (ours,) = (metric for metric in read if metric["Namespace"] == metrics.NAMESPACE)
    assert ours["MetricName"] == metrics.ROUNDS_COMMITTED
    assert ours["Dimensions"] == [{"Name": metrics.DEPLOYMENT, "Value": on_aws.settings.name}]
    groups = {metric["Dimensions"][0]["Value"]: metric["MetricName"] for metric in read if metric is not ours}
    made = {properties["AutoScalingGroupName"] for _, _, properties in on_aws.of("AWS::AutoScaling::AutoScalingGroup")}
    assert set(groups) <= made
    assert len(groups) == min(9, on_aws.settings.peers)
    assert set(groups.values()) == {"GroupInServiceInstances"}


@pytest.mark.parametrize(
    ("instances", "emitted", "rings"),
    [(0, None, False), (0, 3, False), (4, 3, False), (4, 0, True), (4, None, True), (None, None, False)],
)
def test_a_round_is_stuck_only_while_instances_run(
    deployments: dict[str, Deployment], instances: int | None, emitted: int | None, rings: bool
) -> None:
    """The alarm's expressions, evaluated for one period; None is a metric without data."""
    deployment = deployments["default"]
    alarm = alarms(deployment)["RoundStuck"]
    values: dict[str, float | None] = {}
    for part in alarm["Metrics"]:
        if "MetricStat" in part:
            ours = part["MetricStat"]["Metric"]["Namespace"] == metrics.NAMESPACE
            values[part["Id"]] = (
                emitted if ours else None if instances is None else instances / deployment.settings.peers
            )
    expressions = {part["Id"]: part["Expression"] for part in alarm["Metrics"] if "Expression" in part}
    for _ in expressions:  # each needs those that it names
        for id, expression in expressions.items():
            if id not in values and all(name in values for name in re.findall(r"\b[a-z]\w*", expression)):
                values[id] = evaluate(expression, values)
    (asked,) = (part["Id"] for part in alarm["Metrics"] if part.get("ReturnData"))
    reached = values[asked]
    assert (reached is not None and reached >= alarm["Threshold"]) is rings
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"


def evaluate(expression: str, values: dict[str, float | None]) -> float | None:
    """The three forms of metric math that the alarm uses; as in CloudWatch, SUM passes over what is missing."""
    if sums := re.fullmatch(r"SUM\(\[(.*)\]\)", expression):
        parts = re.findall(r"FILL\(\w+, 0\)|0 \* \w+|\w+", sums[1])
        present = [value for part in parts if (value := _term(part, values)) is not None]
        return sum(present) if present else None
    condition = re.fullmatch(r"IF\((\w+) > 0 AND (\w+) < 1, 1, 0\)", expression)
    assert condition is not None, f"{expression} has another form"
    running, committed = values[condition[1]], values[condition[2]]
    if running is None or committed is None:
        return None
    return 1 if running > 0 and committed < 1 else 0


def _term(part: str, values: dict[str, float | None]) -> float | None:
    if part.startswith("FILL"):
        # A metric without any data has nothing to be filled: the harder of the two readings of CloudWatch's guide.
        return values[part[5 : part.index(",")]]
    if part.startswith("0 * "):
        return None if values[part[4:]] is None else 0
    return values[part]


def test_broker_alarms_read_the_metrics_of_amazon_mq(on_aws: Deployment) -> None:
    if not on_aws.settings.broker:
        assert "BrokerMemory" not in alarms(on_aws)
        return
    ((_, _, broker),) = on_aws.of("AWS::AmazonMQ::Broker")
    for name, wanted in (
        ("BrokerMemory", {"RabbitMQMemUsed", "RabbitMQMemLimit"}),
        ("BrokerDisk", {"RabbitMQDiskFree", "RabbitMQDiskFreeLimit"}),
    ):
        read = read_by(alarms(on_aws)[name])
        assert {metric["MetricName"] for metric in read} == wanted
        assert all(metric["Namespace"] == "AWS/AmazonMQ" for metric in read)
        assert all(metric["Dimensions"] == [{"Name": "Broker", "Value": broker["BrokerName"]}] for metric in read)


def test_alarms_go_to_the_address_over_an_encrypted_topic(on_aws: Deployment) -> None:
    topics = on_aws.of("AWS::SNS::Topic")
    if not on_aws.settings.alarm_email:
        assert not topics
        assert not on_aws.of("AWS::KMS::Key"), "a key costs by the month"
        assert all("AlarmActions" not in alarm for alarm in alarms(on_aws).values())
        return
    ((where, _, topic),) = topics
    ((key_where, _, key),) = on_aws.of("AWS::KMS::Key")
    stack, _, id = key_where.rpartition("/")
    assert topic["KmsMasterKeyId"] == on_aws.stacks.arn(stack, id)
    services = [statement["Principal"].get("Service") for statement in key["KeyPolicy"]["Statement"]]
    assert "cloudwatch.amazonaws.com" in services, "an alarm could not publish to the encrypted topic"
    assert key["EnableKeyRotation"] is True
    ((_, _, policy),) = on_aws.of("AWS::SNS::TopicPolicy")
    statements = policy["PolicyDocument"]["Statement"]
    assert any(
        s["Effect"] == "Deny" and s["Condition"] == {"Bool": {"aws:SecureTransport": "false"}} for s in statements
    )
    assert any(
        s["Effect"] == "Allow"
        and s["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
        and s["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}
        for s in statements
    )
    ((_, _, subscription),) = on_aws.of("AWS::SNS::Subscription")
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", on_aws.settings.alarm_email)
    arn = on_aws.stacks.resolve({"Ref": where.rpartition("/")[2]}, where.rpartition("/")[0])
    for name, alarm in alarms(on_aws).items():
        assert alarm["AlarmActions"] == [arn], name
        assert "OKActions" not in alarm, "each new alarm would begin with an email that all is well"


def test_the_budget_is_the_settings(on_aws: Deployment) -> None:
    found = on_aws.of("AWS::Budgets::Budget")
    if not on_aws.settings.monthly_budget_usd:
        assert not found
        return
    ((_, _, properties),) = found
    assert properties["Budget"] == {
        "BudgetType": "COST",
        "TimeUnit": "MONTHLY",
        "BudgetLimit": {"Amount": on_aws.settings.monthly_budget_usd, "Unit": "USD"},
    }
    for notice in properties["NotificationsWithSubscribers"]:
        assert notice["Subscribers"] == [{"Address": on_aws.settings.alarm_email, "SubscriptionType": "EMAIL"}]
    kinds = [notice["Notification"]["NotificationType"] for notice in properties["NotificationsWithSubscribers"]]
    assert kinds == ["ACTUAL", "ACTUAL", "FORECASTED"]


def test_the_dashboard_shows_what_peers_emit(on_aws: Deployment) -> None:
    text = json.dumps(dashboard(on_aws))
    for name in metrics.UNITS:
        assert name in text, f"{name} is emitted and shown nowhere"
    for schema in re.findall(r"SEARCH\('\{([^}]*)\} MetricName=\\\\\"(\w+)", text):
        namespace, *dimensions = schema[0].split(",")
        assert namespace == metrics.NAMESPACE
        assert tuple(dimensions) in metrics.dimension_sets(schema[1])
    wanted = ["Invocations", "Errors", "Throttles", "Duration", "ExecutionsFailed", "GroupInServiceInstances"]
    if on_aws.settings.broker:
        wanted += ["RabbitMQMemUsed", "QueueCount", "ConnectionCount"]
    for name in wanted:
        assert f'"{name}"' in text


def test_the_dashboard_stays_within_cloudwatchs_limits(on_aws: Deployment) -> None:
    """Counted for as many peers as a deployment may have, from what one peer adds."""
    settings, widgets = on_aws.settings, dashboard(on_aws)
    graphs = []
    for widget in widgets:
        lines = widget["properties"].get("metrics", ())
        expressions = [line for line in lines if isinstance(line[0], dict)]
        metrics_shown = len(lines) - len(expressions)
        per_peer = metrics_shown >= settings.peers
        graphs.append(metrics_shown * (MOST_PEERS / settings.peers if per_peer else 1) + len(expressions))
    assert sum(graphs) < METRICS_PER_DASHBOARD
    assert max(graphs) < METRICS_PER_GRAPH
    (shown,) = (widget["properties"]["alarms"] for widget in widgets if widget["type"] == "alarm")
    assert len(shown) == len(alarms(on_aws)) <= ALARMS_PER_WIDGET


def limit(deployment: Deployment) -> tuple[str, dict[str, Any]]:
    """ARN and properties of the time limit's state machine."""
    ((stack, id, resource),) = (
        found
        for found in deployment.stacks.resources("AWS::StepFunctions::StateMachine")
        if found[0].endswith(f"-{outputs.WATCH}")
    )
    return deployment.stacks.arn(stack, id), deployment.stacks.resolve(resource["Properties"], stack)


def test_every_launch_of_a_peers_instance_starts_its_time_limit(on_aws: Deployment) -> None:
    arn, _ = limit(on_aws)
    (rule,) = (properties for where, _, properties in on_aws.of("AWS::Events::Rule") if f"-{outputs.WATCH}/" in where)
    assert rule["State"] == "ENABLED"
    assert [target["Arn"] for target in rule["Targets"]] == [arn]
    pattern = rule["EventPattern"]
    assert pattern["source"] == ["aws.autoscaling"]
    assert pattern["detail-type"] == ["EC2 Instance Launch Successful"]
    ((prefix,),) = ([found["prefix"]] for found in pattern["detail"]["AutoScalingGroupName"])
    for _, _, group in on_aws.of("AWS::AutoScaling::AutoScalingGroup"):
        assert group["AutoScalingGroupName"].startswith(prefix)
    assert not f"Peerless-{on_aws.settings.name}-more-Peers0-0000".startswith(prefix)


def test_the_time_limit_waits_longer_than_the_instances_own(on_aws: Deployment) -> None:
    _, properties = limit(on_aws)
    states = json.loads(properties["DefinitionString"])["States"]
    assert states["Wait"]["Seconds"] > on_aws.settings.max_hours * 3_600
    assert states["End"]["Parameters"]["ShouldDecrementDesiredCapacity"] is True, "the group would launch another"
    assert states["Running"]["Default"] == "Gone", "an instance that is gone already is no failure"
    reached = {"Wait"}
    for state in states.values():
        reached |= {state.get("Next"), state.get("Default"), *(c["Next"] for c in state.get("Choices", ()))} - {None}
    assert reached == set(states)


def test_the_time_limit_ends_instances_of_this_deployment_alone(on_aws: Deployment) -> None:
    account = on_aws.account()
    _, properties = limit(on_aws)
    action = "autoscaling:TerminateInstanceInAutoScalingGroup"

    def may(action: str, group: str) -> bool:
        return account.allows(properties["RoleArn"], Request(action, f"{GROUP_ARN}/{group}"))

    for _, _, group in on_aws.of("AWS::AutoScaling::AutoScalingGroup"):
        assert may(action, group["AutoScalingGroupName"])
        assert not may("autoscaling:UpdateAutoScalingGroup", group["AutoScalingGroupName"])
    assert not may(action, "Peerless-another-Peers0-0000")
    assert not may(action, "production")
