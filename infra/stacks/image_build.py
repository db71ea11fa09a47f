"""deploy-time-build's constructs with as few rights as a build needs, and logs that end.

The package grants itself AWS's managed policies, all of CDK's asset bucket, and report groups; here its statements
are replaced by ours. What each is for follows from its build commands
(https://github.com/tmokmss/deploy-time-build, src/container-image-build.ts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3_assets as s3_assets
from constructs import Construct, IConstruct
from deploy_time_build import ContainerImageBuild

from infra import policies
from infra.grants import REASONS, Grant
from infra.settings import Settings
from infra.stacks.log_groups import log_group

#: A build takes some five minutes; one that hangs is not to be paid for an hour.
BUILD_MINUTES = 30

_Made = TypeVar("_Made", bound=Construct)

_NO_RESOURCE = "this action takes no resource"
_REASONS = {
    "AwsSolutions-CB3": "Building an image in CodeBuild needs Docker, and Docker the privileged mode.",
    "AwsSolutions-CB4": "The project writes no artifacts; the registry encrypts the images, and none holds a secret.",
    "AwsSolutions-L1": "The function is deploy-time-build's; its authors test it on this Node.js, which AWS supports.",
}


def tend(stack: Stack, settings: Settings, builds: Sequence[ContainerImageBuild]) -> None:
    """Limit what the project and the function behind `builds`, all builds of `stack`, may do, and end their logs."""
    (project,) = _all(stack, codebuild.CfnProject)
    (function,) = _all(stack, lambda_.CfnFunction)
    # CodeBuild names its log after the project; it must exist, with its end, before the first build.
    group = log_group(stack, "BuildLog", settings, name=f"/aws/codebuild/{project.ref}")
    for build in builds:
        build.node.add_dependency(group)
    _replace_rights(_parent(project).node.find_child("Role"), _building(stack, group, builds))
    project.timeout_in_minutes = BUILD_MINUTES
    # CDK's own log group for it would stay behind, for two years.
    _parent(function).node.try_remove_child("LogGroup")
    starter_log = log_group(stack, "StartLog", settings)
    function.logging_config = lambda_.CfnFunction.LoggingConfigProperty(log_group=starter_log.log_group_name)
    _replace_rights(_parent(function).node.find_child("ServiceRole"), _starting(stack, starter_log, project))
    for place in (_parent(project), _parent(function)):
        for id, reason in _REASONS.items():
            Validations.of(place).acknowledge(Acknowledgment(id=id, reason=reason))


def _building(stack: Stack, group: logs.LogGroup, builds: Sequence[ContainerImageBuild]) -> list[Grant]:
    """The project: reads the build contexts, pulls the bases, pushes the images."""
    contexts = [asset for build in builds for asset in _all(build, s3_assets.Asset)]
    return [
        *policies.logs(_arn(stack, group)),
        Grant(
            sid="ReadContexts",
            actions=("s3:GetObject",),
            resources=tuple(asset.bucket.arn_for_objects(asset.s3_object_key) for asset in contexts),
        ),
        Grant(
            sid="PushImages",
            actions=(
                "ecr:BatchCheckLayerAvailability",
                "ecr:BatchGetImage",
                "ecr:CompleteLayerUpload",
                "ecr:GetDownloadUrlForLayer",
                "ecr:InitiateLayerUpload",
                "ecr:PutImage",
                "ecr:UploadLayerPart",
            ),
            resources=tuple(build.repository.repository_arn for build in builds),
        ),
        Grant(
            sid="LogIn",
            actions=("ecr:GetAuthorizationToken", "ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"),
            resources=("*",),
            reason=f"logging in to the registries, the public one for the bases; {_NO_RESOURCE}",
        ),
    ]


def _starting(stack: Stack, group: logs.LogGroup, project: codebuild.CfnProject) -> list[Grant]:
    """The function: starts a build, which answers CloudFormation itself."""
    return [
        *policies.logs(_arn(stack, group)),
        Grant(sid="StartBuild", actions=("codebuild:StartBuild",), resources=(project.attr_arn,)),
    ]


def _replace_rights(role: IConstruct, grants: Sequence[Grant]) -> None:
    """Let `role` do what `grants` say and nothing else."""
    (made,) = _all(role, iam.CfnRole)
    (policy,) = _all(role, iam.CfnPolicy)
    made.managed_policy_arns = []
    policy.policy_document = iam.PolicyDocument(statements=[grant.statement() for grant in grants])
    policy.add_metadata(REASONS, {grant.sid: grant.reason for grant in grants if grant.reason})


def _arn(stack: Stack, group: logs.LogGroup) -> str:
    return stack.format_arn(service="logs", resource=f"log-group:{group.log_group_name}")


def _parent(made: Construct) -> IConstruct:
    scope = made.node.scope
    assert scope is not None
    return scope


def _all(scope: IConstruct, kind: type[_Made]) -> list[_Made]:
    return [found for found in scope.node.find_all() if isinstance(found, kind)]
