"""The network: nothing comes in from anywhere, the broker's part leads nowhere, and both forms are what they say."""

from __future__ import annotations

import pytest

from tests.infra.deployment import Deployment

ANYWHERE = {"0.0.0.0/0", "::/0"}


@pytest.fixture
def network(on_aws: Deployment) -> str:
    return f"{on_aws.settings.prefix}-Network"


def references(deployment: Deployment, kind: str) -> dict[str, dict[str, object]]:
    """Properties of a type's resources by what `Ref` gives."""
    return {
        deployment.stacks.resolve({"Ref": id}, stack): deployment.stacks.resolve(resource["Properties"], stack)
        for stack, id, resource in deployment.stacks.resources(kind)
    }


def ingress(deployment: Deployment) -> list[tuple[str, dict[str, object]]]:
    """Every rule that lets something in, wherever it is written."""
    found = [(where, properties) for where, _, properties in deployment.of("AWS::EC2::SecurityGroupIngress")]
    for where, _, properties in deployment.of("AWS::EC2::SecurityGroup"):
        found += [(where, rule) for rule in properties.get("SecurityGroupIngress", ())]
    return found


def test_no_rule_lets_anything_in_but_from_a_group_of_ours_over_tls(on_aws: Deployment) -> None:
    groups = {where for where, _, _ in on_aws.of("AWS::EC2::SecurityGroup")}
    assert groups
    for where, rule in ingress(on_aws):
        assert not {"CidrIp", "CidrIpv6", "SourcePrefixListId"} & set(rule), where
        assert rule["SourceSecurityGroupId"], where
        assert (rule["IpProtocol"], rule["FromPort"]) in {("tcp", 5671), ("tcp", 443)}, where
        assert rule["FromPort"] == rule["ToPort"], where
        assert "-Broker/" in where, "only the broker admits anybody"


def test_peers_reach_out_over_tls_alone(on_aws: Deployment) -> None:
    rules = [rule for _, _, rule in on_aws.of("AWS::EC2::SecurityGroupEgress")]
    for _, _, properties in on_aws.of("AWS::EC2::SecurityGroup"):
        rules += properties["SecurityGroupEgress"]
    for rule in rules:
        if rule.get("CidrIp") == "255.255.255.255/32":
            continue  # CDK's way to say nowhere: a group without any rule would be open
        assert (rule["IpProtocol"], rule["FromPort"]) in {("tcp", 443), ("tcp", 5671)}
        assert rule["FromPort"] == rule["ToPort"]
        assert rule["FromPort"] == 443 or rule["DestinationSecurityGroupId"], "AMQP goes to the broker alone"


def test_it_spans_two_zones_and_names_none(on_aws: Deployment, network: str) -> None:
    subnets = [p for where, _, p in on_aws.of("AWS::EC2::Subnet") if where.startswith(network)]
    assert len({str(subnet["AvailabilityZone"]) for subnet in subnets}) == 2
    raw = [r["Properties"]["AvailabilityZone"] for _, _, r in on_aws.stacks.resources("AWS::EC2::Subnet")]
    assert all("Fn::Select" in zone for zone in raw)


def test_no_subnet_gives_addresses_to_whoever_comes(on_aws: Deployment) -> None:
    assert not any(subnet["MapPublicIpOnLaunch"] for _, _, subnet in on_aws.of("AWS::EC2::Subnet"))


def test_the_form_is_the_one_that_was_asked_for(on_aws: Deployment) -> None:
    private = on_aws.settings.network == "private"
    assert len(on_aws.of("AWS::EC2::NatGateway")) == (1 if private else 0)
    kinds = {
        tag["Value"]
        for _, _, subnet in on_aws.of("AWS::EC2::Subnet")
        for tag in subnet["Tags"]
        if tag["Key"] == "aws-cdk:subnet-type"
    }
    assert kinds == {"Public", "Isolated"} | ({"Private"} if private else set())


def test_the_broker_s_subnets_have_no_way_out_but_s3(on_aws: Deployment) -> None:
    isolated = {
        name
        for name, subnet in references(on_aws, "AWS::EC2::Subnet").items()
        if any(tag["Value"] == "Isolated" for tag in subnet["Tags"])  # type: ignore[attr-defined]
    }
    assert len(isolated) == 2
    tables = {
        link["RouteTableId"]
        for _, _, link in on_aws.of("AWS::EC2::SubnetRouteTableAssociation")
        if link["SubnetId"] in isolated
    }
    assert len(tables) == 2
    assert not [route for _, _, route in on_aws.of("AWS::EC2::Route") if route["RouteTableId"] in tables]
    ((_, _, endpoint),) = on_aws.of("AWS::EC2::VPCEndpoint")
    assert endpoint["VpcEndpointType"] == "Gateway"
    assert endpoint["ServiceName"].endswith(".s3")
    assert tables < set(endpoint["RouteTableIds"])


def test_s3_is_reached_without_the_nat_gateway_from_every_subnet(on_aws: Deployment) -> None:
    ((_, _, endpoint),) = on_aws.of("AWS::EC2::VPCEndpoint")
    assert set(endpoint["RouteTableIds"]) == set(references(on_aws, "AWS::EC2::RouteTable"))


def test_all_flows_are_logged(on_aws: Deployment) -> None:
    ((_, _, flows),) = on_aws.of("AWS::EC2::FlowLog")
    (vpc,) = references(on_aws, "AWS::EC2::VPC")
    assert (flows["ResourceId"], flows["ResourceType"], flows["TrafficType"]) == (vpc, "VPC", "ALL")
    assert references(on_aws, "AWS::Logs::LogGroup")[flows["LogGroupName"]]["RetentionInDays"] == (
        on_aws.settings.log_days
    )


def test_the_local_part_has_no_network(deployments: dict[str, Deployment]) -> None:
    assert not deployments["local"].of("AWS::EC2::VPC")
