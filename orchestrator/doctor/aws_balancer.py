"""A target group and the balancers that use it, judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloud.aws import balancer_settings as settings
from cloud.aws.doctor.balancer import TargetGroupFacts
from cloud.aws.events import NOTICE_SECONDS
from cloud.engines.keep_alive import AHEAD, KEEP_ALIVE
from orchestrator.doctor.findings import Finding, Findings, fail, ok, warn

DELAY: Final = settings.DELAYS[1]
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
        *_health(group, region),
        *_slow_start(group, region),
        *_choice(group, region),
        *_others(group, networks),
    ]
    return findings or [ok(f"{group.protocol}, and requests get {group.delay:g} s to end", group.name)]


def idle_timeout(
    seconds: float, arn: str, *, region: str, keep_alive: float, answer: float, stated: float
) -> Findings:
    """Whether a balancer closes silent connections before an engine does, and not before an answer.

    `seconds` is its idle timeout, `keep_alive` how long engines keep idle connections, `answer` how long a
    request may take that a drain still waits for, `stated` what the configuration says that it is.
    """
    name = arn.rpartition("loadbalancer/")[2]
    findings: list[Finding] = []
    if seconds >= keep_alive:
        text = (
            f"its idle timeout of {seconds:g} s is not below the {keep_alive:g} s for which engines keep "
            "idle connections: it sends requests into connections that the engine closes, and clients get 502"
        )
        advice = (
            f"{_write(seconds)}, leave {KEEP_ALIVE} out of engine.env, and run `orchestrator aws bootstrap`"
        )
        lower = settings.idle_command(region, arn, keep_alive - AHEAD)
        findings.append(fail(text, f"{advice}, or {lower}", name))
    elif stated != seconds:
        text = f"its idle timeout is {seconds:g} s, and the configuration says {stated:g} s"
        findings.append(warn(text, _write(seconds), name))
    if seconds < answer:
        text = (
            f"its idle timeout of {seconds:g} s is shorter than the {answer:g} s that a request may take in "
            "a drain: an answer that is not streamed gets 504 before it is done"
        )
        higher = settings.idle_command(region, arn, answer)
        findings.append(warn(text, f"have clients stream, or {higher} and {_write(answer)}", name))
    text = f"silent connections end after {seconds:g} s here and after {keep_alive:g} s at the engines"
    return findings or [ok(f"{text}; a longer answer has to be streamed", name)]


def set_delay_command(group: TargetGroupFacts, region: str) -> str:
    """The command that does by hand what `--fix` does."""
    return settings.group_command(region, group.arn, settings.DELAY, str(DELAY))


def delay_is_too_long(group: TargetGroupFacts, margin: float) -> bool:
    """Whether an interruption comes before the balancer drops the requests of a deregistered target."""
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


def _health(group: TargetGroupFacts, region: str) -> Iterator[Finding]:
    if group.health_path != settings.HEALTH_PATH:
        yield fail(
            f"its health check asks for {group.health_path or 'no path'}, and an engine says by "
            f"{settings.HEALTH_PATH} alone that it has loaded its model: every target is unhealthy, and a "
            "balancer without a healthy one sends to all of them, those that still load included",
            f"aws elbv2 modify-target-group --region {region} --target-group-arn {group.arn} "
            f"--health-check-path {settings.HEALTH_PATH}",
            group.name,
        )


def _choice(group: TargetGroupFacts, region: str) -> Iterator[Finding]:
    key, fewest = settings.ALGORITHM
    if group.algorithm != fewest:
        yield warn(
            f"it chooses targets by {group.algorithm}, which counts requests and not how long they take: a "
            "node with long answers gets as many more as an idle one",
            settings.group_command(region, group.arn, key, fewest),
            group.name,
        )


def _slow_start(group: TargetGroupFacts, region: str) -> Iterator[Finding]:
    if group.slow_start > 0:
        yield warn(
            f"slow start lets a new node have its full share of the requests only after "
            f"{group.slow_start:g} s, while the others carry those of the node that it replaces",
            settings.group_command(region, group.arn, "slow_start.duration_seconds", "0"),
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
    if not group.balancers:
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


def _write(seconds: float) -> str:
    """What the configuration has to say for engines to keep connections for longer."""
    return f'write cloud.aws.balancer_idle_timeout = "{seconds:g}s"'
