"""EventBridge events, as the guides of EC2 and AWS Health show them and as nobody should send them."""

import copy
import json
from datetime import datetime

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


@pytest.mark.parametrize("state", ["shutting-down", "terminated"])
def test_a_final_state_change_is_a_notice(state):
    change = event(
        "EC2 Instance State-change Notification",
        {"instance-id": "i-abcd1111", "state": state},
        resources=["arn:aws:ec2:us-east-1:123456789012:instance/i-abcd1111"],
    )
    notice = only(read(change))
    assert (notice.kind, notice.node, notice.deadline) == (NoticeKind.STATE_CHANGE, "i-abcd1111", TIME)


@pytest.mark.parametrize("state", ["pending", "running", "stopping", "stopped"])
def test_a_state_from_which_a_node_comes_back_is_no_notice(state):
    parsed = read(
        event("EC2 Instance State-change Notification", {"instance-id": "i-abcd1111", "state": state})
    )
    assert isinstance(parsed, Foreign)
    assert state in parsed.reason


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

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*SPOT, *HEALTH["detail"], "x"]) | st.text(max_size=8), inner, max_size=6
        )
    ),
    max_leaves=12,
)


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
