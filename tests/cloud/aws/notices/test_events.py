"""EventBridge events, as the guides of EC2 and AWS Health show them and as nobody should send them."""

import copy
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.aws.events import LISTENED_TO, MOST_BYTES, Foreign, ReservationEnds, Told, Unparseable, parse
from policies.model import Confidence, NoticeKind


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

NOW = TIME + 900.0
DAY = 86_400.0
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
STATE = event("EC2 Instance State-change Notification", {"instance-id": NODE, "state": "terminated"})
REBALANCE = event("EC2 Instance Rebalance Recommendation", {"instance-id": NODE})


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


# -- damage --------------------------------------------------------------------------------------------


def test_a_fault_in_a_field_that_is_not_needed_costs_no_notice(damaged):
    assert len(damaged) > 20
    for entry in damaged:
        parsed = read(entry["body"])
        if "reservation" in entry:
            assert isinstance(parsed, ReservationEnds), entry["why"]
            assert (parsed.reservation, parsed.deadline) == (entry["reservation"], TIME + entry["after"])
            continue
        assert isinstance(parsed, Told), entry["why"]
        (notice,) = parsed.notices
        assert (str(notice.kind), notice.node) == (entry["kind"], entry["node"]), entry["why"]
        assert notice.deadline == TIME + entry["after"], entry["why"]


def test_the_corpus_of_malformed_bodies_gives_no_notice(malformed):
    assert len(malformed) > 80
    for why, body in malformed:
        parsed = read(body)
        assert isinstance(parsed, Foreign | Unparseable), why
        assert 0 < len(parsed.reason) < 400, why
        assert parsed.reason.isprintable(), why


def test_what_is_larger_than_any_event_is_not_read():
    padded = json.dumps(SPOT) + " " * MOST_BYTES
    assert isinstance(read(padded), Unparseable)


@pytest.mark.parametrize("body", [None, 7, b"{}", [], {}])
def test_what_is_no_text_is_unparseable(body):
    assert isinstance(parse(body, received_at=TIME, source="aws-queue"), Unparseable)


# -- any body at all ---------------------------------------------------------------------------------------


def values(floats):
    """What a field may hold."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | floats | st.text(max_size=30),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from([*SPOT, *HEALTH["detail"], "x"]) | st.text(max_size=8), inner, max_size=6
            )
        ),
        max_leaves=12,
    )


json_values = values(st.floats())
sound_values = values(st.floats(allow_nan=False, allow_infinity=False))


def sound(parsed):
    """What may come out, whatever went in."""
    if isinstance(parsed, Told):
        assert parsed.notices
        for notice in parsed.notices:
            assert notice.node.startswith("i-")
            assert len(notice.id) < 120
            assert notice.deadline is None or at("2000-01-01T00:00:00Z") <= notice.deadline
    elif isinstance(parsed, ReservationEnds):
        assert parsed.reservation.startswith("cr-")
    else:
        assert isinstance(parsed, Foreign | Unparseable)
        assert parsed.reason.isprintable()


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_any_text_has_an_answer(body):
    sound(parse(body, received_at=TIME, source="aws-queue"))


@given(json_values)
def test_any_json_has_an_answer(value):
    sound(read(json.dumps(value)))


@given(st.sampled_from(LISTENED_TO), st.dictionaries(st.sampled_from([*SPOT]), json_values), json_values)
def test_a_known_event_with_anything_in_it_has_an_answer(known, changes, detail):
    origin, kind = known
    sound(read({**SPOT, **changes, "source": origin, "detail-type": kind, "detail": detail}))


@given(
    st.sampled_from([SPOT, HEALTH]),
    st.sampled_from(
        ["instance-id", "startTime", "affectedEntities", "service", "state", "eventArn", "end-date"]
    ),
    json_values,
)
def test_one_odd_field_in_a_sound_event_has_an_answer(base, key, value):
    changed = copy.deepcopy(base)
    changed["detail"][key] = value
    sound(read(changed))


@given(st.data())
def test_a_body_with_a_piece_cut_out_or_doubled_has_an_answer(data):
    body = json.dumps(data.draw(st.sampled_from([SPOT, HEALTH])))
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    sound(read(body[:start] + body[end:]))
    sound(read(body[:end] + body[start:]))


# -- one field damaged at a time ---------------------------------------------------------------------------

KNOWN = {
    "warning": SPOT,
    "rebalance": REBALANCE,
    "ends": STATE,
    "stops": event("EC2 Instance State-change Notification", {"instance-id": NODE, "state": "stopping"}),
    "reservation": event(
        "EC2 Capacity Reservation Instance Interruption Warning",
        {"instance-id": NODE, "instance-termination-time": "2026-01-01T00:02:30Z"},
    ),
    "health": {
        **HEALTH,
        "time": SPOT["time"],
        "resources": [NODE],
        "detail": {**HEALTH["detail"], "affectedEntities": [{"entityValue": NODE}]},
    },
    "hook": HOOK_EVENT,
    "direct hook": HOOK_MESSAGE,
}
# What says of which kind an event is, or what becomes of the node: without it nobody knows.
SAYS_WHAT = {"source", "detail-type", "state", "service", "eventTypeCategory", "LifecycleTransition"}


def paths(value, at=()):
    """The way to every field of a document."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*at, key)
        yield from paths(inner, (*at, key))


def spare(base):
    """The way to every field that can be damaged with the kind still known."""
    ways = [*paths(base)]
    needed = [way for way in ways if way[-1] in SAYS_WHAT]
    return [way for way in ways if not any(other[: len(way)] == way for other in needed)]


@given(st.data())
def test_whatever_one_field_holds_the_notice_is_told(data):
    """As long as the kind is known and something still names the machine."""
    base = copy.deepcopy(KNOWN[data.draw(st.sampled_from([*KNOWN]))])
    *way, key = data.draw(st.sampled_from(spare(base)))
    holder = base
    for step in way:
        holder = holder[step]
    if data.draw(st.booleans()):
        holder[key] = data.draw(sound_values)
    else:
        del holder[key]
    parsed = read(base, now=NOW)
    sound(parsed)
    text = json.dumps(base)
    if NODE not in text:
        return
    assert isinstance(parsed, Told), parsed
    assert {notice.node for notice in parsed.notices} == {NODE}
    assert all(notice.deadline is None or notice.deadline <= NOW + 367 * DAY for notice in parsed.notices)
