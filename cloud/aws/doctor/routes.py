"""How nodes in a subnet reach what is outside their network: route tables and endpoints, as they are.

Source: the EC2 API reference (DescribeRouteTables, Route, DescribeVpcEndpoints) and the VPC user guide ("a
subnet that is associated with no route table uses the main one").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.doctor.launch import SubnetFacts

_EVERYWHERE: Final = "0.0.0.0/0"
_TARGETS: Final = (
    "NatGatewayId",
    "GatewayId",
    "TransitGatewayId",
    "NetworkInterfaceId",
    "VpcPeeringConnectionId",
    "CarrierGatewayId",
    "LocalGatewayId",
    "CoreNetworkArn",
)


class Way(StrEnum):
    """Where a route table sends what is for the internet."""

    NONE = "nowhere"
    DEAD = "to a target that is gone"
    INTERNET = "to an internet gateway"
    NAT = "to a NAT gateway"
    OTHER = "elsewhere"  # an appliance or another network: what it does with it is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """A route table and the subnets that use it. `target` is the id of what `way` leads to; `s3`: what is for
    S3 in the region goes to a gateway endpoint, which costs nothing."""

    id: str
    network: str
    subnets: tuple[SubnetFacts, ...]
    way: Way
    target: str = ""
    s3: bool = False


async def tables(clients: AwsClients, subnets: Sequence[SubnetFacts]) -> tuple[TableFacts, ...]:
    """The route tables of these subnets. Raises CloudError."""
    in_networks = [{"Name": "vpc-id", "Values": sorted({subnet.network for subnet in subnets})}]
    found: list[Mapping[str, Any]] = []
    async for page in clients.pages(Lane.LIST, "ec2", "describe_route_tables", Filters=in_networks):
        found += page["RouteTables"]
    s3 = {
        table
        for endpoint in await _endpoints(clients, in_networks)
        if endpoint["ServiceName"].endswith(".s3")
        for table in endpoint.get("RouteTableIds", ())
    }
    using: dict[str, list[SubnetFacts]] = {}
    for subnet in subnets:
        using.setdefault(_table_of(subnet, found), []).append(subnet)
    return tuple(
        TableFacts(
            id=table["RouteTableId"],
            network=table["VpcId"],
            subnets=tuple(using[table["RouteTableId"]]),
            way=way,
            target=target,
            s3=table["RouteTableId"] in s3,
        )
        for table in found
        if table["RouteTableId"] in using
        for way, target in [_way(table)]
    )


async def services(clients: AwsClients, networks: Sequence[str]) -> frozenset[str]:
    """The services, such as "ssm", that are reached by their usual names inside these networks, since they
    have an interface endpoint with private DNS. Raises CloudError."""
    in_networks = [{"Name": "vpc-id", "Values": sorted(networks)}]
    return frozenset(
        endpoint["ServiceName"].partition(f".{clients.region}.")[2]
        for endpoint in await _endpoints(clients, in_networks)
        if endpoint.get("VpcEndpointType", "Interface") == "Interface" and endpoint.get("PrivateDnsEnabled")
    )


async def _endpoints(
    clients: AwsClients, filters: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    found: list[Mapping[str, Any]] = []
    async for page in clients.pages(Lane.LIST, "ec2", "describe_vpc_endpoints", Filters=filters):
        found += [entry for entry in page["VpcEndpoints"] if entry.get("State", "").lower() == "available"]
    return tuple(found)


def _table_of(subnet: SubnetFacts, found: Sequence[Mapping[str, Any]]) -> str:
    """The table that a subnet is associated with, else its network's main one."""
    main = ""
    for table in found:
        for association in table["Associations"]:
            if association.get("SubnetId") == subnet.id:
                return str(table["RouteTableId"])
            if association.get("Main") and table["VpcId"] == subnet.network:
                main = table["RouteTableId"]
    return main


def _way(table: Mapping[str, Any]) -> tuple[Way, str]:
    for route in table["Routes"]:
        if route.get("DestinationCidrBlock") == _EVERYWHERE:
            target = next(_named(route), "")
            if route.get("State") == "blackhole":
                return Way.DEAD, target
            if target.startswith("igw-"):
                return Way.INTERNET, target
            return (Way.NAT if target.startswith("nat-") else Way.OTHER), target
    return Way.NONE, ""


def _named(route: Mapping[str, Any]) -> Iterator[str]:
    yield from (route[key] for key in _TARGETS if route.get(key))
