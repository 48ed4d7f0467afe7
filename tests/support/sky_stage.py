"""SkyPilot for tests: a played helper, and the real one on the stand-in for AWS where it is installed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aws_stage import ZONES

from cloud.ports import Clock, EngineCommand, LaunchRequest
from cloud.skypilot.clouds import CATALOGUE
from cloud.skypilot.instances import SkyInstances
from cloud.skypilot.offerings import SkyOfferings
from cloud.skypilot.places import SkyRegion, sky_config
from cloud.skypilot.process import Helper, HelperSettings
from cloud.tombstones import Tombstones
from policies.model import Market, Placement

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("SKYPILOT_VENV", ROOT / ".venv-skypilot"))
PLAYED = Path(__file__).parent / "played_sky.py"


def played_settings(home: Path, **changes: Any) -> HelperSettings:
    """The played helper in a home of its own."""
    given: dict[str, Any] = {
        "python": Path(sys.executable),
        "home": home,
        "regions": ("us-east-1",),
        "user_id": "deadbeef",
        "config": {},
        "entry": (str(PLAYED),),
    }
    return HelperSettings(**{**given, **changes})


def played_python(directory: Path, **variables: str) -> Path:
    """What `cloud.skypilot.python` may name for a played helper, with these variables."""
    made = directory / "played-python"
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    # Its words are -I, the helper's entry and the home.
    made.write_text(f'#!/bin/sh\nexec env {given} {sys.executable} {PLAYED} "$3"\n')
    made.chmod(0o755)
    return made


def region(**changes: Any) -> SkyRegion:
    """A region of AWS with two zones."""
    given: dict[str, Any] = {
        "cloud": "aws",
        "region": "us-east-1",
        "zones": ("us-east-1a", "us-east-1b"),
        "instance_types": ("g6.xlarge",),
        "network": "sg-1",
        "internal": True,
    }
    return SkyRegion(**{**given, **changes})


class Sky:
    """The adapters on one helper, played or real."""

    def __init__(
        self, settings: HelperSettings, places: list[SkyRegion], clock: Clock, ledger: Path, **given: Any
    ):
        self.helper = Helper(settings, clock)
        self.ledger = Tombstones(ledger, clock)
        self.instances = SkyInstances(self.helper.share(), places, ledger=self.ledger, clock=clock, **given)
        self.offerings = SkyOfferings(self.helper.share(), places, clock=clock)

    async def close(self) -> None:
        await self.instances.close()
        await self.offerings.close()


POOL, REGION = "pool", "us-east-1"


def request(token: str, market: Market, zone: str) -> LaunchRequest:
    """A request for one node of a pool."""
    place = Placement(provider="skypilot", region=REGION, zone=zone, instance_type="g6.xlarge", market=market)
    return LaunchRequest(
        token=token, pool=POOL, placement=place, command=EngineCommand(argv=("e",), build="b")
    )


# -- the real one -----------------------------------------------------------------------------------


FORBIDDEN = (
    "CreateRole",
    "CreateInstanceProfile",
    "AttachRolePolicy",
    "PutRolePolicy",
    "AddRoleToInstanceProfile",
    "AuthorizeSecurityGroupIngress",
    "AuthorizeSecurityGroupEgress",
    "CreateSecurityGroup",
)
"""Calls of AWS that make a role or open a port."""


def installed() -> bool:
    """Whether the environment with SkyPilot is there. Where it must be, its lack fails."""
    found = (VENV / ".installed").exists()
    if not found and os.environ.get("ORCHESTRATOR_REQUIRE_SKYPILOT"):
        raise AssertionError(f"{VENV} is not there, and ORCHESTRATOR_REQUIRE_SKYPILOT asks for it")
    return found


needs_skypilot = pytest.mark.skipif(not installed(), reason=f"no SkyPilot in {VENV.name} (make skypilot-env)")

_VMS = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
    "AvailabilityZone,Arch,LocalDiskType,NVMeSupported,LocalDiskSize,LocalDiskCount,MaximumEfaInterfaces"
)
_TYPES = (("g6.xlarge", "L4", 0.8048, 0.30), ("g5.xlarge", "A10G", 1.006, 0.41))


def furnish(home: Path, shim: Any, zones: tuple[str, ...]) -> None:
    """What SkyPilot would fetch from the network: its catalogue, made by hand."""
    catalogue = home / ".sky" / "catalogs" / CATALOGUE
    (catalogue / "aws").mkdir(parents=True)
    (catalogue / "common").mkdir()
    found = shim.client("ec2").describe_availability_zones()["AvailabilityZones"]
    ids = {zone["ZoneName"]: zone["ZoneId"] for zone in found}
    rows = [
        f"{kind},{gpu},1,4,16,,{price},{spot},us-east-1,{ids[zone]},x86_64,,,,,"
        for zone in zones
        for kind, gpu, price, spot in _TYPES
    ]
    (catalogue / "aws" / "vms.csv").write_text("\n".join([_VMS, *rows]) + "\n")
    images = "Tag,Region,OS,OSVersion,ImageId,CreationDate\n"
    (catalogue / "aws" / "images.csv").write_text(
        f"{images}skypilot:gpu-ubuntu-2004,us-east-1,ubuntu,22.04,ami-12345678,20250101\n"
    )
    (catalogue / "aws" / "instance_quota_mapping.csv").write_text(
        "InstanceType,SpotInstanceCode,OnDemandInstanceCode\n"
    )
    (catalogue / "common" / "accelerators.csv").write_text("AcceleratorName,Clouds\nL4,aws\nA10G,aws\n")


def account(shim: Any, block: str = "127.79") -> str:
    """What a user has there: a network on the loopback with a way out, and a security group in it, whose id
    this is. SkyPilot launches in the network of the group."""
    ec2 = shim.client("ec2")
    vpc = ec2.create_vpc(CidrBlock=f"{block}.0.0/16")["Vpc"]["VpcId"]
    for number, zone in enumerate(ZONES):
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"{block}.{16 * number}.0/20", AvailabilityZone=zone)
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    main = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "association.main", "Values": ["true"]}]
    table = ec2.describe_route_tables(Filters=main)["RouteTables"][0]["RouteTableId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    made = ec2.create_security_group(GroupName=f"nodes-{gateway}", Description="of a pool", VpcId=vpc)
    return str(made["GroupId"])


def real_settings(
    home: Path, shim: Any, places: list[SkyRegion], environment: Mapping[str, str], ssh_proxy: str = ""
) -> HelperSettings:
    """The real helper, with the stand-in for AWS as its endpoint."""
    return HelperSettings(
        python=VENV / "bin" / "python",
        home=home,
        regions=tuple(place.region for place in places),
        user_id="deadbeef",
        config=sky_config("aws", {place.region: place for place in places}, ssh_proxy),
        environment={**environment, "AWS_ENDPOINT_URL": shim.url},
    )
