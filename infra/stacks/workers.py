"""Gradient workers of ten ranks: functions, roles and state machines of each. Nothing here keeps data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from aws_cdk import Acknowledgment, CfnOutput, Duration, Fn, Stack, Validations
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from contract.env import ALLOCATOR
from contract.errors import ConfigError
from infra import outputs, policies
from infra.grants import SHARED, Grant, attach, attach_managed, rank_name, tag_peer
from infra.settings import Settings
from infra.stacks.log_groups import log_group, vended_name
from infra.stacks.machines import Machines, make_machines
from infra.stacks.storage import StorageStack, bucket_arn

#: Where the worker image has the user's own code (lambdas/Dockerfile).
CODE_DIR = "/opt/peerless/code"
#: What a local function's code answers, should its invocation ever be run in place of being sent on.
_STUB = "def handler(event, context):\n    raise RuntimeError('this function is run by the local Lambda service')\n"
_NO_RUNTIME = "The local AWS runs nothing of this function: it sends every invocation on to the local Lambda service."
_ALIAS = "live"


class WorkerImage(Protocol):
    """What the functions need of the stack of images."""

    @property
    def worker_code(self) -> lambda_.DockerImageCode: ...

    @property
    def worker_image_uri(self) -> str: ...


@dataclass(frozen=True)
class _Kind:
    """A kind of function; each peer has one of it, or all share one."""

    id: str
    """What its logical IDs begin with, the function's own aside."""
    function_id: str
    title: str
    command: str
    """The handler, where it is not the image's own."""
    local_name: str
    runs_code: bool
    """Whether it imports the user's own."""


_WORKER = _Kind("", "Worker", "Gradient worker", "", "gradient", True)
_REDUCER = _Kind("Reducer", "Reducer", "Gradient reducer", "lambdas.gradient_reducer.handler.handler", "reduce", False)


class WorkersStack(Stack):
    """Attributes, by rank: `functions`, `invoked` (ARNs that machines invoke), `reducers` and `invoked_reducers`
    likewise, empty where there are none, `inline_machines`, `distributed_machines`, `machine_roles`. `shared` is the
    stack that holds the one function of all peers, None in that stack itself and where each peer has its own.

    Functions stand outside any VPC: they need S3 and nothing else, and a VPC would cost addresses and a cold start.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        settings: Settings,
        *,
        ranks: range,
        storage: StorageStack,
        images: WorkerImage | None,
        shared: WorkersStack | None = None,
    ) -> None:
        described = f"Gradient workers of ranks {ranks[0]} to {ranks[-1]} of the Peerless deployment {settings.name}"
        super().__init__(scope, id, description=described)
        if images is None and not settings.local:
            raise ConfigError("gradient workers on AWS need the stack of images")
        self._settings, self._images = settings, images
        self._run_bucket = bucket_arn(storage.run_bucket)
        self._peer_buckets = [bucket_arn(bucket) for bucket in storage.peer_buckets]
        self.functions: dict[int, lambda_.Function] = {}
        self.invoked: dict[int, str] = {}
        self.reducers: dict[int, lambda_.Function] = {}
        self.invoked_reducers: dict[int, str] = {}
        machines = self._workers(ranks, shared)
        self.inline_machines = {rank: made.inline for rank, made in machines.items()}
        self.distributed_machines = {rank: made.distributed for rank, made in machines.items()}
        self.machine_roles = {rank: made.role for rank, made in machines.items()}
        self._outputs(ranks)

    def _workers(self, ranks: range, shared: WorkersStack | None) -> dict[int, Machines]:
        settings = self._settings
        # One group, because all machines of a stack log through one delivery and say nothing of the data.
        group = log_group(self, "MachineLog", settings, name=vended_name("states"))
        if shared is not None:
            first = min(shared.functions)
            self.functions = dict.fromkeys(ranks, shared.functions[first])
            self.invoked = dict.fromkeys(ranks, shared.invoked[first])
            if settings.reduce:
                self.reducers = dict.fromkeys(ranks, shared.reducers[first])
                self.invoked_reducers = dict.fromkeys(ranks, shared.invoked_reducers[first])
        else:
            self.functions, self.invoked = self._functions(_WORKER, ranks)
            if settings.reduce:
                self.reducers, self.invoked_reducers = self._functions(_REDUCER, ranks)
        return {
            rank: make_machines(
                self,
                settings,
                rank=rank,
                peer_bucket=self._peer_buckets[rank],
                function=self.invoked[rank],
                reducer=self.invoked_reducers.get(rank, ""),
                log_group=group,
            )
            for rank in ranks
        }

    def _functions(self, kind: _Kind, ranks: range) -> tuple[dict[int, lambda_.Function], dict[int, str]]:
        """By rank: the functions of a kind, and the ARNs to invoke."""
        settings = self._settings
        if settings.shared_worker:
            function, arn = self._function(kind, range(settings.peers), SHARED)
            return dict.fromkeys(ranks, function), dict.fromkeys(ranks, arn)
        made = {rank: self._function(kind, (rank,), rank_name(rank)) for rank in ranks}
        return {rank: each[0] for rank, each in made.items()}, {rank: each[1] for rank, each in made.items()}

    def _function(self, kind: _Kind, served: Sequence[int], who: str) -> tuple[lambda_.Function, str]:
        """A function for the peers `served`, and the ARN to invoke."""
        settings = self._settings
        group = log_group(self, f"{kind.id}Log{who}", settings)
        role = iam.Role(
            self,
            f"{kind.id}Role{who}",
            description=f"{kind.title} of peer {who}",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
        )
        tag_peer(role, who)
        own_log = self.format_arn(service="logs", resource=f"log-group:{group.log_group_name}")
        grants = [*policies.logs(own_log), *policies.tracing()]
        policy = attach(self, f"{kind.id}Policy{who}", role, grants)
        data = self._data_policies(kind, role, served, who)
        images = self._images
        function = (
            self._local(kind, who, role, group) if images is None else self._image(kind, images, who, role, group)
        )
        function.node.add_dependency(policy, *data)
        return function, function.function_arn if settings.local else self._published(kind, function, who)

    def _data_policies(self, kind: _Kind, role: iam.Role, served: Sequence[int], who: str) -> list[Construct]:
        """Access to the buckets; ten peers per managed policy, as a shared role's inline ones may not be that long."""
        grants: Callable[[Mapping[int, str]], list[Grant]]
        grants = functools.partial(policies.worker, self._run_bucket) if kind is _WORKER else policies.reducer

        def of(ranks: Sequence[int]) -> list[Grant]:
            return grants({rank: self._peer_buckets[rank] for rank in ranks})

        if not self._settings.shared_worker:
            return [attach(self, f"{kind.id}Data{who}", role, of(served))]
        return [
            attach_managed(self, f"{kind.id}Data{who}{number}", role, of(ranks))
            for number, ranks in enumerate(self._settings.groups)
        ]

    def _image(
        self, kind: _Kind, images: WorkerImage, who: str, role: iam.Role, group: logs.ILogGroup
    ) -> lambda_.Function:
        settings = self._settings
        threads = str(settings.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **ALLOCATOR}
        if settings.code_dir and kind.runs_code:
            environment["PEERLESS_CODE_DIR"] = CODE_DIR
        code = f", own code {settings.code_digest[:12] or 'none'}" if kind.runs_code else ""
        arm = settings.architecture == "arm64"
        function = lambda_.DockerImageFunction(
            self,
            f"{kind.function_id}{who}",
            description=f"{kind.title} of peer {who}{code}",
            code=images.worker_code,
            architecture=lambda_.Architecture.ARM_64 if arm else lambda_.Architecture.X86_64,
            memory_size=settings.memory_mb,
            timeout=Duration.seconds(settings.timeout_seconds),
            # Reducers run when workers have ended; what workers keep is not to be kept twice.
            reserved_concurrent_executions=(settings.reserved_concurrency or None) if kind is _WORKER else None,
            environment=environment,
            role=role.without_policy_updates(),  # all that it may do stands in infra/policies.py
            log_group=group,
            tracing=lambda_.Tracing.ACTIVE,
        )
        made = function.node.default_child
        assert isinstance(made, lambda_.CfnFunction)
        made.code = lambda_.CfnFunction.CodeProperty(image_uri=images.worker_image_uri)  # see there
        if kind.command:
            made.image_config = lambda_.CfnFunction.ImageConfigProperty(command=[kind.command])
        if settings.snap_start:
            # The L2 property refuses images, which Lambda takes since Python 3.12's base.
            made.snap_start = lambda_.CfnFunction.SnapStartProperty(apply_on="PublishedVersions")
        return function

    def _published(self, kind: _Kind, function: lambda_.Function, who: str) -> str:
        """ARN of the alias of the published version: it outlives the version, so machines and policies need no change
        with new code, and `parallel` machines made earlier invoke what is deployed now."""
        alias = lambda_.Alias(self, f"{kind.id}Live{who}", alias_name=_ALIAS, version=function.current_version)
        return alias.function_arn

    def _local(self, kind: _Kind, who: str, role: iam.Role, group: logs.ILogGroup) -> lambda_.Function:
        """A function whose invocations the local AWS sends on to the local Lambda service.

        Only here a name is chosen by hand: the address that invocations go to contains it, and stands in the function's
        own environment. It holds the deployment's name, and a local AWS has one account.
        """
        settings = self._settings
        name = f"{settings.prefix}-{kind.local_name}-{who}"
        function = lambda_.Function(
            self,
            f"{kind.function_id}{who}",
            function_name=name,
            runtime=lambda_.Runtime.PYTHON_3_12,
            handler="index.handler",
            code=lambda_.Code.from_inline(_STUB),
            memory_size=settings.memory_mb,
            # The local AWS counts the wait for a free worker; the Lambda service has the function's own limit.
            timeout=Duration.minutes(15),
            environment={"MINISTACK_LAMBDA_PROXY_URL": f"{settings.lambda_url}/peerless/proxy/{quote(name)}"},
            role=role.without_policy_updates(),
            log_group=group,
        )
        Validations.of(function).acknowledge(Acknowledgment(id="AwsSolutions-L1", reason=_NO_RUNTIME))
        return function

    def _outputs(self, ranks: range) -> None:
        lists = {
            outputs.FUNCTIONS: [self.functions[rank].function_name for rank in ranks],
            outputs.FUNCTION_ARNS: [self.invoked[rank] for rank in ranks],
            outputs.INLINE_MACHINES: [self.inline_machines[rank].state_machine_arn for rank in ranks],
            outputs.DISTRIBUTED_MACHINES: [self.distributed_machines[rank].state_machine_arn for rank in ranks],
            outputs.MACHINE_ROLES: [self.machine_roles[rank].role_arn for rank in ranks],
        }
        if self._settings.reduce:
            lists[outputs.REDUCERS] = [self.reducers[rank].function_name for rank in ranks]
            lists[outputs.REDUCER_ARNS] = [self.invoked_reducers[rank] for rank in ranks]
        for name, values in lists.items():
            CfnOutput(self, name, value=Fn.join(",", values))
