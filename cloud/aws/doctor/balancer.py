"""A target group as it is, whatever kind of balancer uses it, and the one setting that can be fixed.

Source: the ELBv2 API reference (DescribeTargetGroups, DescribeTargetGroupAttributes).
"""

from __future__ import annotations

from dataclasses import dataclass

from cloud.aws.clients import AwsClients, Lane
from cloud.errors import CloudError, Uncertain

_DELAY = "deregistration_delay.timeout_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetGroupFacts:
    """A target group. `delay` and `slow_start` are seconds; `balancers` are the ARNs of those that forward to
    it; `algorithm` is how they choose a target."""

    arn: str
    name: str
    protocol: str
    kind: str
    network: str
    balancers: tuple[str, ...]
    health_path: str
    delay: float
    slow_start: float
    sticky: bool
    algorithm: str


async def target_group(clients: AwsClients, name: str) -> TargetGroupFacts:
    """The group of that name. Raises NotFound, CloudError."""
    listed = await clients.call(Lane.LIST, "elbv2", "describe_target_groups", lost=CloudError, Names=[name])
    group = listed["TargetGroups"][0]
    arn = group["TargetGroupArn"]
    answer = await clients.call(
        Lane.LIST, "elbv2", "describe_target_group_attributes", lost=CloudError, TargetGroupArn=arn
    )
    values = {entry["Key"]: entry["Value"] for entry in answer["Attributes"]}
    return TargetGroupFacts(
        arn=arn,
        name=name,
        protocol=group.get("Protocol", ""),
        kind=group.get("TargetType", "instance"),
        network=group.get("VpcId", ""),
        balancers=tuple(group.get("LoadBalancerArns", ())),
        health_path=group.get("HealthCheckPath", ""),
        delay=float(values.get(_DELAY, 300)),
        slow_start=float(values.get("slow_start.duration_seconds", 0)),
        sticky=values.get("stickiness.enabled") == "true",
        algorithm=values.get("load_balancing.algorithm.type", "round_robin"),
    )


async def set_deregistration_delay(clients: AwsClients, arn: str, seconds: int) -> None:
    """Change how long a deregistered target's requests may go on. Raises CloudError."""
    await clients.call(
        Lane.LIST,
        "elbv2",
        "modify_target_group_attributes",
        lost=Uncertain,
        TargetGroupArn=arn,
        Attributes=[{"Key": _DELAY, "Value": str(seconds)}],
    )
