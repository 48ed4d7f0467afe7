"""Replays of toy markets computed by hand, and what must hold of every replay."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from orchestrator.backtest.baselines import SpotHedge, StaticMix, standard
from orchestrator.backtest.machines import Timings
from orchestrator.backtest.replay import CALM_LOOK, LOOK, Decide, Replay, replay
from orchestrator.backtest.scenario import cut
from policies.model import AdaptiveRules, Limits, Pool, ReturnRules, StandbyRules

QUICK = Timings(spot_start=100.0, on_demand_start=100.0)


def pool(replicas, **changes):
    return Pool(name="p", replicas=replicas, limits=Limits(surge=replicas + 2), **changes)


def adaptive(replicas, **changes):
    return pool(replicas, spot_share=1.0, adaptive=AdaptiveRules(**changes))


def score(scenario, wanted, policy, *, warm_up=0.0, timings=QUICK, seed=0):
    return replay(scenario, wanted, policy, timings=timings, seed=seed, warm_up=warm_up).score


# -- by hand ---------------------------------------------------------------------------------------------


def test_all_on_demand_costs_one_and_misses_one_cold_start(market):
    scenario = market({"a": [(0.0, 5, 0.25)]}, replicas=2)
    result = score(scenario, pool(2), standard()["all on-demand"]())
    assert result.cost_ratio == pytest.approx(1.0)
    assert result.capacity_availability == pytest.approx(1 - 100 / 36_000)
    assert result.worst_shortfall_s == 100.0
    assert result.shortfall_node_hours == pytest.approx(2 * 100 / 3600)
    assert (result.on_demand_launches, result.spot_launches, result.mean_spot_share) == (2, 0, 0.0)


def test_nothing_before_the_warm_up_counts(market):
    scenario = market({"a": [(0.0, 5, 0.25)]}, replicas=2)
    result = score(scenario, pool(2), standard()["all on-demand"](), warm_up=7200.0)
    assert (result.cost_ratio, result.capacity_availability) == (pytest.approx(1.0), 1.0)
    assert result.on_demand_launches == 0


def test_spot_alone_costs_its_price_and_is_missed_while_the_zone_is_shut(market):
    scenario = market({"a": [(0.0, 1, 0.25), (10_000.0, 0, 0.25), (12_000.0, 1, 0.5)]})
    result = score(scenario, pool(1), standard()["spot even spread"]())
    paid = 0.25 * 10_000 + 0.5 * 24_000
    assert result.cost_ratio == pytest.approx(paid / 36_000)
    assert result.shortfall_node_hours == pytest.approx((100 + 2000 + 100) / 3600)
    assert (result.worst_shortfall_s, result.preemptions, result.spot_launches) == (2100.0, 1, 2)


def test_rebalancing_asks_at_the_notice(market):
    rows = {"a": [(0.0, 1, 0.2), (20_000.0, 0, 0.2)], "b": [(0.0, 1, 0.3)]}
    late = score(market(rows), pool(1), StaticMix(0.0))
    early = score(market(rows), pool(1), StaticMix(0.0, rebalance=True))
    assert late.shortfall_node_hours * 3600 == pytest.approx(100 + 100)
    assert early.shortfall_node_hours * 3600 == pytest.approx(100), "100 s of start fit into 120 s of notice"


def test_seventy_thirty_covers_a_loss_at_its_notice(market):
    rows = {"a": [(0.0, 9, 0.3), (20_000.0, 0, 0.3)]}
    quick = score(market(rows, replicas=2), pool(2), Decide("70/30"), warm_up=7200.0)
    assert quick.capacity_availability == 1.0
    slow = Timings(spot_start=180.0, on_demand_start=180.0)
    late = score(market(rows, replicas=2), pool(2), Decide("70/30"), warm_up=7200.0, timings=slow)
    assert late.preemptions == 1
    assert late.shortfall_node_hours * 3600 == pytest.approx(60.0, abs=1.0)


def test_a_stopped_standby_fits_into_the_notice_and_costs_its_storage(market):
    rows = {"a": [(0.0, 9, 0.3), (20_000.0, 0, 0.3)]}
    slow = Timings(spot_start=600.0, on_demand_start=600.0, standby_start=75.0, storage=0.1)
    scenario = market(rows, replicas=2)
    result = score(
        scenario, pool(2, standby=StandbyRules(stopped=1)), Decide("70/30"), warm_up=7200.0, timings=slow
    )
    bare = score(scenario, pool(2), Decide("70/30"), warm_up=7200.0, timings=slow)
    assert result.capacity_availability == 1.0 > bare.capacity_availability
    assert result.cost_ratio > bare.cost_ratio


def test_spothedge_has_one_more_and_covers_what_spot_is_not_ready_for(market):
    rows = {"a": [(0.0, 2, 0.3), (20_000.0, 0, 0.3)], "b": [(0.0, 2, 0.3), (20_000.0, 0, 0.3)]}
    result = score(market(rows, replicas=3), pool(3), SpotHedge(1), warm_up=7200.0)
    spot = 4 * 0.3 * (20_000 - 7200)
    on_demand = 3 * 1.0 * (36_000 - 20_000)
    assert result.cost_ratio == pytest.approx((spot + on_demand) / (3 * (36_000 - 7200)), rel=1e-3)
    assert result.worst_shortfall_s == 100.0, "the published policy does not hear notices"


def test_notices_may_come_late_or_never(market):
    rows = {"a": [(0.0, 9, 0.3), (20_000.0, 0, 0.3)]}
    for share, missed in (({"late_share": 1.0}, 70.0), ({"missing_share": 1.0}, 100.0)):
        result = score(
            market(rows, replicas=3),
            pool(3),
            Decide("70/30"),
            warm_up=7200.0,
            timings=replace(QUICK, **share),
        )
        assert result.worst_shortfall_s == pytest.approx(missed, abs=1.0)


def test_adaptive_keeps_to_spot_that_is_old_and_cheap(market):
    scenario = market({"a": [(0.0, 9, 0.3)], "b": [(0.0, 9, 0.3)]}, replicas=4, seconds=400_000.0)
    result = score(scenario, adaptive(4), Decide("adaptive"), warm_up=200_000.0)
    assert result.capacity_availability == 1.0
    assert result.mean_spot_share > 0.99
    assert result.cost_ratio < 0.5


def test_adaptive_holds_the_floor_of_on_demand(market):
    scenario = market({"a": [(0.0, 9, 0.3)]}, replicas=4, seconds=100_000.0)
    wanted = pool(4, spot_share=0.5, adaptive=AdaptiveRules())
    result = score(scenario, wanted, Decide("adaptive"), warm_up=7200.0)
    assert result.cost_ratio >= 0.5
    assert result.mean_spot_share <= 0.5


# -- of every replay -------------------------------------------------------------------------------------

POLICIES = {
    **standard(),
    "70/30": lambda: Decide("70/30"),
    "adaptive": lambda: Decide("adaptive"),
}


def wanted_for(name, replicas):
    return adaptive(replicas) if name == "adaptive" else pool(replicas, back_to_spot=ReturnRules(hold=60.0))


@pytest.fixture
def rough(market):
    """Two days of three zones that come and go, in steps that fit no grid."""
    zones = {}
    for number, name in enumerate("abc"):
        rows, at, up = [(0.0, 3, 0.3)], 0.0, True
        while (at := at + 1_111.0 * (1 + (number * 7 + len(rows) * 5) % 9)) < 170_000.0:
            up = not up
            rows.append((at, 3 if up else len(rows) % 2, 0.3))
        zones[name] = rows
    return market(zones, replicas=4, seconds=172_800.0)


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_sees_the_future(market, rough, name):
    def hidden(rows):
        return [row for row in rows if row[0] < 90_000.0] + [(90_000.0, 7, 0.1)]

    other = market(
        {t.zone: hidden(list(zip(t.times, t.capacities, t.prices, strict=True))) for t in rough.tapes},
        replicas=4,
        seconds=172_800.0,
    )
    horizon = 90_000.0 - 120.0  # a notice is the only word of what is to come
    assert acts(rough, name, horizon) == acts(other, name, horizon)


def acts(scenario, name, until):
    found = []

    def watch(now, fleet, memory, plan):
        if now < until:
            found.extend((now, str(a)) for a in plan.actions)

    Replay(scenario, wanted_for(name, 4), POLICIES[name](), timings=QUICK, warm_up=0.0, watch=watch).run()
    assert found
    return found


def test_skipping_equals_stepping(rough):
    wanted = pool(4)
    assert CALM_LOOK > LOOK
    skipped = score(rough, wanted, Decide("70/30"))
    stepped = score(rough, wanted, Decide("70/30", look=LOOK))
    assert stepped.steps_simulated > skipped.steps_simulated
    assert replace(stepped, steps_simulated=skipped.steps_simulated) == skipped


def test_a_seed_draws_its_own_victims(market):
    rows = [(0.0, 8, 0.3), (9000.0, 4, 0.3), (12_000.0, 8, 0.3), (15_000.0, 3, 0.3)]
    scenario = market({"a": rows}, replicas=8)
    results = [score(scenario, pool(8), standard()["spot even spread"](), seed=s) for s in (1, 2, 3, 1)]
    assert len({r.trace_hash for r in results}) == 3
    assert results[0] == results[3]


SCRIPT = """
import json
from orchestrator.backtest.replay import Decide, replay
from orchestrator.backtest.scenario import cut
from cloud.local.synthetic import SyntheticParameters, synthesise
from policies.model import AdaptiveRules, Limits, Pool
scenario = cut(synthesise(SyntheticParameters(days=2), 5), replicas=5)
pool = Pool(name="p", replicas=5, spot_share=1.0, adaptive=AdaptiveRules(), limits=Limits(surge=5))
print(json.dumps(replay(scenario, pool, Decide("adaptive"), seed=3).score.as_dict()))
"""


def test_the_same_seed_gives_the_same_run_in_any_process():
    outputs = set()
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())["trace_hash"]) == 64


def test_the_score_has_the_fields_of_the_interface(market):
    result = score(market({"a": [(0.0, 5, 0.25)]}), pool(1), Decide("70/30"))
    assert set(result.as_dict()) == {
        "cost_ratio",
        "capacity_availability",
        "time_availability",
        "mean_spot_share",
        "preemptions",
        "spot_launches",
        "on_demand_launches",
        "worst_shortfall_s",
        "shortfall_node_hours",
        "steps_simulated",
        "trace_hash",
    }


def test_the_baselines_agree_with_an_independent_simulator(recorded):
    """Eight US zones of the H100 recording, first 45 %: numbers of a simulator on a grid of 60 s."""
    scenario = cut(recorded("h100-gcp-2025-10"), replicas=8, zones=["us-"])
    cold = Timings(spot_start=180.0, on_demand_start=180.0)
    for name, cost, available in (
        ("spot round robin", 0.2008, 0.99155),
        ("spot even spread", 0.2038, 0.99112),
        ("static 70/30", 0.5008, 0.99597),
        ("static 70/30 rebalancing", 0.5017, 0.99744),
        ("SpotHedge N=1", 0.2286, 0.99565),
        ("SpotHedge N=1 hearing notices", 0.2293, 0.99862),
    ):
        result = replay(scenario, pool(8), standard()[name](), timings=cold).score
        assert result.cost_ratio == pytest.approx(cost, rel=0.01), name
        assert result.capacity_availability == pytest.approx(available, abs=3e-4), name
