"""The whole daemon on a market scores like the replay of its decision code, and breaks nothing."""

import pytest

from orchestrator.backtest import report, study
from orchestrator.backtest.scenario import Scenario, Tape
from orchestrator.config.load import build_config
from policies.model import ReturnRules

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # the fixture plays hours of the whole daemon

HOURS = 3.5  # the first two are not measured

MARKET = {
    # (time, nodes, spot price): a loss with its return, and a smaller one while the other zone is full
    "us-1a": [(0.0, 4, 0.9), (9000.0, 0, 0.9), (10_200.0, 4, 1.0)],
    "us-1b": [(0.0, 2, 1.0), (11_400.0, 1, 1.0)],
}


@pytest.fixture(scope="module")
def scenario():
    tapes = tuple(
        Tape(zone=zone, region="us-1", on_demand_price=3.0, rows=rows) for zone, rows in MARKET.items()
    )
    return Scenario(name="toy", tapes=tapes, replicas=4, seconds=HOURS * 3600)


@pytest.fixture(scope="module")
def results(scenario):
    """The replay once, the whole daemon once here and once in another process."""
    config = build_config({"pool": {"p": {"replicas": 4}}})
    rows = study.rows_of(config, starts={}, names=["pool"], baselines=False, solver=False, whole_daemon=True)
    timings = study.timings_of(config, starts={})
    jobs = [study.Job(row=row, scenario=scenario, timings=timings, seed=1) for row in rows]
    assert [job.row.name for job in jobs] == [study.POOL, study.WHOLE]
    return [*study.run_all(jobs, workers=2), *study.run_all(jobs[1:], workers=1)]


@pytest.mark.slow
def test_it_scores_like_the_replay(results):
    replayed, whole, _ = (result.score for result in results)
    assert replayed.preemptions >= 2
    assert replayed.shortfall_node_hours > 0
    assert whole.preemptions == replayed.preemptions
    assert (whole.spot_launches, whole.on_demand_launches) == (
        replayed.spot_launches,
        replayed.on_demand_launches,
    )
    assert whole.cost_ratio == pytest.approx(replayed.cost_ratio, rel=0.02)
    assert whole.capacity_availability == pytest.approx(replayed.capacity_availability, abs=0.001)
    assert whole.mean_spot_share == pytest.approx(replayed.mean_spot_share, abs=0.03)
    assert whole.steps_simulated > 10 * replayed.steps_simulated


@pytest.mark.slow
def test_no_invariant_breaks_and_the_shortfalls_are_the_same_ones(results):
    replayed, whole, _ = results
    assert whole.broken == ()
    assert [round(s.begin) for s in whole.shortfalls] == [round(s.begin) for s in replayed.shortfalls]
    assert [s.why for s in whole.shortfalls] == [s.why for s in replayed.shortfalls]


@pytest.mark.slow
def test_cover_is_given_back_as_soon_in_the_replay(results):
    """As soon as spot has been ready for `back_to_spot.stable`, not at some later look."""
    for result in results:
        line = result.timeline
        at = next(i for i, time in enumerate(line.times) if time > 9000 and line.on_demand[i] == 3)
        assert line.times[at + 1] == pytest.approx(line.times[at] + ReturnRules().stable, abs=10)
        assert line.on_demand[at + 1] == 2


@pytest.mark.slow
def test_it_is_the_same_in_any_process(results):
    _, there, here = results
    assert there == here
    assert len(here.score.trace_hash) == 64


@pytest.mark.slow
def test_a_broken_invariant_is_told(scenario, results):
    from dataclasses import replace

    view = report.market_view(scenario, [results[0], replace(results[1], broken=("floor: gone",))], None)
    assert view["results"][1]["driver"] == "daemon"
    assert view["results"][1]["broken_invariants"] == ["floor: gone"]
    assert "pool, whole daemon broke invariants, which is a bug: floor: gone" in view["summary"]
