"""A target group, judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloud.aws.doctor.balancer import TargetGroupFacts
from cloud.aws.events import NOTICE_SECONDS
from orchestrator.doctor.findings import Finding, Findings, fail, ok, warn

DELAY: Final = 90
"""Seconds that `--fix` gives a deregistered target's requests: most of the notice, and time to spare."""

_HTTP: Final = ("HTTP", "HTTPS")


def target_group(
    group: TargetGroupFacts, *, region: str, budget: float, margin: float, networks: frozenset[str]
) -> Findings:
    """Whether a node can be drained through it within a notice. `budget` and `margin` are those of drains in
    seconds, `networks` the VPCs of the nodes' subnets (empty: not known)."""
    if group.protocol not in _HTTP:
        return [
            fail(
                f"it speaks {group.protocol or 'nothing'}, so a Network Load Balancer uses it, which sends "
                "new connections to a drained node for about two minutes, longer than a notice gives",
                "use an Application Load Balancer with a target group of HTTP or HTTPS, or the gateway",
                group.name,
            )
        ]
    if group.kind not in ("instance", "ip"):
        return [
            fail(
                f"it holds {group.kind} targets, and nodes are instances or addresses",
                "make a target group of instance or ip and name that",
                group.name,
            )
        ]
    findings = [
        *_delay(group, region, budget, margin),
        *_slow_start(group, region),
        *_others(group, networks),
    ]
    return findings or [ok(f"{group.protocol}, and requests get {group.delay:g} s to end", group.name)]


def set_delay_command(group: TargetGroupFacts, region: str) -> str:
    """The command that does by hand what `--fix` does."""
    return _attributes(group, region, f"deregistration_delay.timeout_seconds,Value={DELAY}")


def delay_is_too_long(group: TargetGroupFacts, margin: float) -> bool:
    """Whether an interruption comes before the balancer lets go of a deregistered target's requests."""
    return group.protocol in _HTTP and group.delay > NOTICE_SECONDS - margin


def _delay(group: TargetGroupFacts, region: str, budget: float, margin: float) -> Iterator[Finding]:
    if delay_is_too_long(group, margin):
        yield fail(
            f"the deregistration delay of {group.delay:g} s is longer than the {NOTICE_SECONDS:g} s of a "
            f"notice, less a margin of {margin:g} s: requests are cut when the node goes",
            f"run `orchestrator doctor --only balancer --fix`, or {set_delay_command(group, region)}",
            group.name,
        )
    elif group.delay < budget:
        yield warn(
            f"the deregistration delay of {group.delay:g} s is shorter than drain.budget of {budget:g} s: "
            "the balancer cuts requests that the node would still finish",
            f"lower drain.budget, or {set_delay_command(group, region)}",
            group.name,
        )


def _slow_start(group: TargetGroupFacts, region: str) -> Iterator[Finding]:
    if group.slow_start > 0:
        yield warn(
            f"slow start lets a new node have its full share of the requests only after "
            f"{group.slow_start:g} s, while the others carry those of the node that it replaces",
            _attributes(group, region, "slow_start.duration_seconds,Value=0"),
            group.name,
        )


def _others(group: TargetGroupFacts, networks: frozenset[str]) -> Iterator[Finding]:
    if networks and group.network not in networks:
        yield fail(
            f"it belongs to {group.network}, and the nodes' subnets to {', '.join(sorted(networks))}, so no "
            "node can be registered",
            "make the target group in the network of the subnets",
            group.name,
        )
    if not group.used:
        yield warn(
            "no load balancer forwards to it, so its targets stay unused",
            "add a listener that forwards to it",
            group.name,
        )
    if group.sticky:
        yield warn(
            "sticky sessions tie clients to a node, so a few nodes can end up with most of the load",
            "switch stickiness off, unless the clients need it",
            group.name,
        )
    if group.health_path in ("", "/"):
        yield warn(
            f"its health check asks for {group.health_path or 'no path'}, which an engine does not answer "
            "with 200",
            "set the health check's path to /health",
            group.name,
        )


def _attributes(group: TargetGroupFacts, region: str, key: str) -> str:
    return (
        f"aws elbv2 modify-target-group-attributes --region {region} --target-group-arn {group.arn} "
        f"--attributes Key={key}"
    )
