"""Two pools on one market that are short of money: virtual time, a toy cloud each, one budget between them.

What machines cost and how many there are is counted on the truth, not on what pools asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.actions import Alarm, Drain
from policies.budget import Shares
from policies.grant import Ask, Grant, SharedBudget
from policies.model import InstanceState, Limits, Market
from policies.value import replace
from policies.verdict import State, judge
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_pools import quick_pool


@dataclass
class Two:
    """Pools that take their turns one after the other, from the same market and out of one budget."""

    toys: dict[str, Any]
    shares: Shares
    launched_over: list[str] = field(default_factory=list)
    nodes_before: int = 0
    spend_before: float = 0.0

    def __post_init__(self) -> None:
        market = next(iter(self.toys.values())).capacity
        for toy in self.toys.values():
            toy.capacity = market
            toy.share = self.shares.turn

    def turn(self, *names: str) -> None:
        """One turn of these pools, or of all; then what lives is held against the budget."""
        for name in names or [*self.toys]:
            before = set(self.toys[name].alive())
            self.toys[name].turn()
            added = set(self.toys[name].alive()) - before
            budget = self.shares.budget
            if added and budget.spend_per_hour is not None:
                assert self.spend() <= budget.spend_per_hour + 1e-6, (name, self.spend())
            if added and budget.nodes is not None:
                assert self.staying() <= budget.nodes, (name, self.staying())

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 2.0)):
            self.turn()

    def spend(self) -> float:
        """USD/h of all machines that bill."""
        return sum(
            toy.machines[node].instance.price or 0.0
            for toy in self.toys.values()
            for node in toy.alive()
            if toy.machines[node].instance.state is not InstanceState.STOPPED
        )

    def staying(self) -> int:
        """Machines of which nobody said that they go."""
        return sum(
            toy.memory.nodes.get(node) is None
            or (toy.memory.nodes[node].drain is None and not toy.memory.nodes[node].notices)
            for toy in self.toys.values()
            for node in toy.alive()
        )

    def serve(self) -> dict[str, int]:
        """How many nodes of each pool get requests."""
        return {name: len(toy.active()) for name, toy in self.toys.items()}

    def said(self, name: str) -> tuple[str, ...]:
        """What the plan of a pool says."""
        return tuple(self.toys[name].turns[-1].plan.notes)


@pytest.fixture(scope="session")
def two() -> Callable[..., Two]:
    """Makes chat, priority 10 and six nodes of which two on demand, and batch with the same and less say."""

    def make(chat: int = 6, batch: int = 6, *, surge: int = 0, **budget: Any) -> Two:
        limits = Limits(surge=surge, launches_per_minute=60)
        toys = {
            name: CheckedCloud(quick_pool(count, name=name, priority=rank, spot_share=0.67, limits=limits))
            for name, count, rank in (("chat", chat, 10), ("batch", batch, 0))
        }
        return Two(toys, Shares(SharedBudget(**budget), ["chat", "batch"]))

    return make


def test_floors_first_then_priority_and_the_plan_says_so(two: Callable[..., Two]) -> None:
    # Floors: 2 x 3 USD/h each; then four of spot for chat, 1 USD/h each; two are left for batch.
    pools = two(spend_per_hour=18.0)
    pools.run(120)
    assert pools.serve() == {"chat": 6, "batch": 4}
    on_demand = {
        n: len(set(toy.active()) & set(toy.alive(Market.ON_DEMAND))) for n, toy in pools.toys.items()
    }
    assert on_demand == {"chat": 2, "batch": 2}
    assert pools.spend() == pytest.approx(18.0)
    text = "short by budget of $18.00 an hour: wanted 6, granted 4 (chat has priority)"
    assert text in pools.said("batch")
    assert not pools.said("chat")
    batch = pools.toys["batch"]
    found = judge(batch.fleet(), batch.turns[-1].world, batch.memory)
    assert (found.state, found.reasons) == (State.BELOW_FLOOR, (text,))


def test_a_budget_that_grows_is_used_and_one_that_shrinks_is_kept_to_by_drains(
    two: Callable[..., Two],
) -> None:
    pools = two(spend_per_hour=18.0)
    pools.run(120)
    pools.shares.budget = SharedBudget(spend_per_hour=40.0)
    pools.run(120)
    assert pools.serve() == {"chat": 6, "batch": 6}
    pools.shares.budget = SharedBudget(spend_per_hour=17.0)
    batch, most = pools.toys["batch"], 0
    for _ in range(150):
        pools.turn()
        drains = [a for a in batch.turns[-1].plan.actions if isinstance(a, Drain)]
        most = max(most, len(drains))
        assert pools.serve()["chat"] == 6
    assert pools.serve() == {"chat": 6, "batch": 3}
    assert most == 1  # the disruption limit of a pool of six
    assert pools.spend() == pytest.approx(17.0)


def test_below_all_floors_the_pool_with_priority_keeps_its_own_and_the_other_raises_an_alarm(
    two: Callable[..., Two],
) -> None:
    pools = two(spend_per_hour=7.0)
    pools.run(100)
    assert pools.serve() == {"chat": 3, "batch": 0}
    alarms = [a for a in pools.toys["batch"].turns[-1].plan.actions if isinstance(a, Alarm)]
    assert [a.name for a in alarms] == ["budget"]
    assert "on-demand floor is not paid for" in alarms[0].reason
    batch = pools.toys["batch"]
    assert judge(batch.fleet(), batch.turns[-1].world, batch.memory).state is State.DOWN


def test_a_pool_of_priority_that_grows_takes_what_the_other_lets_go_of(two: Callable[..., Two]) -> None:
    pools = two(chat=3, spend_per_hour=18.0)
    pools.run(120)
    assert pools.serve() == {"chat": 3, "batch": 6}
    pools.toys["chat"].configure(replicas=6)
    served = []
    for _ in range(120):
        pools.turn()
        served.append(pools.serve())
    assert served[-1] == {"chat": 6, "batch": 4}
    # Nobody lost a node before the other could use its money: batch went down one at a time.
    assert all(b["batch"] - a["batch"] <= 1 for a, b in zip(served[1:], served, strict=False))


def test_nodes_are_shared_like_dollars(two: Callable[..., Two]) -> None:
    pools = two(nodes=9)
    pools.run(120)
    assert pools.serve() == {"chat": 6, "batch": 3}
    assert "short by budget of 9 nodes: wanted 6, granted 3 (chat has priority)" in pools.said("batch")


def test_without_spot_the_pool_of_priority_is_covered_first(two: Callable[..., Two]) -> None:
    pools = two(surge=1, spend_per_hour=21.0)
    pools.run(120)
    assert pools.serve() == {"chat": 6, "batch": 6}
    chat = pools.toys["chat"]
    chat.set_capacity(Market.SPOT, 0)
    for toy in pools.toys.values():
        for node in toy.alive(Market.SPOT):
            toy.reclaim(node, 10.0)
    pools.run(200)
    assert pools.spend() <= 21.0
    assert pools.serve()["chat"] == 4  # 2 floors of 6 USD/h, two nodes of 3, and 1 for the way back
    assert pools.serve()["batch"] == 2
    chat.set_capacity(Market.SPOT, 100)
    pools.run(400)
    assert pools.serve() == {"chat": 6, "batch": 6}


def test_a_dead_loop_holds_what_it_runs_and_no_more(two: Callable[..., Two]) -> None:
    pools = two(spend_per_hour=14.0)
    pools.run(120)
    assert pools.serve() == {"chat": 4, "batch": 2}
    last = pools.shares.last("chat")
    assert last is not None
    pools.shares.dead(last)
    for _ in range(60):
        pools.turn("batch")
    assert pools.serve() == {"chat": 4, "batch": 2}  # chat's four are 8 USD/h and run on
    pools.run(60)
    assert pools.serve() == {"chat": 4, "batch": 2}


def test_a_restarted_daemon_with_a_new_journal_spends_no_dollar_twice(two: Callable[..., Two]) -> None:
    pools = two(spend_per_hour=18.0)
    pools.run(120)
    before = pools.serve()
    pools.shares = Shares(pools.shares.budget, ["chat", "batch"])
    for toy in pools.toys.values():
        toy.share = pools.shares.turn
        toy.restart()
    for _ in range(40):
        pools.turn()
        assert pools.serve() == before


_ACTS = st.one_of(
    st.tuples(st.just("turn"), st.sampled_from(["chat", "batch"]), st.integers(1, 12)),
    st.tuples(st.just("reclaim"), st.sampled_from(["chat", "batch"]), st.integers(0, 9)),
    st.tuples(st.just("kill"), st.sampled_from(["chat", "batch"]), st.integers(0, 9)),
    st.tuples(st.just("replicas"), st.sampled_from(["chat", "batch"]), st.integers(0, 8)),
    st.tuples(st.just("budget"), st.sampled_from(["dollars", "nodes"]), st.sampled_from([0, 5, 12, 30])),
    st.tuples(st.just("spot"), st.just(""), st.sampled_from([0, 2, 100])),
    st.tuples(st.just("price"), st.just(""), st.sampled_from([90, 97, 104, 130])),
    st.tuples(st.just("pause"), st.sampled_from(["chat", "batch"]), st.integers(0, 1)),
    st.tuples(st.just("lose answers"), st.sampled_from(["chat", "batch"]), st.integers(0, 1)),
    st.tuples(st.just("list works"), st.sampled_from(["chat", "batch"]), st.integers(0, 1)),
)


def act(pools: Two, what: str, who: str, number: int) -> None:
    toy = pools.toys.get(who)
    alive = toy.alive() if toy is not None else []
    match what:
        case "turn":
            for _ in range(number):
                pools.turn(who)
        case "reclaim" if alive and toy.machines[alive[number % len(alive)]].spot:
            toy.reclaim(alive[number % len(alive)], 20.0)
        case "kill" if alive:
            toy.kill_engine(alive[number % len(alive)])
        case "replicas":
            toy.configure(replicas=number)
        case "budget" if who == "dollars":
            pools.shares.budget = replace(pools.shares.budget, spend_per_hour=float(number))
        case "budget":
            pools.shares.budget = replace(pools.shares.budget, nodes=number)
        case "spot":
            pools.toys["chat"].set_capacity(Market.SPOT, number)
        case "price":
            for each in pools.toys.values():
                each.prices[Market.SPOT] = number / 100.0
        case "pause":
            toy.pause() if number else toy.resume()
        case "lose answers":
            toy.losing_answers = bool(number)
        case "list works":
            toy.list_works = bool(number)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(_ACTS, max_size=25), surge=st.integers(0, 2))
def test_whatever_happens_nothing_is_launched_beyond_the_budget(
    two: Callable[..., Two], acts: list[tuple[str, str, int]], surge: int
) -> None:
    pools = two(surge=surge, spend_per_hour=16.0)
    pools.run(40)
    for each in acts:
        act(pools, *each)
        pools.turn()
        assert not any(
            isinstance(a, Alarm) and a.name == "InvariantViolated"
            for toy in pools.toys.values()
            for a in toy.turns[-1].plan.actions
        )


def test_the_count_of_this_file_finds_two_pools_that_do_not_share(two: Callable[..., Two]) -> None:
    """The check that nothing is launched beyond the budget can fail."""
    pools = two(spend_per_hour=10.0)

    def everything(ask: Ask) -> Grant:
        return Grant(replicas=ask.replicas, spend_per_hour=10.0)

    for toy in pools.toys.values():
        toy.share = everything
    with pytest.raises(AssertionError):
        pools.run(60)
