"""Engines with the adapters that they were started with: another set has nodes replaced, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from policies.actions import Cause, Drain
from policies.adapter_events import NodeCurrent, NodeOutdated
from policies.event_text import sentence
from policies.explain import why
from policies.held import Adapter, AdapterRules
from policies.memory import replay
from policies.model import DrainRules, Market, World
from policies.outdated import AGAIN_AFTER
from tests.support.toy_checks import CheckedCloud
from tests.support.toy_cloud import ToyCloud
from tests.support.toy_pools import quick_pool

SQL, LAW = (Adapter(name=name, source=f"/l/{name}.gguf") for name in ("sql", "law"))
NEWER = Adapter(name="sql", source="/l/sql-2.gguf")

Make = Callable[..., Any]


def rules(*wanted: Adapter) -> AdapterRules:
    return AdapterRules(wanted=wanted, runtime=False, numbered=True)


@pytest.fixture(scope="session")
def stage() -> Make:
    """Makes toy clouds whose engines number the files that they were started with, and a gateway that routes
    them. `wrong`: what is said of a number that means something else than is routed."""

    @dataclass
    class NumberedCloud(type(CheckedCloud())):  # type: ignore[misc]
        files: dict[str, tuple[str, ...]] = field(default_factory=dict)
        ignores: bool = False  # engines start without what they are told
        fails: bool = False  # engines do not start with what they are told
        wrong: list[str] = field(default_factory=list)

        def want(self, *wanted: Adapter) -> None:
            self.configure(adapters=rules(*wanted))

        def _world(self) -> World:
            told = tuple(adapter.location for adapter in self.pool.adapters.wanted)
            for node, machine in self.machines.items():
                machine.dead_engine |= self.fails and node not in self.files
                self.files.setdefault(node, () if self.ignores else told)
            world = super()._world()
            readings = {
                node: replace(reading, adapters=self.files[node], adapters_at=self.now)
                for node, reading in world.engines.items()
            }
            view = world.balancers["gw"]
            shown = tuple(replace(t, adapters=self.targets[t.id].adapters) for t in view.value)
            return replace(world, engines=readings, balancers={"gw": replace(view, value=shown)})

        def _carry_out(self, plan: Any) -> None:
            super()._carry_out(plan)
            for node, target in self.targets.items():
                for held in target.adapters:
                    files = self.files.get(node, ())
                    known = Adapter(name=held.name, source=files[held.number]).revision
                    if known != held.revision:
                        self.wrong.append(f"{node}: {held}")

        def routed(self, node: str) -> list[tuple[str, str]]:
            return [(h.name, h.revision) for h in self.targets[node].adapters]

        def holders(self, adapter: Adapter) -> int:
            return sum((adapter.name, adapter.revision) in self.routed(n) for n in self.active())

    def make(replicas: int, *wanted: Adapter, **settings: Any) -> Any:
        changes = {k: settings.pop(k) for k in [*settings] if k in ("limits", "spot_share", "drain")}
        cloud = NumberedCloud(quick_pool(replicas, adapters=rules(*wanted), **changes), **settings)
        while len(cloud.active()) < replicas:
            cloud.turn()
            assert cloud.now < 1600.0
        cloud.settle()
        return cloud

    return make


def rolled(cloud: ToyCloud, *wanted: Adapter) -> Any:
    """Turns until every node has these and nothing else."""
    files = {adapter.location for adapter in wanted}
    for _ in range(600):
        cloud.turn()
        assert not cloud.wrong
        assert len(cloud.active()) >= cloud.pool.replicas
        done = all({*cloud.files[n]} == files for n in cloud.alive())
        if done and len(cloud.alive()) == cloud.pool.replicas:
            return cloud
    raise AssertionError(cloud.files)


def outdated(cloud: ToyCloud) -> list[str]:
    return [e.node for e in cloud.journal if isinstance(e, NodeOutdated)]


@pytest.mark.parametrize("spot_share", [0.0, 0.7, 1.0])
def test_another_set_replaces_every_node_once_and_capacity_never_falls(
    stage: Make, spot_share: float
) -> None:
    cloud = stage(4, SQL, spot_share=spot_share)
    before = cloud.alive()
    cloud.want(SQL, LAW)
    rolled(cloud, SQL, LAW)
    assert sorted(outdated(cloud)) == sorted(before)
    assert {*cloud.alive()}.isdisjoint(before)
    assert all(len(cloud.routed(node)) == 2 for node in cloud.active())
    cloud.run(120.0)
    assert len(outdated(cloud)) == 4, "and then nothing more"
    assert cloud.cut == 0
    assert replay(cloud.journal) == cloud.memory


def test_no_more_go_at_once_than_the_disruption_budget_allows(stage: Make) -> None:
    cloud = stage(4, SQL, drain=DrainRules(budget=600.0))
    cloud.load(2)
    cloud.want(LAW)
    plans = cloud.run(120.0)
    drains = [a for plan in plans for a in plan.actions if isinstance(a, Drain)]
    assert {a.cause for a in drains if a.node in outdated(cloud)} == {Cause.OUTDATED}
    assert len({a.node for a in drains if a.cause is Cause.OUTDATED}) == 1, "the first still has its requests"
    assert len(outdated(cloud)) == 1


def test_a_changed_source_is_routed_by_its_old_file_until_half_the_nodes_have_the_new_one(
    stage: Make,
) -> None:
    cloud = stage(4, SQL, LAW)
    cloud.want(NEWER, LAW)
    while cloud.holders(NEWER) == 0:
        cloud.turn()
        assert cloud.holders(SQL) + cloud.holders(NEWER) >= 2, "never routed nowhere"
        assert cloud.holders(LAW) >= 4
        assert not cloud.wrong
    assert cloud.holders(SQL) == 0, "all new requests go to the new one at once"
    assert cloud.holders(NEWER) >= 2
    rolled(cloud, NEWER, LAW)


def test_a_name_less_is_routed_at_once_no_more_and_its_nodes_are_replaced_too(stage: Make) -> None:
    cloud = stage(2, SQL, LAW)
    cloud.want(LAW)
    cloud.run(3 * cloud.step)
    assert cloud.holders(SQL) == 0
    rolled(cloud, LAW)
    cloud.want()
    rolled(cloud)
    assert len(outdated(cloud)) == 4


def test_another_order_changes_nothing(stage: Make) -> None:
    cloud = stage(2, SQL, LAW)
    cloud.want(LAW, SQL)
    cloud.run(60.0)
    assert outdated(cloud) == []
    assert not cloud.wrong


def test_what_is_changed_back_stays(stage: Make) -> None:
    cloud = stage(4, SQL, spot_share=0.0, boot=60.0)
    nodes = cloud.alive()
    cloud.want(SQL, LAW)
    cloud.run(2 * cloud.step)
    (node,) = outdated(cloud)
    cloud.want(SQL)
    cloud.run(300.0)
    assert [e.node for e in cloud.journal if isinstance(e, NodeCurrent)] == [node]
    assert node in nodes
    assert cloud.alive() == nodes
    assert len(cloud.active()) == 4


def test_engines_that_start_without_what_they_are_told_replace_no_more_than_one(stage: Make) -> None:
    """A set that no new node has: the others would come no better, and nothing goes round and round."""
    cloud = stage(4, SQL, spot_share=1.0, step=10.0)
    cloud.ignores = True
    cloud.want(SQL, LAW)
    cloud.run(2.0 * AGAIN_AFTER)
    assert len(outdated(cloud)) == 1
    assert len(cloud.active()) == 4
    assert any("though it was launched to have" in note for note in cloud.turn().notes)


def test_engines_that_do_not_start_with_a_set_take_no_node_that_serves(stage: Make) -> None:
    """A file that is missing, or of another model: all go on with what they have, until it is taken back."""
    cloud = stage(4, SQL, spot_share=0.5, step=10.0)
    nodes = cloud.active()
    cloud.fails = True
    cloud.want(SQL, LAW)
    for _ in range(4):
        plans = cloud.run(cloud.pool.health.boot_timeout)
        assert cloud.active() == nodes
        assert cloud.holders(SQL) == 4
        assert not [a for plan in plans for a in plan.actions if isinstance(a, Drain)]
    assert len(cloud.alive()) <= 4 + cloud.pool.limits.surge
    cloud.fails = False
    cloud.want(SQL)
    cloud.run(2 * cloud.pool.health.boot_timeout)
    assert {*nodes} <= {*cloud.active()}
    assert not cloud.wrong


def test_an_engine_that_was_started_again_without_them_is_replaced_once_an_hour(stage: Make) -> None:
    cloud = stage(3, SQL, spot_share=1.0, step=10.0)
    node, other = cloud.active()[:2]
    cloud.files[node] = ()
    cloud.turn()
    assert cloud.routed(node) == []
    rolled(cloud, SQL)
    assert outdated(cloud) == [node]
    cloud.files[other] = ()
    cloud.run(600.0)
    assert outdated(cloud) == [node]
    assert cloud.holders(SQL) == 2
    cloud.run(AGAIN_AFTER)
    assert outdated(cloud) == [node, other]


def test_a_number_that_means_another_file_after_a_restart_is_routed_anew(stage: Make) -> None:
    cloud = stage(2, SQL, LAW)
    node = cloud.active()[0]
    cloud.files[node] = cloud.files[node][::-1]
    cloud.turn()
    cloud.wrong.clear()
    assert {h.name: h.number for h in cloud.targets[node].adapters} == {"sql": 1, "law": 0}
    cloud.run(30.0)
    assert not cloud.wrong
    assert outdated(cloud) == []


def test_it_goes_on_after_a_restart_of_the_daemon_that_brings_the_change(stage: Make) -> None:
    cloud = stage(3, SQL)
    before = cloud.alive()
    cloud.pool = replace(cloud.pool, adapters=rules(LAW))
    cloud.restart()
    rolled(cloud, LAW)
    assert sorted(outdated(cloud)) == sorted(before)


def test_a_pool_that_is_short_of_nodes_replaces_none(stage: Make) -> None:
    cloud = stage(4, SQL, spot_share=1.0)
    for market in Market:
        cloud.set_capacity(market, 0)
    cloud.kill_engine(cloud.active()[0])
    cloud.run(60.0)
    cloud.want(LAW)
    cloud.run(120.0)
    assert outdated(cloud) == []


def test_an_operator_keeps_one(stage: Make) -> None:
    cloud = stage(2, SQL, spot_share=0.0, boot=60.0)
    cloud.want(LAW)
    cloud.turn()
    (node,) = outdated(cloud)
    cloud.operator_undrain(node)
    cloud.run(400.0)
    assert node in cloud.active()
    assert outdated(cloud).count(node) == 1


def test_nothing_goes_while_the_pool_is_paused(stage: Make) -> None:
    cloud = stage(2, SQL)
    cloud.pause()
    cloud.turn()
    cloud.want(LAW)
    cloud.run(60.0)
    assert outdated(cloud) == []


def test_it_is_told_in_words(stage: Make) -> None:
    cloud = stage(1, SQL)
    cloud.want(LAW)
    cloud.turn()
    (event,) = [e for e in cloud.journal if isinstance(e, NodeOutdated)]
    lacks = "its engine lacks law and has /l/sql.gguf"
    assert (
        sentence(event)
        == f"to be replaced: {lacks}; a node that is started with the wanted ones takes its place"
    )
    assert why(cloud.fleet().by_id[event.node], cloud.memory, cloud.now) == f"its adapters: {event.reason}"
