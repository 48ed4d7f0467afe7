"""Tapes and scenarios: reading off a market by hand."""

import math

import pytest

from cloud.local.spotset import SpotSet, SpotZone
from orchestrator.backtest.scenario import ScenarioError, Tape, cut


@pytest.fixture
def tape():
    rows = [(0.0, 4, 1.0), (3600.0, 2, 0.5), (7200.0, 0, 0.5), (10_800.0, 4, 2.0)]
    return Tape(zone="a", region="r", on_demand_price=3.0, rows=rows)


def test_a_tape_reads_off_capacity_price_and_money(tape):
    assert [tape.capacity(t) for t in (0.0, 3599.0, 3600.0, 8000.0, 99_999.0)] == [4, 4, 2, 0, 4]
    assert tape.price(3600.0) == 0.5
    assert tape.dollars(1800.0, 5400.0) == pytest.approx(0.5 * 1.0 + 0.5 * 0.5)
    assert tape.dollars(0.0, 14_400.0) == pytest.approx(1.0 + 0.5 + 0.5 + 2.0)
    assert tape.dollars(50.0, 50.0) == 0.0


def test_a_tape_finds_the_next_drop(tape):
    assert tape.first_below(4, 0.0) == 3600.0
    assert tape.first_below(2, 0.0) == 7200.0
    assert tape.first_below(5, 3600.0) == 7200.0, "only changes after the instant count"
    assert tape.first_below(1, 10_800.0) == math.inf
    assert list(tape.changes(3600.0, 7200.0)) == [(7200.0, 0)]


def zone(name, data):
    return SpotZone(zone=name, region="r", spot_price=0.3, on_demand_price=1.0, data=tuple(data))


def test_a_scenario_is_cut_by_zone_and_time():
    spotset = SpotSet(
        name="s", gap_seconds=60.0, ticks=4, zones=(zone("us-1a", [1, 1, 2, 2]), zone("eu-1a", [9, 9, 9, 9]))
    )
    scenario = cut(spotset, replicas=2, zones=["us-"], begin=0.25, end=1.0)
    assert [t.zone for t in scenario.tapes] == ["us-1a"]
    assert scenario.seconds == 180.0
    assert scenario.tapes[0].times == [0.0, 60.0]
    assert scenario.tapes[0].capacities == [1, 2]
    assert scenario.next_change(0.0) == 60.0
    assert scenario.next_change(60.0) == math.inf


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"zones": ["mars"]}, "no zone like mars; it has a"),
        ({"begin": 0.5, "end": 0.5}, "first one smaller"),
        ({"begin": 0.0, "end": 0.1}, "no tick"),
    ],
)
def test_a_scenario_that_cannot_be_cut_says_why(changes, text):
    spotset = SpotSet(name="s", gap_seconds=60.0, ticks=4, zones=(zone("a", [1, 1, 2, 2]),))
    with pytest.raises(ScenarioError, match=text):
        cut(spotset, replicas=2, **changes)
