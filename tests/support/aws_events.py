"""Sound EventBridge events, and how tests read them."""

from __future__ import annotations

import copy
import json
from datetime import datetime

from cloud.aws.events import Told, parse


def at(text):
    return datetime.fromisoformat(text).timestamp()


TIME = at("2026-01-01T00:00:00Z")

NODE = "i-1234567890abcdef0"

SPOT = {
    "version": "0",
    "id": "12345678-1234-1234-1234-123456789012",
    "detail-type": "EC2 Spot Instance Interruption Warning",
    "source": "aws.ec2",
    "account": "123456789012",
    "time": "2026-01-01T00:00:00Z",
    "region": "us-east-2",
    "resources": [f"arn:aws:ec2:us-east-2:123456789012:instance/{NODE}"],
    "detail": {"instance-id": NODE, "instance-action": "terminate"},
}

HEALTH = {
    "version": "0",
    "id": "7fb65329-1628-4cf3-a740-95fg457h1402",
    "detail-type": "AWS Health Event",
    "source": "aws.health",
    "account": "123456789012",
    "time": "2016-06-05T06:27:57Z",
    "region": "us-east-1",
    "resources": ["i-12345678"],
    "detail": {
        "eventArn": "arn:aws:health:region::event/id",
        "service": "EC2",
        "eventTypeCode": "AWS_EC2_DEDICATED_HOST_NETWORK_MAINTENANCE_SCHEDULED",
        "eventTypeCategory": "scheduledChange",
        # As in the guide; that day was no Saturday.
        "startTime": "Sat, 05 Jun 2016 15:10:09 GMT",
        "eventDescription": [{"language": "en_US", "latestDescription": "A description"}],
        "affectedEntities": [{"entityValue": "i-12345678", "tags": {"stage": "prod"}}],
    },
}


def read(event, *, now=TIME + 1.0, account=""):
    body = event if isinstance(event, str) else json.dumps(event)
    return parse(body, received_at=now, source="aws-queue", account=account)


def event(detail_type, detail, **changes):
    return {**copy.deepcopy(SPOT), "detail-type": detail_type, "detail": detail, **changes}


def only(parsed):
    assert isinstance(parsed, Told), parsed
    (notice,) = parsed.notices
    return notice


NOW = TIME + 900.0

DAY = 86_400.0

STATE = event("EC2 Instance State-change Notification", {"instance-id": NODE, "state": "terminated"})

REBALANCE = event("EC2 Instance Rebalance Recommendation", {"instance-id": NODE})

HOOK = {
    "LifecycleActionToken": "87654321-4321-4321-4321-210987654321",
    "AutoScalingGroupName": "llama",
    "LifecycleHookName": "drain",
    "EC2InstanceId": NODE,
    "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
    "NotificationMetadata": "",
    "Origin": "AutoScalingGroup",
    "Destination": "EC2",
}

HOOK_EVENT = {
    **SPOT,
    "source": "aws.autoscaling",
    "detail-type": "EC2 Instance-terminate Lifecycle Action",
    "resources": ["arn:aws:autoscaling:us-east-2:123456789012:autoScalingGroup:1:autoScalingGroupName/llama"],
    "detail": HOOK,
}

HOOK_MESSAGE = {
    **HOOK,
    "AccountId": "123456789012",
    "RequestId": "18b2ec17-3e9b-4c15-8024-ff2e8ce8786a",
    "Service": "AWS Auto Scaling",
    "Time": "2026-01-01T00:00:00.000Z",
}
