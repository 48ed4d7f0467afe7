"""The queue of notices and the EventBridge rules that fill it, as they are.

Source: the SQS and EventBridge API references (GetQueueAttributes, ListRuleNamesByTarget, TestEventPattern).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.event_rules import samples
from cloud.errors import CloudError

_RESHAPING = ("Input", "InputPath", "InputTransformer")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """A queue."""

    url: str
    arn: str
    policy: Mapping[str, Any] | None  # None: none, or one that is not JSON
    retention: float  # seconds
    waiting: int
    key: str  # the KMS key that encrypts it; empty: SQS's own
    redrives: bool  # a dead-letter queue takes over


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFacts:
    """A rule that has the queue as a target. `matches`: detail-types of the samples that its pattern lets
    through; `reshapes`: it sends something else than the whole event."""

    name: str
    arn: str
    enabled: bool
    reshapes: bool
    matches: frozenset[str]


async def queue(clients: AwsClients, url: str) -> QueueFacts:
    """Read the queue. Raises NotFound when there is none, CloudError."""
    answer = await clients.call(
        Lane.LIST, "sqs", "get_queue_attributes", lost=CloudError, QueueUrl=url, AttributeNames=["All"]
    )
    values = answer["Attributes"]
    return QueueFacts(
        url=url,
        arn=values["QueueArn"],
        policy=_object(values.get("Policy", "")),
        retention=float(values["MessageRetentionPeriod"]),
        waiting=int(values.get("ApproximateNumberOfMessages", 0)),
        key=values.get("KmsMasterKeyId", ""),
        redrives="RedrivePolicy" in values,
    )


async def rules(clients: AwsClients, arn: str) -> tuple[RuleFacts, ...]:
    """Every rule of the default bus that sends to the queue. Raises CloudError."""
    names: list[str] = []
    async for page in clients.pages(Lane.LIST, "events", "list_rule_names_by_target", TargetArn=arn):
        names += page["RuleNames"]
    return tuple(await asyncio.gather(*(_rule(clients, name, arn) for name in sorted(names))))


async def _rule(clients: AwsClients, name: str, queue_arn: str) -> RuleFacts:
    rule = await clients.call(Lane.LIST, "events", "describe_rule", lost=CloudError, Name=name)
    reshapes = False
    async for page in clients.pages(Lane.LIST, "events", "list_targets_by_rule", Rule=name):
        ours = [target for target in page["Targets"] if target["Arn"] == queue_arn]
        reshapes = reshapes or any(key in target for target in ours for key in _RESHAPING)
    matches: set[str] = set()
    pattern = rule.get("EventPattern")
    if pattern:
        parts = queue_arn.split(":")
        events = samples(parts[3], parts[4])
        tests = (
            clients.call(
                Lane.LIST,
                "events",
                "test_event_pattern",
                lost=CloudError,
                EventPattern=pattern,
                Event=json.dumps(event),
            )
            for event in events
        )
        answers = await asyncio.gather(*tests)
        matches = {e["detail-type"] for e, a in zip(events, answers, strict=True) if a["Result"]}
    return RuleFacts(
        name=name,
        arn=rule["Arn"],
        enabled=rule.get("State") != "DISABLED",
        reshapes=reshapes,
        matches=frozenset(matches),
    )


def _object(text: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
