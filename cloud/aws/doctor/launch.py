"""What a launch uses, as it is: template, image, subnets, security groups, types on sale, quotas, scores.

Source: the EC2 and Service Quotas API references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.doctor.disks import Devices
from cloud.aws.machines import template_of
from cloud.aws.places import AwsRegion
from cloud.errors import CloudError, NotFound

_ANYWHERE: Final = ("0.0.0.0/0", "::/0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateFacts:
    """One version of a launch template."""

    image: str
    tokens: str  # MetadataOptions.HttpTokens; empty: not set
    groups: tuple[str, ...]
    interfaces: bool  # it sets network interfaces
    market: str  # the market that it sets
    profile: str
    key_pair: str = ""
    devices: Devices = ()  # block device mappings


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """An AMI; `devices` are its block device mappings."""

    id: str
    state: str
    architecture: str
    devices: Devices = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetFacts:
    """A subnet; `zone_id` is the zone's name that is the same in every account; `public`: machines get a
    public address."""

    id: str
    zone: str
    zone_id: str
    network: str
    free: int
    public: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Ports that a security group lets in, over TCP; `anywhere`: from every address."""

    first: int
    last: int
    anywhere: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """A security group."""

    id: str
    network: str
    openings: tuple[Opening, ...]


async def template(clients: AwsClients, place: AwsRegion) -> TemplateFacts:
    """The version that is configured. Raises CloudError, Misconfigured when it does not exist."""
    found = template_of(place)
    version = found.pop("Version")
    answer = await clients.call(
        Lane.LIST, "ec2", "describe_launch_template_versions", lost=CloudError, Versions=[version], **found
    )
    data = answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    profile = data.get("IamInstanceProfile", {})
    return TemplateFacts(
        image=data.get("ImageId", ""),
        tokens=data.get("MetadataOptions", {}).get("HttpTokens", ""),
        groups=tuple(data.get("SecurityGroupIds", ())),
        interfaces=bool(data.get("NetworkInterfaces")),
        market=data.get("InstanceMarketOptions", {}).get("MarketType", ""),
        profile=profile.get("Arn", "") or profile.get("Name", ""),
        key_pair=data.get("KeyName", ""),
        devices=data.get("BlockDeviceMappings", ()),
    )


async def image(clients: AwsClients, name: str) -> ImageFacts:
    """An AMI by its id. Raises NotFound when it is not there for us, CloudError."""
    answer = await clients.call(Lane.LIST, "ec2", "describe_images", lost=CloudError, ImageIds=[name])
    if not answer["Images"]:
        raise NotFound(f"there is no image {name} for this account")
    found = answer["Images"][0]
    return ImageFacts(
        id=name,
        state=found["State"],
        architecture=found.get("Architecture", ""),
        devices=found.get("BlockDeviceMappings", ()),
    )


async def subnets(clients: AwsClients, names: Sequence[str]) -> tuple[SubnetFacts, ...]:
    """The subnets of these ids; unknown ones are left out. Raises CloudError."""
    found: list[SubnetFacts] = []
    filters = [{"Name": "subnet-id", "Values": list(names)}]
    async for page in clients.pages(Lane.LIST, "ec2", "describe_subnets", Filters=filters):
        found += [
            SubnetFacts(
                id=entry["SubnetId"],
                zone=entry["AvailabilityZone"],
                zone_id=entry.get("AvailabilityZoneId", ""),
                network=entry["VpcId"],
                free=entry["AvailableIpAddressCount"],
                public=entry.get("MapPublicIpOnLaunch", False),
            )
            for entry in page["Subnets"]
        ]
    return tuple(found)


async def security_groups(clients: AwsClients, names: Sequence[str]) -> tuple[GroupFacts, ...]:
    """The security groups of these ids; unknown ones are left out. Raises CloudError."""
    found: list[GroupFacts] = []
    filters = [{"Name": "group-id", "Values": list(names)}]
    async for page in clients.pages(Lane.LIST, "ec2", "describe_security_groups", Filters=filters):
        for entry in page["SecurityGroups"]:
            openings = tuple(_opening(rule) for rule in entry["IpPermissions"] if _is_tcp(rule))
            found.append(GroupFacts(id=entry["GroupId"], network=entry.get("VpcId", ""), openings=openings))
    return tuple(found)


async def sold_in(clients: AwsClients, place: AwsRegion) -> frozenset[tuple[str, str]]:
    """(type, zone) of what EC2 sells of the pool's types in the pool's zones. Raises CloudError."""
    filters = [
        {"Name": "instance-type", "Values": list(place.instance_types)},
        {"Name": "location", "Values": sorted(place.subnets)},
    ]
    found: set[tuple[str, str]] = set()
    async for page in clients.pages(
        Lane.LIST,
        "ec2",
        "describe_instance_type_offerings",
        LocationType="availability-zone",
        Filters=filters,
    ):
        found |= {(entry["InstanceType"], entry["Location"]) for entry in page["InstanceTypeOfferings"]}
    return frozenset(found)


async def quota(clients: AwsClients, code: str) -> float:
    """The value of a quota of EC2, in vCPUs for those of machines. Raises CloudError."""
    answer = await clients.call(
        Lane.LIST, "service-quotas", "get_service_quota", lost=CloudError, ServiceCode="ec2", QuotaCode=code
    )
    return float(answer["Quota"]["Value"])


async def spot_scores(clients: AwsClients, place: AwsRegion, machines: int) -> dict[str, int]:
    """How likely so many spot machines are to be had at once: zone id to score, 1 to 10. AWS states the best
    ten only. Raises CloudError."""
    found: dict[str, int] = {}
    async for page in clients.pages(
        Lane.LIST,
        "ec2",
        "get_spot_placement_scores",
        InstanceTypes=list(place.instance_types),
        TargetCapacity=machines,
        SingleAvailabilityZone=True,
        RegionNames=[place.region],
    ):
        for entry in page["SpotPlacementScores"]:
            found[entry["AvailabilityZoneId"]] = entry["Score"]
    return found


def _is_tcp(rule: Any) -> bool:
    return rule.get("IpProtocol") in ("tcp", "-1", "6")


def _opening(rule: Any) -> Opening:
    ranges = [entry.get("CidrIp", "") for entry in rule.get("IpRanges", ())]
    ranges += [entry.get("CidrIpv6", "") for entry in rule.get("Ipv6Ranges", ())]
    return Opening(
        first=rule.get("FromPort", 0),
        last=rule.get("ToPort", 65535),
        anywhere=any(text in _ANYWHERE for text in ranges),
    )
