"""The target group: the settings of it that a pool needs, and of its load balancers.

Ours to set are the health check, the algorithm and what it excludes, the deregistration delay, and the tag.
Of the load balancers themselves nothing is changed: others may use them.

Source: the ELBv2 API reference (ModifyTargetGroup, ModifyTargetGroupAttributes) and the user guide of
Application Load Balancers ("Health checks", "Routing algorithms": least outstanding requests cannot be used
with slow start mode).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cloud.aws.balancer_settings import ALGORITHM, DELAY, DELAYS, HEALTH_PATH, idle_command
from cloud.aws.bootstrap.site import Site
from cloud.aws.bootstrap.wanted import Change, Difference, changed, differs, refused
from cloud.aws.doctor.idle_timeout import idle_timeout
from cloud.aws.places import POOL_TAG
from cloud.aws.tags import by_key, listed
from cloud.errors import CloudError

_CHECK: Final[Mapping[str, Any]] = {"HealthCheckPath": HEALTH_PATH, "Matcher": {"HttpCode": "200"}}
_PACE: Final = {
    "HealthCheckIntervalSeconds": (5, 10, 10),
    "HealthCheckTimeoutSeconds": (2, 9, 5),
    "HealthyThresholdCount": (2, 3, 2),
    "UnhealthyThresholdCount": (2, 5, 3),
}
"""Least, most, and what is written otherwise. A replacement must be healthy well within a notice, and one
slow answer of a busy engine must not take it out."""

_ATTRIBUTES: Final = {
    **dict([ALGORITHM]),
    "slow_start.duration_seconds": "0",
    "load_balancing.algorithm.anomaly_mitigation": "off",
}


class TargetGroupStep:
    """The settings of the target group that the configuration names."""

    kind = "target group"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._arn = ""
        self._check: dict[str, Any] = {}
        self._attributes: dict[str, str] = {}

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        name = wanted.target_group
        answer = await site.found("elbv2", "describe_target_groups", Names=[name])
        if answer is None:
            return refused(wanted, self.kind, name, "does not exist; make it with its load balancer first")
        group = answer["TargetGroups"][0]
        if group.get("Protocol") not in ("HTTP", "HTTPS"):
            why = f"is of protocol {group.get('Protocol')}, not of an Application Load Balancer"
            return refused(wanted, self.kind, name, why)
        self._arn = group["TargetGroupArn"]
        tags = await site.call("elbv2", "describe_tags", ResourceArns=[self._arn])
        owner = by_key(tags["TagDescriptions"][0]["Tags"]).get(POOL_TAG, "")
        if owner not in ("", wanted.pool):
            return refused(wanted, self.kind, name, f"belongs to pool {owner}")
        listed_ = await site.call("elbv2", "describe_target_group_attributes", TargetGroupArn=self._arn)
        held = by_key(listed_["Attributes"])
        self._check, self._attributes = check_of(group), attributes_of(held)
        found = [Difference(key, _text(group.get(key)), _text(value)) for key, value in self._check.items()]
        found += [Difference(key, held.get(key, ""), value) for key, value in self._attributes.items()]
        differences = [*found, differs(f"Tag {POOL_TAG}", owner, wanted.pool)]
        return changed(wanted, self.kind, name, differences, await self._note(group))

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        if self._check:
            await site.call("elbv2", "modify_target_group", TargetGroupArn=self._arn, **self._check)
        if self._attributes:
            attributes = listed(self._attributes)
            await site.call(
                "elbv2",
                "modify_target_group_attributes",
                TargetGroupArn=self._arn,
                Attributes=attributes,
            )
        tags = listed({POOL_TAG: wanted.pool})
        await site.call("elbv2", "add_tags", ResourceArns=[self._arn], Tags=tags)

    async def _note(self, group: Mapping[str, Any]) -> str:
        """What a person has to know of the load balancers' idle timeouts, which are theirs to set."""
        wanted, notes = self._site.wanted, []
        for arn in group.get("LoadBalancerArns", ()):
            try:
                seconds = await idle_timeout(self._site.clients, arn)
            except CloudError as error:
                notes.append(f"its load balancer's idle timeout cannot be read: {error}")
                continue
            if seconds != wanted.idle_timeout:
                notes.append(
                    f"its load balancer has an idle timeout of {seconds:g} s, and balancer_idle_timeout is "
                    f"{wanted.idle_timeout:g} s: write that there, or "
                    f"{idle_command(wanted.region, arn, wanted.idle_timeout)}"
                )
        return "; ".join(notes)


def check_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What of a target group's health check is to be changed. What somebody chose sensibly stays.

    The pace is one thing: an interval goes with its timeout.
    """
    found = {key: value for key, value in _CHECK.items() if group.get(key) != value}
    if not all(least <= group.get(key, 0) <= most for key, (least, most, _) in _PACE.items()):
        pace = {key: value for key, (_, _, value) in _PACE.items()}
        found |= {key: value for key, value in pace.items() if group.get(key) != value}
    return found


def attributes_of(held: Mapping[str, str]) -> dict[str, str]:
    """The attributes of a target group that are to be changed."""
    found = {key: value for key, value in _ATTRIBUTES.items() if held.get(key, value) != value}
    if not DELAYS[0] <= float(held.get(DELAY, 300)) <= DELAYS[1]:
        found[DELAY] = str(DELAYS[1])
    return found


def _text(value: Any) -> str:
    return str(value["HttpCode"] if isinstance(value, dict) and "HttpCode" in value else value or "")
