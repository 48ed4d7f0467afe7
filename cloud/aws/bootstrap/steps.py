"""Each part that bootstrap makes: how it is looked at, and how it is made or mended.

A step's `look` reads and compares, and changes nothing; `apply` does what the last look found. Every call is
harmless when it is made again: what was made is found by its name, tag or content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cloud.aws.bootstrap.wanted import (
    DELAYS,
    TARGET,
    Change,
    Difference,
    Verb,
    Wanted,
    changed,
    created,
    differs,
    not_ours,
    refused,
    template_differences,
)
from cloud.aws.clients import Answer, AwsClients, Lane
from cloud.aws.doctor.balancer import set_deregistration_delay, target_group
from cloud.aws.errors import code_of
from cloud.aws.places import POOL_TAG
from cloud.errors import CloudError, NotFound

_MISSING = frozenset(
    {
        "AWS.SimpleQueueService.NonExistentQueue",
        "InvalidLaunchTemplateId.NotFound",
        "InvalidLaunchTemplateName.NotFoundException",
        "QueueDoesNotExist",
        "ResourceNotFoundException",
    }
)


@dataclass(slots=True)
class Site:
    """One region at work: what the steps learn and later ones need. `groups` are the nodes' security groups,
    empty until one is made; `version` is the launch template's."""

    clients: AwsClients
    wanted: Wanted
    account: str = ""
    queue_url: str = ""
    groups: tuple[str, ...] = ()
    version: int | None = None

    async def call(self, service: str, operation: str, **parameters: Any) -> Answer:
        """One call. Raises CloudError."""
        return await self.clients.call(Lane.LIST, service, operation, **parameters)

    async def found(self, service: str, operation: str, **parameters: Any) -> Answer | None:
        """One look; None for what does not exist. Raises CloudError."""
        try:
            return await self.clients.call(Lane.LIST, service, operation, lost=CloudError, **parameters)
        except CloudError as error:
            if isinstance(error, NotFound) or code_of(error) in _MISSING:
                return None
            raise


class Step(Protocol):
    """One part."""

    async def look(self) -> Change:
        """Compare what is with what should be. Raises CloudError."""
        ...

    async def apply(self) -> None:
        """Make it so, after a look. Raises CloudError."""
        ...


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
        tags = await site.call("sqs", "list_queue_tags", QueueUrl=site.queue_url)
        if tags.get("Tags", {}).get(POOL_TAG) != wanted.pool:
            return not_ours(wanted, self.kind, name)
        answer = await site.call(
            "sqs", "get_queue_attributes", QueueUrl=site.queue_url, AttributeNames=["All"]
        )
        held = answer["Attributes"]
        found = [differs(field, held.get(field, ""), value) for field, value in attributes.items()]
        return changed(wanted, self.kind, name, found)

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        attributes = wanted.queue_attributes(site.account)
        if site.queue_url:
            await site.call("sqs", "set_queue_attributes", QueueUrl=site.queue_url, Attributes=attributes)
            return
        tags = {tag["Key"]: tag["Value"] for tag in wanted.tags}
        made = await site.call(
            "sqs", "create_queue", QueueName=wanted.queue_name, Attributes=attributes, tags=tags
        )
        site.queue_url = made["QueueUrl"]


class RuleStep:
    """One rule of EventBridge, with the queue as its target. Other targets of the rule are left alone."""

    kind = "rule"

    def __init__(self, site: Site, name: str, pattern: str) -> None:
        self._site, self._name, self._pattern = site, name, pattern
        self._exists = False

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        arn = wanted.queue_arn(site.account)
        rule = await site.found("events", "describe_rule", Name=self._name)
        self._exists = rule is not None
        if rule is None:
            return created(wanted, self.kind, self._name, {"EventPattern": self._pattern, "Target": arn})
        tags = await site.call("events", "list_tags_for_resource", ResourceARN=rule["Arn"])
        if not wanted.owns(tags["Tags"]):
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
            **({} if self._exists else {"Tags": wanted.tags}),
        )
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
        if not wanted.owns(groups[0].get("Tags", ())):
            return not_ours(wanted, self.kind, name)
        site.groups = (groups[0]["GroupId"],)
        self._held = {key: rule for entry in groups[0]["IpPermissions"] for key, rule in _openings(entry)}
        before = ", ".join(map(_opening, sorted(self._held)))
        return changed(wanted, self.kind, name, [differs("Ingress", before, shown["Ingress"])])

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        if not site.groups:
            made = await site.call(
                "ec2",
                "create_security_group",
                GroupName=wanted.group_name,
                Description=f"Nodes of pool {wanted.pool}",
                VpcId=self._network,
                TagSpecifications=[{"ResourceType": "security-group", "Tags": wanted.tags}],
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


class TemplateStep:
    """The launch template. A new version is made only where no version has the content that is wanted."""

    kind = "launch template"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._exists = False

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        name = wanted.template
        if why := self._impossible():
            return refused(wanted, self.kind, name, why)
        answer = await site.found("ec2", "describe_launch_templates", LaunchTemplateNames=[name])
        data = wanted.template_data(site.groups)
        self._exists = answer is not None and bool(answer["LaunchTemplates"])
        if answer is None or not self._exists:
            return self._new(template_differences({}, data))
        if not wanted.owns(answer["LaunchTemplates"][0].get("Tags", ())):
            return not_ours(wanted, self.kind, name)
        latest: tuple[Difference, ...] | None = None
        async for page in site.clients.pages(
            Lane.LIST, "ec2", "describe_launch_template_versions", LaunchTemplateName=name
        ):
            for version in sorted(page["LaunchTemplateVersions"], key=lambda v: -int(v["VersionNumber"])):
                differences = template_differences(version["LaunchTemplateData"], data)
                if not differences:
                    site.version = int(version["VersionNumber"])
                    return changed(wanted, self.kind, name, [], f"version {site.version}")
                latest = latest if latest is not None else differences
        return changed(wanted, self.kind, name, latest or (), "a new version")

    def _impossible(self) -> str:
        wanted = self._site.wanted
        if wanted.template.startswith("lt-"):
            return "is named by its id; write a name, under which it can be made"
        if not wanted.image:
            return 'there is no image in the file; write image = "ami-..."'
        if not wanted.groups and not wanted.make_group:
            return "there are no security_groups in the file; write them, or let --security-group make one"
        return ""

    def _new(self, differences: tuple[Difference, ...]) -> Change:
        wanted = self._site.wanted
        return Change(
            region=wanted.region,
            kind=self.kind,
            name=wanted.template,
            verb=Verb.CREATE,
            differences=differences,
            note="version 1",
        )

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        given = {
            "LaunchTemplateName": wanted.template,
            "LaunchTemplateData": wanted.template_data(site.groups),
        }
        if not self._exists:
            tags = [{"ResourceType": "launch-template", "Tags": wanted.tags}]
            await site.call("ec2", "create_launch_template", TagSpecifications=tags, **given)
            site.version = 1
            return
        made = await site.call("ec2", "create_launch_template_version", **given)
        site.version = int(made["LaunchTemplateVersion"]["VersionNumber"])


class TargetGroupStep:
    """Two settings of the target group that the configuration names: its deregistration delay and its tag."""

    kind = "target group"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._arn, self._delay, self._tagged = "", False, False

    async def look(self) -> Change:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        name = wanted.target_group
        try:
            group = await target_group(site.clients, name)
        except NotFound:
            return refused(wanted, self.kind, name, "does not exist; make it with its load balancer first")
        answer = await site.call("elbv2", "describe_tags", ResourceArns=[group.arn])
        tags = {tag["Key"]: tag["Value"] for tag in answer["TagDescriptions"][0]["Tags"]}
        owner = tags.get(POOL_TAG, "")
        if owner not in ("", wanted.pool):
            return refused(wanted, self.kind, name, f"belongs to pool {owner}")
        self._arn = group.arn
        self._delay = not DELAYS[0] <= group.delay <= DELAYS[1]
        self._tagged = owner == wanted.pool
        delay = Difference("Deregistration delay", f"{group.delay:g} s", f"{DELAYS[1]} s")
        return changed(
            wanted,
            self.kind,
            name,
            [delay if self._delay else None, differs(f"Tag {POOL_TAG}", owner, wanted.pool)],
        )

    async def apply(self) -> None:
        """See `Step`."""
        site, wanted = self._site, self._site.wanted
        if self._delay:
            await set_deregistration_delay(site.clients, self._arn, DELAYS[1])
        if not self._tagged:
            tags = [{"Key": POOL_TAG, "Value": wanted.pool}]
            await site.call("elbv2", "add_tags", ResourceArns=[self._arn], Tags=tags)


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
