"""Peers of ten ranks: role, launch template and auto scaling group of each. No instance runs until a run wants it."""

from __future__ import annotations

from typing import Protocol

from aws_cdk import Acknowledgment, Aws, CfnOutput, Stack, Tags, Validations
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from contract.env import ALLOCATOR
from infra import outputs, policies
from infra.grants import Grant, attach, rank_name, tag_peer
from infra.settings import Settings
from infra.stacks.log_groups import log_group
from infra.stacks.machines import executions_arn
from infra.stacks.storage import StorageStack, bucket_arn
from infra.stacks.user_data import user_data
from infra.stacks.workers import CODE_DIR, WorkersStack

#: On groups and their instances: the rank, four digits.
RANK_TAG = "peerless:rank"
#: Amazon Linux and Docker take 3 GiB, the image 1; the rest holds a round's frames: 10 for 150 peers' 4-bit ones of 130
#: million parameters. Some 0.003 USD per hour and running peer.
DISK_GIB = 30

_NO_NOTIFICATIONS = (
    "The groups do not scale by themselves: a run starts with one instance each and ends with none, and the one event "
    "that could surprise, a replacement, shows in the peers' logs and on the dashboard."
)


class PeerImage(Protocol):
    """What instances need of the stack of images."""

    @property
    def peer_image_uri(self) -> str: ...

    @property
    def peer_repository(self) -> ecr.IRepository: ...


class PeerNetwork(Protocol):
    """What instances need of the network."""

    @property
    def vpc(self) -> ec2.IVpc: ...

    @property
    def peer_subnets(self) -> ec2.SubnetSelection: ...

    @property
    def peer_security_group(self) -> ec2.ISecurityGroup: ...


class PeerBroker(Protocol):
    """What instances need of the broker."""

    @property
    def endpoint(self) -> str: ...

    @property
    def peer_secrets(self) -> list[secretsmanager.ISecret]: ...


class PeersStack(Stack):
    """Attributes: `groups` (by rank), `group_names` (in the order of ranks), `log_group`.

    `broker` and `workers` are None where a deployment has none.

    One group per peer, because roles differ per peer and a launch template names one.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        settings: Settings,
        *,
        ranks: range,
        network: PeerNetwork,
        storage: StorageStack,
        images: PeerImage,
        broker: PeerBroker | None,
        workers: WorkersStack | None,
    ) -> None:
        described = f"Peers of ranks {ranks[0]} to {ranks[-1]} of the Peerless deployment {settings.name}"
        super().__init__(scope, id, description=described)
        self._settings, self._network, self._storage, self._images = settings, network, storage, images
        self._broker, self._workers = broker, workers
        self.log_group = log_group(self, "Log", settings)
        self.groups = {rank: self._peer(rank) for rank in ranks}
        self.group_names = [self._group_name(rank) for rank in ranks]
        CfnOutput(self, outputs.AUTO_SCALING_GROUPS, value=",".join(self.group_names))
        CfnOutput(self, outputs.PEER_LOG_GROUP, value=self.log_group.log_group_name)

    def _peer(self, rank: int) -> autoscaling.AutoScalingGroup:
        name = rank_name(rank)
        role = iam.Role(
            self,
            f"Role{name}",
            description=f"Instance of the peer of rank {rank}",
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
        )
        tag_peer(role, name)
        attached = attach(self, f"Policy{name}", role, self._grants(rank))
        group = autoscaling.AutoScalingGroup(
            self,
            f"Group{name}",
            auto_scaling_group_name=self._group_name(rank),
            vpc=self._network.vpc,
            vpc_subnets=self._network.peer_subnets,
            launch_template=self._template(rank, role),
            # No desired capacity: CloudFormation would set it again at every update, in the middle of a run. Nor an
            # update policy that replaces instances: a new template is for the next run.
            min_capacity=0,
            max_capacity=1,
            group_metrics=[
                autoscaling.GroupMetrics(
                    autoscaling.GroupMetric.DESIRED_CAPACITY, autoscaling.GroupMetric.IN_SERVICE_INSTANCES
                )
            ],
        )
        group.node.add_dependency(attached)
        Tags.of(group).add(RANK_TAG, name)
        Validations.of(group).acknowledge(Acknowledgment(id="AwsSolutions-AS3", reason=_NO_NOTIFICATIONS))
        return group

    def _group_name(self, rank: int) -> str:
        """Chosen by hand because the instance must know it, and CloudFormation makes the template before the group. It
        begins with the stack's name, which an account has once in a region."""
        return f"{self.stack_name}-{rank_name(rank)}"

    def _template(self, rank: int, role: iam.Role) -> ec2.LaunchTemplate:
        settings = self._settings
        arm = settings.architecture == "arm64"
        disk = ec2.BlockDeviceVolume.ebs(
            DISK_GIB, encrypted=True, volume_type=ec2.EbsDeviceVolumeType.GP3, delete_on_termination=True
        )
        return ec2.LaunchTemplate(
            self,
            f"Template{rank_name(rank)}",
            # T4g and T3 stay in their default, unlimited mode: CPU beyond the baseline is billed at 0.04 and 0.05 USD
            # per vCPU-hour (undated), a t4g.medium busy for hours on both at 0.064 beside its 0.0336. In the standard
            # mode they start without credits, at a fifth of a core, and all peers wait for the slowest.
            instance_type=ec2.InstanceType(settings.instance_type),
            # A parameter of the template, resolved at each deployment: no look-up at synthesis, and a run's peers start
            # alike, which `resolve:ssm` in the launch template would not give.
            machine_image=ec2.MachineImage.latest_amazon_linux2023(
                cpu_type=ec2.AmazonLinuxCpuType.ARM_64 if arm else ec2.AmazonLinuxCpuType.X86_64
            ),
            block_devices=[ec2.BlockDevice(device_name="/dev/xvda", volume=disk)],
            role=role.without_policy_updates(),  # all that it may do stands in infra/policies.py
            security_group=self._network.peer_security_group,
            # In public subnets an address of its own is the way out; no rule lets anything in.
            associate_public_ip_address=settings.network == "public",
            require_imdsv2=True,
            # The container asks for the role's credentials through Docker's bridge, which is one hop more. Only our own
            # container runs there.
            http_put_response_hop_limit=2,
            user_data=ec2.UserData.custom(self._user_data(rank)),
        )

    def _user_data(self, rank: int) -> str:
        settings, broker = self._settings, self._broker
        container = {
            "AWS_REGION": Aws.REGION,
            "PEERLESS_ACCOUNT": Aws.ACCOUNT_ID,
            "PEERLESS_DEPLOYMENT": settings.name,
            "PEERLESS_RUN_BUCKET": self._storage.run_bucket.bucket_name,
            "PEERLESS_RANK": str(rank),
            "PEERLESS_BROKER_ENDPOINT": broker.endpoint if broker else "",
            "PEERLESS_BROKER_SECRET": broker.peer_secrets[rank].secret_arn if broker else "",
            "PEERLESS_GROUP": self._group_name(rank),
            "PEERLESS_CODE_DIR": CODE_DIR if settings.code_dir else "",
            # torch reads them before a run's configuration sets the count, and sums differ by the count.
            "OMP_NUM_THREADS": str(settings.threads),
            "MKL_NUM_THREADS": str(settings.threads),
            **ALLOCATOR,
        }
        host = {
            "IMAGE": self._images.peer_image_uri,
            "LOG_GROUP": self.log_group.log_group_name,
            "STREAM": rank_name(rank),
            "MAX_SECONDS": str(round(settings.max_hours * 3_600)),
        }
        return user_data(container=container, host=host)

    def _grants(self, rank: int) -> list[Grant]:
        name = rank_name(rank)
        grants = policies.peer_objects(
            bucket_arn(self._storage.run_bucket), bucket_arn(self._storage.peer_buckets[rank]), rank
        )
        grants += policies.peer_instance(
            group=group_arn(self, self._group_name(rank)),
            image_repository=self._images.peer_repository.repository_arn,
            log_streams=self.format_arn(
                service="logs", resource=f"log-group:{self.log_group.log_group_name}:log-stream:{name}/*"
            ),
            secret=self._broker.peer_secrets[rank].secret_arn if self._broker else None,
        )
        if self._workers is not None:
            grants += self._machine_grants(self._workers, rank)
        return grants

    def _machine_grants(self, workers: WorkersStack, rank: int) -> list[Grant]:
        inline, distributed = workers.inline_machines[rank], workers.distributed_machines[rank]
        parallel = outputs.parallel_machine(self._settings.prefix, rank, "*")
        machines = [
            inline.state_machine_arn,
            distributed.state_machine_arn,
            self.format_arn(service="states", resource=f"stateMachine:{parallel}"),
        ]
        names = [inline.state_machine_name, distributed.state_machine_name, parallel]
        express = [inline.state_machine_arn] if self._settings.express else []
        return policies.peer_machines(machines, [executions_arn(self, name) for name in names], express=express)


def group_arn(stack: Stack, name: str) -> str:
    """ARN of an auto scaling group; `name` may be a pattern. The id in it is the service's, so `*`."""
    return stack.format_arn(service="autoscaling", resource=f"autoScalingGroup:*:autoScalingGroupName/{name}")
