"""Who may do what: every IAM statement of workers, state machines and peers, as pure functions over ARNs.

Key patterns follow contract/keys.py. `*` in them stands for any run, round or name, never for another peer's rank.
A grant with a wildcard in an action or resource carries its reason, which goes into the template beside the statement
(metadata `Reasons`, by Sid); tests/infra refuses one without.

`s3:ListBucket` is granted without a condition on prefixes: only then does S3 answer 404 for an object that is not
there, and 403 otherwise; a GET has no prefix, so a condition would take the 404 away. Looking for records that do not
exist yet is how peers wait for one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from infra.grants import Grant, rank_name

#: Beginning of the keys that lifecycle rules delete after the settings' days.
EXPIRING = "expiring/"
#: Records of a run that are created once (`If-None-Match`) and never change.
CREATED_ONCE = (
    "runs/*/run.json",
    "runs/*/commits/*",
    "runs/*/results/*",
    "runs/*/checkpoints/*",
    "runs/*/stop.json",
)
#: Frames, averages of shards and common states of checkpoints: created once as well, and deleted later.
CONTRIBUTIONS = "expiring/*/contributions/*"
SHARDS = "expiring/*/shards/*"
COMMON_STATES = "expiring/*/checkpoints/*/common"
#: Wishes for weights that nobody has put, by their hash.
WANTED = "expiring/*/wanted/*"
#: Weights that are a peer's own (asynchronous mode).
OWN_WEIGHTS = "expiring/*/own-weights/*"
PASSING_ONCE = (CONTRIBUTIONS, SHARDS, COMMON_STATES, WANTED, OWN_WEIGHTS)
#: What the writer of a round's result removes when it is no longer needed, be it whose it may.
CLEARED = ("expiring/*/weights/*", CONTRIBUTIONS, SHARDS, "expiring/*/checkpoints/*", OWN_WEIGHTS)
#: Claims on ranks, created or replaced under a condition (`If-None-Match`, `If-Match`).
MEMBERS = "runs/*/members/*"
WEIGHTS = "expiring/*/weights/*"

_ANY_RUN = "keys begin with the run, and a deployment serves runs whose names nobody knows yet"
_NO_RESOURCE = "this action cannot be limited to a resource"


def worker(run_bucket: str, peer_buckets: Mapping[int, str]) -> list[Grant]:
    """A gradient worker of these ranks: reads weights and its peers' buckets, writes gradients there. Bucket ARNs."""
    return [
        Grant(
            sid="ReadRun",
            actions=("s3:GetObject",),
            resources=(f"{run_bucket}/{WEIGHTS}",),
            reason=f"weights of any round; {_ANY_RUN}",
        ),
        Grant(
            sid="ReadPeer",
            actions=("s3:GetObject",),
            resources=tuple(f"{bucket}/*" for bucket in peer_buckets.values()),
            reason=f"all of a peer's batches and gradients; {_ANY_RUN}",
        ),
        Grant(
            sid="WriteGradients",
            actions=("s3:PutObject",),
            resources=tuple(
                f"{bucket}/{keys(rank_name(rank))}"
                for rank, bucket in peer_buckets.items()
                for keys in (gradients, moments)
            ),
            reason=f"gradients, and what workers' optimizers keep, of any round; {_ANY_RUN}",
        ),
        Grant(sid="TellMissing", actions=("s3:ListBucket",), resources=(run_bucket, *peer_buckets.values())),
    ]


def reducer(peer_buckets: Mapping[int, str]) -> list[Grant]:
    """What adds gradients of these ranks up: reads them, reads and writes means. Bucket ARNs."""

    def objects(*kinds: Callable[[str], str]) -> tuple[str, ...]:
        return tuple(f"{bucket}/{keys(rank_name(rank))}" for rank, bucket in peer_buckets.items() for keys in kinds)

    return [
        Grant(
            sid="ReadGradients",
            actions=("s3:GetObject",),
            resources=objects(gradients, partials),
            reason=f"gradients, and means over some of them, of any round; {_ANY_RUN}",
        ),
        Grant(
            sid="WriteMeans",
            actions=("s3:PutObject",),
            resources=objects(partials),
            reason=f"means of any round; {_ANY_RUN}",
        ),
        Grant(sid="TellMissing", actions=("s3:ListBucket",), resources=tuple(peer_buckets.values())),
    ]


def logs(log_group: str) -> list[Grant]:
    """A function's own log. `log_group` is the group's ARN without `:*`."""
    return [
        Grant(
            sid="WriteLog",
            actions=("logs:CreateLogStream", "logs:PutLogEvents"),
            resources=(f"{log_group}:*",),
            reason="streams of its own log group; the service names them",
        )
    ]


def flow_log(log_group: str) -> list[Grant]:
    """The network's flow log. `log_group` is the group's ARN without `:*`."""
    return [
        Grant(
            sid="WriteFlows",  # https://docs.aws.amazon.com/vpc/latest/userguide/flow-logs-iam-role.html
            actions=("logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
            resources=(f"{log_group}:*",),
            reason="streams of its own log group; the service names them, one per network interface",
        )
    ]


def network_interfaces() -> list[Grant]:
    """What Lambda does with a function's role to put it into a network; the function's own code has no route to EC2."""
    return [
        Grant(
            sid="JoinNetwork",  # https://docs.aws.amazon.com/lambda/latest/dg/configuration-vpc.html
            actions=(
                "ec2:CreateNetworkInterface",
                "ec2:DescribeNetworkInterfaces",
                "ec2:DescribeSubnets",
                "ec2:DeleteNetworkInterface",
                "ec2:AssignPrivateIpAddresses",
                "ec2:UnassignPrivateIpAddresses",
            ),
            resources=("*",),
            reason="Lambda checks these rights without naming a resource before it makes the function's interface",
        )
    ]


def tracing() -> list[Grant]:
    """X-Ray, for functions and state machines."""
    return [
        Grant(
            sid="Trace",
            actions=(
                "xray:PutTraceSegments",
                "xray:PutTelemetryRecords",
                "xray:GetSamplingRules",
                "xray:GetSamplingTargets",
            ),
            resources=("*",),
            reason=f"{_NO_RESOURCE}; it can only add traces",
        )
    ]


def machine(peer_bucket: str, functions: Sequence[str], rank: int) -> list[Grant]:
    """A peer's state machines: invoke its own functions (the ARNs that the definition names), read a map's items."""
    return [
        Grant(sid="InvokeWorker", actions=("lambda:InvokeFunction",), resources=tuple(functions)),
        Grant(
            sid="ReadItems",
            actions=("s3:GetObject",),
            resources=(f"{peer_bucket}/{items(rank_name(rank))}",),
            reason=f"items of any round; {_ANY_RUN}",
        ),
        Grant(
            sid="DeliverLogs",  # https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html
            actions=(
                "logs:CreateLogDelivery",
                "logs:GetLogDelivery",
                "logs:UpdateLogDelivery",
                "logs:DeleteLogDelivery",
                "logs:ListLogDeliveries",
                "logs:PutResourcePolicy",
                "logs:DescribeResourcePolicies",
                "logs:DescribeLogGroups",
            ),
            resources=("*",),
            reason="Step Functions sets up its log delivery itself, and CloudWatch limits none of it to a resource",
        ),
    ]


def distributed_map(state_machine: str, executions: str) -> list[Grant]:
    """What a distributed map does to its own children: it starts and stops executions of its own state machine.

    `executions` is the ARN of its executions without their names (`...:execution:<machine>`).
    """
    return [
        Grant(sid="StartChildren", actions=("states:StartExecution",), resources=(state_machine,)),
        Grant(
            sid="FollowChildren",
            actions=("states:DescribeExecution", "states:StopExecution"),
            resources=(f"{executions}:*", f"{executions}/*"),
            reason="child executions of this one state machine; the service names them",
        ),
    ]


def peer_objects(run_bucket: str, peer_bucket: str, rank: int) -> list[Grant]:
    """A peer's part in S3 (bucket ARNs): reads the run, writes its share of it, owns what passes in its bucket."""
    name = rank_name(rank)
    return [
        Grant(
            sid="ReadRun",
            actions=("s3:GetObject",),
            resources=(f"{run_bucket}/*",),
            reason="a peer reads everything of a run: the others' contributions, all records, the weights",
        ),
        Grant(
            sid="WriteRun",
            actions=("s3:PutObject",),
            resources=tuple(
                f"{run_bucket}/{key}"
                for key in (
                    WEIGHTS,
                    f"expiring/*/contributions/*/{name}-*",
                    f"expiring/*/own-weights/*/{name}-*",
                    SHARDS,
                    COMMON_STATES,
                    f"expiring/*/checkpoints/*/{name}-*",
                    WANTED,
                    f"expiring/*/alive/{name}",
                    "runs/*/commits/*",
                    "runs/*/results/*",
                    "runs/*/checkpoints/*",
                    "runs/*/stop.json",
                    f"runs/*/members/{name}.json",
                    f"runs/*/reports/{name}.json",
                    f"expiring/*/events/{name}/*",
                )
            ),
            reason=f"weights are named by their hash, rounds by number; {_ANY_RUN}",
        ),
        Grant(
            sid="ClearRun",
            actions=("s3:DeleteObject",),
            resources=tuple(f"{run_bucket}/{key}" for key in CLEARED),
            reason=f"whoever writes a round's result removes what earlier rounds left, of all peers; {_ANY_RUN}",
        ),
        Grant(
            sid="ReadPeer",
            actions=("s3:GetObject",),
            resources=(f"{peer_bucket}/*",),
            reason=f"all of its own batches and gradients; {_ANY_RUN}",
        ),
        Grant(
            sid="WriteItems",
            actions=("s3:PutObject",),
            resources=(f"{peer_bucket}/{items(name)}", f"{peer_bucket}/{moments(name)}"),
            reason=f"items, and its own workers' moments, of any round; {_ANY_RUN}",
        ),
        Grant(
            sid="ClearPeer",
            actions=("s3:DeleteObject",),
            resources=tuple(f"{peer_bucket}/{keys(name)}" for keys in (items, gradients, partials, moments)),
            reason=f"items, gradients, their means and moments of any round; {_ANY_RUN}",
        ),
        Grant(sid="TellMissing", actions=("s3:ListBucket",), resources=(run_bucket, peer_bucket)),
    ]


#: What a peer may do with executions of its own: follow them, stop them, and ask why they failed.
FOLLOW = ("DescribeExecution", "StopExecution", "GetExecutionHistory", "ListMapRuns")


def peer_machines(state_machines: Sequence[str], executions: Sequence[str], *, express: Sequence[str]) -> list[Grant]:
    """A peer starts and follows executions of its own state machines: it can neither create nor change one.

    ARNs of the machines, of their executions without names, and of those among the machines that are Express.
    """
    grants = [
        Grant(
            sid="StartRound",
            actions=("states:StartExecution",),
            resources=tuple(state_machines),
            reason="machines of this rank alone; the form `parallel` is made per run, its name carries the rank",
        ),
        Grant(
            sid="FollowRound",
            actions=tuple(f"states:{name}" for name in FOLLOW),
            resources=tuple(f"{execution}:*" for execution in executions),
            reason="executions of its own state machines; a peer names them by run and round",
        ),
        Grant(
            sid="ExplainRound",
            actions=("states:DescribeExecution", "states:GetExecutionHistory", "states:ListExecutions"),
            resources=tuple(f"{of}/*" for each in executions for of in (each, each.replace(":execution:", ":mapRun:"))),
            reason="map runs of its own state machines and their children, which say why batches failed, and how often",
        ),
    ]
    if express:
        grants.append(Grant(sid="RunRound", actions=("states:StartSyncExecution",), resources=tuple(express)))
    return grants


def peer_instance(*, group: str, image_repository: str, log_streams: str, secret: str | None) -> list[Grant]:
    """A peer's instance: what it needs beside S3 and its state machines. Arguments are ARNs.

    `group` is its auto scaling group, `log_streams` its part of the peers' log group, `secret` its user at the broker
    (None without one).
    """
    grants = [
        Grant(
            sid="SwitchOff",
            actions=("autoscaling:SetDesiredCapacity",),
            resources=(group,),
            reason="its own group alone, named in full; the id before the name is the service's choice",
        ),
        Grant(
            sid="PullImage", actions=("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"), resources=(image_repository,)
        ),
        Grant(
            sid="LogInToRegistry",
            actions=("ecr:GetAuthorizationToken",),
            resources=("*",),
            reason=f"{_NO_RESOURCE}; what the token opens is told by the other grants",
        ),
        Grant(
            sid="WriteLog",
            actions=("logs:CreateLogStream", "logs:PutLogEvents"),
            resources=(log_streams,),
            reason="streams of its own rank: one per instance",
        ),
        Grant(
            # Session Manager in place of SSH, with what its user guide calls minimal permissions. The managed policy
            # AmazonSSMManagedInstanceCore would let a peer read every parameter of the account as well.
            sid="OpenSessions",
            actions=(
                "ssm:UpdateInstanceInformation",
                "ssmmessages:CreateControlChannel",
                "ssmmessages:CreateDataChannel",
                "ssmmessages:OpenControlChannel",
                "ssmmessages:OpenDataChannel",
            ),
            resources=("*",),
            reason=f"{_NO_RESOURCE}; it can only offer sessions on itself",
        ),
    ]
    if secret is not None:
        grants.append(Grant(sid="LogInToBroker", actions=("secretsmanager:GetSecretValue",), resources=(secret,)))
    return grants


def end_of_instances(group_pattern: str) -> list[Grant]:
    """The time limit's state machine: end instances of the deployment's groups. `group_pattern` is the groups' ARN."""
    return [
        Grant(
            sid="FindInstance",
            actions=("autoscaling:DescribeAutoScalingInstances",),
            resources=("*",),
            reason=f"{_NO_RESOURCE}; it can only look",
        ),
        Grant(
            sid="EndInstance",
            actions=("autoscaling:TerminateInstanceInAutoScalingGroup",),
            resources=(group_pattern,),
            reason="groups of this deployment, by the prefix that all of them carry and no other deployment's",
        ),
    ]


def items(name: str) -> str:
    """Keys of the lists of batches that a peer hands to a distributed map."""
    return f"expiring/*/peers/{name}/items/*"


def gradients(name: str) -> str:
    """Keys of a peer's gradients per batch."""
    return f"expiring/*/peers/{name}/gradients/*"


def partials(name: str) -> str:
    """Keys of the means over some of these gradients."""
    return f"expiring/*/peers/{name}/partials/*"


def moments(name: str) -> str:
    """Keys of what the optimizers of a peer's workers keep from round to round."""
    return f"expiring/*/peers/{name}/moments/*"
