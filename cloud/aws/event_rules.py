"""What EventBridge must put into a pool's queue: patterns of the rules, the queue's policy, sample events.

Made from what the parser understands (`cloud.aws.events`), so that what is listened to is also let through.
EventBridge cannot filter by tag: a rule lets through the events of every machine of the account.

Source of the pattern language, the policy and the events: the EventBridge, SQS, EC2 and Health user guides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloud.aws.events import FINAL_STATES, LISTENED_TO, STOP_STATES

RETENTION: Final = 300
"""Seconds that the queue keeps a message: an older warning is of no use."""

_EC2 = "aws.ec2"
_STATE_CHANGE = "EC2 Instance State-change Notification"
_TERMINATE_HOOK = "EC2 Instance-terminate Lifecycle Action"

RULES: Final[Mapping[str, Mapping[str, Any]]] = {
    "warnings": {
        "source": [_EC2],
        "detail-type": [kind for source, kind in LISTENED_TO if source == _EC2 and kind != _STATE_CHANGE],
    },
    "ends": {
        "source": [_EC2],
        "detail-type": [_STATE_CHANGE],
        "detail": {"state": list(STOP_STATES + FINAL_STATES)},
    },
    "health": {
        "source": ["aws.health"],
        "detail-type": ["AWS Health Event"],
        "detail": {"service": ["EC2"], "eventTypeCategory": ["scheduledChange"]},
    },
    "lifecycle": {"source": ["aws.autoscaling"], "detail-type": [_TERMINATE_HOOK]},
}
"""The event patterns of the rules, each under a word for its name. Every event that may be a notice is
matched by one of them."""


def queue_policy(queue: str, rules: Sequence[str]) -> dict[str, Any]:
    """The policy of the queue with that ARN: EventBridge may send for these rules (ARNs), nobody else may.

    What is in the queue is believed, so this is what keeps a forged notice out.
    """
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "EventBridgeSends",
                "Effect": "Allow",
                "Principal": {"Service": "events.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": queue,
                "Condition": {"ArnEquals": {"aws:SourceArn": sorted(rules)}},
            },
            {
                "Sid": "OnlyEncrypted",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "sqs:*",
                "Resource": queue,
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            },
        ],
    }


def samples(region: str, account: str) -> tuple[Mapping[str, Any], ...]:
    """One event of each kind in LISTENED_TO, as AWS documents it, from that region and account."""
    details = _details(f"arn:aws:health:{region}::event/EC2/AWS_EC2_INSTANCE_REBOOT_MAINTENANCE_SCHEDULED/1")
    resource = f"arn:aws:ec2:{region}:{account}:instance/{_NODE}"
    return tuple(
        {
            "version": "0",
            "id": f"12345678-1234-1234-1234-{number:012}",
            "detail-type": kind,
            "source": source,
            "account": account,
            "time": "2026-01-01T00:00:00Z",
            "region": region,
            "resources": [resource],
            "detail": details[kind],
        }
        for number, (source, kind) in enumerate(LISTENED_TO)
    )


_NODE = "i-1234567890abcdef0"


def _details(health: str) -> Mapping[str, Mapping[str, Any]]:
    block = {
        "instance-type": "p5.48xlarge",
        "capacity-reservation-id": "cr-1234567890abcdef0",
        "start-date": "2025-12-31T11:30:00Z",
        "end-date": "2026-01-01T11:30:00Z",
    }
    return {
        "EC2 Spot Instance Interruption Warning": {"instance-id": _NODE, "instance-action": "terminate"},
        "EC2 Instance Rebalance Recommendation": {"instance-id": _NODE},
        _STATE_CHANGE: {"instance-id": _NODE, "state": "stopping"},
        _TERMINATE_HOOK: {
            "LifecycleActionToken": "87654321-4321-4321-4321-210987654321",
            "AutoScalingGroupName": "my-group",
            "LifecycleHookName": "my-hook",
            "EC2InstanceId": _NODE,
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            "Origin": "AutoScalingGroup",
            "Destination": "EC2",
        },
        "EC2 Capacity Reservation Instance Interruption Warning": {
            "instance-id": _NODE,
            "instance-action": "terminate",
            "instance-termination-time": "2026-01-01T00:02:00Z",
            "availability-zone-id": "use1-az1",
            "instance-lifecycle": "capacity-block",
        },
        "Capacity Block Expiration Warning": block,
        "Capacity Block Reservation Expiration Warning": block,
        "AWS Health Event": {
            "eventArn": health,
            "service": "EC2",
            "eventTypeCode": "AWS_EC2_INSTANCE_REBOOT_MAINTENANCE_SCHEDULED",
            "eventTypeCategory": "scheduledChange",
            "startTime": "Thu, 01 Jan 2026 15:10:09 GMT",
            "eventDescription": [{"language": "en_US", "latestDescription": "A description"}],
            "affectedEntities": [{"entityValue": _NODE}],
        },
    }
