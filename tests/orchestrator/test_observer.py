"""Every part of the world is looked at on its own, with a deadline; a failure shows as an age."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from cloud.errors import CloudError, Throttled
from cloud.ports import BalancerView, Capabilities, Clock
from orchestrator.observer import Observer, Pace
from policies.model import (
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Offering,
    Placement,
    Target,
    TargetState,
    World,
)

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]

pytestmark = pytest.mark.usefixtures("quiet")

PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)


def machine(node: str, state: InstanceState = InstanceState.RUNNING, address: str = "") -> Instance:
    return Instance(
        id=node,
        pool="p",
        token=f"p/1/{int.from_bytes(node.encode(), 'big')}",
        placement=PLACE,
        state=state,
        address=address or f"{node}:1",
        launched_at=1.0,
        price=1.0,
    )


@dataclass
class Port:
    """Every port at once. Each part takes `takes` seconds, hangs, fails, or answers."""

    clock: Clock
    name: str = "gw"
    capabilities: Any = None
    machines: list[Instance] = field(default_factory=list)
    offerings: tuple[Offering, ...] = (Offering(placement=PLACE, price=1.0),)
    targets: tuple[Target, ...] = ()
    fails: dict[str, BaseException] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    looks: list[tuple[str, float]] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    probes: list[tuple[str, str]] = field(default_factory=list)
    probing: int = 0
    most_probing: int = 0

    async def _look(self, part: str) -> None:
        self.looks.append((part, self.clock.now()))
        await self.clock.sleep(1e9 if part in self.hangs else 0.1)
        if part in self.fails:
            raise self.fails[part]

    async def list(self, pool: str = "") -> Any:
        part = "instances" if pool else "offerings"
        await self._look(part)
        return tuple(self.machines) if pool else self.offerings

    async def observe(self) -> BalancerView:
        await self._look("targets")
        return BalancerView(incarnation="one", generation=1, targets=self.targets)

    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        self.probes.append((node, address))
        self.probing += 1
        self.most_probing = max(self.most_probing, self.probing)
        await self.clock.sleep(0.05)
        self.probing -= 1
        if f"crash {node}" in self.fails:
            raise self.fails[f"crash {node}"]
        ok = node not in self.silent
        since = None
        if not ok:
            since = (
                previous.failing_since
                if previous is not None and previous.failing_since
                else self.clock.now()
            )
        return EngineReading(node=node, at=self.clock.now(), ready=True, ok=ok, failing_since=since)


class Watch:
    """An observer at work, its port, and how often it woke the loop."""

    def __init__(self, clock: Clock, **pace: Any) -> None:
        self.clock = clock
        self.port = Port(
            clock, capabilities=Capabilities(drains=True, counts_in_flight=True, propagation=0.0)
        )
        self.woken = 0
        self.condemned: dict[str, str] = {}
        self.observer = Observer(
            pool="p",
            clock=clock,
            instances=self.port,  # type: ignore[arg-type]
            offerings=self.port,  # type: ignore[arg-type]
            balancers=(self.port,),  # type: ignore[arg-type]
            engine=self.port,  # type: ignore[arg-type]
            pace=Pace(**{"instances": 5.0, "offerings": 60.0, "targets": 5.0, "engines": 2.0, **pace}),
            wake=self.wake,
            condemned=lambda node: self.condemned.get(node, ""),
        )
        self.tasks = [asyncio.ensure_future(t) for t in self.observer.tasks().values()]

    def wake(self) -> None:
        self.woken += 1

    def world(self) -> World:
        return self.observer.world(durable=True, leading=True, epoch=3)

    def looks(self, part: str) -> int:
        return sum(p == part for p, _ in self.port.looks)


def watch(play: Play, work: Callable[[Watch], Awaitable[Any]], **pace: Any) -> Any:
    async def whole(clock: Clock) -> Any:
        watching = Watch(clock, **pace)
        try:
            return await work(watching)
        finally:
            for task in watching.tasks:
                task.cancel()
            await watching.observer.stop()

    return play(whole)


def test_nothing_was_seen_before_the_first_answer(play: Play) -> None:
    async def work(w: Watch) -> None:
        world = w.world()
        parts = (world.instances, world.offerings, world.balancers["gw"])
        assert [part.at for part in parts] == [None, None, None]
        assert all(part.age(world.now) == math.inf for part in parts)
        await w.clock.sleep(1.0)
        world = w.world()
        assert world.instances.age(world.now) == pytest.approx(1.0)  # as old as the question, not the answer
        assert world.offerings.value == w.port.offerings
        assert (world.durable, world.leading, world.epoch) == (True, True, 3)
        assert w.woken

    watch(play, work)


@pytest.mark.parametrize("error", [Throttled("slow down"), CloudError("what")])
def test_a_failed_look_keeps_the_value_and_shows_its_age_and_reason(play: Play, error: CloudError) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a")]
        await w.clock.sleep(1.0)
        w.port.fails = {"instances": error}
        await w.clock.sleep(30.0)
        found = w.world().instances
        assert [i.id for i in found.value] == ["a"]
        assert found.age(w.clock.now()) > 24.0
        assert found.error == str(error)
        assert not w.world().balancers["gw"].error
        w.port.fails = {}
        await w.clock.sleep(2.0)
        assert w.world().instances.error == ""
        assert w.world().instances.age(w.clock.now()) < 3.0

    watch(play, work)


def test_a_look_that_hangs_has_a_deadline_and_holds_up_no_other(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.hangs = {"instances"}
        await w.clock.sleep(31.0)
        world = w.world()
        assert world.instances.at is None
        assert world.instances.error == "no answer within 10 s"
        assert world.balancers["gw"].age(world.now) < 6.0
        w.port.hangs = set()
        await w.clock.sleep(12.0)
        assert w.world().instances.at is not None

    watch(play, work)


def test_in_a_hurry_instances_and_targets_are_looked_at_quickly_and_offerings_are_not(play: Play) -> None:
    async def work(w: Watch) -> None:
        await w.clock.sleep(10.0)
        before = {part: w.looks(part) for part in ("instances", "targets", "offerings")}
        w.observer.hurry(on=True)
        await w.clock.sleep(10.0)
        after = {part: w.looks(part) for part in before}
        assert after["instances"] - before["instances"] > 20
        assert after["targets"] - before["targets"] > 20
        assert after["offerings"] == before["offerings"]
        w.observer.hurry(on=False)
        await w.clock.sleep(1.0)
        calm = w.looks("instances")
        await w.clock.sleep(50.0)
        assert w.looks("instances") - calm <= 11

    watch(play, work)


def test_only_changes_wake_the_loop(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a")]
        await w.clock.sleep(20.0)
        before = w.woken
        await w.clock.sleep(100.0)
        assert w.woken == before
        w.port.machines = [machine("a"), machine("b", InstanceState.PENDING)]
        await w.clock.sleep(6.0)
        assert w.woken > before
        before = w.woken
        w.port.targets = (Target(id="a", address="a:1", state=TargetState.HEALTHY),)
        await w.clock.sleep(6.0)
        assert w.woken > before
        before = w.woken
        w.port.silent = {"a"}
        await w.clock.sleep(3.0)
        assert w.woken == before + 1  # the edge, and not every failed probe
        await w.clock.sleep(20.0)
        assert w.woken == before + 1

    watch(play, work)


def test_engines_of_running_machines_with_an_address_are_probed(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [
            machine("a"),
            machine("b", InstanceState.PENDING),
            replace(machine("c"), address=""),
            machine("d", InstanceState.STOPPED),
        ]
        await w.clock.sleep(7.0)
        assert set(w.world().engines) == {"a"}
        w.port.machines[1] = machine("b")
        await w.clock.sleep(7.0)
        assert set(w.world().engines) == {"a", "b"}
        w.port.machines[0] = machine("a", InstanceState.SHUTTING_DOWN)
        await w.clock.sleep(7.0)
        assert set(w.world().engines) == {"b"}
        before = len(w.port.probes)
        await w.clock.sleep(10.0)
        assert {node for node, _ in w.port.probes[before:]} == {"b"}

    watch(play, work)


def test_a_list_that_omits_a_node_does_not_end_its_probes_while_it_answers(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a"), machine("b")]
        await w.clock.sleep(7.0)
        w.port.machines = []
        await w.clock.sleep(60.0)
        engines = w.world().engines
        assert all(engines[n].ok and engines[n].at > w.clock.now() - 3.0 for n in ("a", "b"))
        w.port.silent = {"a"}
        await w.clock.sleep(10.0)
        assert set(w.world().engines) == {"b"}
        await w.clock.sleep(700.0)
        assert w.world().engines == {}  # not for ever

    watch(play, work)


def test_a_new_address_is_probed_anew(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a", address="old:1")]
        await w.clock.sleep(7.0)
        w.port.machines = [machine("a", address="new:1")]
        await w.clock.sleep(7.0)
        before = len(w.port.probes)
        await w.clock.sleep(7.0)
        assert {address for _, address in w.port.probes[before:]} == {"new:1"}

    watch(play, work)


def test_a_probe_that_crashes_is_begun_again(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a"), machine("b")]
        w.port.fails = {"crash a": RuntimeError("a bug")}
        await w.clock.sleep(20.0)
        assert set(w.world().engines) == {"b"}
        w.port.fails = {}
        await w.clock.sleep(10.0)
        assert set(w.world().engines) == {"a", "b"}

    watch(play, work)


def test_probes_are_bounded(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine(f"n{i}") for i in range(100)]
        await w.clock.sleep(20.0)
        assert len(w.world().engines) == 100
        assert w.port.most_probing == 8

    watch(play, work, probe_concurrency=8)


def test_a_world_is_a_snapshot(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a")]
        await w.clock.sleep(7.0)
        world = w.world()
        seen = dict(world.engines)
        await w.clock.sleep(30.0)
        assert dict(world.engines) == seen

    watch(play, work)


def test_a_node_that_is_condemned_counts_as_silent_however_well_its_engine_answers(play: Play) -> None:
    async def work(w: Watch) -> None:
        w.port.machines = [machine("a"), machine("b")]
        await w.clock.sleep(10.0)
        assert w.world().engines["a"].ok
        w.condemned["a"] = "Xid 79: the GPU has fallen off the bus"
        woken, at = w.woken, w.clock.now()
        await w.clock.sleep(30.0)
        found = w.world().engines["a"]
        assert (found.ok, found.ready, found.failure) == (False, True, w.condemned["a"])
        assert found.failing_since is not None
        assert at <= found.failing_since <= at + 3.0  # since it was first heard of, not since the last probe
        assert w.woken > woken
        assert w.world().engines["b"].ok

    watch(play, work)
