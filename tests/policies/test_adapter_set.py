"""Adapters of nodes over many turns: loaded before they are routed, unrouted before they are unloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.actions import LoadAdapter, UnloadAdapter
from policies.adapter_set import GIVEN_UP_AFTER, LOADS_AT_ONCE, NodeAdapters
from policies.explain import node_sentences
from policies.held import AdapterRules, AdapterUse
from tests.support.adapter_engines import AdapterEngines, adapters
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import quick_pool

SQL, LAW = adapters("sql", "law")

Stage = Callable[..., Any]


@pytest.fixture(scope="session")
def stage() -> Stage:
    """Makes toy clouds whose engines load adapters."""

    @dataclass
    class AdapterCloud(AdapterEngines, type(CheckedCloud())):  # type: ignore[misc]
        pass

    def make(replicas: int, *names: str, slots: int | None = None, **settings: Any) -> Any:
        rules = AdapterRules(wanted=adapters(*names), slots=slots)
        return AdapterCloud(quick_pool(replicas, spot_share=1.0, adapters=rules), **settings)

    return make


def ready(cloud: ToyCloud) -> Any:
    cloud.settle()
    cloud.run(20.0)
    assert not cloud.violations
    return cloud


def test_a_node_is_no_target_before_it_holds_all_and_then_gets_requests_for_all(stage: Stage) -> None:
    cloud = stage(2, "sql", "law")
    while len(cloud.active()) < 2:
        cloud.turn()
        for node in cloud.active():
            assert cloud.routed(node) == [SQL.served_as, LAW.served_as]
        assert cloud.now < 1200.0
    assert not cloud.violations


def test_what_cannot_be_loaded_keeps_no_node_out_for_ever_and_is_said(stage: Stage) -> None:
    cloud = stage(1, "sql", "law", broken={LAW.served_as})
    cloud.settle()
    cloud.run(60.0)
    (node,) = cloud.active()
    assert cloud.routed(node) == [SQL.served_as]
    tries = [c for c in cloud.calls if c.served_as == LAW.served_as]
    assert GIVEN_UP_AFTER <= len(tries) < 12
    assert any("law" in note and "rank 64" in note for note in cloud.turn().notes)
    told = node_sentences(cloud.fleet().by_id[node], cloud.memory, cloud.now)
    assert any(
        text.startswith(f"Adapter {LAW.served_as} is not loaded: it could not load it") for text in told
    )
    assert any(
        "the node serves without it" in text and text.endswith("rank 64 is too high.") for text in told
    )
    assert f"Adapter {SQL.served_as} is loaded." in told
    cloud.broken.clear()
    cloud.run(130.0)
    assert cloud.routed(node) == [SQL.served_as, LAW.served_as]
    assert not cloud.violations


def test_an_engine_that_was_started_again_is_no_target_for_its_adapters_and_gets_them_again(
    stage: Stage,
) -> None:
    cloud = ready(stage(2, "sql", "law"))
    node, other = cloud.active()
    cloud.forget(node)
    plan = cloud.turn()
    assert cloud.routed(node) == []
    assert cloud.routed(other) == [SQL.served_as, LAW.served_as]
    assert {a.served_as for a in plan.actions if isinstance(a, LoadAdapter)} == {SQL.served_as, LAW.served_as}
    assert node in cloud.active(), "the model itself is served on"
    cloud.run(10.0)
    assert cloud.routed(node) == [SQL.served_as, LAW.served_as]
    assert not cloud.violations


@pytest.mark.parametrize("lacking", ["leading", "durable"])
def test_nothing_is_loaded_without_the_lease_or_the_journal(stage: Stage, lacking: str) -> None:
    cloud = ready(stage(1, "sql"))
    cloud.forget(*cloud.active())
    setattr(cloud, lacking, False)
    loads = [[a for a in plan.actions if isinstance(a, LoadAdapter)] for plan in cloud.run(10.0)]
    assert not any(loads)
    setattr(cloud, lacking, True)
    assert any(isinstance(a, LoadAdapter) for a in cloud.turn().actions)


@pytest.mark.parametrize(
    ("held", "beside"),
    [
        ([], False),
        ([("sql", SQL.revision)], False),
        ([("law", "2")], False),
        ([("law", "2"), ("sql", "2")], True),
    ],
)
def test_only_another_revision_of_the_same_adapter_stands_beside_it(
    held: list[tuple[str, str]], *, beside: bool
) -> None:
    node: Any = SimpleNamespace(held=dict.fromkeys(held))
    assert NodeAdapters.beside(node, SQL) is beside


def test_one_that_is_configured_later_is_loaded_everywhere_and_one_that_is_no_more_goes(stage: Stage) -> None:
    cloud = ready(stage(2, "sql"))
    cloud.want(SQL, LAW)
    cloud.run(10.0)
    assert all(cloud.routed(node) == [SQL.served_as, LAW.served_as] for node in cloud.active())
    cloud.want(LAW)
    cloud.run(10.0)
    assert all(cloud.routed(node) == [LAW.served_as] for node in cloud.active())
    assert all(held == {LAW.served_as} for held in cloud.held.values())
    cloud.want()
    cloud.run(10.0)
    assert all(held == set() for held in cloud.held.values())
    assert not cloud.violations


def test_requests_in_flight_keep_what_is_let_go_of_loaded(stage: Stage) -> None:
    cloud = ready(stage(1, "sql"))
    (node,) = cloud.active()
    cloud.busy[node, SQL.served_as] = 1
    cloud.want()
    cloud.run(60.0)
    assert cloud.routed(node) == []
    assert cloud.held[node] == {SQL.served_as}
    cloud.busy.clear()
    cloud.run(10.0)
    assert cloud.held[node] == set()
    assert not cloud.violations


def test_a_new_revision_is_loaded_everywhere_before_any_node_gets_requests_for_it(stage: Stage) -> None:
    cloud = ready(stage(3, "sql"))
    (new,) = adapters("sql", revision="2")
    cloud.broken.add(new.served_as)
    nodes = cloud.active()
    cloud.busy[nodes[0], SQL.served_as] = 2
    cloud.want(new)
    cloud.run(20.0)
    assert all(cloud.routed(node) == [SQL.served_as] for node in nodes), "nobody can load it"
    cloud.broken.clear()
    seen = set()
    for _ in range(40):
        cloud.turn()
        firsts = {cloud.routed(node)[0] for node in nodes}
        assert len(firsts) == 1, "all at once"
        seen |= firsts
    assert seen == {SQL.served_as, new.served_as}
    assert cloud.routed(nodes[1]) == [new.served_as, SQL.served_as], "streams of the old one can go on"
    assert cloud.held[nodes[0]] == {SQL.served_as, new.served_as}
    cloud.busy.clear()
    cloud.run(20.0)
    assert all(cloud.routed(node) == [new.served_as] for node in nodes)
    assert all(cloud.held[node] == {new.served_as} for node in nodes)
    assert not cloud.violations


def test_a_node_that_cannot_load_a_new_revision_leaves_its_requests_to_the_others(stage: Stage) -> None:
    cloud = ready(stage(2, "sql"))
    (new,) = adapters("sql", revision="2")
    bad, good = cloud.active()
    load = cloud._adapter

    def fails(action):
        answer = load(action)
        if action.node == bad and action.served_as == new.served_as:
            cloud.held[bad].discard(new.served_as)
            return replace(answer, failure="the file is not there")
        return answer

    cloud._adapter = fails
    cloud.want(new)
    cloud.run(40.0)
    assert (cloud.routed(bad), cloud.routed(good)) == ([], [new.served_as])
    assert {bad, good} == set(cloud.active())
    assert not cloud.violations


def test_a_request_that_waits_has_its_adapter_loaded_once_and_the_least_used_makes_way(stage: Stage) -> None:
    cloud = stage(2, "a", "b", "c", "d", "e", slots=2)
    cloud.asking = {n: AdapterUse(asked=10.0 - i) for i, n in enumerate("abcd")}
    ready(cloud)
    before = {node: set(held) for node, held in cloud.held.items()}
    assert set().union(*before.values()) == {a.served_as for a in adapters("a", "b", "c", "d")}
    cloud.asking["e"] = AdapterUse(asked=8.5, waiting=True)
    cloud.calls.clear()
    cloud.run(30.0)
    (e,) = adapters("e")
    assert [c.served_as for c in cloud.calls if isinstance(c, LoadAdapter)] == [e.served_as]
    assert [c.served_as for c in cloud.calls if isinstance(c, UnloadAdapter)] == [adapters("d")[0].served_as]
    assert sum(e.served_as in cloud.routed(node) for node in cloud.active()) == 1
    assert not cloud.violations


def test_a_full_node_loads_beside_what_makes_way_so_that_nothing_is_unrouted_in_vain(stage: Stage) -> None:
    cloud = stage(1, "a", "b", slots=1)
    cloud.asking = {"a": AdapterUse(asked=5.0)}
    ready(cloud)
    (node,) = cloud.active()
    a, b = adapters("a", "b")
    cloud.broken.add(b.served_as)
    cloud.asking["b"] = AdapterUse(asked=6.0, waiting=True)
    for _ in range(20):
        cloud.turn()
        assert cloud.routed(node) == [a.served_as]
    assert not cloud.violations


def test_nothing_is_loaded_while_the_pool_is_paused_or_another_daemon_leads(stage: Stage) -> None:
    cloud = ready(stage(1, "sql"))
    (node,) = cloud.active()
    cloud.pause()
    cloud.turn()
    cloud.forget(node)
    cloud.calls.clear()
    cloud.run(10.0)
    assert cloud.calls == []
    cloud.resume()
    cloud.run(10.0)
    assert cloud.held[node] == {SQL.served_as}
    for flag in ("leading", "durable"):
        setattr(cloud, flag, False)
        cloud.calls.clear()
        cloud.forget(node)
        cloud.run(10.0)
        assert cloud.calls == []
        setattr(cloud, flag, True)
        cloud.run(10.0)
        assert cloud.held[node] == {SQL.served_as}


def test_a_daemon_that_starts_takes_nothing_away_and_asks_again_for_what_was_under_way(stage: Stage) -> None:
    cloud = ready(stage(2, "sql", "law"))
    routed = {node: cloud.routed(node) for node in cloud.active()}
    cloud.restart()
    cloud.probing = False
    for _ in range(5):
        cloud.turn()
        assert {node: cloud.routed(node) for node in cloud.active()} == routed
    cloud.probing = True
    (new,) = adapters("new")
    cloud.want(SQL, LAW, new)
    cloud.turn()
    cloud.restart()  # its answers never come
    cloud.run(20.0)
    assert all(new.served_as in cloud.routed(node) for node in cloud.active())
    assert not cloud.violations


def test_a_journal_that_is_lost_takes_no_adapter_out_of_the_set(stage: Stage) -> None:
    cloud = ready(stage(2, "sql", "law"))
    routed = {node: cloud.routed(node) for node in cloud.active()}
    cloud.memory = type(cloud.memory)()
    cloud.restart()
    for _ in range(20):
        cloud.turn()
        assert {node: cloud.routed(node) for node in cloud.active()} == routed
    assert not cloud.violations


def test_answers_that_get_lost_lead_to_more_tries_and_to_the_same_end(stage: Stage) -> None:
    cloud = stage(2, "sql", "law", losing_loads=True)
    cloud.run(60.0)
    cloud.losing_loads = False
    cloud.settle()
    cloud.run(130.0)
    assert all(cloud.routed(node) == [SQL.served_as, LAW.served_as] for node in cloud.active())
    assert not cloud.violations


def test_a_gateway_that_cannot_route_adapters_is_said(stage: Stage) -> None:
    cloud = stage(1, "sql", counts=False)
    ready(cloud)
    assert any("cannot route adapters" in note for note in cloud.turn().notes)


def test_a_pool_without_adapters_says_and_does_nothing_about_them(stage: Stage) -> None:
    cloud = ready(stage(2))
    assert cloud.calls == []
    assert not any("adapter" in note for note in cloud.turn().notes)


DEEDS = (
    "none", "forget", "want", "one more", "ask", "restart", "break", "lose", "reclaim", "slow", "busy",
    "pause", "go blind",
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_happens_nothing_is_routed_that_is_not_held_nor_unloaded_that_is(
    stage: Stage, data: Any
) -> None:
    """Engines that forget, calls that fail or are slow, other sets, other use, streams that last, reclaims
    and restarts in any order. Once it is quiet, nodes hold what they should, and nothing moves any more."""
    names = "abcdef"
    slots = data.draw(st.sampled_from([None, 2, 3, 6]))
    cloud = stage(2, *names, slots=slots)
    for _ in range(data.draw(st.integers(5, 15))):
        deed = data.draw(st.sampled_from(DEEDS))
        node = data.draw(st.sampled_from(cloud.active())) if cloud.active() else ""
        if deed == "forget" and node:
            cloud.forget(node)
            cloud.turn()
            cloud.violations = [
                v for v in cloud.violations if f"routed to {node}" not in v
            ]  # until it is seen
        elif deed == "want":
            revision = data.draw(st.sampled_from("12"))
            wanted = data.draw(st.lists(st.sampled_from(names), unique=True))
            cloud.want(*adapters(*wanted, revision=revision), slots=slots)
        elif deed == "one more":
            new = adapters(data.draw(st.sampled_from(names)), revision=data.draw(st.sampled_from("12")))[0]
            wanted = {a.name: a for a in cloud.pool.adapters.wanted} | {new.name: new}
            cloud.want(*wanted.values(), slots=slots)
        elif deed == "ask":
            name = data.draw(st.sampled_from(names))
            cloud.asking[name] = AdapterUse(asked=data.draw(st.integers(1, 50)) * 1.0, waiting=True)
        elif deed == "restart":
            cloud.restart()
        elif deed == "break":
            cloud.broken = {a.served_as for a in adapters(*data.draw(st.lists(st.sampled_from(names))))}
        elif deed == "lose":
            cloud.losing_loads = not cloud.losing_loads
        elif deed == "reclaim" and node:
            cloud.reclaim(node, 20.0)
        elif deed == "slow" and node:
            cloud.takes[node, ""] = data.draw(st.sampled_from([0.0, 6.0, 130.0]))
        elif deed == "busy" and node and cloud.routed(node):
            cloud.busy[node, data.draw(st.sampled_from(cloud.routed(node)))] = 1
        elif deed == "pause":
            cloud.pause()
            cloud.run(4.0)
            cloud.resume()
        elif deed == "go blind":
            cloud.probing = False
            cloud.run(4.0)
            cloud.probing = True
        cloud.run(data.draw(st.sampled_from([2.0, 4.0, 10.0])))
        assert not cloud.violations
    cloud.losing_loads, cloud.broken = False, set()
    cloud.takes.clear()
    cloud.busy.clear()
    cloud.run(240.0)
    cloud.calls.clear()
    cloud.run(30.0)
    assert not cloud.violations
    assert not cloud.calls, "nothing moves any more"
    assert cloud.most_calls <= LOADS_AT_ONCE + len(names)
    wanted = {a.served_as for a in cloud.pool.adapters.wanted}
    assert len(cloud.active()) == 2
    for active in cloud.active():
        assert set(cloud.routed(active)) == cloud.held.get(active, set())
        assert cloud.held.get(active, set()) <= wanted
        assert len(cloud.routed(active)) == min(len(wanted), slots or len(wanted))


def test_adapters_that_hang_keep_no_node_out_for_ever_and_flood_no_engine(stage: Stage) -> None:
    names = [f"a{number}" for number in range(12)]
    cloud = stage(1, *names)
    cloud.broken = {a.served_as for a in adapters(*names)}
    cloud.takes["", ""] = 120.0
    cloud.run(700.0)
    assert len(cloud.active()) == 1
    assert cloud.most_calls <= LOADS_AT_ONCE
    assert not cloud.violations


def test_what_cannot_be_loaded_is_said_without_a_break_while_it_is_tried_on(stage: Stage) -> None:
    cloud = stage(1, "sql", broken={SQL.served_as})
    cloud.settle()
    cloud.run(60.0)
    cloud.takes["", ""] = 100.0
    for _ in range(200):
        assert any("sql" in note for note in cloud.turn().notes)


def test_new_revisions_of_many_get_everywhere_though_nodes_begin_with_different_ones(stage: Stage) -> None:
    """Room for one more than there are; one node is slow to let go of the first while use changes."""
    names = "abcd"
    cloud = stage(2, *names, slots=4)
    cloud.asking = {n: AdapterUse(asked=10.0 - i) for i, n in enumerate(names)}
    ready(cloud)
    slow = cloud.active()[1]
    cloud.takes[slow, adapters("a")[0].served_as] = 20.0
    new = adapters(*names, revision="2")
    cloud.want(*new, slots=4)
    cloud.run(14.0)
    cloud.asking = {n: AdapterUse(asked=10.0 + i) for i, n in enumerate(names)}
    cloud.run(120.0)
    assert all(cloud.routed(node) == [a.served_as for a in new] for node in cloud.active())
    assert not cloud.violations
