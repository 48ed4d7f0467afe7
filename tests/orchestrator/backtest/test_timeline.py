"""What went on during a run: shortfalls with their causes, and a timeline that agrees with the score."""

import pytest

from cloud.local.synthetic import SyntheticParameters, synthesise
from orchestrator.backtest.baselines import SpotHedge
from orchestrator.backtest.machines import Timings
from orchestrator.backtest.replay import Decide, Replay
from orchestrator.backtest.scenario import cut
from orchestrator.backtest.timeline import TimelineRecorder
from policies.model import Pool


@pytest.fixture
def recorder():
    return TimelineRecorder(wanted=4, spot_start=180.0, on_demand_start=180.0)


def test_an_unbroken_time_below_wanted_is_one_shortfall(recorder):
    recorder.span(0, 100, spot=3, on_demand=1, dollars=1.0)
    recorder.noticed(50, "n1")
    recorder.lost(100, "n1", "a")
    recorder.lost(100, "n2", "a")
    recorder.span(100, 130, spot=1, on_demand=1, dollars=0.5)
    recorder.refused("b")
    recorder.span(130, 160, spot=2, on_demand=1, dollars=0.5)
    recorder.span(160, 200, spot=3, on_demand=1, dollars=1.0)
    timeline = recorder.end()
    (found,) = recorder.shortfalls
    assert (found.begin, found.seconds, found.most_missing) == (100, 60, 2)
    assert found.node_hours == pytest.approx((2 * 30 + 1 * 30) / 3600)
    assert found.why == (
        "a took 2 nodes, noticed 50 s before, 1 without notice; a new node takes 180 s; 1 zone refused spot"
    )
    assert timeline.times == (0, 100, 130, 160, 200)
    assert timeline.spot == (3, 1, 2, 3, 3)
    assert timeline.dollars == (0.0, 1.0, 1.5, 2.0, 3.0)


def test_equal_spans_are_one_piece_of_the_timeline(recorder):
    recorder.span(0, 10, spot=4, on_demand=0, dollars=1.0)
    recorder.span(10, 10, spot=0, on_demand=0, dollars=0.0)
    recorder.span(10, 20, spot=4, on_demand=0, dollars=1.0)
    assert recorder.end().times == (0, 20)
    assert recorder.shortfalls == []


def test_a_shortfall_at_the_end_counts_and_one_without_losses_says_so(recorder):
    recorder.span(0, 60, spot=0, on_demand=0, dollars=0.0)
    recorder.end()
    (found,) = recorder.shortfalls
    assert (found.seconds, found.most_missing) == (60, 4)
    assert found.why == "nodes were still starting; none was taken away meanwhile"


def test_many_zones_are_summed_up_and_starts_may_differ():
    recorder = TimelineRecorder(wanted=9, spot_start=600.0, on_demand_start=90.0)
    recorder.span(0, 10, spot=9, on_demand=0, dollars=0.0)
    for number, zone in enumerate("aabbccdde"):
        recorder.noticed(5 - number / 2, f"n{number}")
        recorder.lost(10, f"n{number}", zone)
    recorder.span(10, 20, spot=0, on_demand=0, dollars=0.0)
    recorder.end()
    assert recorder.shortfalls[0].why == (
        "a took 2 nodes, b took 2 nodes, c took 2 nodes, 2 more zones took 3, noticed 5 to 9 s before; "
        "a new node takes 90 s on demand, 600 s on spot"
    )


@pytest.mark.parametrize("policy", [Decide("70/30"), SpotHedge()], ids=lambda policy: policy.name)
def test_the_course_agrees_with_the_score(policy):
    market = cut(synthesise(SyntheticParameters(days=2.0), 3), replicas=6)
    recorder = TimelineRecorder(wanted=6, spot_start=180.0, on_demand_start=180.0)
    score = (
        Replay(market, Pool(name="p", replicas=6), policy, timings=Timings(), recorder=recorder).run().score
    )
    timeline = recorder.end()
    hours = (market.seconds - 7200.0) / 3600
    assert timeline.times[0] == 7200.0
    assert timeline.times[-1] == market.seconds
    assert timeline.dollars[-1] == pytest.approx(score.cost_ratio * market.on_demand_price * 6 * hours)
    short = sum(s.node_hours for s in recorder.shortfalls)
    assert short == pytest.approx(score.shortfall_node_hours)
    assert short > 0
    assert max(s.seconds for s in recorder.shortfalls) == pytest.approx(score.worst_shortfall_s)
    assert 1 - short / (6 * hours) == pytest.approx(score.capacity_availability)
