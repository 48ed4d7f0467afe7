"""Whatever happens, the invariants hold after every turn; and when it stops, the pool becomes whole again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.actions import Alarm
from policies.model import (
    Confidence,
    Limits,
    Market,
    NoticeKind,
    Placement,
    RebalanceRules,
    StandbyRules,
)
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import quick_pool

EXAMPLES = int(os.environ.get("POLICY_EXAMPLES", "15"))  # more in the continuous check, and in a long search

Step = tuple[Any, ...]

_index = st.integers(0, 30)
_lead = st.sampled_from([0.0, 4.0, 30.0, 120.0])
_switch = st.booleans()
_market = st.sampled_from(list(Market))

steps = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 25)),
    st.tuples(st.just("reclaim"), _index, _lead, _switch),
    st.tuples(st.just("zone loss"), st.sampled_from("abc"), _lead, _switch),
    st.tuples(st.just("sell"), _market, st.sampled_from([0, 1, 3, 100]), st.sets(st.sampled_from("abc"))),
    st.tuples(st.just("kill engine"), _index),
    st.tuples(st.just("lose answers"), _switch),
    st.tuples(st.just("fail calls"), _switch),
    st.tuples(st.just("list lag"), st.sampled_from([0.0, 4.0, 12.0])),
    st.tuples(st.just("list works"), _switch),
    st.tuples(st.just("balancer works"), _switch),
    st.tuples(st.just("durable"), _switch),
    st.tuples(st.just("database away"), _switch),
    st.tuples(st.just("operator drain"), _index),
    st.tuples(st.just("operator undrain"), _index),
    st.tuples(st.just("pause"), _switch),
    st.tuples(st.just("replicas"), st.integers(0, 12)),
    st.tuples(st.just("spot share"), st.sampled_from([0.0, 0.5, 0.7, 1.0])),
    st.tuples(st.just("report"), _index, _lead),
    st.tuples(st.just("cancelled"), _index, _lead),
    st.tuples(st.just("other notice"), _index, st.sampled_from(list(NoticeKind)), _lead),
    st.tuples(st.just("stranger"), _index),
    st.tuples(st.just("restart"),),
    st.tuples(st.just("load"), st.integers(0, 3)),
)  # fmt: skip


@st.composite
def pools(draw: st.DrawFn, make: Callable[..., Any]) -> Any:
    replicas = draw(st.sampled_from([0, 1, 2, 3, 4, 10]))
    return make(
        replicas,
        spot_share=draw(st.sampled_from([0.0, 0.5, 0.7, 1.0])),
        standby=StandbyRules(hot=draw(st.integers(0, 1)), stopped=draw(st.integers(0, 1))),
        rebalance=RebalanceRules(replace=draw(st.booleans()), timeout=draw(st.sampled_from([20.0, 600.0]))),
        limits=Limits(
            surge=draw(st.integers(0, 3)),
            launches_per_minute=draw(st.sampled_from([10, 60])),
            spend_per_hour=draw(st.sampled_from([None, None, 12.0, 40.0])),
        ),
    )


def apply(toy: ToyCloud, step: Step) -> None:
    """Do one thing to the toy world."""
    name, *what = step
    alive = toy.alive()
    pick = alive[what[0] % len(alive)] if alive and what and isinstance(what[0], int) else ""
    match name:
        case "wait":
            for _ in range(what[0]):
                toy.turn()
        case "reclaim" if pick and toy.machines[pick].spot:
            toy.reclaim(pick, what[1], told=what[2])
        case "zone loss":
            for node in toy.zone(what[0]):
                toy.reclaim(node, what[1], told=what[2])
        case "sell":
            toy.set_capacity(what[0], what[1], sorted(what[2]))
        case "sell kind" if what[1] in toy.kinds:
            for zone in toy.zones:
                toy.capacity[Placement("toy", "r", zone, what[1], what[0])] = what[2]
        case "kill engine" if pick:
            toy.kill_engine(pick)
        case "lose answers":
            toy.losing_answers = what[0]
        case "fail calls":
            toy.failing_calls = what[0]
        case "list lag":
            toy.list_lag = what[0]
        case "list works":
            toy.list_works = what[0]
        case "balancer works":
            toy.balancer_works = what[0]
        case "durable":
            toy.durable = what[0]
        case "database away":
            toy.silent_since = toy.now if what[0] else None
        case "operator drain" if pick:
            toy.operator_drain(pick)
        case "operator undrain" if pick:
            toy.operator_undrain(pick)
        case "pause":
            toy.pause() if what[0] else toy.resume()
        case "replicas":
            toy.configure(replicas=what[0])
        case "spot share":
            toy.configure(spot_share=what[0])
        case "report" if pick:
            toy.notice(pick, what[1], confidence=Confidence.REPORTED, source="agent")
        case "cancelled" if pick:
            toy.notice(pick, what[1], kind=NoticeKind.MAINTENANCE)
            toy.turn()
            toy.notice(pick, what[1], kind=NoticeKind.MAINTENANCE, cancelled=True)
        case "other notice" if pick:
            lead = None if what[1] is NoticeKind.REBALANCE else what[2]
            toy.notice(pick, lead, kind=what[1], notice_id=f"other-{what[1]}")
        case "stranger":
            toy.notice(f"x{what[0]}", 30.0)
        case "restart":
            toy.restart()
        case "load":
            toy.load(what[0])
    toy.turn()


def heal(toy: ToyCloud) -> None:
    """Stop every fault. Engines that died stay dead, notices stay given."""
    for market in Market:
        toy.set_capacity(market, 100)
    toy.losing_answers = toy.failing_calls = False
    toy.list_works = toy.balancer_works = toy.durable = True
    toy.silent_since = None
    toy.list_lag = 0.0
    toy.resume()
    toy.load(0)


def is_whole(toy: ToyCloud) -> bool:
    """The right units of each market answer and serve, and nothing else lives or is under way.

    Right is what is wanted, and so little more that no node could go.
    """
    pool, records = toy.pool, toy.memory.nodes
    if not set(toy.active()) <= set(toy.answering()) or not set(toy.alive()) <= set(records):
        return False
    active = {m: [n for n in toy.active() if toy.machines[n].spot is (m is Market.SPOT)] for m in Market}
    aside = [n for n in toy.alive() if n not in toy.active()]
    over = {m: toy.units(active[m]) - want for m, want in wanted_of(pool).items()}
    spare = toy.units(aside) - pool.standby.stopped
    return (
        all(0 <= over[m] < min((toy.units([n]) for n in active[m]), default=1) for m in Market)
        and 0 <= spare < max((toy.units([n]) for n in aside), default=1)
        and all(records[n].standby is not None for n in aside)
        and not toy.memory.intents
        and not any(r.drain for r in records.values())
    )


def wanted_of(pool: Any) -> dict[Market, int]:
    """Units of each market that are to be ready."""
    return {Market.SPOT: pool.spot_wanted, Market.ON_DEMAND: pool.on_demand_floor + pool.standby.hot}


def relaxed(toy: ToyCloud) -> bool:
    """What a pool without room or money to make before it breaks can still promise."""
    # Rounding up to whole nodes: on spot, on demand, and of the standbys.
    rest = max((toy.units([node]) for node in toy.alive()), default=1) - 1
    room = toy.pool.most_units + 3 * rest
    return toy.units(toy.alive()) <= max(room, toy.units(toy.active()))


def run_script(make: Callable[..., Any], pool: Any, script: list[Step], **world: Any) -> Any:
    toy = make(pool, **world)
    toy.run(60)
    for step in script:
        apply(toy, step)
    return toy


@pytest.fixture(scope="session")
def story() -> Callable[..., Any]:
    return lambda pool, script, **world: run_script(CheckedCloud, pool, script, **world)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), script=st.lists(steps, max_size=25))
def test_invariants_hold_and_the_pool_heals(
    story: Callable[..., Any], data: st.DataObject, script: list[Step]
) -> None:
    toy = story(data.draw(pools(quick_pool)), script)
    heal(toy)
    if toy.pool.limits.surge == 0 or toy.pool.limits.spend_per_hour is not None:
        toy.run(400)
        assert relaxed(toy)
        return
    becomes_whole(toy)


def becomes_whole(toy: ToyCloud) -> None:
    for _ in range(1200):
        toy.turn()
        if is_whole(toy) and not any(isinstance(a, Alarm) for a in toy.turns[-1].plan.actions):
            break
    assert is_whole(toy), (toy.alive(), toy.active(), toy.memory.intents, toy.turns[-1].plan)


kinds = st.dictionaries(
    st.sampled_from(["gpu", "pair", "big"]), st.sampled_from([0.5, 0.8, 1.0, 1.5]), min_size=1
)  # the price of a unit of each type
sizes = st.fixed_dictionaries({"pair": st.sampled_from([2, 3]), "big": st.sampled_from([4, 5, 8])})
weighed = steps | st.tuples(
    st.just("sell kind"), _market, st.sampled_from(["gpu", "pair", "big"]), st.sampled_from([0, 1, 100])
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), units=sizes, prices=kinds, script=st.lists(weighed, max_size=25))
def test_the_same_holds_where_nodes_serve_different_units(
    story: Callable[..., Any],
    data: st.DataObject,
    units: dict[str, int],
    prices: dict[str, float],
    script: list[Step],
) -> None:
    """With a surge of twice the largest node, whatever came before, the pool becomes whole again."""
    pool = data.draw(pools(quick_pool))
    surge = data.draw(st.sampled_from([0, 1, 2 * max(units.values())]))
    pool = replace(pool, units=units, limits=replace(pool.limits, surge=surge))
    toy = story(pool, script, kinds={kind: each * units.get(kind, 1) for kind, each in prices.items()})
    heal(toy)
    if surge <= 1 or toy.pool.limits.spend_per_hour is not None:
        toy.run(400)
        assert relaxed(toy)
        return
    becomes_whole(toy)
