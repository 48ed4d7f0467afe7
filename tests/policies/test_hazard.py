"""What is learned of spot zones, by hand and as properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import hazard
from policies.actions import ActionKind
from policies.events import (
    GoneCause,
    IntentClosed,
    IntentOpened,
    NodeGone,
    NodeReady,
    NodeSeen,
    NoticeSeen,
    Outcome,
)
from policies.hazard import ZoneHistory
from policies.memory import Memory, reduce
from policies.model import Confidence, Market, Notice, NoticeKind, Placement

HOUR = 3600.0
SPOT = Placement("p", "r", "a", "gpu", Market.SPOT)
ON_DEMAND = Placement("p", "r", "a", "gpu", Market.ON_DEMAND)


def seen(node, at=0.0, place=SPOT):
    return NodeSeen(
        at=at,
        node=node,
        token=f"t-{node}",
        placement=place,
        launched_at=at,
        price=1.0,
        address="",
        standby=None,
    )


def opened(node, at=0.0, place=SPOT):
    return IntentOpened(at=at, token=f"t-{node}", kind=ActionKind.LAUNCH, node="", placement=place)


def noticed(node, at, deadline):
    notice = Notice(
        id=f"i-{node}",
        kind=NoticeKind.INTERRUPTION,
        node=node,
        deadline=deadline,
        source="feed",
        confidence=Confidence.CONFIRMED,
        seen_at=at,
    )
    return NoticeSeen(at=at, notice=notice)


def test_the_hazard_falls_with_the_time_that_a_zone_was_watched() -> None:
    zone = hazard.took(ZoneHistory(), 0.0)
    rates = [hazard.rate(zone, hours * HOUR) for hours in (0, 0.5, 2, 10, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(hazard.SHAPE / hazard.SCALE + hazard.RATE)
    assert rates[-1] == pytest.approx(hazard.RATE, abs=0.01)


def test_time_in_which_nobody_looked_is_worth_less_than_time_watched() -> None:
    shut = hazard.refused(hazard.unknown(0.0), 0.0)
    watched = hazard.took(shut, 0.0)
    for hours in (0.5, 2.0, 8.0):
        assert hazard.rate(shut, hours * HOUR) > 1.3 * hazard.rate(watched, hours * HOUR)


def test_a_zone_that_was_left_old_is_soon_like_one_never_seen() -> None:
    old = hazard.let_go(hazard.took(hazard.unknown(0.0), 0.0), 48 * HOUR)
    just_left, later = hazard.age(old, 48 * HOUR + 60), hazard.age(old, 72 * HOUR)
    assert just_left > 10 * later > 0


def test_losses_at_one_instant_are_one_event_that_took_all() -> None:
    zone = ZoneHistory()
    for _ in range(4):
        zone = hazard.took(zone, 0.0)
    alone = hazard.lost(zone, HOUR)
    assert alone.losses == pytest.approx(1.0)
    assert hazard.share_taken(alone) == pytest.approx(hazard.WHOLE_PRIOR / 2)
    single = hazard.lost(hazard.took(ZoneHistory(), 0.0), HOUR)
    assert hazard.share_taken(single) == pytest.approx(hazard.WHOLE_PRIOR), "it tells nothing of others"
    all_of_them = alone
    for _ in range(3):
        all_of_them = hazard.lost(all_of_them, HOUR + 1)
    assert all_of_them.losses == pytest.approx(1.0, rel=1e-3)
    assert all_of_them.held == 0
    assert hazard.share_taken(all_of_them) == pytest.approx((1 + hazard.WHOLE_PRIOR) / 2, rel=1e-3)


def test_the_factor_is_losses_over_those_foretold_shrunk_to_the_whole() -> None:
    zone = ZoneHistory(losses=6.0, expected=2.0)
    assert hazard.factor_of(zone, 1.0) == pytest.approx((6 + hazard.PRIOR) / (2 + hazard.PRIOR))
    assert hazard.all_factor({SPOT: zone}) == pytest.approx((6 + hazard.PRIOR) / (2 + hazard.PRIOR))
    assert hazard.all_factor({}) == 1.0


def test_what_is_foretold_while_held_is_the_integral_of_the_hazard() -> None:
    zone = hazard.let_go(hazard.took(hazard.refused(hazard.unknown(0.0), 0.0), 0.0), 3 * HOUR)
    steps = 30_000
    integral = sum(hazard.base_rate((i + 0.5) * 3 / steps) for i in range(steps)) * 3 / steps
    assert zone.expected == pytest.approx(integral, rel=1e-4)


def test_the_outlook_is_losses_over_time_of_use() -> None:
    zone = hazard.took(hazard.refused(hazard.unknown(0.0), 0.0), 0.0)
    for hours in (1.0, 6.0, 24.0):
        steps = 20_000
        used = sum(survival((i + 0.5) * hours / steps) for i in range(steps)) * hours / steps
        expected = (1 - survival(hours)) / used
        assert hazard.outlook(zone, 0.0, hours=hours) == pytest.approx(expected, rel=0.1)


def survival(hours):
    return (hazard.SCALE / (hours + hazard.SCALE)) ** hazard.SHAPE * math.exp(-hazard.RATE * hours)


def test_a_refusal_means_shut_where_nothing_is_held_and_crowded_where_something_is() -> None:
    assert hazard.age(hazard.refused(hazard.unknown(0.0), 0.0), 0.0) == 0.0
    held = hazard.took(hazard.unknown(0.0), 0.0)
    assert hazard.age(hazard.refused(held, 20 * HOUR), 20 * HOUR) == hazard.CROWDED


def test_memory_learns_from_events_alone() -> None:
    memory = reduce(Memory(), opened("a"), opened("b"), seen("a"), seen("b"), seen("c", place=ON_DEMAND))
    assert set(memory.zones) == {SPOT}
    assert memory.zones[SPOT].held == 2
    memory = reduce(memory, NodeReady(at=200.0, node="a", address=""))
    assert memory.timings[hazard.SPOT_START].mean == 200.0
    memory = reduce(memory, noticed("a", 1000.0, 1090.0), noticed("a", 1001.0, 1090.0))
    assert memory.zones[SPOT].held == 1
    assert memory.zones[SPOT].losses == 1.0
    assert memory.timings[hazard.NOTICE_LEAD].mean == 90.0
    memory = reduce(memory, NodeGone(at=1090.0, node="a", cause=GoneCause.RECLAIMED))
    assert memory.zones[SPOT].held == 1, "a loss that was announced counts once"
    memory = reduce(memory, NodeGone(at=5000.0, node="b", cause=GoneCause.UNANNOUNCED))
    assert memory.zones[SPOT].held == 0
    assert memory.zones[SPOT].losses == pytest.approx(2.0, rel=0.05)
    memory = reduce(memory, opened("d", 6000.0))
    memory = reduce(memory, IntentClosed(at=6000.0, token="t-d", outcome=Outcome.REFUSED))
    assert memory.zones[SPOT].bad_at == 6000.0


def test_a_node_that_we_end_is_no_loss() -> None:
    memory = reduce(Memory(), opened("a"), seen("a"), NodeGone(at=9.0, node="a", cause=GoneCause.TERMINATED))
    assert memory.zones[SPOT].losses == 0.0
    assert memory.zones[SPOT].held == 0


def test_an_adopted_node_says_nothing_of_start_times() -> None:
    adopted = NodeSeen(
        at=500.0, node="a", token="x", placement=SPOT, launched_at=3.0, price=1.0, address="", standby=None
    )
    memory = reduce(Memory(), adopted, NodeReady(at=501.0, node="a", address=""))
    assert not memory.timings


def test_storms_are_told_by_region_and_pass() -> None:
    zones = {SPOT: hazard.lost(hazard.took(ZoneHistory(), 0.0), 100.0)}
    assert hazard.storms(zones, 200.0) == {"r": {SPOT}}
    assert hazard.storms(zones, 100.0 + hazard.STORM_FOR) == {}


steps = st.lists(
    st.tuples(
        st.sampled_from([hazard.took, hazard.lost, hazard.let_go, hazard.refused]), st.floats(0.0, 1e5)
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_the_numbers_stay_in_range(happenings):
    zone, now = hazard.unknown(0.0), 0.0
    for what, later in happenings:
        now += later
        zone = what(zone, now)
        assert zone.held >= 0
        assert 0.0 <= hazard.share_taken(zone) <= 1.0
        assert hazard.age(zone, now + 10.0) >= 0.0
        assert hazard.rate(zone, now) >= hazard.RATE
        assert 0.0 < hazard.outlook(zone, now) <= hazard.rate(zone, now) + 1e-9
