"""The [pool.NAME.cloud.aws] tables: what a pool may use of EC2."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import Field

from orchestrator.config.tables.aws_disk import DiskTable
from orchestrator.config.tables.machines import MachinesTable
from orchestrator.config.types import Duration, Money, Prices, Section, Strings, Texts, duration_key

ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/(?:[!-~]+/)?([\w+=,.@-]{1,64})")


class ReservationTable(Section):
    """Capacity that is reserved for the account, named by its id, such as cr-0123456789abcdef0."""

    zone: str = Field(default="", description="The zone that it is in.", examples=["us-east-1a"])
    instance_type: str = Field(
        default="", description="Its instance type, one of cloud.aws.instance_types.", examples=["p5.4xlarge"]
    )
    price: Money = Field(
        default=0.0,
        description="What you count for an hour of one machine in it, in US dollars. Of a Capacity Block: "
        "what it cost, divided by its hours and machines. An on-demand reservation is billed used or not: a "
        "price just below the on-demand price has it used first.",
        examples=["6.80"],
    )
    block: bool = Field(default=False, description="Whether it is a Capacity Block.")


class AwsRegionTable(Section):
    """One region that nodes may be launched in, named like the region, such as us-east-1."""

    subnets: Texts = Field(
        default={},
        description="The subnet of each zone that may be used: zone = subnet id.",
        examples=[{"us-east-1a": "subnet-0a1b2c3d"}],
    )
    launch_template: str = Field(
        default="",
        description="Launch template by name or lt-id: image, role, security groups, and the user-data that "
        "starts the engine. `orchestrator aws bootstrap` makes one of that name.",
        examples=["llama-node"],
    )
    launch_template_version: int = Field(
        default=1,
        ge=1,
        description="Version of the launch template. A number, so that a launch asked for again is the same.",
    )
    image: str = Field(
        default="",
        description="AMI to use instead of the launch template's, with drivers and the engine installed.",
        examples=["ami-0123456789abcdef0"],
    )
    security_groups: Strings = Field(
        default=(),
        description="Security groups of the nodes, by id, for `orchestrator aws bootstrap`. Empty: it makes "
        "one when asked.",
        examples=[["sg-0123456789abcdef0"]],
    )
    allow_from: Strings = Field(
        default=(),
        description="Who may reach the engines' port, and gpu.dcgm_port, when bootstrap makes the security "
        "group: the balancer's security group, the daemon's and the gateway's, or networks.",
        examples=[["sg-0fedcba9876543210", "10.0.0.0/28"]],
    )
    on_demand_prices: Prices = Field(
        default={},
        description="Your own on-demand prices per instance type in US dollars per hour. They win over the "
        "price list, which is not asked then.",
        examples=[{"p5.4xlarge": "6.88"}],
    )
    reservations: dict[str, ReservationTable] = Field(
        default={}, description="Capacity reservations and Capacity Blocks that nodes may be launched into."
    )
    notice_queue: str = Field(
        default="",
        description="URL of the SQS queue that EventBridge fills with EC2 events. Empty: the status of spot "
        "requests is the only source of notices.",
        examples=["https://sqs.us-east-1.amazonaws.com/123456789012/notices"],
    )


class AwsTable(MachinesTable):
    """EC2 as the source of machines, for `cloud.kind = "aws"`. Credentials are found as boto3 finds them."""

    instance_types: Strings = Field(
        default=(), description="Instance types that nodes may have.", examples=[["p5.4xlarge"]]
    )
    allow_unknown_types: bool = Field(
        default=False,
        description="Whether instance_types may name what this version does not know: a type that is newer. "
        "A wrong name is then found by the first launch.",
    )
    engine_port: int = Field(
        default=8000, ge=1, le=65535, description="Port on which the engine of every node listens."
    )
    target_group: str = Field(
        default="",
        description="Target group (HTTP or HTTPS) of an Application Load Balancer, by name or ARN. It gets "
        "the requests instead of the gateway. Empty: the gateway gets them.",
        examples=["llama"],
    )
    balancer_idle_timeout: Duration = duration_key(
        60.0,
        "Idle timeout of that load balancer, as it is set there; nothing here changes it. A connection that "
        "carries nothing for so long is closed, one whose answer has not begun included. Engines keep idle "
        "connections for 15 s longer, 75 s at least, so that the balancer is the one to close them.",
    )
    node_role: str = Field(
        default="",
        description="ARN of the role that nodes have through their instance profile. Nodes fetch their keys "
        "and the engine's secrets with it. Only ec2.amazonaws.com may be allowed to assume it.",
        examples=["arn:aws:iam::123456789012:role/llama-node"],
    )
    instance_profile: str = Field(
        default="", description="Name of the instance profile with that role. Empty: the role's own name."
    )
    engine_secrets: Texts = Field(
        default={},
        description="Secrets of the engine's environment: variable = ARN of a parameter of SSM or of a "
        "secret of Secrets Manager. Each node fetches them when its engine starts.",
        examples=[{"HF_TOKEN": "arn:aws:ssm:us-east-1:123456789012:parameter/llama/hf-token"}],
    )
    tags: Texts = Field(
        default={},
        description="Tags beside the pool's own on machines, volumes, network interfaces and spot requests, "
        "and on what `orchestrator aws bootstrap` makes.",
        examples=[{"team": "ml"}],
    )
    key_name: str = Field(
        default="",
        description="EC2 key pair of the nodes, by name. Empty: none, or the one that the launch template "
        "has. Session Manager gives a shell without one, and without port 22.",
        examples=["ops"],
    )
    weights: str = Field(
        default="",
        description="Where a node finds the weights: s3://BUCKET/PREFIX, or a path on its image or disk. "
        "Empty: the engine downloads them by the model's name.",
        examples=["s3://llama-weights/llama-3.1-8b", "/opt/weights/llama-3.1-8b"],
    )
    disk: DiskTable = Field(default=DiskTable(), description="The volumes of a node.")
    poll_spot_requests: Duration = duration_key(5.0, "How often the status of spot requests is read.")
    poll_instance_status: Duration = duration_key(
        30.0, "How often scheduled events and failed status checks of machines are read."
    )
    profile: str = Field(default="", description="Profile of the shared credentials file.")
    endpoint: str = Field(
        default="", description="URL where every service answers, for a stand-in of AWS. Empty means AWS."
    )
    regions: dict[str, AwsRegionTable] = Field(default={}, description="Regions that may be used.")

    @property
    def profile_name(self) -> str:
        """The instance profile of nodes; empty for none."""
        found = ROLE.fullmatch(self.node_role)
        return self.instance_profile or (found[1] if found is not None else "")

    def kinds(self) -> Sequence[str]:
        """Instance types that nodes may have."""
        return self.instance_types

    def prices(self) -> Mapping[str, Mapping[str, float]]:
        """The prices of `on_demand_prices`, by region."""
        return {name: region.on_demand_prices for name, region in self.regions.items()}

    def zones(self) -> int:
        """Those that have a subnet."""
        return sum(len(region.subnets) for region in self.regions.values())

    def sources(self, notice: float) -> Mapping[str, float]:
        """The status of spot requests, and the queue where there is one."""
        found = {"aws-spot-requests": notice - self.poll_spot_requests}
        if any(region.notice_queue for region in self.regions.values()):
            found["aws-queue"] = notice
        return found

    def weights_aside(self) -> bool:
        """Whether `weights` is given."""
        return bool(self.weights)
