"""What a daemon knows of who is at work, and what it does not know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.actions import Cause, Terminate
from policies.drain import why_it_stays
from policies.evidence import Status, Witness, ours
from policies.model import (
    Confidence,
    EngineReading,
    InstanceState,
    Limits,
    Observed,
    Pool,
    Target,
    TargetPhase,
    TargetState,
)
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

EARLIER = "p/6/1"
"""The token of a node that an earlier daemon launched."""


def why(here: Scene, node: str = "x") -> str:
    return why_it_stays(here.fleet.by_id[node])


def dead_in(here: Scene, times: float = 1.0) -> bool:
    """All who may tell find node x silent, for so many times as long as it takes to replace a node."""
    return here.fleet.by_id["x"].reachable.fails(times * here.pool.health.replace_after)


def out(**node: Any) -> Any:
    """A node that is ready and in no balancer's set, which the balancer confirmed."""
    return Scene().nodes(4).node("x", serving=False, **node)


def unread(here: Scene, at: float | None) -> Any:
    here.settings["balancers"] = {"gw": Observed(value=tuple(here.shown.values()), at=at)}
    return here


def silent(here: Scene, seconds: float) -> Any:
    since = here.now - seconds
    here.engines["x"] = EngineReading(node="x", at=here.now, ready=False, ok=False, failing_since=since)
    return here


def test_a_node_that_no_balancer_knows_may_go() -> None:
    assert why(out()) == ""


def test_a_balancer_must_have_been_read_since_it_took_the_last_set() -> None:
    here = out()
    for at in (None, here.now - 50.1):  # its last acknowledgement came 50 s ago
        assert "no balancer's word" in why(unread(here, at))
    assert why(unread(here, here.now - 50.0)) == ""


def test_a_balancer_must_have_taken_a_set_of_this_daemon() -> None:
    """What the daemon before it wrote may land until then."""
    here = out()
    here.fields["applied_at"] = {}
    assert "no balancer's word" in why(here)


def test_what_a_balancer_shows_holds_or_is_being_told_keeps_a_node() -> None:
    for how in ("shows", "holds", "is told"):
        here = out()
        if how == "shows":
            here.shown["x"] = Target(id="x", address="x:1", state=TargetState.UNHEALTHY)
        elif how == "holds":
            here.held["x"] = TargetPhase.ACTIVE
        else:
            here.settings["writing"] = {"gw": ("x",)}
        assert "may still send" in why(here), how


def test_one_look_that_failed_is_no_silence() -> None:
    here = out()
    here.fields["applied_at"] = {}
    rules = here.pool.health
    assert why(silent(here, rules.replace_after - 0.1))
    assert why(silent(here, rules.replace_after)) == ""


@pytest.mark.parametrize(
    ("state", "failing_for", "dead"),
    [
        (TargetState.HEALTHY, None, False),  # only this host cannot reach it
        (TargetState.INITIAL, None, False),
        (TargetState.UNHEALTHY, 29.0, False),  # it fell silent on and off, where this host cannot reach it
        (TargetState.UNHEALTHY, None, False),
        (TargetState.UNHEALTHY, 30.0, True),
        (TargetState.DRAINING, None, True),
        (None, None, True),
    ],
)
def test_a_node_is_dead_when_balancers_that_have_it_found_it_silent_for_as_long(
    state: TargetState | None, failing_for: float | None, dead: bool
) -> None:
    here = silent(Scene().nodes(4).node("x", silent_for=60.0, serving=False), 60.0)
    if state is not None:
        since = None if failing_for is None else here.now - failing_for
        here.shown["x"] = Target(id="x", address="x:1", state=state, failing_since=since)

    def found(times: float = 1.0) -> bool:
        return dead_in(here, times)

    assert found() is dead
    assert not found(2.1)
    unread(here, here.now - 60.1)  # before it fell silent
    assert not found()


@pytest.mark.parametrize("turned", [None, TargetState.DRAINING, TargetState.UNUSED])
def test_a_balancer_that_lost_its_set_does_not_tell_that_a_node_is_dead(turned: TargetState | None) -> None:
    """It finds it neither healthy nor the opposite until it has the set again: restarted, or edited."""
    here = silent(Scene(Pool(name="p", replicas=1)).node("x", silent_for=600.0), 600.0)
    assert dead_in(here)
    del here.shown["x"]
    if turned is not None:
        here.shown["x"] = Target(id="x", address="x:1", state=turned)
    assert not dead_in(here)
    assert [t.id for t in here.plan().targets] == ["x"]


@pytest.mark.parametrize(
    ("state", "dead"), [(TargetState.DRAINING, False), (None, False), (TargetState.UNHEALTHY, True)]
)
def test_a_balancer_that_is_told_to_send_a_node_requests_does_not_tell_that_it_is_dead(
    state: TargetState | None, dead: bool
) -> None:
    """It let it drain when it was last read; the set that makes it the last resort may have landed since."""
    here = silent(Scene(Pool(name="p", replicas=1)).node("x", silent_for=600.0, serving=False), 600.0)
    if state is not None:
        here.shown["x"] = Target(id="x", address="x:1", state=state, failing_since=here.now - 600.0)
    assert dead_in(here)
    here.settings["writing"] = {"gw": ("x",)}
    assert dead_in(here) is dead
    here.settings["writing"] = {}
    here.held["x"] = TargetPhase.ACTIVE
    unread(here, here.now - 51.0)  # it took the set 50 s ago
    assert dead_in(here) is dead


def test_a_dead_node_leaves_the_target_sets_first() -> None:
    here = silent(Scene().nodes(4).node("x", silent_for=60.0), 60.0)
    assert here.shown["x"].state is TargetState.UNHEALTHY
    assert "may still send" in why(here)


@pytest.mark.parametrize(
    ("node", "stays"),
    [
        ({"ready": False}, False),  # launched by this daemon, which would have seen it ready
        ({"ready": False, "token": EARLIER}, True),
        ({"ready": False, "token": "odd"}, True),
        ({"ready": True}, True),
        ({"ready": False, "token": EARLIER, "state": InstanceState.STOPPED}, False),
    ],
)
def test_who_surely_never_served(node: dict[str, Any], stays: bool) -> None:
    """A journal that is lost or old says of nobody else that it is still booting."""
    here = out(probed=False, **node)
    here.fields["applied_at"] = {}
    assert bool(why(here)) is stays


@pytest.mark.parametrize(
    ("node", "let_go", "stays"),
    [
        ({"token": EARLIER}, 29.0, True),
        ({"token": EARLIER}, 30.0, False),
        ({"token": EARLIER}, None, False),
        ({"token": EARLIER, "state": InstanceState.STOPPED}, 1.0, False),
        ({}, 1.0, False),  # this daemon launched it, and never saw it ready
    ],
)
@pytest.mark.parametrize("drains", [False, True])
def test_what_this_host_cannot_reach_may_hold_requests_after_it_left_a_set(
    node: dict[str, Any], let_go: float | None, stays: bool, drains: bool
) -> None:
    """No journal tells that it was ready, and a balancer sent it requests until then."""
    here = Scene().nodes(4).node("x", serving=False, ready=False, age=5000.0, **node)
    if drains:
        here.drain("x", Cause.OPERATOR, since=1.0, left=20.0)
        del here.held["x"]
    at = None if let_go is None else here.now - let_go
    here.records["x"] = replace(here.records["x"], detached_at=at)
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ([] if stays else ["x"])


@pytest.mark.parametrize(
    ("confidence", "others", "status", "witness"),
    [
        (Confidence.CONFIRMED, 3, Status.TRUE, Witness.CLOUD),
        (Confidence.REPORTED, 0, Status.TRUE, Witness.AGENT),
        (Confidence.REPORTED, 1, Status.UNKNOWN, Witness.AGENT),
    ],
)
def test_what_only_nodes_report_is_not_known_beyond_the_budget(
    confidence: Confidence, others: int, status: Status, witness: Witness
) -> None:
    here = Scene(Pool(name="p", replicas=4, limits=Limits(disruption=0.25))).nodes(4).node("x")
    for number in range(others):
        here.notice(f"s{number}", confidence=Confidence.REPORTED, seen_at=here.now - 9.0)
    here.notice("x", confidence=confidence)
    noticed = here.fleet.by_id["x"].noticed
    assert (noticed.status, noticed.witness) == (status, witness)
    assert here.fleet.by_id["x"].leaving is noticed.holds


def test_nobody_takes_a_node_away_of_which_no_notice_holds() -> None:
    here = Scene().nodes(1)
    here.notice("s0", cancelled=True)
    noticed = here.fleet.by_id["s0"].noticed
    assert (noticed.status, noticed.witness) == (Status.FALSE, Witness.NOBODY)


@pytest.mark.parametrize(
    ("token", "asked", "holds", "witness"),
    [
        ("p/6/1", False, True, Witness.LIST),
        ("q/6/1", False, False, Witness.LIST),
        ("p/6/x", False, False, Witness.LIST),
        ("odd", True, True, Witness.JOURNAL),
    ],
)
def test_a_machine_is_ours_by_its_token_or_by_the_journal(
    token: str, asked: bool, holds: bool, witness: Witness
) -> None:
    here = Scene().node("x")
    if asked:
        here.launching(token)
    memory = replace(here.memory, nodes={})
    found = ours(here.pool, memory, replace(here.instances["x"], token=token))
    assert (found.holds, found.witness) == (holds, witness)


@pytest.mark.parametrize(
    ("read_at", "error", "launched", "status"),
    [
        (-1.0, "", -100.0, Status.FALSE),
        (-1.0, "503", -100.0, Status.UNKNOWN),  # the list is what was read before it failed
        (None, "", -100.0, Status.UNKNOWN),
        (-1.0, "", -0.5, Status.UNKNOWN),  # it was launched after the list was read
    ],
)
def test_only_a_list_that_could_show_a_machine_says_that_it_is_not_there(
    read_at: float | None, error: str, launched: float, status: Status
) -> None:
    here = Scene().nodes(4).node("x", listed=False)
    here.records["x"] = replace(here.records["x"], launched_at=here.now + launched)
    view = Observed(
        value=tuple(here.instances.values()), at=None if read_at is None else here.now + read_at, error=error
    )
    here.settings["regions"] = {"": view}
    assert here.fleet.by_id["x"].exists.status is status
    assert here.fleet.by_id["s0"].exists.holds
