"""What should be there, as values, and how it differs from what is. Pure.

Source of the shapes: the API references of SQS, EventBridge, EC2 (RequestLaunchTemplateData, IpPermission).
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cloud.aws.event_rules import RETENTION, RULES, queue_policy
from cloud.aws.places import POOL_TAG
from cloud.aws.user_data import unpacked

DELAYS: Final = (60, 90)
"""Seconds between which a target group's deregistration delay must lie: enough, and less than a notice."""

TARGET: Final = "notices"
"""Id of the queue among the targets of a rule."""

_MOST_LINES = 40  # of a difference that is shown


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
    """One part and what happens to it. `note` says what a person should know of it."""

    region: str
    kind: str
    name: str
    verb: Verb
    differences: tuple[Difference, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a pool needs in one region.

    `queue`: the URL of the queue that the configuration names, empty for none yet. `groups`: security groups
    of the nodes; without any, `make_group` says whether one is made that opens `port` to `allow_from`
    (security groups, or networks). `profile`: the instance profile, empty for none.
    """

    pool: str
    region: str
    subnets: tuple[str, ...]
    template: str
    image: str
    profile: str
    groups: tuple[str, ...]
    make_group: bool
    allow_from: tuple[str, ...]
    port: int
    user_data: bytes
    queue: str = ""
    target_group: str = ""

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
    def tags(self) -> list[dict[str, str]]:
        """The tags of everything that is made."""
        return [{"Key": "Name", "Value": self.pool}, {"Key": POOL_TAG, "Value": self.pool}]

    def owns(self, tags: Iterable[Mapping[str, str]]) -> bool:
        """Whether something with these tags is this pool's."""
        return any(tag["Key"] == POOL_TAG and tag["Value"] == self.pool for tag in tags)

    def queue_attributes(self, account: str) -> dict[str, str]:
        """The attributes of the queue."""
        part = partition(self.region)
        prefix = f"arn:{part}:events:{self.region}:{account}:rule"
        policy = queue_policy(self.queue_arn(account), [f"{prefix}/{name}" for name in self.rules])
        return {"MessageRetentionPeriod": str(RETENTION), "Policy": canonical(policy)}

    def queue_arn(self, account: str) -> str:
        """The ARN of the queue."""
        return f"arn:{partition(self.region)}:sqs:{self.region}:{account}:{self.queue_name}"

    def template_data(self, groups: Sequence[str]) -> dict[str, Any]:
        """The content of the launch template, for nodes in these security groups."""
        data: dict[str, Any] = {
            "ImageId": self.image,
            "SecurityGroupIds": list(groups),
            "UserData": base64.b64encode(self.user_data).decode(),
            "MetadataOptions": {
                "HttpEndpoint": "enabled",
                "HttpTokens": "required",
                "HttpPutResponseHopLimit": 1,  # a container on the node cannot reach the role's credentials
            },
        }
        if self.profile:
            data["IamInstanceProfile"] = {"Name": self.profile}
        return data

    def openings(self) -> frozenset[tuple[str, int, int, str]]:
        """What the security group lets in: protocol, first and last port, from whom."""
        return frozenset(("tcp", self.port, self.port, source) for source in self.allow_from)


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
    wanted: Wanted, kind: str, name: str, differences: Iterable[Difference | None], note: str = ""
) -> Change:
    """A part that exists and is ours: kept where nothing differs."""
    found = tuple(d for d in differences if d is not None)
    verb = Verb.UPDATE if found else Verb.KEEP
    return Change(region=wanted.region, kind=kind, name=name, verb=verb, differences=found, note=note)


def created(wanted: Wanted, kind: str, name: str, fields: Mapping[str, str], note: str = "") -> Change:
    """A part that does not exist."""
    found = tuple(Difference(field, "", value) for field, value in fields.items())
    return Change(region=wanted.region, kind=kind, name=name, verb=Verb.CREATE, differences=found, note=note)


def differs(field: str, before: str, after: str) -> Difference | None:
    """A field's difference, None where there is none. JSON is compared by meaning."""
    return None if _meaning(before) == _meaning(after) else Difference(field, before, after)


def template_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """How two contents of a launch template differ; user-data line by line, once it is unpacked."""
    found = []
    for field in sorted(before.keys() | after.keys()):
        old, new = before.get(field), after.get(field)
        if field == "UserData":
            found += _lines(_text(old), _text(new))
        elif not _within(new, old):
            found.append(
                Difference(field, canonical(old) if old is not None else "", canonical(new) if new else "")
            )
    return tuple(found)


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(", ", ": "))


def partition(region: str) -> str:
    """The partition of AWS that a region belongs to."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def _within(wanted: Any, found: Any) -> bool:
    """Whether what was found holds what is wanted; AWS adds fields of its own, such as states."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(_within(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return sorted(map(str, wanted)) == sorted(map(str, found))
    return bool(wanted == found)


def _meaning(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(data: Any) -> str:
    try:
        return unpacked(base64.b64decode(data or "", validate=True))
    except (binascii.Error, ValueError, OSError, EOFError):
        return str(data)


def _lines(before: str, after: str) -> list[Difference]:
    if before == after:
        return []
    if not before:
        return [Difference("UserData", "", f"{len(after.splitlines())} lines of cloud-init")]
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    lines = [line for line in lines if not line.startswith("@@")]
    shown = "\n".join(lines[:_MOST_LINES])
    more = f"\n... and {len(lines) - _MOST_LINES} lines more" if len(lines) > _MOST_LINES else ""
    return [Difference("UserData", "", shown + more)]
