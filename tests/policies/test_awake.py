"""What a daemon that was stopped for a while, or has just started, makes of what it saw before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies import observations
from policies.actions import Cause, Drain, Launch, Terminate, Undrain
from policies.events import NodeGone, NodeMissing
from policies.model import Market, Observed, Pool, TargetPhase
from policies.records import OperatorRequest
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

ON_DEMAND = Market.ON_DEMAND


def woke(here: Scene, ago: float = 1.0, *, listed: float | None = None, read: float | None = None) -> Any:
    """It woke up `ago` seconds ago; the list and the balancer were read some seconds ago."""
    here.settings["awake_since"] = here.now - ago
    if listed is not None:
        here.settings["regions"] = {"": Observed(value=tuple(here.instances.values()), at=here.now - listed)}
    if read is not None:
        here.settings["balancers"] = {"gw": Observed(value=tuple(here.shown.values()), at=here.now - read)}
    return here


@pytest.mark.parametrize(("listed", "launches"), [(15.0, False), (0.5, True)])
def test_nothing_is_bought_or_ended_before_the_cloud_was_seen_again(listed: float, launches: bool) -> None:
    here = woke(Scene().nodes(1).nodes(2, ON_DEMAND), listed=listed)
    assert bool(of_kind(here.plan(), Launch)) is launches


@pytest.mark.parametrize(("listed", "missing"), [(15.0, False), (0.5, True)])
def test_a_list_from_before_makes_no_node_missing(listed: float, missing: bool) -> None:
    here = Scene().nodes(4).node("x", listed=False, probed=False)
    woke(here, listed=listed)
    found = observations.changes(here.pool, here.world, here.memory)
    assert [type(e) for e in found] == ([NodeMissing] if missing else [])


@pytest.mark.parametrize(("ago", "gone"), [(5.0, False), (20.0, True)])
def test_how_long_lists_have_lacked_a_node_counts_from_then_on(ago: float, gone: bool) -> None:
    here = Scene().nodes(4).node("x", listed=False, silent_for=90.0, vouched=False)
    here.records["x"] = replace(here.records["x"], missing_since=here.now - 700.0)
    woke(here, ago, listed=0.0)
    here.settings["regions"] = {"": replace(here.settings["regions"][""], since=here.now - ago)}
    found = observations.changes(here.pool, here.world, here.memory)
    assert [type(e) for e in found] == ([NodeGone] if gone else [])


def test_no_node_is_relied_on_before_it_was_looked_at_again() -> None:
    """An on-demand node more than wanted goes only once the others are known to answer."""
    here = Scene(Pool(name="p", replicas=4)).nodes(2).nodes(3, ON_DEMAND)
    assert len(of_kind(here.plan(), Drain)) == 1
    for node in ("s0", "s1", "o0"):
        here.engines[node] = replace(here.engines[node], at=here.now - 100.0)
    woke(here)
    assert here.fleet.ready_units == 2
    assert of_kind(here.plan(), Drain | Launch) == []


@pytest.mark.parametrize("serving", [True, False])
def test_a_node_that_was_silent_before_stays_in_or_out_of_the_set_until_it_was_looked_at_again(
    serving: bool,
) -> None:
    here = Scene(Pool(name="p", replicas=5, spot_share=1.0)).nodes(4)
    here.node("x", silent_for=20.0, serving=serving)
    assert "x" not in {t.id for t in here.plan().targets}
    here.engines["x"] = replace(here.engines["x"], at=here.now - 10.0)
    woke(here)
    assert ("x" in {t.id for t in here.plan().targets}) is serving


def test_a_node_that_was_silent_before_is_not_lost_until_it_was_looked_at_again() -> None:
    here = Scene().nodes(4).node("x", silent_for=90.0)
    here.engines["x"] = replace(here.engines["x"], at=here.now - 10.0)
    assert here.fleet.by_id["x"].lost
    woke(here)
    assert not here.fleet.by_id["x"].lost


@pytest.mark.parametrize(("ago", "drains"), [(10.0, False), (2000.0, True)])
def test_an_operators_drain_waits_for_its_replacement_while_somebody_is_awake(
    ago: float, drains: bool
) -> None:
    """The request may look a day old to a host whose clock was set; that is no time in which one launched."""
    asked = OperatorRequest(since=here_now() - 86_400.0, budget=20.0, reason="maintenance")
    here = woke(Scene().nodes(3).nodes(2, ON_DEMAND).node("o1", ON_DEMAND, operator=asked), ago)
    assert [a.node for a in of_kind(here.plan(), Drain)] == (["o1"] if drains else [])


def here_now() -> float:
    """The time of every scene."""
    return 10_000.0


@pytest.mark.parametrize(("read", "ends"), [(10.0, False), (0.5, True)])
def test_a_drained_node_ends_once_the_balancers_were_read_again(read: float, ends: bool) -> None:
    here = Scene().nodes(2).nodes(3, ON_DEMAND).drain("o2", Cause.EXCESS, since=30.0)
    here.records["o2"] = replace(here.records["o2"], idle_since=here.now - 20.0)
    woke(here, read=read)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == (["o2"] if ends else [])


# -- drains by choice are looked at again until the balancer has let the node go -------------------------


def surplus(cause: Cause, *, held: TargetPhase = TargetPhase.ACTIVE, **more: Any) -> Any:
    """Three nodes of four that are wanted are ready, and one drains since there were more."""
    here = Scene().nodes(2).nodes(2, ON_DEMAND).node("o1", ON_DEMAND, **more)
    here.drain("o1", cause, since=2.0)
    here.held["o1"] = held
    return here


@pytest.mark.parametrize("cause", [Cause.EXCESS, Cause.RETURN, Cause.REBALANCE, Cause.OPERATOR])
def test_a_node_that_still_gets_requests_is_put_back_once_what_stays_is_too_little(cause: Cause) -> None:
    here = surplus(cause)
    here.fields["applied_at"] = {"gw": here.now}
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["o1"]
    assert {t.id: str(t.phase) for t in plan.targets}["o1"] == "active"


@pytest.mark.parametrize(("silent_for", "back"), [(None, ["o1"]), (1.0, [])])
def test_a_silence_that_is_over_is_no_reason_to_leave_while_others_only_start(
    silent_for: float | None, back: list[str]
) -> None:
    """It had to serve on as the last one, and would leave when the first of the others is ready."""
    here = surplus(Cause.SICK, silent_for=silent_for).node("o2", ON_DEMAND, ready=False, age=20.0)
    here.fields["applied_at"] = {"gw": here.now}
    assert [a.node for a in of_kind(here.plan(), Undrain)] == back


@pytest.mark.parametrize(("waited", "back"), [(5.0, ["o1"]), (5000.0, [])])
def test_so_it_is_where_an_operator_waits_for_its_drain_and_not_for_long(
    waited: float, back: list[str]
) -> None:
    asked = OperatorRequest(since=here_now() - waited, budget=20.0, reason="maintenance")
    here = surplus(Cause.SICK, operator=asked).node("o2", ON_DEMAND, ready=False, age=20.0)
    here.fields["applied_at"] = {"gw": here.now}
    assert [a.node for a in of_kind(here.plan(), Undrain)] == back


def test_a_silent_node_that_drains_for_an_operator_is_not_put_back() -> None:
    """It would be drained again at once, and put back again, on and on."""
    asked = OperatorRequest(since=here_now() - 5.0, budget=20.0, reason="maintenance")
    here = surplus(Cause.OPERATOR, operator=asked, silent_for=8.0, vouched=False)
    here.fields["applied_at"] = {"gw": here.now}
    assert of_kind(here.plan(), Undrain | Drain) == []


def test_so_it_is_where_only_the_on_demand_floor_is_short() -> None:
    here = surplus(Cause.RETURN).nodes(5)
    here.fields["applied_at"] = {"gw": here.now}
    assert [a.node for a in of_kind(here.plan(), Undrain)] == ["o1"]


def test_an_old_journal_tells_of_a_drain_that_was_taken_back() -> None:
    """Nobody has looked at any engine yet, and the balancer sends requests to a node that should drain."""
    here = surplus(Cause.RETURN, held=TargetPhase.DRAINING)
    here.engines.clear()
    here.shown["o1"] = replace(here.shown["s0"], id="o1", address="o1:1")
    here.fields["applied_at"] = {}
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["o1"]
    assert {t.id: str(t.phase) for t in plan.targets}["o1"] == "active"


@pytest.mark.parametrize(("silent_for", "ends"), [(None, True), (1.0, False)])
def test_a_node_that_the_balancer_let_go_drains_on_and_ends_while_the_others_answer(
    silent_for: float | None, ends: bool
) -> None:
    here = Scene().nodes(2).nodes(3, ON_DEMAND).node("s1", silent_for=silent_for)
    here.drain("o2", Cause.EXCESS, since=30.0)
    here.records["o2"] = replace(here.records["o2"], idle_since=here.now - 20.0)
    plan = here.plan()
    assert of_kind(plan, Undrain) == []
    assert [a.node for a in of_kind(plan, Terminate)] == (["o2"] if ends else [])


def test_an_operator_who_has_waited_for_long_gets_the_drain() -> None:
    asked = OperatorRequest(since=here_now() - 5000.0, budget=20.0, reason="maintenance")
    here = surplus(Cause.OPERATOR, operator=asked)
    here.fields["applied_at"] = {"gw": here.now}
    assert of_kind(here.plan(), Undrain) == []


def test_cordoned_nodes_that_serve_count_for_an_operators_drain() -> None:
    asked = OperatorRequest(since=here_now() - 5.0, budget=20.0, reason="maintenance")
    here = surplus(Cause.OPERATOR, operator=asked)
    here.node("s1", operator=asked).node("s2").node("o2", ON_DEMAND)
    here.fields["applied_at"] = {"gw": here.now}
    assert of_kind(here.plan(), Undrain) == []


@pytest.mark.parametrize(("silent_for", "goes"), [(None, "s0"), (3.0, "s2")])
def test_a_cordoned_node_that_does_not_answer_stands_in_for_no_other(
    silent_for: float | None, goes: str
) -> None:
    asked = OperatorRequest(since=here_now() - 5.0, budget=20.0, reason="maintenance")
    here = Scene(Pool(name="p", replicas=2)).node("s0", operator=asked).node("s1")
    here.node("s2", silent_for=silent_for, operator=asked)
    assert [a.node for a in of_kind(here.plan(), Drain)] == [goes]


@pytest.mark.parametrize(("read", "drains"), [(None, False), (9.0, False), (7.0, True)])
def test_an_operators_drain_of_a_silent_node_waits_for_the_balancers_word(
    read: float | None, drains: bool
) -> None:
    """It may be this host that cannot reach it, while the balancer sends it requests."""
    asked = OperatorRequest(since=here_now() - 5.0, budget=20.0, reason="maintenance")
    here = Scene(Pool(name="p", replicas=5)).nodes(2).nodes(2, ON_DEMAND)
    here.node("x", silent_for=8.0, vouched=False, operator=asked)
    shown = () if read is None else tuple(here.shown.values())
    at = None if read is None else here.now - read
    here.settings["balancers"] = {"gw": Observed(value=shown, at=at)}
    here.fields["applied_at"] = {"gw": here.now - 50.0}
    assert [a.node for a in of_kind(here.plan(), Drain)] == (["x"] if drains else [])


@pytest.mark.parametrize(("ago", "ends"), [(5.0, False), (30.0, True)])
def test_requests_have_their_budget_from_then_on(ago: float, ends: bool) -> None:
    """The clock may have been set forward while nobody counted: the time that went by may be none."""
    here = Scene(Pool(name="p", replicas=4)).nodes(4).node("x", serving=False, in_flight=1)
    here.drain("x", Cause.EXCESS, since=3600.0, left=-3570.0)
    woke(here, ago, listed=0.0, read=0.0)
    assert bool(of_kind(here.plan(), Terminate)) is ends
