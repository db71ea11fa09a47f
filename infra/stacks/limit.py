"""`max_hours` as AWS itself keeps it: whatever a peer, its instance or the user's command does or fails to do."""

from __future__ import annotations

import json
from typing import Any

from aws_cdk import Acknowledgment, Aws, Duration, RemovalPolicy, Stack, Validations
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from infra import outputs, policies
from infra.grants import attach
from infra.settings import Settings
from infra.stacks.peers import group_arn

#: An execution of a state machine ends after a year at the latest, in seconds.
_LONGEST = 365 * 86_400
#: Behind the user command's scheduled action and the instance's own timer, which end a run in order, in seconds.
_GRACE = 900

_HISTORY = "Four states, once per instance: the executions' own history, kept for 90 days, tells all there is to tell."


class TimeLimit(Construct):
    """Ends each instance of a peer `max_hours` (and a quarter) after its launch, and wants none in its place.

    Amazon EC2 Auto Scaling tells EventBridge of every launch, which starts an execution that waits. Attribute:
    `machine`. Costs 0.0001 USD per launch.
    """

    def __init__(self, scope: Construct, id: str, settings: Settings) -> None:
        super().__init__(scope, id)
        stack = Stack.of(self)
        # Deployments' names have no capital letters, so no other deployment's groups begin like that.
        prefix = f"{settings.prefix}-{outputs.PEERS}"
        role = iam.Role(
            self,
            "Role",
            description=f"Ends instances of the Peerless deployment {settings.name} that run too long",
            assumed_by=iam.ServicePrincipal(
                "states.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}}
            ),
        )
        attached = attach(self, "Policy", role, policies.end_of_instances(group_arn(stack, f"{prefix}*")))
        seconds = min(round(settings.max_hours * 3_600) + _GRACE, _LONGEST - 3_600)
        self.machine = sfn.StateMachine(
            self,
            "Machine",
            comment="Ends an instance of a peer that runs longer than max_hours",
            definition_body=sfn.DefinitionBody.from_string(json.dumps(_definition(seconds))),
            role=role.without_policy_updates(),  # all that it may do stands in infra/policies.py
            removal_policy=RemovalPolicy.DESTROY,
        )
        self.machine.node.add_dependency(attached)
        for rule in ("AwsSolutions-SF1", "AwsSolutions-SF2"):
            Validations.of(self.machine).acknowledge(Acknowledgment(id=rule, reason=_HISTORY))
        events.Rule(
            self,
            "Launched",
            description=f"An instance of a peer of the Peerless deployment {settings.name} was launched",
            event_pattern=events.EventPattern(
                source=["aws.autoscaling"],
                detail_type=["EC2 Instance Launch Successful"],
                detail={"AutoScalingGroupName": events.Match.prefix(prefix)},
            ),
            targets=[
                targets.SfnStateMachine(self.machine, retry_attempts=10, max_event_age=Duration.hours(2)),
            ],
        )


def _definition(seconds: int) -> dict[str, Any]:
    """Wait, then end the instance that the event names, if it is still there."""
    service = f"arn:{Aws.PARTITION}:states:::aws-sdk:autoscaling"
    retry = [
        {
            "ErrorEquals": ["States.ALL"],
            "IntervalSeconds": 10,
            "MaxAttempts": 8,
            "BackoffRate": 2,
            "MaxDelaySeconds": 600,
        }
    ]
    return {
        "StartAt": "Wait",
        "States": {
            "Wait": {"Type": "Wait", "Seconds": seconds, "Next": "Find"},
            "Find": {
                "Type": "Task",
                "Resource": f"{service}:describeAutoScalingInstances",
                "Parameters": {"InstanceIds.$": "States.Array($.detail.EC2InstanceId)"},
                "ResultPath": "$.found",
                "Retry": retry,
                "Next": "Running",
            },
            "Running": {
                "Type": "Choice",
                "Choices": [
                    {
                        "And": [
                            {"Variable": "$.found.AutoScalingInstances[0]", "IsPresent": True},
                            {
                                "Variable": "$.found.AutoScalingInstances[0].LifecycleState",
                                "StringEquals": "InService",
                            },
                        ],
                        "Next": "End",
                    }
                ],
                "Default": "Gone",
            },
            "End": {
                "Type": "Task",
                "Resource": f"{service}:terminateInstanceInAutoScalingGroup",
                "Parameters": {
                    "InstanceId.$": "$.detail.EC2InstanceId",
                    "ShouldDecrementDesiredCapacity": True,
                },
                "Retry": retry,
                "End": True,
            },
            "Gone": {"Type": "Succeed"},
        },
    }
