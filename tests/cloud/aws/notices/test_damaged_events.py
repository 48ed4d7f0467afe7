"""Events as nobody should send them: damaged, malformed, huge, and with one field that holds anything."""

from __future__ import annotations

import copy
import json

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
    read,
)
from hypothesis import given
from hypothesis import strategies as st

from cloud.aws.events import LISTENED_TO, MOST_BYTES, Foreign, ReservationEnds, Told, Unparseable, parse


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
