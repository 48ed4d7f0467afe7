"""EventBridge events, as the guides of EC2, AWS Health and Auto Scaling show them, and with odd times."""

import copy
import json
from datetime import UTC, datetime

import pytest
from aws_events import (
    DAY,
    HEALTH,
    HOOK_EVENT,
    HOOK_MESSAGE,
    NODE,
    NOW,
    REBALANCE,
    SPOT,
    STATE,
    TIME,
    at,
    event,
    only,
    read,
)

from cloud.aws.events import Foreign, ReservationEnds, Told, parse
from policies.model import Confidence, NoticeKind


def test_a_spot_warning_ends_the_node_two_minutes_after_its_own_time():
    notice = only(read(SPOT))
    assert (notice.kind, notice.node, notice.deadline) == (NoticeKind.INTERRUPTION, NODE, TIME + 120.0)
    assert (notice.source, notice.confidence, notice.cancelled) == ("aws-queue", Confidence.CONFIRMED, False)
    assert notice.seen_at == TIME + 1.0


def test_hibernation_begins_when_it_is_announced():
    hibernate = event(SPOT["detail-type"], {"instance-id": NODE, "instance-action": "hibernate"})
    assert only(read(hibernate)).deadline == TIME


def test_an_event_from_the_future_counts_as_from_now():
    assert only(read(SPOT, now=TIME - 60.0)).deadline == TIME + 60.0


def test_a_rebalance_recommendation_has_no_deadline():
    notice = only(read(event("EC2 Instance Rebalance Recommendation", {"instance-id": NODE})))
    assert (notice.kind, notice.node, notice.deadline) == (NoticeKind.REBALANCE, NODE, None)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("shutting-down", NoticeKind.STATE_CHANGE),
        ("terminated", NoticeKind.STATE_CHANGE),
        ("Terminated", NoticeKind.STATE_CHANGE),
        ("SHUTTING-DOWN", NoticeKind.STATE_CHANGE),
        ("stopping", NoticeKind.STOP),
        ("stopped", NoticeKind.STOP),
        ("Stopping", NoticeKind.STOP),
        ("STOPPED", NoticeKind.STOP),
    ],
)
def test_a_machine_that_ends_or_stops_has_a_notice_in_any_case(state, kind):
    change = event(
        "EC2 Instance State-change Notification",
        {"instance-id": "i-abcd1111", "state": state},
        resources=["arn:aws:ec2:us-east-1:123456789012:instance/i-abcd1111"],
    )
    notice = only(read(change))
    assert (notice.kind, notice.node, notice.deadline) == (kind, "i-abcd1111", TIME)


@pytest.mark.parametrize("state", ["pending", "running", "Running"])
def test_a_machine_that_runs_has_none(state):
    parsed = read(
        event("EC2 Instance State-change Notification", {"instance-id": "i-abcd1111", "state": state})
    )
    assert isinstance(parsed, Foreign)
    assert state.lower() in parsed.reason


@pytest.mark.parametrize("spelling", ["detail-type", "detail_type"])
def test_an_interruption_of_a_capacity_reservation_counts_for_every_market(spelling):
    body = event(
        "",
        {
            "instance-id": NODE,
            "instance-action": "terminate",
            "instance-termination-time": "2026-01-01T00:02:30Z",
            "availability-zone-id": "use1-az1",
            "instance-lifecycle": "capacity-block",
        },
        resources=f"arn:aws:ec2:us-east-1:123456789012:instance/{NODE}",
    )
    del body["detail-type"]
    body[spelling] = "EC2 Capacity Reservation Instance Interruption Warning"
    notice = only(read(body))
    assert (notice.kind, notice.node, notice.deadline) == (NoticeKind.MAINTENANCE, NODE, TIME + 150.0)


@pytest.mark.parametrize(
    "name", ["Capacity Block Expiration Warning", "Capacity Block Reservation Expiration Warning"]
)
def test_a_capacity_block_that_runs_out_names_the_reservation(name):
    block = event(
        name,
        {"capacity-reservation-id": "cr-1234567890abcdef0", "end-date": "2026-01-01T11:30:00Z"},
        resources=["arn:aws:ec2:us-east-1:123456789012:capacity-reservation/cr-1234567890abcdef0"],
    )
    parsed = read(block)
    assert isinstance(parsed, ReservationEnds)
    assert parsed.reservation == "cr-1234567890abcdef0"
    assert parsed.deadline == at("2026-01-01T11:00:00Z")


def test_a_scheduled_change_is_maintenance_at_its_start():
    notice = only(read(HEALTH))
    assert (notice.kind, notice.node) == (NoticeKind.MAINTENANCE, "i-12345678")
    assert notice.deadline == at("2016-06-05T15:10:09Z")


def test_a_scheduled_change_of_several_nodes_tells_of_each_once():
    health = copy.deepcopy(HEALTH)
    ids = ["i-12345678", NODE, "i-12345678", "vol-12345678"]
    health["detail"]["affectedEntities"] = [{"entityValue": i} for i in ids]
    parsed = read(health)
    assert isinstance(parsed, Told)
    assert [notice.node for notice in parsed.notices] == ["i-12345678", NODE]
    assert len({notice.id for notice in parsed.notices}) == 2


def test_a_scheduled_change_that_is_closed_cancels_what_its_first_event_said():
    closed = copy.deepcopy(HEALTH)
    closed["id"] = "another"
    closed["detail"]["statusCode"] = "closed"
    first, last = only(read(HEALTH)), only(read(closed))
    assert first.id == last.id
    assert (first.cancelled, last.cancelled) == (False, True)


@pytest.mark.parametrize(
    "changes", [{"service": "RDS"}, {"eventTypeCategory": "issue"}, {"eventTypeCategory": None}]
)
def test_other_health_events_are_foreign(changes):
    health = copy.deepcopy(HEALTH)
    health["detail"].update(changes)
    assert isinstance(read(health), Foreign)


@pytest.mark.parametrize(
    "resources",
    [
        f"arn:aws:ec2:us-east-1:123456789012:instance/{NODE}",
        [f"arn:aws:ec2:us-east-1b:instance/{NODE}"],
        [NODE],
    ],
    ids=["a string", "a zone for a region", "no arn"],
)
def test_the_instance_is_found_in_odd_resources_when_the_detail_has_none(resources):
    assert (
        only(read(event(SPOT["detail-type"], {"instance-action": "stop"}, resources=resources))).node == NODE
    )


def test_the_detail_says_more_than_the_resources():
    other = event(
        SPOT["detail-type"], SPOT["detail"], resources=["arn:aws:ec2:us-east-1b:instance/i-abcd1111"]
    )
    assert only(read(other)).node == NODE


def test_events_of_another_account_are_foreign():
    assert isinstance(read(SPOT, account="210987654321"), Foreign)
    assert only(read(SPOT, account="123456789012")).node == NODE
    nameless = {key: value for key, value in SPOT.items() if key != "account"}
    assert only(read(nameless, account="123456789012")).node == NODE


def test_copies_of_one_event_have_one_id_and_events_without_an_id_have_one_too():
    assert only(read(SPOT)).id == only(read(SPOT, now=TIME + 50.0)).id
    bare = {key: value for key, value in SPOT.items() if key != "id"}
    assert only(read(bare)).id == only(read(bare)).id != only(read(SPOT)).id
    odd = only(read({**SPOT, "id": "x" * 10_000}))
    assert len(odd.id) < 100


# -- times that cannot be believed ---------------------------------------------------------------------

UNREADABLE = {
    "missing": ...,
    "null": None,
    "a number of seconds": TIME,
    "a number of milliseconds": TIME * 1000,
    "digits": f"{TIME:.0f}",
    "a word": "soon",
    "empty": "",
    "a list": ["2026-01-01T00:00:00Z"],
    "without a zone": "2026-01-01T00:00:00",
    "a date only": "2026-01-01",
    "cut off": "2026-01-01T00:0",
    "long past": "2001-01-01T00:00:00Z",
    "two days before": "2025-12-30T00:00:00Z",
    "far ahead": "2099-01-01T00:00:00Z",
    "out of the calendar": "2026-13-41T99:00:00Z",
}
READABLE = {
    "Zulu": "2026-01-01T00:00:00Z",
    "an offset": "2026-01-01T01:30:00+01:30",
    "a fraction": "2026-01-01T00:00:00.000Z",
    "a fraction of nine digits": "2026-01-01T00:00:00.000000000Z",
    "RFC 1123": "Thu, 01 Jan 2026 00:00:00 GMT",
}


def with_time(base, time):
    changed = copy.deepcopy(base)
    changed["time"] = time
    if time is ...:
        del changed["time"]
    return changed


@pytest.mark.parametrize("time", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("sent_before", [None, 60.0])
def test_an_event_whose_time_cannot_be_believed_counts_from_its_receipt(time, sent_before):
    """SQS's word for when that was holds, which is the same whenever the message comes again."""
    sent_at = None if sent_before is None else NOW - sent_before
    receipt = NOW if sent_at is None else sent_at

    def heard(base):
        return only(parse(json.dumps(with_time(base, time)), received_at=NOW, sent_at=sent_at, source="q"))

    warning = heard(SPOT)
    assert (warning.kind, warning.node) == (NoticeKind.INTERRUPTION, NODE)
    assert (warning.deadline, warning.seen_at) == (receipt + 120.0, NOW)
    assert (heard(STATE).kind, heard(STATE).deadline) == (NoticeKind.STATE_CHANGE, receipt)
    assert (heard(REBALANCE).kind, heard(REBALANCE).deadline) == (NoticeKind.REBALANCE, None)


@pytest.mark.parametrize("time", READABLE.values(), ids=READABLE)
def test_a_time_in_another_form_that_can_be_read_counts(time):
    assert only(read(with_time(SPOT, time), now=NOW)).deadline == TIME + 120.0


@pytest.mark.parametrize("sent_at", [0.0, -5.0, NOW - 2 * DAY, NOW + 0.5, NOW + DAY])
def test_a_time_of_sending_that_this_clock_cannot_believe_is_none(sent_at):
    body = json.dumps(with_time(SPOT, "soon"))
    notice = only(parse(body, received_at=NOW, sent_at=sent_at, source="q"))
    assert notice.deadline == NOW + 120.0


def test_where_this_clock_is_months_ahead_a_warning_still_has_two_minutes():
    ahead = TIME + 400 * DAY
    notice = only(parse(json.dumps(SPOT), received_at=ahead, sent_at=TIME + 1.0, source="q"))
    assert notice.deadline == ahead + 120.0


@pytest.mark.parametrize(
    "starts", [v for k, v in UNREADABLE.items() if k not in ("long past", "two days before")]
)
def test_a_scheduled_change_without_a_time_that_can_be_believed_comes_two_minutes_after_its_event(starts):
    health = copy.deepcopy(HEALTH)
    health["time"] = "2026-01-01T00:14:30Z"
    health["detail"]["startTime"] = starts
    if starts is ...:
        del health["detail"]["startTime"]
    notice = only(read(health, now=NOW))
    assert (notice.kind, notice.node) == (NoticeKind.MAINTENANCE, "i-12345678")
    assert notice.deadline == NOW - 30.0 + 120.0


@pytest.mark.parametrize("days", [0.9, 1.1, 3.0, 400.0])
def test_maintenance_that_is_overdue_is_kept_with_its_time(days):
    health = copy.deepcopy(HEALTH)
    health["detail"]["startTime"] = datetime.fromtimestamp(NOW - days * DAY, UTC).isoformat()
    notice = only(read(health, now=NOW))
    assert (notice.deadline, notice.cancelled) == (pytest.approx(NOW - days * DAY), False)


# -- lifecycle hooks of Auto Scaling -------------------------------------------------------------------


@pytest.mark.parametrize("form", [HOOK_EVENT, HOOK_MESSAGE], ids=["event", "direct"])
def test_a_lifecycle_hook_is_maintenance_two_minutes_later_by_either_way(form):
    """The hook's time-out is an hour by default and may be half a minute; the message does not tell."""
    notice = only(read(form))
    assert (notice.kind, notice.node) == (NoticeKind.MAINTENANCE, NODE)
    assert (notice.deadline, notice.confidence) == (TIME + 120.0, Confidence.CONFIRMED)
    assert notice.id == only(read(HOOK_EVENT)).id


def test_a_lifecycle_hook_with_damaged_fields_is_heard_all_the_same():
    for key in ("Time", "RequestId", "AccountId", "LifecycleActionToken", "AutoScalingGroupName"):
        for value in (None, 7, [], "x" * 1000):
            assert only(read({**HOOK_MESSAGE, key: value})).node == NODE
    for key in ("id", "time", "resources"):
        assert only(read({**HOOK_EVENT, key: None})).node == NODE


@pytest.mark.parametrize(
    "message",
    [
        {**HOOK_MESSAGE, "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING"},
        {**HOOK_EVENT, "detail-type": "EC2 Instance-launch Lifecycle Action"},
        {"Event": "autoscaling:TEST_NOTIFICATION", "Service": "AWS Auto Scaling", "RequestId": "r"},
        {"Event": "autoscaling:EC2_INSTANCE_LAUNCH", "EC2InstanceId": NODE},
    ],
    ids=["launching", "a launch event", "a test", "a launch that is over"],
)
def test_what_else_auto_scaling_says_is_foreign_and_no_alarm(message):
    assert isinstance(read(message), Foreign)


def test_hooks_of_another_account_are_foreign():
    for form in (HOOK_EVENT, HOOK_MESSAGE):
        assert isinstance(read(form, account="210987654321"), Foreign)
        assert only(read(form, account="123456789012")).node == NODE


@pytest.mark.parametrize("base", [SPOT, HOOK_EVENT, HOOK_MESSAGE], ids=["warning", "event", "direct"])
def test_an_event_in_an_envelope_of_sns_is_the_event(base):
    envelope = {"Type": "Notification", "MessageId": "m", "TopicArn": "arn:t", "Message": json.dumps(base)}
    assert only(read(envelope)) == only(read(base))
    assert only(read(json.dumps(json.dumps(base)))) == only(read(base))
