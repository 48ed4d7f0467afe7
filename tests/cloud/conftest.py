"""Clients of the stand-ins for AWS and Azure, and what a user has there before the first launch."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from azure_stage import AzureStandIn, running_stand_in

from cloud.aws.clients import AwsClients
from cloud.aws.places import AwsRegion


@pytest.fixture(scope="session")
def aws_clients(aws_shim_process: Any) -> AwsClients:
    """Clients of the stand-in, made once: reading the description of a service takes them a while."""
    return AwsClients("us-east-1", endpoint=aws_shim_process.url)


@pytest.fixture(scope="session")
def aws_place(aws_shim_process: Any) -> AwsRegion:
    """What a user has before the first launch: a network of two zones, a launch template."""
    ec2: Any = boto3.client("ec2", region_name="us-east-1", endpoint_url=aws_shim_process.url)
    vpc = ec2.create_vpc(CidrBlock="127.77.0.0/16")["Vpc"]["VpcId"]
    subnets = {}
    for number, zone in enumerate(("us-east-1a", "us-east-1b")):
        block = f"127.77.{number}.0/24"
        made = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)
        subnets[zone] = made["Subnet"]["SubnetId"]
    ec2.create_launch_template(LaunchTemplateName="node", LaunchTemplateData={"ImageId": "ami-12345678"})
    return AwsRegion(
        region="us-east-1",
        subnets=subnets,
        instance_types=("g6e.12xlarge", "p5.4xlarge"),
        template="node",
        template_version="1",
    )


@pytest.fixture(scope="session")
def azure_process() -> Iterator[AzureStandIn]:
    """The stand-in for Azure, in a process of its own."""
    pytest.importorskip("azure.mgmt.compute", reason="the extra [azure] is not installed")
    with running_stand_in() as stand_in:
        yield stand_in
