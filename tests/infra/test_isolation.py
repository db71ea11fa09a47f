"""Who can do what, as IAM would decide it: a peer's roles reach its own bucket, function and machines only.

Requests are made from contract/keys.py, so that policies and keys cannot drift apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from contract.keys import Place, Places, current_place
from infra import outputs
from tests.infra.deployment import MANAGED, Deployment
from tests.infra.simulator import Account, Request

PEER_TAG = "peerless:peer"
RUN = "mnist-20261121-ab12"
#: A finished PutObject or upload of several parts; its parts come with "false".
WHOLE = {"s3:ObjectCreationOperation": "true"}
CREATE = {**WHOLE, "s3:if-none-match": "*"}
REPLACE = {**WHOLE, "s3:if-match": '"0123"'}

#: Rights that no role has, for what bucket policies hold against all the same.
EVERYTHING = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}

OBJECT_ACTIONS = (
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:GetObjectAttributes",
    "s3:PutObject",
    "s3:PutObjectAcl",
    "s3:PutObjectTagging",
    "s3:DeleteObject",
    "s3:DeleteObjectVersion",
    "s3:RestoreObject",
    "s3:ReplicateObject",
    "s3:AbortMultipartUpload",
)
BUCKET_ACTIONS = (
    "s3:ListBucket",
    "s3:ListBucketVersions",
    "s3:ListBucketMultipartUploads",
    "s3:GetBucketPolicy",
    "s3:PutBucketPolicy",
    "s3:DeleteBucketPolicy",
    "s3:PutBucketVersioning",
    "s3:PutBucketAcl",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutLifecycleConfiguration",
    "s3:PutReplicationConfiguration",
    "s3:DeleteBucket",
)
#: With any of these a role could become another, or have others work for it.
POWER = (
    "iam:PassRole",
    "iam:CreateRole",
    "iam:PutRolePolicy",
    "iam:AttachRolePolicy",
    "iam:UpdateAssumeRolePolicy",
    "iam:TagRole",
    "iam:UntagRole",
    "sts:AssumeRole",
    "states:CreateStateMachine",
    "states:UpdateStateMachine",
    "states:DeleteStateMachine",
    "lambda:CreateFunction",
    "lambda:UpdateFunctionCode",
    "lambda:UpdateFunctionConfiguration",
    "lambda:AddPermission",
    "lambda:UpdateAlias",
    "ec2:RunInstances",
    "autoscaling:UpdateAutoScalingGroup",
    "cloudformation:UpdateStack",
)


#: Kinds of roles that a shared worker has once for all.
FUNCTIONS = ("worker", "reducer")


class Cloud:
    """A deployment's account, and the places and ARNs of its parts."""

    def __init__(self, deployment: Deployment, templates: dict[str, Any] | None = None) -> None:
        self.deployment, self.settings = deployment, deployment.settings
        self.account = Account(templates or deployment.templates, MANAGED)
        groups = range(len(self.settings.groups))
        buckets = [
            name for k in groups for name in deployment.output("Storage", f"{outputs.PEER_BUCKETS}{k}").split(",")
        ]
        self.places = Places(
            run=RUN,
            run_bucket=deployment.output("Storage", outputs.RUN_BUCKET),
            peer_buckets=tuple(buckets),
            region="us-east-1",
        )

    def listed(self, output: str) -> list[str]:
        groups = range(len(self.settings.groups))
        return [name for k in groups for name in self.deployment.output(f"{outputs.WORKERS}{k}", output).split(",")]

    def role(self, rank: int, kind: str) -> str:
        """The ARN of a rank's `worker`, `reducer`, `machine` or `instance` role; a shared worker's is everybody's."""
        service = {"worker": "lambda", "reducer": "lambda", "machine": "states", "instance": "ec2"}[kind]
        who = "shared" if kind in FUNCTIONS and self.settings.shared_worker else f"{rank:04d}"
        (found,) = [
            arn
            for arn, (stack, id) in self.account.roles.items()
            if self.account.tags(arn).get(PEER_TAG) == who
            and service in _trusted(self.deployment, stack, id)
            and id.startswith("Reducer") is (kind == "reducer")
        ]
        return found

    def kinds(self) -> tuple[str, ...]:
        functions = FUNCTIONS if self.settings.reduce else FUNCTIONS[:1]
        return (*functions, "machine") if self.settings.local else (*functions, "machine", "instance")

    def allows(self, role: str, action: str, where: Place | str, context: dict[str, str] | None = None) -> bool:
        arn = where if isinstance(where, str) else f"arn:aws:s3:::{where.bucket}/{where.key}"
        return self.account.allows(role, Request(action, arn, context or {}))

    def peers_objects(self, rank: int) -> list[Place]:
        """One of each kind in a peer's bucket, and what is none."""
        p = self.places
        bucket = p.peer_buckets[rank]
        made = [p.manifest(rank), p.batch(rank, 3), p.items(rank, 2, 0), p.gradient(rank, 2, 0, 3)]
        made.append(p.partial(rank, 2, 0, 1, 3))
        # A peer might write under its own number into another's bucket.
        others = [Place(bucket, key.replace(f"/{rank:04d}/", f"/{other:04d}/")) for key in (made[2].key, made[3].key)
                  for other in range(self.settings.peers)]  # fmt: skip
        return [*made, *others, Place(bucket, "anything")]


def _trusted(deployment: Deployment, stack: str, id: str) -> str:
    role = deployment.templates[stack]["Resources"][id]["Properties"]
    statement = deployment.stacks.resolve(role["AssumeRolePolicyDocument"]["Statement"], stack)[0]
    return str(statement["Principal"].get("Service", ""))


@pytest.fixture
def cloud(deployment: Deployment) -> Cloud:
    return Cloud(deployment)


def pairs(cloud: Cloud) -> Iterator[tuple[int, int]]:
    """Neighbours, and ranks whose numbers resemble each other."""
    last = cloud.settings.peers - 1
    yield from ((a, b) for a, b in ((0, 1), (1, 0), (0, last), (last, 1)) if a != b and max(a, b) <= last)


def break_ins(cloud: Cloud, intruder: int, owner: int) -> list[str]:
    """What roles of one peer may do to another peer's bucket, function or machines: must be nothing."""
    done = []
    kinds = [kind for kind in cloud.kinds() if not (kind in FUNCTIONS and cloud.settings.shared_worker)]
    places = cloud.peers_objects(owner)
    bucket = f"arn:aws:s3:::{cloud.places.peer_buckets[owner]}"
    function = cloud.listed(outputs.FUNCTION_ARNS)[owner]
    machines = [cloud.listed(name)[owner] for name in (outputs.INLINE_MACHINES, outputs.DISTRIBUTED_MACHINES)]
    parallel = outputs.parallel_machine(cloud.settings.prefix, owner, RUN)
    machines.append(f"arn:aws:states:us-east-1:123456789012:stateMachine:{parallel}")
    for kind in kinds:
        role = cloud.role(intruder, kind)
        for context in ({}, CREATE, REPLACE, {"s3:ObjectCreationOperation": "false"}):
            done += [f"{kind} {a} {p}" for a in OBJECT_ACTIONS for p in places if cloud.allows(role, a, p, context)]
        done += [f"{kind} {action} {bucket}" for action in BUCKET_ACTIONS if cloud.allows(role, action, bucket)]
        if function != cloud.listed(outputs.FUNCTION_ARNS)[intruder]:
            for arn in (function, f"{function}:1", function.rpartition(":")[0]):
                if cloud.allows(role, "lambda:InvokeFunction", arn):
                    done.append(f"{kind} invokes {arn}")
        for machine in machines:
            for action in ("states:StartExecution", "states:StartSyncExecution", "states:DescribeStateMachine"):
                if cloud.allows(role, action, machine):
                    done.append(f"{kind} {action} {machine}")
            for separator in (":", "/label:"):
                execution = machine.replace(":stateMachine:", ":execution:") + f"{separator}x"
                for action in ("states:DescribeExecution", "states:StopExecution", "states:GetExecutionHistory"):
                    if cloud.allows(role, action, execution):
                        done.append(f"{kind} {action} {execution}")
    return done


def test_a_peers_roles_cannot_touch_another_peers_bucket_function_or_machines(cloud: Cloud) -> None:
    for intruder, owner in pairs(cloud):
        assert break_ins(cloud, intruder, owner) == []


def without_bucket_policies(templates: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(templates)
    for template in changed.values():
        for id in [id for id, r in template["Resources"].items() if r["Type"] == "AWS::S3::BucketPolicy"]:
            del template["Resources"][id]
    return changed


def with_identity(templates: dict[str, Any], statement: dict[str, Any]) -> dict[str, Any]:
    """Every policy of every role also has this statement."""
    changed = copy.deepcopy(templates)
    for template in changed.values():
        for resource in template["Resources"].values():
            if resource["Type"] == "AWS::IAM::Policy":
                resource["Properties"]["PolicyDocument"]["Statement"].append(statement)
    return changed


def test_the_roles_own_policies_keep_peers_apart_without_bucket_policies(deployment: Deployment) -> None:
    cloud = Cloud(deployment, without_bucket_policies(deployment.templates))
    assert break_ins(cloud, 0, 1) == []


def test_bucket_policies_keep_peers_apart_whatever_their_roles_may_do(deployment: Deployment) -> None:
    """The second lock: rights on all of S3 open no other peer's bucket."""
    cloud = Cloud(deployment, with_identity(deployment.templates, EVERYTHING))
    assert cloud.allows(cloud.role(0, "machine"), "s3:GetObject", cloud.places.batch(0, 1)), "it does reach its own"
    assert break_ins(cloud, 0, 1) == []


def test_no_role_of_a_peer_can_become_another_or_change_what_runs(cloud: Cloud) -> None:
    for rank in (0, cloud.settings.peers - 1):
        for kind in cloud.kinds():
            role = cloud.role(rank, kind)
            parts = [*cloud.listed(outputs.FUNCTION_ARNS), *cloud.listed(outputs.INLINE_MACHINES)]
            targets = ["*", *cloud.account.roles, *parts]
            assert [f"{a} {t}" for a in POWER for t in targets if cloud.allows(role, a, t)] == [], role


def test_roles_that_are_no_peers_reach_no_bucket(cloud: Cloud) -> None:
    others = [role for role in cloud.account.roles if PEER_TAG not in cloud.account.tags(role)]
    for role in others:
        for place in [*cloud.peers_objects(0), cloud.places.commit(1), cloud.places.weights("a" * 64)]:
            assert [a for a in OBJECT_ACTIONS if cloud.allows(role, a, place, CREATE)] == [], role


def test_every_rank_has_its_own_roles(cloud: Cloud) -> None:
    for kind in cloud.kinds():
        roles = {cloud.role(rank, kind) for rank in range(cloud.settings.peers)}
        assert len(roles) == (1 if kind in FUNCTIONS and cloud.settings.shared_worker else cloud.settings.peers)
    tagged = [role for role in cloud.account.roles if PEER_TAG in cloud.account.tags(role)]
    assert len(tagged) == len({cloud.role(r, kind) for r in range(cloud.settings.peers) for kind in cloud.kinds()})


# Records


def records(places: Places) -> list[Place]:
    """What is created once."""
    return [places.spec(), places.commit(3), places.result(3), places.stop()]


def test_nobody_overwrites_a_record_and_no_peer_deletes_one(cloud: Cloud) -> None:
    """Not with its role, and not even with all rights on S3."""
    mighty = Cloud(cloud.deployment, with_identity(cloud.deployment.templates, EVERYTHING))
    places = cloud.places
    for made in (cloud, mighty):
        for kind in cloud.kinds():
            role = made.role(0, kind)
            for place in [*records(places), places.contribution(3, 0, 0)]:
                for context in (WHOLE, REPLACE):
                    assert not made.allows(role, "s3:PutObject", place, context), f"{kind} overwrites {place}"
            assert not made.allows(role, "s3:PutObject", places.member(0), WHOLE)
            lasting = [places.member(0), places.report(0), places.validation(), places.manifest(0), places.batch(0, 0)]
            for place in [*records(places), current_place(places.run_bucket), *lasting[:3]]:
                assert not made.allows(role, "s3:DeleteObject", place), f"{kind} deletes {place}"
            for place in [*records(places), places.weights("a" * 64), places.contribution(3, 0, 0)]:
                assert not made.allows(role, "s3:DeleteObjectVersion", place), f"{kind} deletes a version of {place}"
            for action in ("s3:PutBucketPolicy", "s3:PutLifecycleConfiguration", "s3:PutBucketVersioning"):
                assert not made.allows(role, action, f"arn:aws:s3:::{places.run_bucket}")
    for kind in cloud.kinds():
        role = cloud.role(0, kind)
        for place in (places.spec(), places.validation(), current_place(places.run_bucket), places.batch(0, 0)):
            for context in (CREATE, REPLACE, WHOLE):
                assert not cloud.allows(role, "s3:PutObject", place, context), f"{kind} writes {place}"


def test_a_peer_writes_what_carries_its_own_rank_only(cloud: Cloud) -> None:
    places = cloud.places
    for kind in cloud.kinds():
        role = cloud.role(0, kind)
        for place in (places.member(1), places.report(1), places.contribution(3, 1, 0), places.events(1, 5)):
            for context in (CREATE, REPLACE):
                assert not cloud.allows(role, "s3:PutObject", place, context), f"{kind} writes {place}"


def test_calls_without_tls_are_refused(cloud: Cloud) -> None:
    role = cloud.role(0, "worker")
    for place in (cloud.places.batch(0, 0), cloud.places.weights("a" * 64)):
        assert cloud.allows(role, "s3:GetObject", place)
        assert not cloud.allows(role, "s3:GetObject", place, {"aws:SecureTransport": "false"})
        assert not cloud.allows(role, "s3:GetObject", place, {"s3:TlsVersion": "1.1"})


# What the code needs


def test_a_worker_can_do_what_its_handler_does(cloud: Cloud) -> None:
    places = cloud.places
    for rank in range(cloud.settings.peers):
        role = cloud.role(rank, "worker")
        assert cloud.allows(role, "s3:GetObject", places.weights("a" * 64))
        assert cloud.allows(role, "s3:GetObject", places.batch(rank, 0))
        assert cloud.allows(role, "s3:PutObject", places.gradient(rank, 1, 0, 2), WHOLE)
        for bucket in (places.run_bucket, places.peer_buckets[rank]):
            assert cloud.allows(role, "s3:ListBucket", f"arn:aws:s3:::{bucket}"), "a missing object must answer 404"
        for place in (places.commit(1), places.contribution(1, rank, 0), places.member(rank)):
            assert not cloud.allows(role, "s3:GetObject", place), "weights are all that a worker reads of a run"
        assert not cloud.allows(role, "s3:PutObject", places.batch(rank, 0), WHOLE)
        assert not cloud.allows(role, "s3:DeleteObject", places.gradient(rank, 1, 0, 2))


def test_a_reducer_can_do_what_its_handler_does_and_no_more(cloud: Cloud) -> None:
    places = cloud.places
    for rank in range(cloud.settings.peers if cloud.settings.reduce else 0):
        role = cloud.role(rank, "reducer")
        gradient, partial = places.gradient(rank, 1, 0, 2), places.partial(rank, 1, 0, 1, 3)
        for place in (gradient, partial):
            assert cloud.allows(role, "s3:GetObject", place)
            assert not cloud.allows(role, "s3:DeleteObject", place)
        assert cloud.allows(role, "s3:PutObject", partial, WHOLE)
        assert not cloud.allows(role, "s3:PutObject", gradient, WHOLE)
        bucket = f"arn:aws:s3:::{places.peer_buckets[rank]}"
        assert cloud.allows(role, "s3:ListBucket", bucket), "a missing object must answer 404"
        others = (places.weights("a" * 64), places.batch(rank, 0), places.manifest(rank), places.commit(1))
        assert not any(cloud.allows(role, "s3:GetObject", place) for place in others)


def test_machines_can_do_what_their_definitions_do(cloud: Cloud) -> None:
    for rank in range(cloud.settings.peers):
        role = cloud.role(rank, "machine")
        assert role == cloud.listed(outputs.MACHINE_ROLES)[rank]
        assert cloud.allows(role, "lambda:InvokeFunction", cloud.listed(outputs.FUNCTION_ARNS)[rank])
        if cloud.settings.reduce:
            assert cloud.allows(role, "lambda:InvokeFunction", cloud.listed(outputs.REDUCER_ARNS)[rank])
            assert cloud.allows(role, "s3:GetObject", cloud.places.groups(rank, 1, 0))
        assert cloud.allows(role, "s3:GetObject", cloud.places.items(rank, 1, 0))
        assert not cloud.allows(role, "s3:GetObject", cloud.places.batch(rank, 0))
        distributed = cloud.listed(outputs.DISTRIBUTED_MACHINES)[rank]
        assert cloud.allows(role, "states:StartExecution", distributed)
        for child in (":x", "/label:x"):
            execution = distributed.replace(":stateMachine:", ":execution:") + child
            assert cloud.allows(role, "states:DescribeExecution", execution)
            assert cloud.allows(role, "states:StopExecution", execution)
        for action in ("logs:CreateLogDelivery", "logs:DescribeLogGroups", "xray:PutTraceSegments"):
            assert cloud.allows(role, action, "*")


# Broken policies are noticed


def broken(deployment: Deployment, kind: str, change: Callable[[dict[str, Any]], bool]) -> Cloud:
    """The deployment after `change` was applied to every statement of policies of this kind; it must change some."""
    templates = copy.deepcopy(deployment.templates)
    changed = 0
    for template in templates.values():
        for resource in template["Resources"].values():
            if resource["Type"] == kind:
                statements = resource["Properties"]["PolicyDocument"]["Statement"]
                changed += sum(change(statement) for statement in statements)
    assert changed
    return Cloud(deployment, templates)


def _widen(sid: str, part: str, value: Any) -> Callable[[dict[str, Any]], bool]:
    def change(statement: dict[str, Any]) -> bool:
        if not statement.get("Sid", "").startswith(sid):
            return False
        statement[part] = value
        return True

    return change


@pytest.mark.parametrize(
    ("sid", "part", "value"),
    [
        ("ReadPeer", "Resource", "*"),
        ("WriteGradients", "Resource", "arn:aws:s3:::*/expiring/*/gradients/*"),
        ("TellMissing", "Resource", "arn:aws:s3:::*"),
        ("InvokeWorker", "Resource", "arn:aws:lambda:*:*:function:*"),
        ("StartChildren", "Resource", "*"),
        ("FollowChildren", "Resource", "arn:aws:states:us-east-1:123456789012:execution:*"),
        ("Trace", "Action", "*"),
    ],
)
def test_a_policy_that_lets_peers_into_each_others_parts_is_noticed(
    deployments: dict[str, Deployment], sid: str, part: str, value: Any
) -> None:
    deployment = deployments["default"]
    cloud = broken(deployment, "AWS::IAM::Policy", _widen(sid, part, value))
    open_buckets = Cloud(deployment, without_bucket_policies(_templates_of(cloud)))
    assert break_ins(open_buckets, 0, 1)


def _templates_of(cloud: Cloud) -> dict[str, Any]:
    return dict(cloud.account.stacks.templates)


@pytest.mark.parametrize(
    "sid", ["OtherPeersStayOut", "RecordsAreCreatedOnce", "ClaimsAreConditional", "PeersDeleteNoRecords"]
)
def test_a_bucket_policy_without_one_of_its_statements_is_noticed(deployments: dict[str, Deployment], sid: str) -> None:
    cloud = broken(deployments["default"], "AWS::S3::BucketPolicy", _widen(sid, "Action", "s3:Nothing"))
    mighty = Cloud(cloud.deployment, with_identity(_templates_of(cloud), EVERYTHING))
    role, places = mighty.role(0, "machine"), mighty.places
    open_now = {
        "OtherPeersStayOut": mighty.allows(role, "s3:GetObject", places.batch(1, 0)),
        "RecordsAreCreatedOnce": mighty.allows(role, "s3:PutObject", places.commit(1), WHOLE),
        "ClaimsAreConditional": mighty.allows(role, "s3:PutObject", places.member(0), WHOLE),
        "PeersDeleteNoRecords": mighty.allows(role, "s3:DeleteObject", places.commit(1)),
    }
    assert {name for name, is_open in open_now.items() if is_open} == {sid}


def test_a_role_without_its_tag_is_noticed(deployments: dict[str, Deployment]) -> None:
    deployment = deployments["default"]
    templates = copy.deepcopy(deployment.templates)
    stack, id = Cloud(deployment).account.roles[Cloud(deployment).role(0, "worker")]
    templates[stack]["Resources"][id]["Properties"]["Tags"] = []
    with pytest.raises(ValueError, match="not enough values"):
        Cloud(deployment, templates).role(0, "worker")
