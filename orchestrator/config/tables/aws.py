"""The [pool.NAME.cloud.aws] tables: what a pool may use of EC2, and whether its model fits there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, WithJsonSchema

from cloud.aws import tags
from cloud.aws.balancer_settings import IDLE_TIMEOUTS
from cloud.engines.flags import has_flag
from orchestrator.config.checks.engine import verdicts
from orchestrator.config.tables.aws_disk import WEIGHTS, DiskTable, disk_errors, disk_warnings
from orchestrator.config.types import Duration, Money, Section, Strings, Texts, duration_key
from orchestrator.units import format_duration, shown

if TYPE_CHECKING:
    from orchestrator.config.load import PoolConfig

_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_SECRET: Final = re.compile(
    r"arn:aws[a-z-]*:(ssm:[a-z0-9-]+:\d{12}:parameter|secretsmanager:[a-z0-9-]+:\d{12}:secret)[/:][!-~]+"
)
ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/(?:[!-~]+/)?([\w+=,.@-]{1,64})")
_ACCOUNT_QUEUE: Final = re.compile(r"https?://\S+")
_KEY_NAME: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_SECRET_NAME: Final = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)$", re.IGNORECASE)
_TOKEN: Final = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|(AKIA|ASIA)[A-Z0-9]{12,})")
_SHORTEST_TOKEN: Final = 8  # characters; shorter ones are switches

Prices = Annotated[
    dict[str, Money],
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string", "examples": ["6.88"]}}),
]

Found = tuple[tuple[str, ...], str]  # key path, sentence


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
        description="Who may reach the engines' port when bootstrap makes the security group: the balancer's "
        "security group, the daemon's and the gateway's, or networks.",
        examples=[["sg-0fedcba9876543210", "10.0.0.0/28"]],
    )
    on_demand_prices: Prices = Field(
        default={},
        description="Your own on-demand prices per instance type in US dollars per hour. They win over the "
        "price list, which is not asked then.",
        examples=[{"p5.4xlarge": "6.88"}],
    )
    notice_queue: str = Field(
        default="",
        description="URL of the SQS queue that EventBridge fills with EC2 events. Empty: the status of spot "
        "requests is the only source of notices.",
        examples=["https://sqs.us-east-1.amazonaws.com/123456789012/notices"],
    )


class AwsTable(Section):
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


def aws_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What keeps a pool from running on EC2."""
    from cloud.aws.load_balancer import PROPAGATION

    aws, at = pool.cloud.aws, (*at, "cloud", "aws")
    if not aws.instance_types:
        yield (*at, "instance_types"), 'is missing; write instance_types = ["p5.4xlarge"]'
    for name in sorted(pool.units.keys() - set(aws.instance_types)) if aws.instance_types else ():
        yield (
            (*at[:-2], "units", name),
            f"{shown(name)} is not one of cloud.aws.instance_types; correct the name or add the type there",
        )
    if not aws.allow_unknown_types:
        for name in _unknown_types(aws):
            yield (*at, "instance_types"), f"{shown(name)} is not an instance type of EC2{_instead_of(name)}"
    if not aws.regions:
        yield (*at, "regions"), f"is missing; write a table [{'.'.join(at)}.regions.us-east-1]"
    if aws.poll_spot_requests <= 0:
        yield (*at, "poll_spot_requests"), 'is 0, which leaves no time at all; write "5s"'
    if aws.target_group and len(aws.regions) > 1:
        yield (
            (*at, "target_group"),
            "one target group serves one region, and several are given; use the gateway or one region",
        )
    if aws.target_group and "settle" in pool.drain.model_fields_set and pool.drain.settle < PROPAGATION:
        yield (
            (*at[:-2], "drain", "settle"),
            f"{format_duration(pool.drain.settle)} is too short with a target group: its balancer may go "
            f"on sending requests to a drained node for {format_duration(PROPAGATION)}; write that or "
            "more, or leave it out",
        )
    if aws.node_role and not ROLE.fullmatch(aws.node_role):
        yield (
            (*at, "node_role"),
            f"{shown(aws.node_role)} is not the ARN of a role; write arn:aws:iam::ACCOUNT:role/NAME",
        )
    for variable, arn in aws.engine_secrets.items():
        if not _SECRET.fullmatch(arn):
            yield (
                (*at, "engine_secrets", variable),
                "is not the ARN of a parameter of SSM or of a secret of Secrets Manager; "
                "the secret itself must not stand here",
            )
        elif not aws.node_role:
            yield (*at, "node_role"), "is missing; nodes fetch the engine's secrets with their role"
            break
    yield from _machine_errors(at, aws)
    for name, region in aws.regions.items():
        yield from _region_errors((*at, "regions", name), name, region)
    for name, verdict in verdicts(pool):
        if not verdict.fits and not verdict.tight:
            yield (*at, "instance_types"), f"{name}: {verdict.text}"


def _machine_errors(at: tuple[str, ...], aws: AwsTable) -> Iterator[Found]:
    """What EC2 would refuse of tags, key pair, weights and disks."""
    for key, text in tags.faults(aws.tags).items():
        yield (*at, "tags", *([key] if key else [])), text
    if aws.key_name and not _KEY_NAME.fullmatch(aws.key_name):
        yield (*at, "key_name"), f"{shown(aws.key_name)} is not the name of a key pair of EC2"
    if aws.weights and not WEIGHTS.fullmatch(aws.weights):
        yield (
            (*at, "weights"),
            f"{shown(aws.weights)} is neither s3://BUCKET/PREFIX nor an absolute path on the node",
        )
    if not IDLE_TIMEOUTS[0] <= aws.balancer_idle_timeout <= IDLE_TIMEOUTS[1]:
        yield (
            (*at, "balancer_idle_timeout"),
            f"{format_duration(aws.balancer_idle_timeout)} is none that a load balancer can have; they go "
            "from 1s to 4000s",
        )
    yield from disk_errors((*at, "disk"), aws.disk, aws.regions)


def aws_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What is doubtful about a pool on EC2."""
    from cloud.aws.catalogue import catalogue

    aws, at = pool.cloud.aws, (*at, "cloud", "aws")
    table = catalogue()
    unknown = _unknown_types(aws)
    for name in unknown:
        yield (
            (*at, "instance_types"),
            f"{name} is not in the table of instance types of this version; a wrong name is found by "
            "the first launch",
        )
    for name in aws.instance_types:
        if name not in table.types and name not in unknown:
            yield (
                (*at, "instance_types"),
                f"{name} is not in the table of GPU types of {table.as_of}, so nobody has checked that the "
                "model fits; correct the name if it is wrong",
            )
    for name, verdict in verdicts(pool):
        if verdict.tight:
            yield (*at, "instance_types"), f"{name} is a close fit by estimate: {verdict.text}"
    yield from disk_warnings((*at, "disk"), pool)
    yield from _open_secrets(at, pool)
    if pool.agents.listen is not None and not aws.node_role:
        yield (
            (*at, "node_role"),
            "is not set, so nodes cannot fetch their keys from agents.listen; give them to nodes by other "
            "means, or write the ARN of their role",
        )
    for name, region in aws.regions.items():
        if not region.notice_queue:
            yield (
                (*at, "regions", name, "notice_queue"),
                "is not set, so only the status of spot requests tells of interruptions; "
                "make a queue with `orchestrator aws bootstrap` and write its URL",
            )


def _open_secrets(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What looks like a secret and stands in the file. It is not shown."""
    engine, args = (*at[:-2], "engine"), pool.engine.args
    who = "the nodes' user-data, which whoever may describe the launch template can read"
    for name, value in pool.engine.env.items():
        if _TOKEN.search(value) or (_SECRET_NAME.search(name) and len(value) >= _SHORTEST_TOKEN):
            yield (
                (*engine, "env", name),
                f"looks like a secret and travels in {who}; keep it in SSM or Secrets Manager, and write "
                f"its ARN as cloud.aws.engine_secrets.{name}",
            )
    if has_flag(args, "--api-key") or any(map(_TOKEN.search, args)):
        yield (
            (*engine, "args"),
            f"hold what looks like a secret; it travels in {who}, and every list of processes shows it; "
            "keep it in SSM or Secrets Manager, and write its ARN as cloud.aws.engine_secrets.VLLM_API_KEY "
            "(or HF_TOKEN)",
        )


def _unknown_types(aws: AwsTable) -> list[str]:
    from cloud.aws.catalogue import instance_types

    return [name for name in aws.instance_types if name not in instance_types()]


def _instead_of(name: str) -> str:
    """What to write instead of an instance type that does not exist."""
    from cloud.aws.catalogue import instance_types

    close = difflib.get_close_matches(name.lower(), sorted(instance_types()), n=1)
    newer = "for a type that is newer than this version, write allow_unknown_types = true"
    return f"; did you mean {close[0]}? ({newer})" if close else f"; correct the name, or {newer}"


def _region_errors(at: tuple[str, ...], name: str, region: AwsRegionTable) -> Iterator[Found]:
    if not _REGION.fullmatch(name):
        yield at, f"{shown(name)} is not the name of a region; write one such as us-east-1"
    if not region.subnets:
        yield (*at, "subnets"), f'is missing; write subnets = {{{name}a = "subnet-..."}}, one for each zone'
    for zone in region.subnets:
        if not zone.startswith(name):
            yield (*at, "subnets", zone), f"{shown(zone)} is not a zone of {name}; write it in its own region"
    if not region.launch_template:
        yield (*at, "launch_template"), "is missing; write the name of the launch template of the nodes"
    if region.notice_queue and not _ACCOUNT_QUEUE.fullmatch(region.notice_queue):
        yield (*at, "notice_queue"), f"{shown(region.notice_queue)} is not a URL; write the queue's URL"
