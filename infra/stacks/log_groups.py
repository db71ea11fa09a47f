"""Log groups that expire with the settings' days and go with their stack."""

from __future__ import annotations

from aws_cdk import Aws, Fn, RemovalPolicy
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.settings import Settings


def log_group(scope: Construct, id: str, settings: Settings, *, name: str | None = None) -> logs.LogGroup:
    """A log group whose name CloudFormation makes up, unless there is a reason for one."""
    group = logs.LogGroup(scope, id, log_group_name=name, removal_policy=RemovalPolicy.DESTROY)
    made = group.node.default_child
    assert isinstance(made, logs.CfnLogGroup)
    made.retention_in_days = settings.log_days
    return group


def vended_name(service: str) -> str:
    """A name that cannot collide (it holds the stack's unique id) under the prefix that log deliveries need.

    Without `/aws/vendedlogs/` each log group would be written into the account's one resource policy of 5,120
    characters, which a few deployments fill (https://docs.aws.amazon.com/step-functions/latest/dg/bp-cwl.html).
    """
    unique = Fn.select(2, Fn.split("/", Aws.STACK_ID))
    return f"/aws/vendedlogs/{service}/{Aws.STACK_NAME}-{unique}"
