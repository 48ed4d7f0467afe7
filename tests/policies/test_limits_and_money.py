"""Limits on what is added, and what the pool costs."""

from __future__ import annotations

from typing import Any

import pytest

from policies.economics import Rate, bill, paid, rate
from policies.limits import Budget
from policies.model import InstanceState, Limits, Market, Pool, StandbyKind, StandbyRules
from policies.value import replace
from tests.support.scene import Scene

ON_DEMAND = Market.ON_DEMAND


def budget(*, living: int = 0, launched: int = 0, spend: float = 0.0, **limits: Any) -> Budget:
    pool = Pool(name="p", replicas=4, standby=StandbyRules(hot=1, stopped=2), limits=Limits(**limits))
    return Budget(pool, living=living, launched_last_minute=launched, spend=spend)


def test_each_limit_speaks_for_itself() -> None:
    assert budget(living=8, surge=2).refuses(1.0) == ""
    assert budget(living=9, surge=2).refuses(1.0) == "9 nodes live, and wanted + standby + surge is 9"
    assert budget(launched=3, launches_per_minute=3).refuses(1.0) == (
        "3 launches in the last minute, the limit is 3"
    )
    assert budget(spend=4.5, spend_per_hour=5.0).refuses(0.5) == ""
    assert "leaves 0.50" in budget(spend=4.5, spend_per_hour=5.0).refuses(0.6)
    assert "leaves 0.00" in budget(spend=9.0, spend_per_hour=5.0).refuses(0.1)
    assert budget(spend=1e9).refuses(1e9) == ""
    assert budget(spend=1.1 + 1.1, spend_per_hour=3.3).refuses(1.1) == "", (
        "just the cap, but for binary floats"
    )


def test_what_is_taken_counts() -> None:
    found = budget(surge=0, spend_per_hour=10.0, launches_per_minute=99)
    for _ in range(7):
        assert not found.refuses(1.0)
        found.take(1.0)
    assert found.full
    other = budget(spend_per_hour=10.0)
    other.take_cost(9.5)
    assert other.refuses_cost(1.0)
    assert not other.full
    for _ in range(9):
        other.take_node()
    assert other.full


@pytest.mark.parametrize(
    ("replicas", "share", "nodes"), [(10, 0.1, 1), (4, 0.1, 1), (1, 0.1, 1), (30, 0.1, 3), (10, 0.35, 3)]
)
def test_the_disruption_budget_is_at_least_one_node(replicas: int, share: float, nodes: int) -> None:
    assert Pool(name="p", replicas=replicas, limits=Limits(disruption=share)).disruption_budget == nodes


def test_the_rate_counts_what_bills_against_wanted_nodes_on_demand() -> None:
    here = Scene().nodes(2).nodes(2, ON_DEMAND).node("cover", ON_DEMAND, ready=False)
    here.node("sb", ON_DEMAND, ready=False, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED)
    here.node("dead", state=InstanceState.TERMINATED, serving=False)
    found = rate(here.fleet)
    assert (found.cost, found.on_demand) == (2 * 1.0 + 3 * 3.0, 4 * 3.0)
    assert found.saved_share == pytest.approx(1 / 12)


def test_the_rate_without_offerings_goes_by_the_nodes() -> None:
    here = Scene().nodes(2).nodes(2, ON_DEMAND, price=2.5)
    here.offerings = []
    assert rate(here.fleet).on_demand == 10.0
    assert Rate(cost=1.0, on_demand=None).saved_share is None
    assert Rate(cost=None, on_demand=1.0, unpriced=1).saved_share is None
    assert Rate(cost=12.0, on_demand=10.0).saved_share == pytest.approx(-0.2)


def test_a_bill_names_what_it_is_for() -> None:
    here = Scene().node("old", price=3.6).node("young", age=40.0, price=7.2)
    here.node("sb", ON_DEMAND, ready=False, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED)
    found = paid(here.fleet)
    assert {name: one.price for name, one in found.items()} == {"old": 3.6, "young": 7.2}
    charges = [*bill(found["old"], since=7_150.0, until=7_250.0)]
    assert [(c.hour, c.seconds, c.usd) for c in charges] == [
        (1, 50.0, pytest.approx(0.05)),
        (2, 50.0, pytest.approx(0.05)),
    ]
    assert [*bill(found["old"], since=7_150.0, until=7_150.0)] == []


def test_a_bill_over_time_that_was_none_takes_back_as_much() -> None:
    node = paid(Scene().node("n", price=3.6).fleet)["n"]
    there, back = bill(node, since=7_150.0, until=7_250.0), bill(node, since=7_250.0, until=7_150.0)
    for one, other in zip(there, back, strict=True):
        assert other.plus(one) == replace(one, seconds=0.0, usd=0.0, unit_seconds=0.0, ready_unit_seconds=0.0)


def test_time_is_billed_once() -> None:
    nodes = paid(Scene().nodes(3).fleet).values()
    whole = sum(c.usd for n in nodes for c in bill(n, since=9_000.0, until=10_000.0))
    parts = [(9_000.0, 9_123.0), (9_123.0, 9_500.5), (9_500.5, 10_000.0)]
    found = sum(c.usd for a, b in parts for n in nodes for c in bill(n, since=a, until=b))
    assert found == pytest.approx(whole)
