"""What should be there, as values, and how it differs from what is. Pure.

Source of the shapes: the API references of SQS, EventBridge, EC2 (RequestLaunchTemplateData, IpPermission).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from cloud.aws.disks import Disk
from cloud.aws.event_rules import RETENTION, RULES, queue_policy
from cloud.aws.places import POOL_TAG

TARGET: Final = "notices"
"""Id of the queue among the targets of a rule."""


class Verb(StrEnum):
    """What happens to one part."""

    CREATE = "create"
    UPDATE = "update"
    KEEP = "keep"
    REFUSE = "refuse"  # it is not ours, or it cannot be made


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as it should be; `before` is empty for what is made anew."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One part and what happens to it. `note` says what a person should know of it; `kept` are fields that
    somebody else set and that stay."""

    region: str
    kind: str
    name: str
    verb: Verb
    differences: tuple[Difference, ...] = ()
    note: str = ""
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a pool needs in one region."""

    pool: str
    region: str
    subnets: tuple[str, ...]
    template: str
    image: str
    profile: str  # the instance profile; empty: none
    groups: tuple[str, ...]  # security groups of the nodes
    make_group: bool  # without `groups`: make one
    allow_from: tuple[str, ...]  # security groups or networks to which the one that is made opens `ports`
    ports: tuple[int, ...]
    user_data: bytes
    queue: str = ""  # URL of the queue in the configuration; empty: none yet
    target_group: str = ""
    idle_timeout: float = 60.0  # of the load balancer, as configured, in seconds
    disk: Disk = field(default_factory=Disk)
    key_name: str = ""  # the key pair; empty: none
    user_tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def queue_name(self) -> str:
        """The name of the queue."""
        return queue_name(self.pool, self.queue)

    @property
    def group_name(self) -> str:
        """The name of the security group that is made."""
        return f"orchestrator-{self.pool}"

    @property
    def rules(self) -> dict[str, str]:
        """The names of the rules, and their patterns as JSON."""
        return {f"orchestrator-{self.pool}-{word}": canonical(pattern) for word, pattern in RULES.items()}

    @property
    def tags(self) -> dict[str, str]:
        """The tags of everything that is made."""
        return {**self.user_tags, "Name": self.pool, POOL_TAG: self.pool}

    def tag_differences(self, held: Mapping[str, str]) -> list[Difference | None]:
        """The user's tags that something of ours does not carry. Further ones of somebody else's stay."""
        return [differs(f"Tag {key}", held.get(key, ""), value) for key, value in self.user_tags.items()]

    def owns(self, tags: Mapping[str, str]) -> bool:
        """Whether something with these tags is this pool's."""
        return tags.get(POOL_TAG) == self.pool

    def queue_attributes(self, account: str) -> dict[str, str]:
        """The attributes of the queue."""
        part = partition(self.region)
        prefix = f"arn:{part}:events:{self.region}:{account}:rule"
        policy = queue_policy(self.queue_arn(account), [f"{prefix}/{name}" for name in self.rules])
        return {"MessageRetentionPeriod": str(RETENTION), "Policy": canonical(policy)}

    def queue_arn(self, account: str) -> str:
        """The ARN of the queue."""
        return f"arn:{partition(self.region)}:sqs:{self.region}:{account}:{self.queue_name}"

    def openings(self) -> frozenset[tuple[str, int, int, str]]:
        """What the security group lets in: protocol, first and last port, from whom."""
        return frozenset(("tcp", port, port, source) for port in self.ports for source in self.allow_from)


def queue_name(pool: str, url: str) -> str:
    """The name of a pool's queue: of the one at the URL, or of the one that is made for it."""
    return url.rstrip("/").rpartition("/")[2] or f"orchestrator-{pool}-notices"


def refused(wanted: Wanted, kind: str, name: str, why: str) -> Change:
    """A part that stays as it is although it is not as it should be."""
    return Change(region=wanted.region, kind=kind, name=name, verb=Verb.REFUSE, note=why)


def not_ours(wanted: Wanted, kind: str, name: str) -> Change:
    """A part that exists and belongs to somebody else."""
    tag = f"{POOL_TAG} = {wanted.pool}"
    return refused(wanted, kind, name, f"exists without the tag {tag}: use another name, or set the tag")


def changed(
    wanted: Wanted,
    kind: str,
    name: str,
    differences: Iterable[Difference | None],
    note: str = "",
    kept: Mapping[str, str] = MappingProxyType({}),
) -> Change:
    """A part that exists and is ours: kept where nothing differs."""
    found = tuple(d for d in differences if d is not None)
    verb = Verb.UPDATE if found else Verb.KEEP
    return Change(
        region=wanted.region, kind=kind, name=name, verb=verb, differences=found, note=note, kept=kept
    )


def created(wanted: Wanted, kind: str, name: str, fields: Mapping[str, str], note: str = "") -> Change:
    """A part that does not exist."""
    found = tuple(Difference(field, "", value) for field, value in fields.items())
    return Change(region=wanted.region, kind=kind, name=name, verb=Verb.CREATE, differences=found, note=note)


def differs(field: str, before: str, after: str) -> Difference | None:
    """A field's difference, None where there is none. JSON is compared by meaning."""
    return None if _meaning(before) == _meaning(after) else Difference(field, before, after)


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(", ", ": "))


def partition(region: str) -> str:
    """The partition of AWS that a region belongs to."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def _meaning(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
