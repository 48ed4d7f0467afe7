"""Sentences say what the values say."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from policies import event_text, events, explain
from policies.actions import ActionKind, Cause
from policies.model import InstanceState, Limits, Market, NoticeKind, Observed, Pool, StandbyKind
from policies.records import OperatorRequest, Pause, Refusal, Swap
from tests.support.scene import Scene
from tests.support.toy_pools import place

ON_DEMAND = Market.ON_DEMAND


def why(here: Scene, node: str) -> str:
    return explain.why(here.fleet.by_id[node], here.memory, here.now)


def test_a_node_is_explained_in_a_phrase() -> None:
    here = Scene().nodes(4).node("boots", ready=False, age=30.0).node("sick", silent_for=8.0)
    here.notice("s0", 84.0)
    here.notice("s1", 84.0)
    here.drain("s1", Cause.NOTICE)
    here.drain("s2", Cause.RETURN)
    request = OperatorRequest(since=here.now, budget=9.0, reason="kernel")
    here.records["s3"] = replace(here.records["s3"], operator=request)
    here.node("sb", ON_DEMAND, ready=False, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED)
    here.node("warms", ON_DEMAND, ready=False, standby=StandbyKind.STOPPED, serving=False, probed=False)
    here.node("ok", ON_DEMAND)
    assert why(here, "s0") == "interruption notice (feed), reclaim in 84 s, still serving"
    assert why(here, "s1") == "interruption notice (feed), reclaim in 84 s"
    assert why(here, "s2") == "because return"
    assert why(here, "s3") == "cordoned: kernel"
    assert why(here, "sick") == "connection refused"
    assert why(here, "sb") == "stopped standby"
    assert why(here, "warms") == "standby warming up"
    assert why(here, "ok") == "healthy"
    here.engines["boots"] = replace(here.engines["boots"], failure="")
    assert why(here, "boots") == "starting for 30 s"
    here.fields["incoming"] = {"boots": "s0"}
    assert why(here, "boots") == "replaces s0"


def test_a_pool_is_explained_by_its_mix_and_its_troubles() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(5).nodes(5, ON_DEMAND)
    here.fields["refusals"] = {
        place("a"): Refusal(at=here.now - 60.0),
        place("b"): Refusal(at=here.now - 9e5),
    }
    here.fields["pause"] = Pause(by="ann", reason="test", since=0.0, until=None)
    here.settings["regions"] = {"": Observed(value=tuple(here.instances.values()), at=here.now - 45.0)}
    said = explain.pool_sentences(here.fleet, here.world, here.memory)
    assert said == (
        "10 nodes are wanted: 7 spot and 3 on-demand (70% spot, the on-demand share rounded up).",
        "10 are ready: 5 spot and 5 on-demand.",
        "2 on-demand nodes stand in for spot that is not ready; this is temporary.",
        "spot gpu in a refused 60 s ago, not tried again for 120 s.",
        "The last complete list of instances is 45 s old: nothing is launched or ended meanwhile.",
        "Paused by ann: test. Noticed nodes are still drained.",
    )


def test_a_pool_that_was_never_seen_says_so() -> None:
    here = Scene()
    here.settings["regions"] = {"": Observed(value=(), error="credentials expired")}
    said = explain.pool_sentences(here.fleet, here.world, here.memory)
    why = "The cloud has not been seen whole yet: credentials expired"
    assert said[-1] == f"{why}: nothing is launched or ended meanwhile."


def test_doubt_is_said() -> None:
    here = Scene().nodes(4, silent_for=60.0)
    said = explain.pool_sentences(here.fleet, here.world, here.memory)
    assert any(s.startswith("Too many nodes are silent at once") for s in said)


def test_a_node_is_told_at_length() -> None:
    here = Scene().nodes(4, in_flight=3)
    here.notice("s0", 60.0)
    here.fields["swaps"] = {
        "s0": Swap(outgoing="s0", cause=Cause.NOTICE, opened_at=1.0, incoming="s1"),
    }
    here.fields["incoming"] = {"s1": "s0"}
    assert explain.node_sentences(here.fleet.by_id["s0"], here.memory, here.now) == (
        "s0 is ready: spot gpu in a, launched 1000 s ago at 1.00 USD/h.",
        "Why: interruption notice (feed), reclaim in 60 s, still serving.",
        "It is in the target set with 3 requests in flight.",
        "Swap: noticed, replaced by s1.",
        "Notice: interruption from feed (confirmed), deadline in 60 s.",
    )
    assert "It takes the place of s0." in explain.node_sentences(
        here.fleet.by_id["s1"], here.memory, here.now
    )
    here.drain("s0", Cause.NOTICE)
    assert "It takes no new requests; 3 are in flight." in explain.node_sentences(
        here.fleet.by_id["s0"], here.memory, here.now
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_share_can_be_said(share: float) -> None:
    here = Scene(Pool(name="p", replicas=4, spot_share=share)).nodes(4)
    assert explain.pool_sentences(here.fleet, here.world, here.memory)


def test_reasons_of_actions_are_sentences_for_people() -> None:
    """No action of a busy turn comes without a reason, and none speaks in identifiers of the code."""
    here = Scene(Pool(name="p", replicas=10, limits=Limits(surge=9))).nodes(5).nodes(2, ON_DEMAND)
    here.notice("s0", 60.0)
    here.notice("s1", kind=NoticeKind.MAINTENANCE)
    here.node("x").drain("x", Cause.EXCESS, left=-5.0)
    here.node("y", silent_for=40.0)
    here.node("z", ready=False, age=5000.0)
    plan = here.plan()
    kinds = {a.kind for a in plan.actions}
    assert {ActionKind.LAUNCH, ActionKind.DRAIN, ActionKind.TERMINATE, ActionKind.DETACH} <= kinds
    for action in plan.actions:
        assert len(action.reason) > 4
        assert "_" not in action.reason
        assert "None" not in action.reason


def test_every_event_has_its_sentence_in_one_of_two_tables() -> None:
    kinds = set(get_args(events.Event))
    assert event_text._TEXTS.keys() | event_text._WORDS.keys() == kinds
    assert not event_text._TEXTS.keys() & event_text._WORDS.keys()
