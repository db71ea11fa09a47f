"""The network: peers that reach out and let nobody in, and a part without any way out for the broker.

Two forms, which docs/decisions/0014-network.md compares by their price: peers with public addresses in public subnets,
or behind one NAT gateway in private ones.
"""

from __future__ import annotations

from aws_cdk import Aws, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra import policies
from infra.grants import attach
from infra.settings import Settings
from infra.stacks.log_groups import log_group

#: 4,096 addresses; a subnet of 251 usable ones per part and zone, where a deployment has at most 150 peers.
_ADDRESSES, _SUBNET_BITS = "10.0.0.0/20", 24
#: A cluster's nodes stand in the service's own network, in three zones; ours holds their addresses, one per subnet.
_ZONES = 2
#: What an entry of the flow log sums up. The longest there is: fewer entries, and nobody watches them live.
_FLOW_SECONDS = 600
HTTPS, AMQPS = 443, 5671


class NetworkStack(Stack):
    """Attributes: `vpc`, `peer_subnets`, `broker_subnets` (no route but to S3), `peer_security_group` (admits nothing).

    The zones are the account's first two, found by CloudFormation: no look-up at synthesis.
    """

    def __init__(self, scope: Construct, id: str, settings: Settings) -> None:
        super().__init__(scope, id, description=f"Network of the Peerless deployment {settings.name}")
        private = settings.network == "private"
        subnets = [_subnets("Public", ec2.SubnetType.PUBLIC), _subnets("Broker", ec2.SubnetType.PRIVATE_ISOLATED)]
        if private:
            subnets.append(_subnets("Private", ec2.SubnetType.PRIVATE_WITH_EGRESS))
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(_ADDRESSES),
            max_azs=_ZONES,
            # One for both zones: a second costs as much again, for the hours in which a zone fails.
            nat_gateways=1 if private else 0,
            subnet_configuration=subnets,
            # Free, and most of what peers move goes this way: not through the NAT gateway, which bills by the GB. The
            # broker's accounts are answered for through it too, from subnets that lead nowhere else. It has no policy
            # of its own: layers of images, packages of the system and CloudFormation's answers lie in buckets of AWS,
            # which no list that we could keep names, and what a role may do in S3 is said by role and bucket.
            gateway_endpoints={"S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)},
            # The default group stays as AWS makes it: it admits its own members only, and has none, as everything here
            # names a group of its own. Emptying it would take one more function, with rights on security groups.
            restrict_default_security_group=False,
        )
        self.peer_subnets = ec2.SubnetSelection(subnet_group_name="Private" if private else "Public")
        self.broker_subnets = ec2.SubnetSelection(subnet_group_name="Broker")
        self.peer_security_group = self._peer_security_group()
        self._flow_log(settings)

    def _peer_security_group(self) -> ec2.SecurityGroup:
        """Nothing comes in. Out goes HTTPS, to anywhere as AWS's APIs have no fixed addresses; the broker's stack adds
        AMQP over TLS to the broker alone. DNS and time come from the network itself, which no group limits."""
        group = ec2.SecurityGroup(
            self, "PeerGroup", vpc=self.vpc, description="Peers: nothing in", allow_all_outbound=False
        )
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(HTTPS), "APIs of AWS, image layers and S3")
        return group

    def _flow_log(self, settings: Settings) -> None:
        """Who talked to whom, accepted or not. Ten-minute sums make it some 0.4 MB per peer and hour, 0.0002 USD: cheap
        for the one record that shows where the data of a stolen instance went."""
        group = log_group(self, "FlowLog", settings)
        role = iam.Role(
            self,
            "FlowLogRole",
            description="Delivers the flow log",
            assumed_by=iam.ServicePrincipal(
                "vpc-flow-logs.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}}
            ),
        )
        own = self.format_arn(service="logs", resource=f"log-group:{group.log_group_name}")
        granted = attach(self, "FlowLogPolicy", role, policies.flow_log(own))
        flow_log = ec2.CfnFlowLog(
            self,
            "Flows",
            resource_id=self.vpc.vpc_id,
            resource_type="VPC",
            traffic_type="ALL",
            max_aggregation_interval=_FLOW_SECONDS,
            log_destination_type="cloud-watch-logs",
            log_group_name=group.log_group_name,
            deliver_logs_permission_arn=role.role_arn,
        )
        flow_log.node.add_dependency(granted)


def _subnets(name: str, kind: ec2.SubnetType) -> ec2.SubnetConfiguration:
    # Addresses are given by the peers' launch template, so that nothing else in a public subnet gets one unasked.
    public = False if kind is ec2.SubnetType.PUBLIC else None
    return ec2.SubnetConfiguration(name=name, subnet_type=kind, cidr_mask=_SUBNET_BITS, map_public_ip_on_launch=public)
