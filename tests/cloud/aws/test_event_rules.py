"""The rules let through what the parser reads, and the queue's policy lets nobody else send."""

import json

import pytest
from moto.events.models import EventPattern

from cloud.aws.event_rules import RULES, queue_policy, samples
from cloud.aws.events import LISTENED_TO, ReservationEnds, Told, parse

EVENTS = samples("us-east-1", "123456789012")
QUEUE = "arn:aws:sqs:us-east-1:123456789012:notices"


def matching(event):
    return [name for name, pattern in RULES.items() if EventPattern(None, dict(pattern)).matches_event(event)]


def test_there_is_a_sample_of_every_kind_that_is_listened_to():
    assert [(event["source"], event["detail-type"]) for event in EVENTS] == list(LISTENED_TO)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event["detail-type"])
def test_every_kind_is_a_notice_and_comes_through_one_rule(event):
    parsed = parse(json.dumps(event), received_at=1.8e9, source="aws-queue", account="123456789012")
    assert isinstance(parsed, Told | ReservationEnds), parsed
    assert len(matching(event)) == 1


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("EC2 Instance State-change Notification", {"state": "running"}),
        ("AWS Health Event", {"service": "S3"}),
        ("AWS Health Event", {"eventTypeCategory": "accountNotification"}),
    ],
)
def test_what_is_no_notice_is_kept_out(kind, detail):
    event = next(event for event in EVENTS if event["detail-type"] == kind)
    assert matching({**event, "detail": {**event["detail"], **detail}}) == []


@pytest.mark.parametrize("state", ["stopping", "stopped", "shutting-down", "terminated"])
def test_every_state_that_takes_a_node_comes_through(state):
    event = next(e for e in EVENTS if e["detail-type"] == "EC2 Instance State-change Notification")
    assert len(matching({**event, "detail": {**event["detail"], "state": state}})) == 1


def test_only_the_rules_may_send():
    rules = [f"arn:aws:events:us-east-1:123456789012:rule/{name}" for name in RULES]
    allowed = [s for s in queue_policy(QUEUE, rules)["Statement"] if s["Effect"] == "Allow"]
    assert [(s["Principal"], s["Action"], s["Resource"]) for s in allowed] == [
        ({"Service": "events.amazonaws.com"}, "sqs:SendMessage", QUEUE)
    ]
    assert allowed[0]["Condition"] == {"ArnEquals": {"aws:SourceArn": sorted(rules)}}
