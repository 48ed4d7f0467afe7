"""Each part that bootstrap makes: how it is read, and how it is made or corrected.

A step's `look` reads and compares, and changes nothing; `apply` does what the last look found. Every call is
harmless when it is made again: what was made is found by its name, tag or content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloud.aws.bootstrap.site import Site, Step
from cloud.aws.bootstrap.target_group import TargetGroupStep
from cloud.aws.bootstrap.template_step import TemplateStep
from cloud.aws.bootstrap.wanted import TARGET, Change, changed, created, differs, not_ours, refused
from cloud.aws.places import POOL_TAG
from cloud.aws.tags import by_key, listed
from cloud.errors import CloudError


class QueueStep:
    """The queue that EventBridge fills, with a policy that lets nobody else."""

    kind = "queue"

    def __init__(self, site: Site) -> None:
        self._site = site

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        name, attributes = wanted.queue_name, wanted.queue_attributes(site.account)
        named = await site.found("sqs", "get_queue_url", QueueName=name)
        if named is None:
            if wanted.queue:
                return refused(wanted, self.kind, name, "is named by notice_queue and does not exist")
            return created(wanted, self.kind, name, attributes)
        site.queue_url = named["QueueUrl"]
        tags = (await site.call("sqs", "list_queue_tags", QueueUrl=site.queue_url)).get("Tags", {})
        if tags.get(POOL_TAG) != wanted.pool:
            return not_ours(wanted, self.kind, name)
        answer = await site.call(
            "sqs", "get_queue_attributes", QueueUrl=site.queue_url, AttributeNames=["All"]
        )
        held = answer["Attributes"]
        found = [differs(field, held.get(field, ""), value) for field, value in attributes.items()]
        return changed(wanted, self.kind, name, [*found, *wanted.tag_differences(tags)])

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        attributes = wanted.queue_attributes(site.account)
        if site.queue_url:
            await site.call("sqs", "set_queue_attributes", QueueUrl=site.queue_url, Attributes=attributes)
            await site.call("sqs", "tag_queue", QueueUrl=site.queue_url, Tags=wanted.tags)
            return
        made = await site.call(
            "sqs", "create_queue", QueueName=wanted.queue_name, Attributes=attributes, tags=wanted.tags
        )
        site.queue_url = made["QueueUrl"]


class RuleStep:
    """One rule of EventBridge, with the queue as its target. Other targets of the rule are left alone."""

    kind = "rule"

    def __init__(self, site: Site, name: str, pattern: str) -> None:
        self._site, self._name, self._pattern = site, name, pattern
        self._arn = ""

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        arn = wanted.queue_arn(site.account)
        rule = await site.found("events", "describe_rule", Name=self._name)
        if rule is None:
            return created(wanted, self.kind, self._name, {"EventPattern": self._pattern, "Target": arn})
        self._arn = rule["Arn"]
        tags = by_key((await site.call("events", "list_tags_for_resource", ResourceARN=self._arn))["Tags"])
        if not wanted.owns(tags):
            return not_ours(wanted, self.kind, self._name)
        answer = await site.call("events", "list_targets_by_rule", Rule=self._name)
        ours: Mapping[str, Any] = next((t for t in answer["Targets"] if t["Id"] == TARGET), {})
        return changed(
            wanted,
            self.kind,
            self._name,
            [
                differs("EventPattern", rule.get("EventPattern", ""), self._pattern),
                differs("State", rule.get("State", ""), "ENABLED"),
                differs("Target", _sent_to(ours), arn),
                *wanted.tag_differences(tags),
            ],
        )

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        await site.call(
            "events",
            "put_rule",
            Name=self._name,
            EventPattern=self._pattern,
            State="ENABLED",
            Description=f"Notices for the nodes of pool {wanted.pool}",
            **({} if self._arn else {"Tags": listed(wanted.tags)}),
        )
        if self._arn:  # EventBridge takes no tags with a rule that is there
            tags = listed(wanted.tags)
            await site.call("events", "tag_resource", ResourceARN=self._arn, Tags=tags)
        targets = [{"Id": TARGET, "Arn": wanted.queue_arn(site.account)}]
        answer = await site.call("events", "put_targets", Rule=self._name, Targets=targets)
        if answer.get("FailedEntryCount"):
            raise CloudError(f"rule {self._name}: {answer['FailedEntries'][0].get('ErrorMessage', '')}")


class GroupStep:
    """The security group that lets the balancer and the daemon reach the engines, and nobody else."""

    kind = "security group"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._network = ""
        self._held: dict[tuple[str, int, int, str], Mapping[str, Any]] = {}

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        name = wanted.group_name
        answer = await site.call("ec2", "describe_subnets", SubnetIds=list(wanted.subnets))
        networks = {entry["VpcId"] for entry in answer["Subnets"]}
        if len(networks) != 1:
            return refused(
                wanted, self.kind, name, "the subnets lie in several networks; write its own for each"
            )
        self._network = networks.pop()
        filters = [
            {"Name": "group-name", "Values": [name]},
            {"Name": "vpc-id", "Values": [self._network]},
        ]
        groups = (await site.call("ec2", "describe_security_groups", Filters=filters))["SecurityGroups"]
        if not wanted.allow_from:
            return refused(wanted, self.kind, name, "allow_from is empty, so nobody could reach the engines")
        shown = {"Ingress": ", ".join(map(_opening, sorted(wanted.openings())))}
        if not groups:
            return created(wanted, self.kind, name, {"Network": self._network, **shown})
        tags = by_key(groups[0].get("Tags", ()))
        if not wanted.owns(tags):
            return not_ours(wanted, self.kind, name)
        site.groups = (groups[0]["GroupId"],)
        self._held = {key: rule for entry in groups[0]["IpPermissions"] for key, rule in _openings(entry)}
        before = ", ".join(map(_opening, sorted(self._held)))
        ingress = differs("Ingress", before, shown["Ingress"])
        return changed(wanted, self.kind, name, [ingress, *wanted.tag_differences(tags)])

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        if site.groups:
            await site.tag(site.groups[0])
        else:
            made = await site.call(
                "ec2",
                "create_security_group",
                GroupName=wanted.group_name,
                Description=f"Nodes of pool {wanted.pool}",
                VpcId=self._network,
                TagSpecifications=[{"ResourceType": "security-group", "Tags": listed(wanted.tags)}],
            )
            site.groups = (made["GroupId"],)
        missing = sorted(wanted.openings() - self._held.keys())
        extra = [rule for key, rule in self._held.items() if key not in wanted.openings()]
        if missing:
            rules = [_permission(*opening) for opening in missing]
            await site.call(
                "ec2", "authorize_security_group_ingress", GroupId=site.groups[0], IpPermissions=rules
            )
        if extra:
            await site.call(
                "ec2", "revoke_security_group_ingress", GroupId=site.groups[0], IpPermissions=extra
            )


def steps_of(site: Site) -> list[Step]:
    """The parts of a region, in the order in which they are made."""
    wanted = site.wanted
    found: list[Step] = [QueueStep(site)]
    found += [RuleStep(site, name, pattern) for name, pattern in wanted.rules.items()]
    if wanted.make_group:
        found.append(GroupStep(site))
    found.append(TemplateStep(site))
    if wanted.target_group:
        found.append(TargetGroupStep(site))
    return found


def _sent_to(target: Mapping[str, Any]) -> str:
    """Where a target sends the event; with what is sent instead, if it is not the event as it is."""
    reshaped = sorted(key for key in target if key.startswith("Input"))
    return " ".join([target.get("Arn", ""), *reshaped]).strip()


def _openings(entry: Mapping[str, Any]) -> list[tuple[tuple[str, int, int, str], Mapping[str, Any]]]:
    """A permission of a group taken apart: one source each, and how it is named when it is revoked."""
    protocol = entry["IpProtocol"]
    first, last = int(entry.get("FromPort", -1)), int(entry.get("ToPort", -1))
    sources = [pair["GroupId"] for pair in entry.get("UserIdGroupPairs", ())]
    sources += [span["CidrIp"] for span in entry.get("IpRanges", ())]
    sources += [span["CidrIpv6"] for span in entry.get("Ipv6Ranges", ())]
    return [
        ((protocol, first, last, source), _permission(protocol, first, last, source)) for source in sources
    ]


def _permission(protocol: str, first: int, last: int, source: str) -> dict[str, Any]:
    made: dict[str, Any] = {"IpProtocol": protocol}
    if protocol != "-1":
        made |= {"FromPort": first, "ToPort": last}
    if source.startswith("sg-"):
        return {**made, "UserIdGroupPairs": [{"GroupId": source}]}
    if ":" in source:
        return {**made, "Ipv6Ranges": [{"CidrIpv6": source}]}
    return {**made, "IpRanges": [{"CidrIp": source}]}


def _opening(opening: tuple[str, int, int, str]) -> str:
    protocol, first, last, source = opening
    ports = "all ports" if first < 0 else str(first) if first == last else f"{first}-{last}"
    return f"{'any' if protocol == '-1' else protocol} {ports} from {source}"
