"""The bound: by hand, below every policy, and a clear word when the solver is missing."""

import builtins

import pytest

from orchestrator.backtest.baselines import standard
from orchestrator.backtest.machines import Timings
from orchestrator.backtest.omniscient import SolverMissing, bound
from orchestrator.backtest.replay import Decide, replay
from orchestrator.backtest.scenario import cut
from policies.model import Limits, Pool

QUICK = Timings(spot_start=100.0, on_demand_start=100.0)


def test_without_the_solver_it_says_what_to_install(market, monkeypatch):
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "highspy":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(SolverMissing, match=r"spot-orchestrator\[simulate\]"):
        bound(market({"a": [(0.0, 1, 0.25)]}), QUICK)


@pytest.fixture
def _solver():
    pytest.importorskip("highspy", reason="needs the extra `simulate`")


@pytest.mark.usefixtures("_solver")
def test_the_bound_by_hand(market):
    rows = {"a": [(0.0, 1, 0.25), (10_000.0, 0, 0.25), (12_000.0, 1, 0.25)]}
    on_demand = 12_100.0 - 9_900.0  # from a start time before the loss until spot is ready again
    spot = 10_000.0 + 24_000.0
    found = bound(market(rows), QUICK, warm_up=0.0)
    assert found.cost_ratio == pytest.approx((on_demand + 0.25 * spot) / 36_000.0)


@pytest.mark.usefixtures("_solver")
def test_some_shortfall_is_cheaper_than_none(market):
    rows = {"a": [(0.0, 1, 0.25), (10_000.0, 0, 0.25), (12_000.0, 1, 0.25)]}
    costs = [bound(market(rows), QUICK, availability=a, warm_up=0.0).cost_ratio for a in (1.0, 0.99, 0.9)]
    assert costs == sorted(costs, reverse=True)
    assert costs[2] == pytest.approx(0.25 * 36_000 * 0.9 / 36_000, rel=0.05)


@pytest.mark.usefixtures("_solver")
def test_no_policy_is_below_the_bound_at_its_own_availability(recorded):
    scenario = cut(recorded("v100-aws-2023-08-4n"), replicas=4, begin=0.0, end=0.15)
    cold = Timings(spot_start=180.0, on_demand_start=180.0)
    pool = Pool(name="p", replicas=4, limits=Limits(surge=4))
    for policy in (*(make() for make in standard().values()), Decide("70/30")):
        result = replay(scenario, pool, policy, timings=cold).score
        least = bound(scenario, cold, availability=result.capacity_availability)
        assert least.cost_ratio <= result.cost_ratio + 1e-6, policy.name
