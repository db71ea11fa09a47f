"""The broker: Amazon MQ for RabbitMQ, an account for each peer, and the function that makes the accounts."""

from __future__ import annotations

from pathlib import Path

from aws_cdk import (
    Acknowledgment,
    Aws,
    CfnOutput,
    CfnParameter,
    CustomResource,
    Duration,
    Fn,
    NestedStack,
    RemovalPolicy,
    SecretValue,
    Stack,
    Token,
    Validations,
)
from aws_cdk import aws_amazonmq as mq
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from infra import outputs, policies
from infra.amazon_mq import ADMINISTRATOR, ENGINE_VERSION, rabbitmq_conf, rights, user_name
from infra.grants import attach, rank_name
from infra.settings import Settings
from infra.stacks.log_groups import log_group
from infra.stacks.network import AMQPS, HTTPS, NetworkStack

#: A template holds 60 dynamic references at most; each account takes one, the administrator's password three.
USERS_PER_TEMPLATE = 50
_FUNCTION_MINUTES = 5
_FUNCTION = Path(__file__).resolve().parents[2] / "lambdas" / "broker_users"
_PASSWORD_CHARACTERS = 32

_NO_ROTATION = (
    "A rotation is an update with another BrokerUsersVersion (docs/decisions/0015-broker-accounts.md): a function that "
    "rotates by itself would need an endpoint of Secrets Manager by the hour, and could cut a run off in its middle."
)


class BrokerStack(Stack):
    """Attributes: `endpoint` (amqps://host:5671), `peer_secrets` (by rank), `security_group`, `broker`.

    Stateful by kind, yet nothing here is kept when the stack goes: whatever a message announces lies in S3, passwords
    are made anew with the next broker, and a broker that stays costs 100 USD a month and more.
    """

    def __init__(self, scope: Construct, id: str, settings: Settings, *, network: NetworkStack) -> None:
        super().__init__(scope, id, description=f"Broker of the Peerless deployment {settings.name}")
        self._settings, self._network = settings, network
        self.security_group = ec2.SecurityGroup(
            self, "Group", vpc=network.vpc, description="Broker: AMQP from peers", allow_all_outbound=False
        )
        self.security_group.connections.allow_from(network.peer_security_group, ec2.Port.tcp(AMQPS), "AMQP over TLS")
        self._administrator = self._secret("Administrator", ADMINISTRATOR, "Administrator of the broker")
        self.broker = self._broker()
        self._address = Fn.select(0, self.broker.attr_amqp_endpoints)
        # For other stacks: they would take the list apart themselves, with functions that take no other stack's output.
        self.endpoint = Fn.get_stack_output(self.stack_name, outputs.BROKER_ENDPOINT)
        self.peer_secrets: list[secretsmanager.ISecret] = [
            self._secret(f"Peer{rank_name(rank)}", user_name(rank), f"Account of peer {rank} on the broker")
            for rank in range(settings.peers)
        ]
        self._users()
        CfnOutput(self, outputs.BROKER_ENDPOINT, value=self._address)

    def _secret(self, id: str, username: str, description: str) -> secretsmanager.Secret:
        """{"username", "password"}; Secrets Manager makes the password, so that it stands in no template."""
        secret = secretsmanager.Secret(
            self,
            id,
            description=description,
            generate_secret_string=secretsmanager.SecretStringGenerator(
                secret_string_template=self.to_json_string({"username": username}),
                generate_string_key="password",
                password_length=_PASSWORD_CHARACTERS,
                exclude_punctuation=True,  # Amazon MQ refuses some of it; 32 letters and digits are 190 bits
            ),
            removal_policy=RemovalPolicy.DESTROY,
        )
        Validations.of(secret).acknowledge(Acknowledgment(id="AwsSolutions-SMG4", reason=_NO_ROTATION))
        return secret

    # ----------------------------------------------------------------------------------------------- the broker itself

    def _broker(self) -> mq.CfnBroker:
        settings, network = self._settings, self._network
        subnets = network.vpc.select_subnets(subnet_group_name=network.broker_subnets.subnet_group_name).subnet_ids
        configuration = mq.CfnConfiguration(
            self,
            "Configuration",
            name=_unique_name(settings, "config"),
            description="What the exchange relies on (peer_agent/exchange)",
            engine_type="RABBITMQ",
            engine_version=ENGINE_VERSION,
            data=Fn.base64(rabbitmq_conf(settings.peers, settings.broker_instance_type)),
        )
        broker = mq.CfnBroker(
            self,
            "Broker",
            broker_name=_unique_name(settings, "cluster" if settings.broker_cluster else "single"),
            engine_type="RABBITMQ",
            engine_version=ENGINE_VERSION,
            host_instance_type=settings.broker_instance_type,
            deployment_mode="CLUSTER_MULTI_AZ" if settings.broker_cluster else "SINGLE_INSTANCE",
            publicly_accessible=False,
            # A single one takes one subnet; a cluster gets an address in each, and balances over its nodes behind them.
            subnet_ids=subnets if settings.broker_cluster else subnets[:1],
            security_groups=[self.security_group.security_group_id],
            users=[mq.CfnBroker.UserProperty(username=ADMINISTRATOR, password=_password(self._administrator))],
            configuration=mq.CfnBroker.ConfigurationIdProperty(
                id=configuration.ref, revision=Token.as_number(configuration.attr_revision)
            ),
            # The key is Amazon MQ's own: a key of KMS would cost a dollar a month to guard copies of what lies in S3.
            encryption_options=mq.CfnBroker.EncryptionOptionsProperty(use_aws_owned_key=True),
            # There are audit logs for ActiveMQ only; the general one names every connection and its account.
            logs=mq.CfnBroker.LogListProperty(general=True),
            # RabbitMQ 4 insists on it. A single node is away for some minutes then, and a run that is on fails.
            auto_minor_version_upgrade=True,
            maintenance_window_start_time=mq.CfnBroker.MaintenanceWindowProperty(
                day_of_week="SUNDAY", time_of_day="03:00", time_zone="UTC"
            ),
        )
        broker.apply_removal_policy(RemovalPolicy.DESTROY)
        configuration.apply_removal_policy(RemovalPolicy.DESTROY)
        return broker

    # ------------------------------------------------------------------------------------------------------- accounts

    def _users(self) -> None:
        """The custom resource that makes the accounts, in as many templates as it takes."""
        function = self._function()
        version = CfnParameter(
            self,
            "BrokerUsersVersion",
            default="1",
            description="Another value sets the accounts' passwords to what Secrets Manager has now",
        )
        stage = CfnParameter(
            self,
            "AdministratorStage",
            default="AWSCURRENT",
            allowed_values=["AWSCURRENT", "AWSPREVIOUS"],
            description="AWSPREVIOUS while the administrator's own password is being changed",
        )
        host = Fn.select(0, Fn.split(":", Fn.select(2, Fn.split("/", self._address))))
        management = f"https://{host}"
        ranks = range(self._settings.peers)
        before: list[Construct] = [function, self.security_group]  # with the rule that lets the function in
        for number, first in enumerate(range(0, len(ranks), USERS_PER_TEMPLATE)):
            scope, address = (self, management) if number == 0 else self._nested(f"MoreUsers{number}", management)
            made = CustomResource(
                scope,
                "Users",
                resource_type="Custom::BrokerUsers",
                service_token=function.function_arn,
                # Where the function never answers, CloudFormation gives up then, and not after an hour.
                service_timeout=Duration.minutes(_FUNCTION_MINUTES + 1),
                properties={
                    "Management": address,
                    "Administrator": {
                        "Username": ADMINISTRATOR,
                        "Password": _password(self._administrator),
                        "Previous": _password(self._administrator, stage.value_as_string),
                    },
                    "Users": [self._user(rank) for rank in ranks[first : first + USERS_PER_TEMPLATE]],
                    "Version": version.value_as_string,
                },
            )
            made.node.add_dependency(*before)
            before.append(made)  # one after the other, as the first may have to change the administrator's password

    def _nested(self, id: str, management: str) -> tuple[Stack, str]:
        """A template of its own, and the address in it: CloudFormation passes no part of a list by itself."""
        nested = NestedStack(self, id, parameters={"Management": management})
        return nested, CfnParameter(nested, "Management").value_as_string

    def _user(self, rank: int) -> dict[str, str]:
        may = rights(rank)
        return {
            "Username": user_name(rank),
            "Password": _password(self.peer_secrets[rank]),
            "Configure": may.configure,
            "Write": may.write,
            "Read": may.read,
        }

    def _function(self) -> lambda_.Function:
        """In the broker's subnets: it reaches the broker, and CloudFormation's answers through S3's gateway endpoint.

        Passwords reach it with its event, resolved by CloudFormation, as it has no way to Secrets Manager.
        """
        group = log_group(self, "UsersLog", self._settings)
        role = iam.Role(
            self,
            "UsersRole",
            description="Makes the peers' accounts on the broker",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
        )
        own_log = self.format_arn(service="logs", resource=f"log-group:{group.log_group_name}")
        grants = [*policies.logs(own_log), *policies.network_interfaces()]
        policy = attach(self, "UsersPolicy", role, grants)
        security_group = ec2.SecurityGroup(
            self,
            "UsersGroup",
            vpc=self._network.vpc,
            description="Makes accounts on the broker: nothing in",
            allow_all_outbound=False,
        )
        # S3 has no group and no addresses that a template could name; the subnets' routes lead to it and nowhere else.
        security_group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(HTTPS), "Broker, and S3 by its endpoint")
        self.security_group.add_ingress_rule(security_group, ec2.Port.tcp(HTTPS), "Management API over TLS")
        function = lambda_.Function(
            self,
            "UsersFunction",
            description="Makes the peers' accounts on the broker",
            runtime=lambda_.Runtime.PYTHON_3_14,
            architecture=lambda_.Architecture.ARM_64,
            handler="handler.handler",
            code=lambda_.Code.from_asset(str(_FUNCTION), exclude=["__pycache__", "__init__.py"]),
            timeout=Duration.minutes(_FUNCTION_MINUTES),
            memory_size=128,
            retry_attempts=0,  # it has answered, or nobody waits for its answer any more
            vpc=self._network.vpc,
            vpc_subnets=self._network.broker_subnets,
            security_groups=[security_group],
            role=role.without_policy_updates(),
            log_group=group,
        )
        function.node.add_dependency(policy)
        return function


def _password(secret: secretsmanager.ISecret, stage: str | None = None) -> str:
    """A reference that CloudFormation resolves when it makes the resource; the template holds no password."""
    value = SecretValue.secrets_manager(secret.secret_arn, json_field="password", version_stage=stage)
    return value.unsafe_unwrap()


def _unique_name(settings: Settings, what: str) -> str:
    """Amazon MQ wants names, at most 50 characters, unique in account and region: with a part of the stack's own id,
    and what can only be changed by making it anew."""
    part = Fn.select(0, Fn.split("-", Fn.select(2, Fn.split("/", Aws.STACK_ID))))
    return f"{settings.prefix}-{what}-{part}"
