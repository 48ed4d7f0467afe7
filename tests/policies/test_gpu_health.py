"""Nodes that go for their GPUs, in whole runs of a pool, and all that keeps them from taking it down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policies.actions import Alarm, Cause, Drain
from policies.decide import decide
from policies.event_text import sentence
from policies.events import GpuAcquitted, GpuCondemned
from policies.explain import node_sentences, why
from policies.gpu_errors import Remedy
from policies.gpu_health import SUSPECT, WELL_FOR
from policies.gpu_readings import GpuState
from policies.memory import replay
from policies.model import GpuRules, Market, Phase
from policies.records import Memory
from policies.value import replace
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import quick_pool

Make = Callable[..., Any]
RULES = GpuRules(throttled_for=60.0, slow_share=0.5, slow_for=60.0, again_after=600.0)
DBE = "Xid 48: a double-bit error in GPU memory"


def whole(replicas: int = 10, rules: GpuRules = RULES, **changes: Any) -> ToyCloud:
    """A whole pool of ten."""
    made = CheckedCloud(quick_pool(replicas, **{"gpu": rules, **changes}))
    made.settle()
    assert len(made.alive()) == replicas
    return made


def broken(node: str, remedy: Remedy = Remedy.RESET) -> GpuState:
    return GpuState(node=node, at=0.0, source="agent", remedy=remedy, fault=DBE)


def breaks(toy: ToyCloud, *nodes: str) -> None:
    for node in nodes:
        toy.gpus[node] = broken(node)


def hot(toy: ToyCloud, *nodes: str, seconds: float) -> list[Any]:
    """Turns in which nodes are throttled all the while."""
    return troubled(toy, *nodes, seconds=seconds, throttle="thermal slowdown by hardware", kind="throttled")


def slow(toy: ToyCloud, *nodes: str, seconds: float) -> list[Any]:
    """Turns in which nodes are slow all the while."""
    return troubled(toy, *nodes, seconds=seconds, slow="20% of the tokens a second of its peers", kind="slow")


def troubled(toy: ToyCloud, *nodes: str, seconds: float, kind: str, **words: str) -> list[Any]:
    plans = []
    for _ in range(round(seconds / toy.step)):
        for node in nodes:
            known = toy.gpus.get(node, GpuState(node=node, at=toy.now))
            since = getattr(known, f"{kind}_since")
            runs = {f"{kind}_since": toy.now if since is None else since, f"{kind}_at": toy.now}
            toy.gpus[node] = replace(known, **words, **runs)
        plans.append(toy.turn())
    return plans


def acts(plans: list[Any], kind: type) -> list[Any]:
    return [a for plan in plans for a in plan.actions if isinstance(a, kind)]


def leaves(toy: ToyCloud, node: str) -> None:
    """Turns until a node is gone and the pool is whole."""
    for _ in range(300):
        toy.turn()
        if node not in toy.alive() and len(toy.active()) == toy.pool.replicas:
            return
    raise AssertionError(f"{node} is still there")


def condemned(toy: ToyCloud) -> list[GpuCondemned]:
    return [e for e in toy.journal if isinstance(e, GpuCondemned)]


def suspects(plans: list[Any]) -> set[str]:
    return {a.about for a in acts(plans, Alarm) if a.name == SUSPECT}


# -- broken -------------------------------------------------------------------------------------------------


def test_a_broken_gpu_drains_its_node_at_once_and_another_takes_its_place() -> None:
    toy = whole()
    node = toy.alive(Market.SPOT)[0]
    breaks(toy, node)
    (drain,) = acts([toy.turn()], Drain)
    assert (drain.node, drain.cause) == (node, Cause.GPU)
    assert drain.reason == f"{DBE}; it asks for a reset of the GPU, and another node takes its place"
    leaves(toy, node)
    (event,) = condemned(toy)
    assert (event.node, event.remedy, event.urgent) == (node, "reset", True)
    assert sentence(event) == f"to be replaced: {drain.reason}"


@pytest.mark.parametrize(("bad", "doubted"), [(1, set()), (2, {"faults"})])
def test_one_broken_node_of_a_small_pool_is_no_reason_to_doubt_the_reports(
    bad: int, doubted: set[str]
) -> None:
    """It is a third of the pool, and more than may be unhealthy."""
    toy = whole(3)
    breaks(toy, *toy.alive()[:bad])
    assert suspects([toy.turn()]) == doubted


def test_requests_in_flight_get_their_budget() -> None:
    toy = whole()
    toy.load(3)
    node = toy.alive()[0]
    breaks(toy, node)
    (drain,) = acts([toy.turn()], Drain)
    assert drain.deadline == pytest.approx(toy.now - toy.step + toy.pool.drain.budget)
    toy.load(0)
    leaves(toy, node)
    assert toy.cut == 0


@pytest.mark.parametrize("remedy", [Remedy.NOTHING, Remedy.PERSON, Remedy.RESTART])
def test_what_asks_for_less_than_a_reset_replaces_nothing(remedy: Remedy) -> None:
    toy = whole()
    toy.gpus[toy.alive()[0]] = broken(toy.alive()[0], remedy)
    assert acts(toy.run(120.0), Drain) == []
    assert condemned(toy) == []


def test_the_only_node_stays_until_its_replacement_is_ready() -> None:
    toy = whole(1, spot_share=0.0)
    node = toy.alive()[0]
    breaks(toy, node)
    lowest = min(len(toy.active()) for _ in toy.run(2.0) for _ in toy.run(2.0))
    assert lowest == 1
    assert toy.active() == [node]
    leaves(toy, node)


def test_the_only_node_serves_on_where_no_other_one_can_be_had() -> None:
    toy = whole(1, spot_share=0.0)
    node = toy.alive()[0]
    toy.set_capacity(Market.ON_DEMAND, 0)
    breaks(toy, node)
    toy.run(600.0)
    assert toy.active() == [node]


def test_a_node_with_a_notice_goes_by_its_notice() -> None:
    toy = whole()
    node = toy.alive(Market.SPOT)[0]
    toy.reclaim(node, 60.0)
    toy.turn()
    breaks(toy, node)
    assert {d.cause for d in acts(toy.run(30.0), Drain) if d.node == node} <= {Cause.NOTICE}
    assert condemned(toy) == []


def test_a_fault_overtakes_what_an_operator_asked_for() -> None:
    toy = whole()
    toy.set_capacity(Market.SPOT, 0)
    toy.set_capacity(Market.ON_DEMAND, 0)
    node = toy.alive(Market.SPOT)[0]
    toy.operator_drain(node)
    assert acts(toy.run(20.0), Drain) == [], "it waits for its replacement"
    breaks(toy, node)
    assert [(d.node, d.cause) for d in acts(toy.run(4.0), Drain)] == [(node, Cause.GPU)]


def test_a_request_outlives_the_daemon() -> None:
    toy = whole(1, spot_share=0.0)
    node = toy.alive()[0]
    breaks(toy, node)
    toy.run(4.0)
    toy.gpus.clear()  # nobody has read them since
    toy.restart()
    leaves(toy, node)
    assert len(condemned(toy)) == 1


@pytest.mark.parametrize("what", ["paused", "follower", "no journal", "switched off"])
def test_nothing_goes_while_nothing_may(what: str) -> None:
    toy = whole(rules=replace(RULES, replace=what != "switched off"))
    node = toy.alive()[0]
    if what == "paused":
        toy.pause()
        toy.turn()
    toy.leading, toy.durable = what != "follower", what != "no journal"
    breaks(toy, node)
    plans = toy.run(30.0)
    assert acts(plans, Drain) == []
    if what == "switched off":
        assert any(f"{node}: {DBE}; gpu.replace is off" in note for note in plans[-1].notes)
    toy.leading = toy.durable = True
    toy.configure(gpu=RULES)
    toy.resume()
    leaves(toy, node)


# -- too many at once, and liars ----------------------------------------------------------------------------


def test_as_many_as_may_be_unhealthy_go_at_once() -> None:
    toy = whole()
    breaks(toy, *toy.alive()[:3])
    assert len(acts([toy.turn()], Drain)) == 3
    toy.settle()
    assert len(toy.answering()) == 10


def test_a_broken_node_goes_whatever_becomes_of_an_older_one() -> None:
    """The older one has a notice already."""
    toy = whole()
    first, second = sorted(toy.alive(Market.SPOT))[:2]
    toy.notice(first)
    breaks(toy, first, second)
    assert {a.node: a.cause for a in acts([toy.turn()], Drain)}[second] is Cause.GPU


def test_more_go_one_at_a_time_and_none_before_its_replacement() -> None:
    """Whether half of a pool broke or half of its agents lie: clients lose nothing."""
    toy = whole()
    doubted = toy.alive()[:6]
    breaks(toy, *doubted)
    plans, lowest = [], 10
    for _ in range(400):
        plans.append(toy.turn())
        lowest = min(lowest, len(toy.active()))
        assert sum(n.drain is not None and n.phase is Phase.DRAINING for n in toy.fleet().nodes) <= 1
    assert "faults" in suspects(plans)
    assert lowest == 10
    gone = [node for node in doubted if node not in toy.alive()]
    assert len(gone) == 3, "and no more than three within an hour"
    assert "an hour" in suspects(plans)


def test_agents_that_lie_for_ever_neither_take_the_pool_down_nor_make_it_boot_without_end() -> None:
    """Every node, also each new one, says that its GPU is broken."""
    toy, launched = whole(), 0
    launched = toy.count
    for _ in range(900):
        breaks(toy, *toy.alive())
        toy.turn()
        assert len(toy.active()) >= 10
    assert toy.count - launched <= 3


def test_the_next_hour_has_its_own_share() -> None:
    toy = whole()
    for _ in range(4):
        breaks(toy, toy.alive()[0])
        toy.run(120.0)
    assert len(condemned(toy)) == 3
    toy.run(3_600.0)
    assert len(condemned(toy)) == 4


# -- doubts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [hot, slow])
def test_a_doubted_node_serves_until_its_replacement_is_ready(trouble: Make) -> None:
    toy = whole()
    node = toy.alive(Market.SPOT)[0]
    assert acts(trouble(toy, node, seconds=58.0), Drain) == []
    plans, lowest = [], 10
    while node in toy.alive():
        plans += trouble(toy, node, seconds=2.0)
        lowest = min(lowest, len(toy.active()))
        assert len(plans) < 200
    (drain,) = acts(plans, Drain)
    assert (drain.node, drain.cause) == (node, Cause.GPU_DOUBT)
    assert lowest == 10
    (event,) = condemned(toy)
    assert (event.remedy, event.urgent) == ("", False)


@pytest.mark.parametrize("trouble", [hot, slow])
def test_doubted_nodes_go_one_at_a_time_with_a_pause_between(trouble: Make) -> None:
    toy = whole()
    nodes = toy.alive()[:2]
    trouble(toy, *nodes, seconds=500.0)
    assert len(condemned(toy)) == 1
    assert any(
        "the last one was replaced for a doubt" in note for note in trouble(toy, *nodes, seconds=2.0)[0].notes
    )
    trouble(toy, *nodes, seconds=300.0)
    assert [e.node for e in condemned(toy)] == nodes


def test_a_heat_wave_condemns_nobody_and_is_told() -> None:
    toy = whole()
    plans = hot(toy, *toy.alive()[:4], seconds=300.0)
    assert condemned(toy) == []
    assert acts(plans, Drain) == []
    assert suspects(plans) == {"throttling"}
    assert len(toy.active()) == 10


def test_a_doubted_node_goes_on_for_ever_where_no_other_one_can_be_had() -> None:
    toy = whole()
    toy.set_capacity(Market.SPOT, 0)
    toy.set_capacity(Market.ON_DEMAND, 0)
    node = toy.alive(Market.SPOT)[0]
    assert acts(hot(toy, node, seconds=1_000.0), Drain) == []
    assert node in toy.active()


def test_a_doubted_node_that_is_well_again_before_its_replacement_is_ready_stays() -> None:
    toy = whole()
    toy.set_capacity(Market.SPOT, 0)
    toy.set_capacity(Market.ON_DEMAND, 0)
    node = toy.alive(Market.SPOT)[0]
    hot(toy, node, seconds=80.0)
    assert toy.memory.nodes[node].operator is not None
    for _ in range(round((WELL_FOR - 20.0) / toy.step)):
        toy.gpus[node] = replace(toy.gpus[node], at=toy.now)
        toy.turn()
    assert toy.memory.nodes[node].operator is not None
    for _ in range(30):
        toy.gpus[node] = replace(toy.gpus[node], at=toy.now)
        toy.turn()
    assert toy.memory.nodes[node].operator is None
    assert [type(e) for e in toy.journal if isinstance(e, GpuAcquitted)] == [GpuAcquitted]
    assert node in toy.active()
    assert replay(toy.journal) == toy.memory


@pytest.mark.parametrize("what", ["nobody reads it", "the daemon was away", "it is broken"])
def test_a_doubted_node_is_not_well_because_nobody_looked(what: str) -> None:
    toy = whole()
    toy.set_capacity(Market.SPOT, 0)
    toy.set_capacity(Market.ON_DEMAND, 0)
    node = toy.alive(Market.SPOT)[0]
    hot(toy, node, seconds=80.0)
    for _ in range(round((WELL_FOR + 100.0) / toy.step)):
        if what == "it is broken":
            toy.configure(gpu=replace(RULES, replace=False))
            toy.gpus[node] = replace(toy.gpus[node], at=toy.now, remedy=Remedy.RESET, fault=DBE)
        elif what == "the daemon was away":
            toy.awake_since = toy.now
            toy.gpus[node] = replace(toy.gpus[node], at=toy.now)
        toy.turn()
    assert toy.memory.nodes[node].operator is not None


def test_a_doubt_waits_until_the_pool_is_whole() -> None:
    toy = whole()
    toy.set_capacity(Market.SPOT, 0)
    toy.set_capacity(Market.ON_DEMAND, 0)
    toy.kill_engine(toy.alive()[0])
    node = toy.alive()[1]
    plans = slow(toy, node, seconds=200.0)
    assert condemned(toy) == []
    assert any("it waits until the pool is whole" in note for note in plans[-1].notes)


def test_a_node_that_an_operator_took_back_is_spared() -> None:
    toy = whole(1, spot_share=0.0)
    node = toy.alive()[0]
    breaks(toy, node)
    toy.turn()
    toy.operator_undrain(node)
    toy.run(400.0)
    assert toy.active() == [node]
    assert len(condemned(toy)) == 1


def test_a_reason_is_told_where_people_look() -> None:
    toy = whole(1, spot_share=0.0)
    node = toy.alive()[0]
    breaks(toy, node)
    toy.run(4.0)
    (shown,) = [n for n in toy.fleet().nodes if n.id == node]
    assert why(shown, toy.memory, toy.now) == f"its GPUs: {condemned(toy)[0].reason}"
    assert any(DBE in text for text in node_sentences(shown, toy.memory, toy.now))


# -- replay -------------------------------------------------------------------------------------------------


def test_a_broken_node_that_stays_is_not_called_healthy() -> None:
    toy = whole(rules=replace(RULES, replace=False))
    node = toy.alive()[0]
    breaks(toy, node)
    toy.turn()
    shown = toy.fleet().by_id[node]
    assert why(shown, toy.memory, toy.now, toy.gpus[node]) == f"serves on with a broken GPU: {DBE}"
    assert any(DBE in text for text in node_sentences(shown, toy.memory, toy.now, toy.gpus[node]))
    restart = broken(node, Remedy.RESTART)
    assert why(shown, toy.memory, toy.now, restart) == "healthy"


def test_the_same_turns_give_the_same_plans_and_the_journal_the_same_memory() -> None:
    toy = whole()
    toy.record = True
    breaks(toy, toy.alive()[0])
    hot(toy, toy.alive()[1], seconds=120.0)
    assert len(condemned(toy)) == 2
    for turn in toy.turns:
        assert decide(turn.pool, turn.world, turn.memory) == turn.plan
    assert replay(toy.journal) == toy.memory


def test_an_old_snapshot_knows_of_no_such_thing() -> None:
    assert Memory().condemned == ()
