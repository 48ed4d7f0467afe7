"""The event bodies of the public tests of aws-node-termination-handler and Karpenter: each is understood, or
left out as docs/reference/peer-events.md says.

The shapes are theirs (aws-node-termination-handler 1.25.6, karpenter-provider-aws 1.14.1), written anew here.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloud.aws.events import Foreign, Told, Unparseable, parse
from cloud.aws.instance_status import read_troubles
from policies.model import NoticeKind

NOW = 1_800_000_000.0
ISO = "2027-01-15T08:00:00Z"  # the same
NODE = "i-0b662ef9931388ba0"
PAGE = Path(__file__).parents[4] / "docs" / "reference" / "peer-events.md"
TWO_MINUTES = NOW + 120.0
HOOK = {
    "LifecycleActionToken": "0befcbdb-6ecd-498a-9ff7-ae9b54447cd6",
    "AutoScalingGroupName": "group",
    "LifecycleHookName": "hook",
    "EC2InstanceId": NODE,
}
ENDS = "autoscaling:EC2_INSTANCE_TERMINATING"
TEST = "autoscaling:TEST_NOTIFICATION"


def event(kind, detail, *, source="aws.ec2", time=ISO, resources=None):
    return {
        "version": "0",
        "id": "1e5527d7-bb36-4607-3370-4164db56a40e",
        "detail-type": kind,
        "source": source,
        "account": "123456789012",
        "time": time,
        "region": "us-east-1",
        "resources": [f"arn:aws:ec2:us-east-1b:instance/{NODE}"] if resources is None else resources,
        "detail": detail,
    }


def spot(**more):
    detail = {"instance-id": NODE, "instance-action": "terminate"}
    return event("EC2 Spot Instance Interruption Warning", detail, **more)


def state(word, **more):
    return event("EC2 Instance State-change Notification", {"instance-id": NODE, "state": word}, **more)


def hook(transition, **more):
    group = "arn:aws:autoscaling:us-east-1:123456789012:autoScalingGroup:26e7:autoScalingGroupName/group"
    ending = transition != "autoscaling:EC2_INSTANCE_LAUNCHING"
    return event(
        f"EC2 Instance-{'terminate' if ending else 'launch'} Lifecycle Action",
        {**HOOK, "LifecycleTransition": transition, **more},
        source="aws.autoscaling",
        resources=[group],
    )


def sent_directly(transition, **more):
    return {**HOOK, "RequestId": "3775fac9-93c3-7ead-8713-159816566000", "Time": ISO} | {
        "LifecycleTransition": transition,
        **more,
    }


def health(detail=None, resources=None):
    told = {
        "service": "EC2",
        "eventTypeCategory": "scheduledChange",
        "affectedEntities": [{"entityValue": NODE}],
        **(detail or {}),
    }
    listed = [f"arn:aws:ec2:us-east-1:instance/{NODE}"] if resources is None else resources
    return event("AWS Health Event", told, source="aws.health", resources=listed)


SCHEDULED = {
    "eventArn": "arn:aws:health:region::event/id",
    "eventTypeCode": "AWS_EC2_DEDICATED_HOST_NETWORK_MAINTENANCE_SCHEDULED",
    "startTime": "Sat, 05 Jun 2016 15:10:09 GMT",
    "eventDescription": [{"language": "en_US", "latestDescription": "A description"}],
    "affectedEntities": [{"entityValue": NODE, "tags": {"stage": "prod", "app": "my-app"}}],
}

# A name that stands in the page, the body, and what it means here: a kind with its deadline, or why it is
# left out.
INTERRUPTION, MAINTENANCE = NoticeKind.INTERRUPTION, NoticeKind.MAINTENANCE
CASES = {
    "nth-spot": (spot(), (INTERRUPTION, TWO_MINUTES)),
    "nth-spot-1970": (spot(time="1970-01-01T00:00:00Z"), (INTERRUPTION, TWO_MINUTES)),
    "nth-spot-no-time": (spot(time=""), (INTERRUPTION, TWO_MINUTES)),
    "nth-rebalance": (
        event("EC2 Instance Rebalance Recommendation", {"instance-id": NODE}),
        (NoticeKind.REBALANCE, None),
    ),
    "nth-state-stopping": (state("stopping"), (NoticeKind.STOP, NOW)),
    "nth-state-pending": (state("pending"), Foreign),
    "nth-hook-terminate": (hook(ENDS), (MAINTENANCE, TWO_MINUTES)),
    "nth-hook-launch": (hook("autoscaling:EC2_INSTANCE_LAUNCHING"), Foreign),
    "nth-hook-test": (hook(TEST, Event=TEST, EC2InstanceId=None), Foreign),
    "nth-hook-direct": (sent_directly(ENDS), (MAINTENANCE, TWO_MINUTES)),
    "nth-hook-direct-message": ({"Message": json.dumps(sent_directly(ENDS))}, (MAINTENANCE, TWO_MINUTES)),
    "nth-hook-direct-test": (sent_directly(TEST, Event=TEST), Foreign),
    "nth-health": (health(SCHEDULED, resources=[NODE]), (MAINTENANCE, 1465139409.0)),
    "nth-health-other-service": (health({"service": "RDS"}), Foreign),
    "nth-health-other-category": (health({"eventTypeCategory": "accountNotification"}), Foreign),
    "nth-empty-event": ({"version": "", "id": "", "detail-type": "", "source": "", "detail": None}, Foreign),
    "nth-bad-json": ("?", Unparseable),
    "nth-bad-detail": (json.dumps(spot()).replace('{"instance-id"', '?{"instance-id"'), Unparseable),
    "karpenter-spot": (
        spot(resources=[f"arn:aws:ec2:us-west-2:instance/{NODE}"]),
        (INTERRUPTION, TWO_MINUTES),
    ),
    "karpenter-reservation": (
        event(
            "EC2 Capacity Reservation Instance Interruption Warning",
            {"instance-id": NODE, "instance-action": "terminate"},
        ),
        (MAINTENANCE, TWO_MINUTES),
    ),
    "karpenter-scheduled-change": (health(), (MAINTENANCE, TWO_MINUTES)),
    "karpenter-state-stopping": (state("stopping"), (NoticeKind.STOP, NOW)),
    "karpenter-state-stopped": (state("stopped"), (NoticeKind.STOP, NOW)),
    "karpenter-state-shutting-down": (state("shutting-down"), (NoticeKind.STATE_CHANGE, NOW)),
    "karpenter-state-terminated": (state("terminated"), (NoticeKind.STATE_CHANGE, NOW)),
    "karpenter-state-creating": (state("creating"), Unparseable),
    "karpenter-no-event": ({"field1": "value1", "field2": "value2"}, Unparseable),
    "karpenter-empty": ("", Unparseable),
}


@pytest.mark.parametrize("name", CASES)
def test_a_peers_event_means_what_the_page_says(name):
    body, meant = CASES[name]
    text = body if isinstance(body, str) else json.dumps(body)
    parsed = parse(text, received_at=NOW, source="queue", sent_at=NOW)
    if isinstance(meant, type):
        assert type(parsed) is meant
        return
    assert isinstance(parsed, Told), parsed
    assert [(n.kind, n.deadline, n.node) for n in parsed.notices] == [(*meant, NODE)]


def failing(since=-120.0):
    at = datetime.fromtimestamp(NOW + since, UTC)
    detail = {"Status": "failed", "Name": "reachability", "ImpairedSince": at}
    return {"Status": "impaired", "Details": [detail]}


WELL = {"Status": "initializing", "Details": [{"Status": "initializing", "Name": "reachability"}]}
STATUSES = {
    "karpenter-system-check": ({"SystemStatus": failing(), "InstanceStatus": WELL}, 1),
    "karpenter-instance-check": ({"InstanceStatus": failing()}, 1),
    "karpenter-check-of-late": ({"SystemStatus": failing(since=-119.0)}, 0),
    "karpenter-event": ({"Events": [{"Code": "instance-retirement"}]}, 1),
    "karpenter-check-and-event": ({"SystemStatus": failing(), "Events": [{"Code": "system-reboot"}]}, 2),
}


@pytest.mark.parametrize("name", STATUSES)
def test_a_peers_status_means_what_the_page_says(name):
    status, count = STATUSES[name]
    assert len(read_troubles({"InstanceId": NODE, **status}, now=NOW)) == count


def test_the_page_has_a_row_for_each_and_for_no_other():
    lines = PAGE.read_text().splitlines()
    rows = [line.split("|")[1].strip(" `") for line in lines if line.startswith("| `")]
    assert sorted(rows) == sorted([*CASES, *STATUSES])
