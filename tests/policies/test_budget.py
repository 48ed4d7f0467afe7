"""Sharing a budget over pools: the order of claims, what runs, and that no dollar is spent twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.budget import SLACK, Shares, ask_of, share
from policies.grant import Ask, Grant, Held, Price, SharedBudget
from policies.invariants import overrun
from policies.model import InstanceState, Market, Pool, StandbyKind, StandbyRules
from policies.value import replace
from tests.support.scene import Scene


def ask(pool: str, replicas: int, **rest: object) -> Ask:
    """A pool whose nodes cost 1 USD/h on spot and 3 on demand."""
    known: dict[str, object] = {"on_demand": Price(node=3.0), "spot": Price(node=1.0), "dearest": 3.0}
    return Ask(pool=pool, replicas=replicas, **(known | rest))  # type: ignore[arg-type]


def spot(count: int, each: float = 1.0) -> Held:
    return Held(units=count, nodes=count, spend=count * each)


def dollars(limit: float) -> SharedBudget:
    return SharedBudget(spend_per_hour=limit)


def test_floors_of_all_pools_come_before_the_rest_of_any() -> None:
    found = share(
        [ask("chat", 6, priority=10, floor=2), ask("batch", 6, floor=2)],
        dollars(14.0),
    )
    assert found["chat"].replicas == 4  # 2 x 3 + 2 x 3 for the floors, and 2 of chat's spot
    assert found["batch"].replicas == 2
    assert found["batch"].why == "short by budget of $14.00 an hour: wanted 6, granted 2 (chat has priority)"
    assert found["chat"].why.endswith("granted 4 (on-demand floors go first: batch)")
    assert not found["chat"].floor_short
    assert not found["batch"].floor_short


def test_below_all_floors_priority_decides_and_an_alarm_is_due() -> None:
    found = share([ask("chat", 6, priority=10, floor=2), ask("batch", 6, floor=2)], dollars(7.0))
    assert (found["chat"].replicas, found["batch"].replicas) == (3, 0)  # a dollar is left, for one of spot
    assert found["batch"].floor_short
    assert not found["chat"].floor_short


def test_equals_keep_what_runs_and_buy_the_cheapest() -> None:
    dear, cheap = ask("a", 3, spot=Price(node=2.0)), ask("b", 3)
    found = share([dear, cheap], dollars(5.0))
    assert (found["a"].replicas, found["b"].replicas) == (1, 3)
    found = share([replace(dear, has_spot=spot(2, 2.0)), cheap], dollars(5.0))
    assert (found["a"].replicas, found["b"].replicas) == (2, 1)


def test_standby_and_surge_come_last() -> None:
    found = share(
        [ask("chat", 2, priority=10, standby=1, surge=2), ask("batch", 2)],
        dollars(4.0 + 3.0 + 3.0),
    )
    assert found["chat"].standby == 1
    assert found["batch"].replicas == 2
    assert found["batch"].spend_per_hour == pytest.approx(2.0)
    assert found["chat"].spend_per_hour == pytest.approx(8.0)
    found = share([ask("chat", 2, priority=10, standby=1), ask("batch", 2)], dollars(6.0))
    assert found["chat"].standby == 0
    assert found["batch"].replicas == 2


def test_nodes_and_dollars_both_bind() -> None:
    asks = [ask("chat", 4, priority=1), ask("batch", 4, spot=Price(node=5.0))]
    found = share(asks, SharedBudget(spend_per_hour=14.0, nodes=7))
    assert (found["chat"].replicas, found["batch"].replicas) == (4, 2)
    assert (found["chat"].nodes, found["batch"].nodes) == (4, 2)
    found = share(asks, SharedBudget(spend_per_hour=100.0, nodes=7))
    assert found["batch"].replicas == 3
    assert found["batch"].nodes == 3
    assert "of $100.00 an hour and 7 nodes" in found["batch"].why


def test_without_a_budget_nothing_is_limited() -> None:
    found = share([ask("chat", 4), ask("batch", 4, spot=Price(), on_demand=Price())], SharedBudget())
    assert found["batch"] == Grant(replicas=4)


def test_a_lower_pool_that_runs_makes_way_by_aiming_at_less_and_keeps_its_money_until_then() -> None:
    asks = [ask("chat", 4, priority=10), ask("batch", 4, has_spot=spot(4))]
    found = share(asks, dollars(6.0))
    assert (found["chat"].replicas, found["batch"].replicas) == (4, 2)
    assert found["batch"].spend_per_hour == pytest.approx(4.0)  # what it has
    assert found["chat"].spend_per_hour == pytest.approx(2.0)  # what is free now
    assert found["chat"].why == "waits for its share of the budget, which others still use"


def test_what_runs_is_kept_within_the_slack_and_nothing_is_added_beyond_the_budget() -> None:
    both = [ask("chat", 3, has_spot=spot(3, 1.05)), ask("batch", 4, has_spot=spot(3, 1.05))]
    found = share(both, dollars(6.0))
    assert (found["chat"].replicas, found["batch"].replicas) == (3, 3)
    assert found["batch"].spend_per_hour == pytest.approx(3.15)
    found = share(both, dollars(6.3 / (1 + SLACK) - 0.01))
    assert (found["chat"].replicas, found["batch"].replicas) != (3, 3)


def test_a_budget_lowered_below_what_runs_shrinks_the_lower_pool() -> None:
    found = share(
        [ask("chat", 4, priority=1, has_spot=spot(4)), ask("batch", 4, has_spot=spot(4))], dollars(5.0)
    )
    assert (found["chat"].replicas, found["batch"].replicas) == (4, 1)


def test_an_unknown_price_buys_nothing_and_costs_the_dearest_that_is_known() -> None:
    unknown = ask("dark", 4, priority=10, spot=Price(), on_demand=Price(), dearest=None)
    found = share([unknown, ask("chat", 4)], dollars(4.0))
    assert found["chat"].replicas == 4
    assert found["dark"].replicas == 4
    assert not found["dark"].why
    assert found["dark"].spend_per_hour == 0.0
    held = Held(units=1, nodes=1, unpriced=1)
    found = share([replace(unknown, has_spot=held), ask("chat", 4)], dollars(4.0))
    assert found["chat"].replicas == 1  # 3 USD/h are taken for the node that nobody can price


def test_a_paused_pool_claims_only_what_it_has() -> None:
    paused = ask("chat", 6, priority=10, has_spot=spot(1), launches=False)
    found = share([paused, ask("batch", 4)], dollars(5.0))
    assert found["batch"].replicas == 4
    assert not found["chat"].why
    assert found["chat"].spend_per_hour == pytest.approx(1.0)


def test_what_a_pool_has_is_counted_with_the_nodes_that_bill_and_have_a_price() -> None:
    """A stopped standby bills nothing; of a node without a price it is known that there is one."""
    here = Scene(Pool(name="p", replicas=3, standby=StandbyRules(stopped=1)))
    here.node("s0", price=1.0).node("s1", price=2.0).node("o0", Market.ON_DEMAND, price=3.0)
    here.node(
        "z0",
        Market.ON_DEMAND,
        state=InstanceState.STOPPED,
        ready=False,
        price=7.0,
        standby=StandbyKind.STOPPED,
    )
    here.records["s1"] = replace(here.records["s1"], price=None)
    here.instances["s1"] = replace(here.instances["s1"], price=None)
    here.offerings, here.fields["prices"] = [], {}
    asked = ask_of(here.fleet, here.world, here.memory)
    assert asked.has_spot == Held(units=2, nodes=2, spend=1.0, unpriced=1)
    assert asked.has_on_demand == Held(units=1, nodes=1, spend=3.0)
    assert asked.has_standby == Held(units=1, nodes=1)


def test_a_pool_claims_no_money_above_its_own_cap() -> None:
    found = share([ask("chat", 6, priority=10, cap=2.0), ask("batch", 4)], dollars(6.0))
    assert found["batch"].replicas == 4
    assert found["chat"].spend_per_hour == pytest.approx(2.0)


def test_nodes_on_their_way_out_bill_and_hold_nothing_else_back() -> None:
    going = ask("chat", 2, priority=1, has_spot=spot(1), other=Held(units=1, spend=1.0))
    found = share([going, ask("batch", 2, has_spot=spot(2))], dollars(5.0))
    assert (found["chat"].replicas, found["batch"].replicas) == (2, 2)
    assert found["chat"].spend_per_hour == pytest.approx(3.0)
    found = share([going, ask("batch", 2, has_spot=spot(2))], dollars(4.0))
    assert found["chat"].spend_per_hour == pytest.approx(2.0)
    assert found["batch"].replicas == 2


def test_dearer_places_are_paid_for_by_what_is_left() -> None:
    found = share([ask("chat", 2)], dollars(10.0))
    assert found["chat"].spend_per_hour == pytest.approx(6.0)  # two nodes, each wherever it may be had


def test_a_pool_that_nobody_could_look_at_counts_as_if_it_had_what_it_wants() -> None:
    found = share([ask("lost", 4, seen=False), ask("chat", 4, priority=10)], dollars(6.0))
    assert found["chat"].replicas == 4
    assert found["chat"].spend_per_hour == pytest.approx(2.0)
    assert found["lost"].spend_per_hour == 0.0


def test_large_nodes_are_claimed_whole() -> None:
    big = ask("chat", 6, priority=1, spot=Price(node=5.0, units=4), on_demand=Price(node=5.0, units=4))
    found = share([big, ask("batch", 6)], dollars(8.0))
    assert (found["chat"].replicas, found["batch"].replicas) == (4, 3)


# -- one after another -------------------------------------------------------------------------------


def test_nobody_launches_before_each_pool_was_heard() -> None:
    shares = Shares(dollars(4.0), ["batch", "chat"])
    found = shares.turn(ask("chat", 4))
    assert found.spend_per_hour == 0.0
    assert found.replicas == 4
    assert found.why == "the budget is shared once batch was looked at"
    shares.turn(ask("batch", 3, has_spot=spot(3)))
    assert shares.turn(ask("chat", 4)).spend_per_hour == pytest.approx(1.0)


def test_a_budget_that_begins_later_waits_for_everybody_to_ask_again() -> None:
    shares = Shares(dollars(9.0), ["a", "b"])
    a, b = ask("a", 3, has_spot=spot(3)), ask("b", 3)
    shares.turn(a)
    shares.turn(b)
    shares.budget = SharedBudget()
    assert not shares.bounded
    shares.budget = dollars(4.0)
    assert shares.bounded
    assert shares.turn(b).why == "the budget is shared once a was looked at"
    shares.turn(replace(a, has_spot=spot(4)))
    assert shares.turn(b).spend_per_hour == 0.0


def test_a_pool_that_is_added_is_waited_for() -> None:
    shares = Shares(dollars(9.0), ["a"])
    assert shares.turn(ask("a", 3)).spend_per_hour == pytest.approx(9.0)
    shares.expect("b")
    assert shares.turn(ask("a", 3)).spend_per_hour == 0.0
    shares.turn(ask("b", 6, has_spot=spot(6)))
    assert shares.turn(ask("a", 3)).spend_per_hour == pytest.approx(3.0)


def test_two_pools_cannot_spend_the_same_dollar() -> None:
    shares = Shares(dollars(3.0), ["a", "b"])
    a, b = ask("a", 3), ask("b", 3)
    shares.turn(a)
    assert shares.turn(b).spend_per_hour == 0.0  # a's turn of now has the older grant: nothing
    first = shares.turn(a)
    assert first.spend_per_hour == pytest.approx(3.0)
    # a launched, and its next turn is not there yet: b knows of none of it.
    b = replace(b, priority=10)
    assert shares.turn(b).spend_per_hour == 0.0
    # Nothing came of it: with its next turn a lets go of what is b's.
    assert shares.turn(a).spend_per_hour == 0.0
    assert shares.turn(b).spend_per_hour == pytest.approx(3.0)


def test_what_a_dead_loop_has_counts_and_what_it_was_granted_is_free_again() -> None:
    shares = Shares(dollars(6.0), ["a", "b"])
    a = ask("a", 4, priority=10, has_spot=spot(2))
    shares.turn(a)
    shares.turn(ask("b", 6))
    assert shares.turn(a).spend_per_hour == pytest.approx(4.0)
    shares.dead(a)
    assert shares.turn(ask("b", 6)).spend_per_hour == pytest.approx(4.0)
    shares.forget("a")
    assert shares.turn(ask("b", 6)).spend_per_hour == pytest.approx(6.0)
    assert shares.last("a") is None
    assert shares.last("b") is not None


def test_a_lowered_budget_adds_nothing_and_is_no_violation() -> None:
    shares = Shares(dollars(8.0), ["a", "b"])
    a, b = ask("a", 4), ask("b", 4)
    for each in (a, b, a, b):
        shares.turn(each)
    shares.budget = dollars(2.0)
    found = shares.turn(replace(a, has_spot=spot(1)))
    assert found.spend_per_hour == pytest.approx(1.0)
    assert not found.violation


def test_the_invariant_finds_a_grant_that_is_too_large() -> None:
    a, b = ask("a", 4, has_spot=spot(1)), ask("b", 4, has_spot=spot(2))
    ok, more = Grant(replicas=4, spend_per_hour=2.0), Grant(replicas=4, spend_per_hour=2.5)
    assert overrun(a, ok, [a, b], {}, dollars(4.0), unknown=0.0) is None
    found = overrun(a, more, [a, b], {}, dollars(4.0), unknown=0.0)
    assert found is not None
    assert str(found) == "budget: grants of 4.50 USD/h, the budget is 4.00"
    assert overrun(a, Grant(replicas=4), [a, b], {}, dollars(4.0), unknown=0.0) is not None
    nodes = SharedBudget(nodes=4)
    assert overrun(a, Grant(replicas=4, nodes=2), [a, b], {}, nodes, unknown=0.0) is None
    assert overrun(a, Grant(replicas=4, nodes=3), [a, b], {}, nodes, unknown=0.0) is not None


def test_a_sharing_that_is_wrong_lets_nobody_add_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.budget.share", lambda *_: {"a": Grant(replicas=4, spend_per_hour=99.0)})
    found = Shares(dollars(4.0), ["a"]).turn(ask("a", 4, has_spot=spot(1)))
    assert found.spend_per_hour == pytest.approx(1.0)
    assert found.violation


# -- whatever pools ask ------------------------------------------------------------------------------

_PRICES = st.sampled_from([None, 0.5, 1.0, 1.1, 2.7, 9.0])
_HELD = st.builds(
    lambda nodes, size, price: Held(
        units=nodes * size,
        nodes=nodes,
        spend=nodes * (price or 0.0),
        unpriced=0 if price is not None else nodes,
    ),
    st.integers(0, 6),
    st.sampled_from([1, 1, 4]),
    _PRICES,
)
_PRICE = st.builds(lambda node, units: Price(node=node, units=units), _PRICES, st.sampled_from([1, 1, 4]))


@st.composite
def asked(draw: st.DrawFn, pool: str) -> Ask:
    """Any ask of a pool."""
    replicas = draw(st.integers(0, 8))
    on_demand, cheap = draw(_PRICE), draw(_PRICE)
    return Ask(
        pool=pool,
        priority=draw(st.integers(-1, 2)),
        replicas=replicas,
        floor=draw(st.integers(0, replicas)),
        standby=draw(st.integers(0, 2)),
        surge=draw(st.integers(0, 2)),
        cap=draw(st.sampled_from([None, None, 0.0, 7.5])),
        on_demand=on_demand,
        spot=cheap,
        dearest=max((p for p in (on_demand.node, cheap.node) if p is not None), default=None),
        has_on_demand=draw(_HELD),
        has_spot=draw(_HELD),
        has_standby=draw(_HELD),
        other=draw(_HELD),
        launches=draw(st.booleans()),
        seen=draw(st.sampled_from([True, True, True, False])),
    )


_BUDGETS = st.builds(
    lambda spend, nodes: SharedBudget(spend_per_hour=spend, nodes=nodes),
    st.sampled_from([None, 0.0, 3.3, 10.0, 40.0]),
    st.sampled_from([None, 0, 3, 12]),
)
_ASKS = st.tuples(asked("a"), asked("b"), asked("c"))


@settings(deadline=None)
@given(_ASKS, _BUDGETS)
def test_grants_are_a_partition(asks: tuple[Ask, ...], budget: SharedBudget) -> None:
    found = share(asks, budget)
    assert found == share(reversed(asks), budget)
    unknown = max((a.dearest for a in asks if a.dearest is not None), default=0.0)
    runs, nodes = sum(a.spend(unknown) for a in asks), sum(a.nodes for a in asks)
    if budget.spend_per_hour is not None:
        most = sum(max(a.spend(unknown), found[a.pool].spend_per_hour or 0.0) for a in asks)
        assert most <= max(budget.spend_per_hour, runs) + 1e-5
    if budget.nodes is not None:
        assert sum(max(a.nodes, found[a.pool].nodes or 0) for a in asks) <= max(budget.nodes, nodes)
    for one in asks:
        grant = found[one.pool]
        assert 0 <= grant.replicas <= one.replicas
        assert 0 <= grant.standby <= one.standby
        assert bool(grant.why) or grant.replicas == one.replicas
        assert not grant.floor_short or grant.replicas < one.replicas


@settings(deadline=None)
@given(_ASKS, _BUDGETS)
def test_a_higher_pool_is_never_short_of_what_a_lower_one_gets(
    asks: tuple[Ask, ...], budget: SharedBudget
) -> None:
    found = share(asks, budget)
    for high in asks:
        for low in asks:
            if high.priority <= low.priority or not found[high.pool].why.startswith("short"):
                continue
            missing = high.replicas - found[high.pool].replicas
            beyond = found[low.pool].replicas - low.floor
            price = max(high.spot.node or 0.0, high.on_demand.node or 0.0)
            sizes = {high.spot.units, high.on_demand.units, low.spot.units}
            sizes |= {h.units // max(1, h.nodes) for one in (high, low) for h in one.held}
            cheapest = low.spot.node
            if sizes <= {0, 1} and missing and beyond > 0 and cheapest and cheapest >= price > 0:
                runs = low.has_spot.units + low.has_on_demand.units
                assert runs > 0, (
                    high,
                    low,
                    found,
                )  # a lower pool launches nothing while a higher one is short


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.floats(-0.03, 0.03)), max_size=60))
def test_whoever_acts_when_the_budget_holds(steps: list[tuple[int, bool, float]]) -> None:
    """Pools take turns in any order, and launch all that they may some time after it, or lose a node."""
    budget = SharedBudget(spend_per_hour=9.0, nodes=8)
    shares = Shares(budget, ["p0", "p1", "p2"])
    has = [0, 0, 0]
    granted: list[Grant | None] = [None, None, None]
    for who, acts, _ in steps:
        grant = granted[who]
        if acts and grant is not None:
            while (
                has[who] < 6
                and has[who] + 1 <= (grant.spend_per_hour or 0.0)
                and has[who] < (grant.nodes or 0)
            ):
                has[who] += 1
        elif has[who] and not acts:
            has[who] -= 1
        assert sum(has) <= 8
        one = ask(f"p{who}", 6, priority=who, has_spot=spot(has[who]), surge=1)
        granted[who] = shares.turn(one)
        assert not granted[who].violation  # type: ignore[union-attr]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-0.04, 0.04), st.floats(-0.04, 0.04)), min_size=1, max_size=30))
def test_prices_that_move_a_little_move_no_nodes(moves: list[tuple[float, float]]) -> None:
    """Two equals that take the budget whole keep what they have, whichever is the cheaper one."""
    for one, other in moves:
        asks = [
            ask("a", 5, spot=Price(node=1.0 + one), has_spot=spot(4, 1.0 + one)),
            ask("b", 5, spot=Price(node=1.0 + other), has_spot=spot(4, 1.0 + other)),
        ]
        found = share(asks, dollars(8.0))
        assert found["a"].replicas >= 4
        assert found["b"].replicas >= 4
