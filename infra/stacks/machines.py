"""A peer's state machines: both map forms, which fit any count of batches; `parallel` is made by the user's command."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Acknowledgment, Aws, RemovalPolicy, Stack, Validations
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from infra import policies
from infra.grants import attach, rank_name, tag_peer
from infra.settings import Settings
from statemachines import Mode, definition, render

_ERRORS_ONLY = (
    "Standard executions keep their whole history for 90 days anyway; a copy of every event in CloudWatch would cost "
    "more than the executions of a large round. Errors are logged; Express executions, which keep no history, log all."
)


@dataclass(frozen=True)
class Machines:
    """State machines of one rank, and the role that they run under."""

    inline: sfn.StateMachine
    distributed: sfn.StateMachine
    role: iam.Role


def make_machines(
    scope: Construct,
    settings: Settings,
    *,
    rank: int,
    peer_bucket: str,
    function: str,
    reducer: str,
    log_group: logs.ILogGroup,
) -> Machines:
    """`peer_bucket` is the ARN of the peer's bucket, `function` and `reducer` those that the machines invoke, the
    latter "" where nothing adds gradients up."""
    name = rank_name(rank)
    stack = Stack.of(scope)
    role = iam.Role(
        scope,
        f"MachineRole{name}",
        description=f"State machines of rank {rank}",
        assumed_by=iam.ServicePrincipal(
            "states.amazonaws.com",
            conditions={"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}},  # no other account's state machine
        ),
    )
    tag_peer(role, name)
    policy = attach(
        scope,
        f"MachinePolicy{name}",
        role,
        [*policies.machine(peer_bucket, [arn for arn in (function, reducer) if arn], rank), *policies.tracing()],
    )

    def make(id: str, mode: Mode, kind: sfn.StateMachineType) -> sfn.StateMachine:
        text = render(
            definition(
                mode,
                function_arn=function,
                batches=None,
                concurrency=settings.concurrency,
                timeout_seconds=settings.timeout_seconds,
                tolerated=settings.tolerated_failures,
                reducer_arn=reducer,
            )
        )
        express = kind is sfn.StateMachineType.EXPRESS
        made = sfn.StateMachine(
            scope,
            f"{id}{name}",
            definition_body=sfn.DefinitionBody.from_string(text),
            state_machine_type=kind,
            role=role.without_policy_updates(),  # all that it may do stands in infra/policies.py
            tracing_enabled=True,
            logs=sfn.LogOptions(
                destination=log_group,
                level=sfn.LogLevel.ALL if express else sfn.LogLevel.ERROR,
                include_execution_data=False,
            ),
            removal_policy=RemovalPolicy.DESTROY,
        )
        made.node.add_dependency(policy)
        if not express:
            Validations.of(made).acknowledge(Acknowledgment(id="AwsSolutions-SF1", reason=_ERRORS_ONLY))
        return made

    inline_kind = sfn.StateMachineType.EXPRESS if settings.express else sfn.StateMachineType.STANDARD
    inline = make("Inline", Mode.INLINE_MAP, inline_kind)
    distributed = make("Distributed", Mode.DISTRIBUTED_MAP, sfn.StateMachineType.STANDARD)
    # Apart from the policy that the machine waits for, because this one names the machine.
    attach(
        scope,
        f"ChildrenPolicy{name}",
        role,
        policies.distributed_map(distributed.state_machine_arn, executions_arn(stack, distributed.state_machine_name)),
    )
    return Machines(inline, distributed, role)


def executions_arn(stack: Stack, machine: str) -> str:
    """ARN of a state machine's executions without their own names; `machine` is a name or a pattern."""
    return stack.format_arn(service="states", resource=f"execution:{machine}")
