"""What a target group and its load balancer are set to for a pool, and the commands that set them. Pure.

Source: the ELBv2 API reference (ModifyTargetGroup, ModifyTargetGroupAttributes,
ModifyLoadBalancerAttributes) and the user guide of Application Load Balancers ("Health checks", "Routing
algorithms", "Connection idle timeout").
"""

from __future__ import annotations

from typing import Final

HEALTH_PATH: Final = "/health"
"""Where engines say that they have loaded their model."""

ALGORITHM: Final = ("load_balancing.algorithm.type", "least_outstanding_requests")
"""How targets are chosen, as an attribute: answers take seconds to minutes, so those on their way count."""

DELAY: Final = "deregistration_delay.timeout_seconds"

DELAYS: Final = (60, 90)
"""Seconds between which the deregistration delay must lie: enough, and less than a notice."""

IDLE_TIMEOUT: Final = "idle_timeout.timeout_seconds"

IDLE_TIMEOUTS: Final = (1.0, 4000.0)
"""Seconds that an Application Load Balancer takes for it."""


def group_command(region: str, arn: str, key: str, value: str) -> str:
    """The command that sets an attribute of a target group."""
    return (
        f"aws elbv2 modify-target-group-attributes --region {region} --target-group-arn {arn} "
        f"--attributes Key={key},Value={value}"
    )


def idle_command(region: str, arn: str, seconds: float) -> str:
    """The command that sets the idle timeout of a load balancer, to the nearest that one can have."""
    least, most = IDLE_TIMEOUTS
    return (
        f"aws elbv2 modify-load-balancer-attributes --region {region} --load-balancer-arn {arn} "
        f"--attributes Key={IDLE_TIMEOUT},Value={min(most, max(least, seconds)):.0f}"
    )
