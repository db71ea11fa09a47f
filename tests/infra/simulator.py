"""What IAM would decide, from synthesised templates: resolves their functions into ARNs and evaluates the policies.

After https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html, for one account without
boundaries, session policies and organisation policies: an explicit deny anywhere wins, then any allow of the identity
or of the resource. Whatever is not known here (a function, an operator, a managed policy) raises, so that nothing
passes because it was not understood.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ACCOUNT, REGION, PARTITION = "123456789012", "us-east-1", "aws"
Template = Mapping[str, Any]

_PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Region": REGION,
    "AWS::Partition": PARTITION,
    "AWS::URLSuffix": "amazonaws.com",
}
#: Resource types whose ARN follows from the name that `Ref` gives: service, and what stands after the account.
_BY_NAME = {
    "AWS::S3::Bucket": "arn:aws:s3:::{name}",
    "AWS::Lambda::Function": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{{name}}",
    "AWS::IAM::Role": f"arn:aws:iam::{ACCOUNT}:role/{{name}}",
    "AWS::IAM::InstanceProfile": f"arn:aws:iam::{ACCOUNT}:instance-profile/{{name}}",
    "AWS::Logs::LogGroup": f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{{name}}:*",
    "AWS::ECR::Repository": f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{{name}}",
    "AWS::CodeBuild::Project": f"arn:aws:codebuild:{REGION}:{ACCOUNT}:project/{{name}}",
    "AWS::CloudWatch::Alarm": f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:{{name}}",
    "AWS::KMS::Key": f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{{name}}",
    "AWS::AutoScaling::AutoScalingGroup": f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:1:{{name}}",
}
#: Resource types whose `Ref` is their ARN.
_REF_IS_ARN = {
    "AWS::StepFunctions::StateMachine": f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{{name}}",
    "AWS::SecretsManager::Secret": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{{name}}-AbCdEf",
    "AWS::Lambda::Alias": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{{function}}:{{alias}}",
    "AWS::Lambda::Version": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{{function}}:1",
    "AWS::SNS::Topic": f"arn:aws:sns:{REGION}:{ACCOUNT}:{{name}}",
}
#: Attributes whose form matters, from the resource's name.
_ATTRIBUTES: dict[tuple[str, str], Callable[[str], Any]] = {
    ("AWS::AmazonMQ::Broker", "AmqpEndpoints"): lambda name: ["amqps://b-0a1b-1.mq.us-east-1.on.aws:5671"],
    ("AWS::ECR::Repository", "RepositoryUri"): lambda name: f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{name.lower()}",
}
_NAME_PROPERTY = {
    "AWS::Lambda::Function": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::AutoScaling::AutoScalingGroup": "AutoScalingGroupName",
    "AWS::IAM::Role": "RoleName",
}


class NotUnderstood(Exception):
    """Something in a template or a policy that the simulator does not know."""


class Stacks:
    """All templates of one deployment, by stack name; `resolve` gives what CloudFormation would."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self.templates = templates

    def resources(self, kind: str) -> list[tuple[str, str, Template]]:
        """(stack, logical id, resource) of every resource of a type."""
        return [
            (stack, id, resource)
            for stack, template in self.templates.items()
            for id, resource in template.get("Resources", {}).items()
            if resource["Type"] == kind
        ]

    def resolve(self, value: Any, stack: str) -> Any:
        """`value` as it stands in the template of `stack`, without functions. Raises NotUnderstood."""
        if isinstance(value, list):
            return [self.resolve(item, stack) for item in value]
        if not isinstance(value, Mapping):
            return value
        if len(value) == 1:
            (name, argument), *_ = value.items()
            if name == "Ref":
                return self._ref(argument, stack)
            if name.startswith("Fn::"):
                return self._function(name, argument, stack)
        return {key: self.resolve(item, stack) for key, item in value.items()}

    def output(self, stack: str, name: str) -> Any:
        """An output's value."""
        outputs = self.templates[stack].get("Outputs", {})
        if name not in outputs:
            raise NotUnderstood(f"stack {stack} has no output {name}")
        return self.resolve(outputs[name]["Value"], stack)

    def arn(self, stack: str, id: str) -> str:
        """ARN of a resource."""
        kind = self._resource(stack, id)["Type"]
        if kind in _BY_NAME:
            return _BY_NAME[kind].format(name=self._ref(id, stack))
        if kind in _REF_IS_ARN:
            return str(self._ref(id, stack))
        raise NotUnderstood(f"the ARN of a {kind}")

    def _resource(self, stack: str, id: str) -> Template:
        found: Template = self.templates[stack]["Resources"][id]
        return found

    def _ref(self, id: str, stack: str) -> Any:
        if id in _PSEUDO:
            return _PSEUDO[id]
        if id == "AWS::StackName":
            return stack
        if id == "AWS::StackId":
            return f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{stack}/0a1b2c3d"
        if id == "AWS::NoValue":
            return None
        parameters = self.templates[stack].get("Parameters", {})
        if id in parameters:
            return str(parameters[id].get("Default", id))
        resource = self._resource(stack, id)
        kind, properties = resource["Type"], resource.get("Properties", {})
        name = f"{stack}-{id}"
        if kind == "AWS::S3::Bucket":
            name = name.lower()
        if (given := properties.get(_NAME_PROPERTY.get(kind, ""))) is not None:
            name = self.resolve(given, stack)
        if kind in ("AWS::Lambda::Alias", "AWS::Lambda::Version"):
            function = self.resolve(properties["FunctionName"], stack)
            return _REF_IS_ARN[kind].format(function=function, alias=properties.get("Name"))
        if kind in _REF_IS_ARN:
            return _REF_IS_ARN[kind].format(name=name)
        return name

    def _function(self, name: str, argument: Any, stack: str) -> Any:
        if name == "Fn::GetAtt":
            id, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
            return self._attribute(id, attribute, stack)
        if name == "Fn::GetStackOutput":
            return self.output(self.resolve(argument["StackName"], stack), argument["OutputName"])
        if name == "Fn::ImportValue":
            wanted = self.resolve(argument, stack)
            for other, template in self.templates.items():
                for id, output in template.get("Outputs", {}).items():
                    if "Export" in output and self.resolve(output["Export"]["Name"], other) == wanted:
                        return self.output(other, id)
            raise NotUnderstood(f"no stack exports {wanted}")
        if name == "Fn::Sub":
            return self._sub(argument, stack)
        argument = self.resolve(argument, stack)
        if name == "Fn::Join":
            return argument[0].join(str(part) for part in argument[1])
        if name == "Fn::Split":
            return argument[1].split(argument[0])
        if name == "Fn::Select":
            return argument[1][int(argument[0])]
        if name == "Fn::Base64":  # left as it is, for those who read it
            return argument
        if name == "Fn::GetAZs":
            return [f"{REGION}{letter}" for letter in "abcdef"]
        raise NotUnderstood(f"function {name}")

    def _sub(self, argument: Any, stack: str) -> str:
        text, values = argument if isinstance(argument, list) else (argument, {})

        def fill(found: re.Match[str]) -> str:
            key = found[1]
            if key in values:
                return str(self.resolve(values[key], stack))
            if "." in key:
                return str(self._attribute(*key.split(".", 1), stack))
            return str(self._ref(key, stack))

        return re.sub(r"\$\{([^!}]+)\}", fill, text)

    def _attribute(self, id: str, attribute: str, stack: str) -> Any:
        kind = self._resource(stack, id)["Type"]
        if attribute in ("Arn", "TopicArn") or (kind == "AWS::Lambda::Alias" and attribute == "AliasArn"):
            return self.arn(stack, id)
        if (kind, attribute) in _ATTRIBUTES:
            return _ATTRIBUTES[kind, attribute](f"{stack}-{id}")
        if attribute == "Name":
            return f"{stack}-{id}"
        return f"{stack}-{id}-{attribute}"  # an opaque value, the same wherever it stands


@dataclass(frozen=True)
class Request:
    """One call. `context` holds condition keys beside those that the role and the transport bring."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


class Account:
    """Roles and bucket policies of a deployment, and what they decide.

    `managed` gives the statements of those policies of AWS that roles may use, by ARN.
    """

    def __init__(
        self, templates: Mapping[str, Template], managed: Mapping[str, list[dict[str, Any]]] | None = None
    ) -> None:
        self.stacks = Stacks(templates)
        self._managed = dict(managed or {})
        self.roles = {
            self.stacks.arn(stack, id): (stack, id) for stack, id, _ in self.stacks.resources("AWS::IAM::Role")
        }
        self._bucket_policies = self._read_bucket_policies()
        self._identity = {arn: self._read_identity(arn) for arn in self.roles}

    def tags(self, role: str) -> dict[str, str]:
        """Tags of a role."""
        stack, id = self.roles[role]
        properties = self.stacks.templates[stack]["Resources"][id].get("Properties", {})
        return {tag["Key"]: tag["Value"] for tag in properties.get("Tags", ())}

    def allows(self, role: str, request: Request) -> bool:
        """Whether the role (its ARN) may do it."""
        context = {
            "aws:securetransport": "true",
            "s3:tlsversion": "1.3",
            "aws:principalarn": role,
            "aws:principalaccount": ACCOUNT,
            "aws:requestedregion": REGION,
            **{f"aws:principaltag/{key}".lower(): value for key, value in self.tags(role).items()},
            **{key.lower(): value for key, value in request.context.items()},
        }
        statements = [(statement, False) for statement in self._identity[role]]
        statements += [(statement, True) for statement in self._of_resource(request.resource)]
        allowed = False
        for statement, on_resource in statements:
            if on_resource and not _is_principal(statement, role):
                continue
            if not _applies(statement, request, context):
                continue
            if statement["Effect"] == "Deny":
                return False
            allowed = True
        return allowed

    def _of_resource(self, arn: str) -> list[dict[str, Any]]:
        if not arn.startswith("arn:aws:s3:::"):
            return []
        return self._bucket_policies.get(arn.removeprefix("arn:aws:s3:::").split("/")[0], [])

    def _read_bucket_policies(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for stack, _, resource in self.stacks.resources("AWS::S3::BucketPolicy"):
            properties = self.stacks.resolve(resource["Properties"], stack)
            found.setdefault(properties["Bucket"], []).extend(properties["PolicyDocument"]["Statement"])
        return found

    def _read_identity(self, arn: str) -> list[dict[str, Any]]:
        stack, id = self.roles[arn]
        properties = self.stacks.resolve(self.stacks.templates[stack]["Resources"][id].get("Properties", {}), stack)
        if "PermissionsBoundary" in properties:
            raise NotUnderstood("a permissions boundary")
        statements = [s for policy in properties.get("Policies", ()) for s in policy["PolicyDocument"]["Statement"]]
        name = self.stacks.resolve({"Ref": id}, stack)
        for kind in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"):
            for other, _, resource in self.stacks.resources(kind):
                policy = self.stacks.resolve(resource["Properties"], other)
                if name in policy.get("Roles", ()):
                    statements += policy["PolicyDocument"]["Statement"]
        for managed in properties.get("ManagedPolicyArns", ()):
            if managed not in self._managed:
                raise NotUnderstood(f"managed policy {managed}")
            statements += self._managed[managed]
        return statements


def matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: `*` for any characters, slashes included, and `?` for one."""
    return _compiled(pattern).fullmatch(text) is not None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.compile("".join(parts), re.DOTALL)


def _list(value: Any) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _is_principal(statement: Mapping[str, Any], role: str) -> bool:
    if "NotPrincipal" in statement:
        raise NotUnderstood("NotPrincipal")
    principal = statement["Principal"]
    named = ["*"] if principal == "*" else _list(principal.get("AWS", []))
    return any(name in ("*", role, f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT) for name in named)


def _applies(statement: Mapping[str, Any], request: Request, context: Mapping[str, str]) -> bool:
    unknown = set(statement) - {
        "Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Principal", "Condition"
    }  # fmt: skip
    if unknown:
        raise NotUnderstood(f"{', '.join(unknown)} in a statement")
    action = request.action.lower()
    if "Action" in statement:
        acts = any(matches(pattern.lower(), action) for pattern in _list(statement["Action"]))
    else:
        acts = not any(matches(pattern.lower(), action) for pattern in _list(statement["NotAction"]))
    if not acts:
        return False
    if "Resource" in statement:
        meant = any(matches(_fill(pattern, context), request.resource) for pattern in _list(statement["Resource"]))
    elif "NotResource" in statement:
        meant = not any(
            matches(_fill(pattern, context), request.resource) for pattern in _list(statement["NotResource"])
        )
    else:
        raise NotUnderstood("a statement without resources")
    return meant and all(
        _holds(operator, key, _list(values), context)
        for operator, keys in statement.get("Condition", {}).items()
        for key, values in keys.items()
    )


def _fill(pattern: str, context: Mapping[str, str]) -> str:
    """Policy variables `${key}`; one without a value matches nothing."""

    def value(found: re.Match[str]) -> str:
        if found[1] in ("*", "?", "$"):
            raise NotUnderstood(f"escaped {found[1]}")
        return context.get(found[1].lower(), "\0")

    return re.sub(r"\$\{([^}]+)\}", value, pattern)


_STRINGS = {
    "StringEquals": lambda wanted, given: wanted == given,
    "StringEqualsIgnoreCase": lambda wanted, given: wanted.lower() == given.lower(),
    "StringLike": matches,
    "ArnEquals": matches,
    "ArnLike": matches,
    "Bool": lambda wanted, given: wanted.lower() == given.lower(),
    "NumericEquals": lambda wanted, given: float(wanted) == float(given),
    "NumericLessThan": lambda wanted, given: float(given) < float(wanted),
    "NumericLessThanEquals": lambda wanted, given: float(given) <= float(wanted),
    "NumericGreaterThan": lambda wanted, given: float(given) > float(wanted),
}
_NEGATED = {
    "StringNotEquals": "StringEquals",
    "StringNotLike": "StringLike",
    "ArnNotEquals": "ArnEquals",
    "ArnNotLike": "ArnLike",
}


def _holds(operator: str, key: str, wanted: Iterable[str], context: Mapping[str, str]) -> bool:
    """One condition. A key that is not there fails a positive operator, and meets a negated one and `...IfExists`."""
    given = context.get(key.lower())
    values = [_fill(value, context) for value in wanted]
    if operator == "Null":
        return any((given is None) == (value.lower() == "true") for value in values)
    base = operator.removesuffix("IfExists")
    if base in _NEGATED:
        compare = _STRINGS[_NEGATED[base]]
        return given is None or not any(compare(value, given) for value in values)
    if base not in _STRINGS:
        raise NotUnderstood(f"condition operator {operator}")
    if given is None:
        return base != operator
    return any(_STRINGS[base](value, given) for value in values)
