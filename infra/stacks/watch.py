"""What tells the user how a deployment does: alarms, where they go, a budget, the dashboard and the time limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aws_cdk import Aws, Duration, RemovalPolicy, Stack
from aws_cdk import aws_amazonmq as amazonmq
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from infra.settings import Settings
from infra.stacks import readings
from infra.stacks.dashboard import make_dashboard
from infra.stacks.limit import TimeLimit
from infra.stacks.peers import PeersStack
from infra.stacks.storage import StorageStack
from infra.stacks.workers import WorkersStack

#: Periods of five minutes without a commit, with instances in service, after which a round counts as stuck: three times
#: what the configuration's `round_timeout_seconds` allows by default, which fails the run by itself.
STUCK_PERIODS = 6
#: Failed invocations in five minutes. Single ones are retried; a mistake in the code fails every one.
WORKER_ERRORS = 5
#: Share of the broker's memory limit; at 1 it blocks all publishers.
BROKER_MEMORY = 0.8
#: Free disk as a multiple of the limit; at 1 the broker blocks all publishers.
BROKER_DISK = 2.0
#: Shares of the monthly budget at which an email goes out, in percent, and of what.
BUDGET_NOTICES = ((80, "ACTUAL"), (100, "ACTUAL"), (100, "FORECASTED"))

_NOT_BREACHING = cloudwatch.TreatMissingData.NOT_BREACHING


class WatchedBroker(Protocol):
    """What is watched of the broker."""

    @property
    def broker(self) -> amazonmq.CfnBroker: ...


class WatchStack(Stack):
    """Attributes: `alarms`, `topic` (None without an address for alarms), `limit`.

    No alarm rings while nothing runs: each says beside it what it makes of missing data. They are bounded: CloudWatch
    allows ten metrics in one, so those on functions and machines stand once per ten peers.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        settings: Settings,
        *,
        storage: StorageStack,
        broker: WatchedBroker | None,
        workers: Sequence[WorkersStack],
        peers: Sequence[PeersStack],
    ) -> None:
        super().__init__(
            scope,
            id,
            description=f"Dashboard, alarms and limits of the Peerless deployment {settings.name}",
            suppress_template_indentation=True,  # a template may have a megabyte, and 150 peers fill most of it
        )
        self._settings = settings
        self.topic = self._make_topic() if settings.alarm_email else None
        self.alarms: list[cloudwatch.Alarm] = []
        self.limit = TimeLimit(self, "TimeLimit", settings)
        self._round_alarm(peers)
        if broker is not None:
            self._broker_alarms(broker.broker)
        self._worker_alarms(workers)
        self._limit_alarm()
        if settings.monthly_budget_usd:
            self._budget()
        make_dashboard(
            self,
            settings,
            broker=broker.broker.broker_name if broker else None,
            workers=workers,
            peers=peers,
            run_bucket=storage.run_bucket.bucket_name,
            alarms=self.alarms,
        )

    def _round_alarm(self, peers: Sequence[PeersStack]) -> None:
        # All groups scale together, so as many as fit beside the rounds tell whether a run is on. They report at all
        # times, also zero. Commits are summed with a zero per report of the groups: where no peer ever emitted
        # anything, there would otherwise be nothing to fill.
        groups = [name for stack in peers for name in stack.group_names][:9]
        instances = readings.total([readings.in_service(group) for group in groups], "Instances in service")
        committed = cloudwatch.MathExpression(
            expression="SUM([FILL(emitted, 0), 0 * instances])",
            using_metrics={"emitted": readings.rounds(self._settings), "instances": instances},
            label="Rounds committed",
            period=readings.PERIOD,
        )
        stuck = cloudwatch.MathExpression(
            expression="IF(instances > 0 AND committed < 1, 1, 0)",
            using_metrics={"instances": instances, "committed": committed},
            label="Instances in service, no round committed",
            period=readings.PERIOD,
        )
        self._alarm(
            "RoundStuck",
            stuck,
            threshold=1,
            periods=STUCK_PERIODS,
            why=f"Peers run, but no round was committed for {STUCK_PERIODS * 5} minutes. See `peerless logs`; "
            "`peerless stop` ends the run.",
        )

    def _broker_alarms(self, broker: amazonmq.CfnBroker) -> None:
        name = broker.broker_name
        memory = readings.ratio(
            readings.broker(name, "RabbitMQMemUsed"), readings.broker(name, "RabbitMQMemLimit"), "Memory"
        )
        disk = readings.ratio(
            readings.broker(name, "RabbitMQDiskFree"), readings.broker(name, "RabbitMQDiskFreeLimit"), "Free disk"
        )
        # A broker reports as long as it exists; while it is made, rebooted or upgraded it does not.
        self._alarm(
            "BrokerMemory",
            memory,
            threshold=BROKER_MEMORY,
            periods=3,
            why=f"The broker uses over {BROKER_MEMORY:.0%} of its memory limit; at the limit it blocks all publishers. "
            "A larger broker_instance_type, or exchange.inline_bytes = 0, relieves it.",
        )
        self._alarm(
            "BrokerDisk",
            disk,
            threshold=BROKER_DISK,
            periods=3,
            comparison=cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
            why="The broker's disk is nearly full; at its limit it blocks all publishers.",
        )

    def _worker_alarms(self, workers: Sequence[WorkersStack]) -> None:
        # Lambda and Step Functions report only while they are called: no data means that nothing failed.
        seen: set[str] = set()
        for number, stack in enumerate(workers):
            functions = [one for one in _distinct(stack) if one.node.path not in seen]
            seen |= {one.node.path for one in functions}
            if functions:  # a shared function counts once
                self._alarm(
                    f"WorkerErrors{number}",
                    readings.total([one.metric_errors(period=readings.PERIOD) for one in functions], "Errors"),
                    threshold=WORKER_ERRORS,
                    why="Gradient workers fail. Single failures are retried; these are more. See `peerless logs`.",
                )
                self._alarm(
                    f"WorkerThrottles{number}",
                    readings.total([one.metric_throttles(period=readings.PERIOD) for one in functions], "Throttles"),
                    threshold=1,
                    periods=3,
                    why="Gradient workers are throttled for a quarter of an hour: the account's quota of concurrent "
                    "Lambda invocations is too small for the run, or something else uses it up.",
                )
            for kind, machines in (("Inline", stack.inline_machines), ("Distributed", stack.distributed_machines)):
                failed = [one.metric_failed(period=readings.PERIOD) for one in machines.values()]
                self._alarm(
                    f"{kind}Failures{number}",
                    readings.total(failed, "Failed executions"),
                    threshold=1,
                    why="Rounds fail in Step Functions after all retries. The peer's log names batch and error.",
                )

    def _limit_alarm(self) -> None:
        self._alarm(
            "LimitFailure",
            self.limit.machine.metric_failed(period=readings.PERIOD),
            threshold=1,
            why="An instance that runs longer than max_hours could not be ended. Set its auto scaling group's desired "
            "capacity to 0.",
        )

    def _alarm(
        self,
        id: str,
        metric: cloudwatch.IMetric,
        *,
        threshold: float,
        why: str,
        periods: int = 1,
        comparison: cloudwatch.ComparisonOperator = cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
    ) -> None:
        """An alarm that rings when all of the last `periods` reached the threshold; missing data never does."""
        alarm = cloudwatch.Alarm(
            self,
            id,
            metric=metric,
            threshold=threshold,
            evaluation_periods=periods,
            comparison_operator=comparison,
            treat_missing_data=_NOT_BREACHING,
            alarm_description=f"Peerless deployment {self._settings.name}: {why}",
        )
        if self.topic is not None:
            alarm.add_alarm_action(actions.SnsAction(self.topic))
        self.alarms.append(alarm)

    def _make_topic(self) -> sns.Topic:
        """Where alarms go. The key costs 1 USD a month: CloudWatch cannot publish to a topic under the free key of SNS,
        whose policy names no services."""
        key = kms.Key(
            self,
            "AlarmKey",
            description=f"Alarms of the Peerless deployment {self._settings.name}",
            enable_key_rotation=True,
            pending_window=Duration.days(7),
            removal_policy=RemovalPolicy.DESTROY,
        )
        service = iam.ServicePrincipal("cloudwatch.amazonaws.com")
        key.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AlarmsUseTheKey",
                principals=[service],
                actions=["kms:Decrypt", "kms:GenerateDataKey"],
                resources=["*"],  # in a key's own policy that is the key
            )
        )
        topic = sns.Topic(self, "Alarms", master_key=key, enforce_ssl=True)
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AlarmsPublish",
                principals=[service],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}},
            )
        )
        topic.add_subscription(subscriptions.EmailSubscription(self._settings.alarm_email))
        return topic

    def _budget(self) -> None:
        """Counts the whole account: a budget by tag sees nothing until somebody activates the tag in the billing
        console, and one that never rings is worse than one that rings for something else."""
        email = self._settings.alarm_email
        to = [budgets.CfnBudget.SubscriberProperty(address=email, subscription_type="EMAIL")]
        budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(amount=self._settings.monthly_budget_usd, unit="USD"),
            ),
            notifications_with_subscribers=[
                budgets.CfnBudget.NotificationWithSubscribersProperty(
                    notification=budgets.CfnBudget.NotificationProperty(
                        comparison_operator="GREATER_THAN",
                        notification_type=kind,
                        threshold=percent,
                        threshold_type="PERCENTAGE",
                    ),
                    subscribers=to,
                )
                for percent, kind in (BUDGET_NOTICES if email else ())
            ],
        )


def _distinct(stack: WorkersStack) -> list[readings.Function]:
    """The functions of a stack, each once."""
    return list({one.node.path: one for one in stack.functions.values()}.values())
