"""The simulated world keeps the contracts of cloud.ports, so that what holds in it means something."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scenarios import place, sales

from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.ports import EngineCommand, LaunchRequest
from cloud.sim.balancer import SimBalancer, TargetTable, Traffic
from cloud.sim.cloud import SimInstances, SimOfferings
from cloud.sim.effects import Moment, Point
from cloud.sim.engine import SimEngine
from cloud.sim.faults import Fault, Rates
from cloud.sim.notices import METADATA, QUEUE, NoticeBoard, SimNotices
from cloud.sim.world import Pace, SimWorld
from orchestrator.simulation.virtual_time import VirtualClock, VirtualTimeLoop, virtual_time
from policies.model import InstanceState, Market, Notice, StandbyKind, TargetPhase, TargetSpec, TargetState

PACE = Pace(
    boot=(10.0, 10.0), load=(20.0, 20.0), start=(5.0, 5.0), reload=(8.0, 8.0), list_lag=(3.0, 3.0),
    latency=(0.01, 0.01),
)  # fmt: skip


class Stage:
    """A world with a daemon's side of everything."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self.loop, self.clock = loop, VirtualClock(loop)
        self.world = SimWorld(self.clock, sales=sales(capacity=2), rng=random.Random(1), pace=PACE)
        self.board = NoticeBoard(self.world)
        self.table = TargetTable(
            "lb", self.world, rng=random.Random(2), traffic=Traffic(per_second=1.0, seconds=(5.0, 5.0))
        )
        self.instances, self.offerings = SimInstances(self.world), SimOfferings(self.world)
        self.balancer, self.engine = SimBalancer(self.table, self.world), SimEngine(self.world)
        self._nature = loop.create_task(self.world.run())

    def request(
        self, token: str, market: Market = Market.SPOT, zone: str = "a", **more: Any
    ) -> LaunchRequest:
        return LaunchRequest(
            token=token, pool="p", placement=place(market, zone), command=EngineCommand(argv=("x",)), **more
        )

    async def at(self, seconds: float) -> None:
        """Wait until so many seconds after the beginning."""
        await self.clock.sleep(max(0.0, seconds - self.loop.time()))

    async def state(self, node: str) -> InstanceState | None:
        return {i.id: i.state for i in await self.instances.list("p", "region")}.get(node)


def on_stage(work: Callable[[Stage], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in a world of its own, on virtual time."""

    def test() -> None:
        with virtual_time(1) as loop:

            async def main() -> None:
                await work(Stage(loop))

            loop.run_until_complete(main())

    test.__name__, test.__doc__ = work.__name__, work.__doc__
    return test


@on_stage
async def test_a_machine_boots_loads_and_ends(stage: Stage) -> None:
    node = await stage.instances.launch(stage.request("t"))
    assert (node.state, node.address) == (InstanceState.PENDING, "")
    assert await stage.state(node.id) is None  # lists lag behind launches
    await stage.at(5.0)
    assert await stage.state(node.id) is InstanceState.PENDING
    await stage.at(11.0)
    (running,) = await stage.instances.list("p", "region")
    assert (running.state, bool(running.address)) == (InstanceState.RUNNING, True)
    reading = await stage.engine.probe(node.id, running.address, None)
    assert (reading.ready, reading.ok, reading.failing_since) == (False, False, reading.at)
    await stage.at(31.0)
    again = await stage.engine.probe(node.id, running.address, reading)
    assert (again.ready, again.ok, again.failing_since) == (True, True, None)
    await stage.instances.terminate(node.id)
    assert await stage.state(node.id) is InstanceState.SHUTTING_DOWN
    gone = await stage.engine.probe(node.id, running.address, again)
    assert (gone.ready, gone.ok, gone.progress) == (True, False, again.progress)
    await stage.at(40.0)
    assert await stage.state(node.id) is InstanceState.TERMINATED
    await stage.instances.terminate(node.id)
    await stage.instances.terminate("i-none")
    await stage.at(40.0 + PACE.listed_after_end)
    assert await stage.state(node.id) is None


@on_stage
async def test_an_engine_that_falls_silent_twice_is_silent_since_the_first_time(stage: Stage) -> None:
    node = await stage.instances.launch(stage.request("t"))
    await stage.at(40.0)
    stage.world.silence(node.id)
    await stage.at(100.0)
    stage.world.silence(node.id)
    machine = stage.world.machines[node.id]
    assert machine.silent_since == machine.quiet_from == stage.clock.epoch + 40.0
    stage.world.revive(node.id)
    assert machine.silent_since is None


@on_stage
async def test_a_token_launches_once_also_when_its_machine_has_ended(stage: Stage) -> None:
    first = await stage.instances.launch(stage.request("t"))
    assert (await stage.instances.launch(stage.request("t"))).id == first.id
    await stage.instances.terminate(first.id)
    again = await stage.instances.launch(stage.request("t"))
    assert (again.id, again.state) == (first.id, InstanceState.SHUTTING_DOWN)
    assert stage.world.launches == 1


@on_stage
async def test_a_machine_that_lists_still_show_is_not_buried(stage: Stage) -> None:
    old = await stage.instances.launch(stage.request("t1"))
    gone = await stage.instances.launch(stage.request("t2", zone="b"))
    await stage.at(100.0)
    await stage.instances.terminate(gone.id)
    await stage.at(10_000.0)
    await stage.instances.terminate(old.id)
    stage.world.bury(before=stage.clock.now() - 7200.0)
    assert [i.id for i in await stage.instances.list("p", "region")] == [old.id]
    assert stage.world.machine(gone.id) is None


@on_stage
async def test_capacity_is_per_placement_and_comes_back(stage: Stage) -> None:
    first = await stage.instances.launch(stage.request("1"))
    await stage.instances.launch(stage.request("2"))
    with pytest.raises(InsufficientCapacity):
        await stage.instances.launch(stage.request("3"))
    await stage.instances.launch(stage.request("4", zone="b"))
    await stage.instances.terminate(first.id)
    await stage.instances.launch(stage.request("3"))
    stage.world.set_capacity(place(Market.SPOT, "c"), 0)
    shown = {
        o.placement: o.available
        for part in stage.offerings.parts()
        for o in (await stage.offerings.list(part)).offerings
    }
    assert shown[place(Market.SPOT, "c")] is False
    assert shown[place(Market.ON_DEMAND, "c")] is True


@on_stage
async def test_what_others_have_takes_no_capacity_away(stage: Stage) -> None:
    for number in range(2):
        stage.world.add(stage.request(f"theirs-{number}"), foreign=True)
    for number in range(2):
        await stage.instances.launch(stage.request(f"ours-{number}"))
    with pytest.raises(InsufficientCapacity):
        await stage.instances.launch(stage.request("one too many"))


@on_stage
async def test_a_stopped_machine_starts_sooner(stage: Stage) -> None:
    request = stage.request("t", Market.ON_DEMAND, standby=StandbyKind.STOPPED)
    node = (await stage.instances.launch(request)).id
    await stage.at(40.0)
    await stage.instances.stop(node)
    assert await stage.state(node) is InstanceState.STOPPING
    await stage.at(50.0)
    assert await stage.state(node) is InstanceState.STOPPED
    await stage.instances.stop(node)
    await stage.instances.start(node)
    await stage.instances.start(node)
    await stage.at(55.0 + 8.0 - 1.0)
    machine = stage.world.machine(node)
    assert machine is not None
    assert machine.state is InstanceState.RUNNING
    assert not machine.able(stage.clock.now())
    await stage.at(55.0 + 8.0 + 1.0)
    assert machine.able(stage.clock.now())
    assert not machine.set_aside
    await stage.instances.stop(node)
    assert machine.set_aside
    await stage.instances.terminate(node)
    for call in (stage.instances.start, stage.instances.stop):
        with pytest.raises(NotFound):
            await call(node)


@on_stage
async def test_a_reclaim_ends_the_machine_and_cuts_its_requests(stage: Stage) -> None:
    node = await stage.instances.launch(stage.request("t"))
    await stage.at(35.0)
    address = stage.world.machines[node.id].address
    await stage.balancer.apply([TargetSpec(id=node.id, address=address)], 1)
    await stage.at(45.0)
    stage.board.reclaim(node.id, after=10.0, notice=None)
    await stage.at(60.0)
    assert await stage.state(node.id) is InstanceState.TERMINATED
    (cut,) = stage.world.cuts
    assert (cut.node, cut.by) == (node.id, "reclaimed")
    assert cut.requests >= 4
    assert stage.table.unserved > 0
    other = await stage.instances.launch(stage.request("o", Market.ON_DEMAND))
    with pytest.raises(ValueError, match="on-demand"):
        stage.world.reclaim(other.id)


@on_stage
async def test_a_lower_generation_is_refused_and_draining_targets_get_nothing_new(stage: Stage) -> None:
    nodes = [await stage.instances.launch(stage.request(str(n))) for n in range(2)]
    await stage.at(35.0)
    specs = [TargetSpec(id=n.id, address=stage.world.machines[n.id].address) for n in nodes]
    await stage.balancer.apply(specs, 5)
    await stage.at(45.0)
    draining = TargetSpec(
        id=specs[0].id, address=specs[0].address, phase=TargetPhase.DRAINING, drain_deadline=stage.clock.now()
    )
    await stage.balancer.apply([draining, specs[1]], 6)
    with pytest.raises(Denied):
        await stage.balancer.apply(specs, 5)
    await stage.at(52.0)
    view = await stage.balancer.observe()
    shown = {t.id: t for t in view.targets}
    assert (shown[specs[0].id].state, shown[specs[0].id].in_flight) == (TargetState.DRAINING, 0)
    assert shown[specs[1].id].state is TargetState.HEALTHY
    assert (shown[specs[1].id].in_flight or 0) >= 4
    before = view.incarnation
    stage.table.restart()
    view = await stage.balancer.observe()
    assert (view.targets, view.generation) == ((), 0)
    assert view.incarnation != before


async def hear(stage: Stage, source: SimNotices, count: int) -> list[Notice]:
    found: list[Notice] = []
    async for notice in source.stream():
        found.append(notice)
        if len(found) == count:
            return found
    return found


@on_stage
async def test_a_queue_tells_again_what_was_not_acknowledged(stage: Stage) -> None:
    node = (await stage.instances.launch(stage.request("t"))).id
    stage.board.reclaim(node, after=120.0, notice=60.0, sources=(QUEUE, METADATA), copies=2)
    source = SimNotices(stage.world, stage.board, QUEUE)
    first, second = await hear(stage, source, 2)
    assert (first.id, first.deadline) == (second.id, stage.world.machines[node].reclaim_at)
    assert stage.loop.time() >= 60.0
    again = SimNotices(stage.world, stage.board, QUEUE)
    assert [n.id for n in await hear(stage, again, 2)] == [first.id, first.id]
    await again.acknowledge(first)
    stage.board.publish("i-later")
    third = SimNotices(stage.world, stage.board, QUEUE)
    assert [n.node for n in await hear(stage, third, 1)] == ["i-later"]
    told = await hear(stage, SimNotices(stage.world, stage.board, METADATA), 2)
    assert {n.confidence for n in told} == {"reported"}


@on_stage
async def test_the_notices_that_wait_come_in_one_batch_or_not_at_all(stage: Stage) -> None:
    """However many are not acknowledged, the newest of them is not further away for it."""
    for number in range(300):
        stage.board.publish(f"i-{number}")
    source = SimNotices(stage.world, stage.board, QUEUE)
    stage.world.faults.arm("stream", Fault.FAILED)
    with pytest.raises(CloudError):
        await hear(stage, source, 1)
    stage.world.faults.rates = Rates(failed=0.1)
    assert len(await hear(stage, source, 300)) == 300


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        (Fault.LOST, Uncertain, True),
        (Fault.REFUSED, InsufficientCapacity, False),
        (Fault.QUOTA, QuotaExceeded, False),
        (Fault.THROTTLED, Throttled, False),
        (Fault.DENIED, Denied, False),
        (Fault.FAILED, CloudError, False),
    ],
)
def test_each_fault_is_its_error(fault: Fault, error: type[CloudError], done: bool) -> None:
    async def work(stage: Stage) -> None:
        stage.world.faults.arm("launch", fault)
        with pytest.raises(error):
            await stage.instances.launch(stage.request("t"))
        assert stage.world.launches == int(done)
        await stage.instances.launch(stage.request("t"))
        assert stage.world.launches == 1

    on_stage(work)()


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.QUOTA])
def test_what_took_effect_before_is_not_refused(fault: Fault) -> None:
    """It asks for nothing more; only whoever is throttled or denied hears nothing of it."""

    async def work(stage: Stage) -> None:
        node = await stage.instances.launch(stage.request("t", standby=StandbyKind.STOPPED))
        stage.world.faults.begin(("launch", "start"), fault)
        assert (await stage.instances.launch(stage.request("t"))).id == node.id
        await stage.at(15.0)
        await stage.instances.start(node.id)
        await stage.instances.stop(node.id)
        with pytest.raises(CloudError):
            await stage.instances.start(node.id)

    on_stage(work)()


@on_stage
async def test_slow_calls_and_stale_lists(stage: Stage) -> None:
    stage.world.faults.arm("any", Fault.SLOW)
    await stage.instances.launch(stage.request("t"))
    assert stage.loop.time() >= stage.world.faults.slow_for
    await stage.at(50.0)
    stage.world.faults.stale_lists = True
    (before,) = await stage.instances.list("p", "region")
    await stage.instances.terminate(before.id)
    assert await stage.instances.list("p", "region") == (before,)
    stage.world.faults.stale_lists = False
    assert await stage.state(before.id) is InstanceState.SHUTTING_DOWN


@on_stage
async def test_rates_hit_their_share_of_calls(stage: Stage) -> None:
    stage.world.faults.rates = Rates(failed=0.3)
    failed = 0
    for _ in range(300):
        try:
            await stage.instances.list("p", "region")
        except CloudError:
            failed += 1
    assert 60 <= failed <= 120  # the seed is fixed; the range says what it must be like


@on_stage
async def test_effects_are_numbered_and_hooked(stage: Stage) -> None:
    reached: list[tuple[int, Moment]] = []

    async def hook(effect: Any, moment: Moment, land: Any) -> None:
        reached.append((effect.number, moment))
        assert (land is not None) == (moment is Moment.BEFORE)

    stage.world.effects.hook = hook
    await stage.instances.launch(stage.request("t"))
    with pytest.raises(NotFound):
        await stage.instances.stop("i-none")
    assert reached == [(n, m) for n in (1, 2) for m in (Moment.BEFORE, Moment.AFTER)]
    assert [str(p) for p in stage.world.effects.points()] == [
        "1:before", "1:after", "1:late", "2:before", "2:after", "2:late",
    ]  # fmt: skip
    assert Point.parse("17:late") == Point(17, Moment.LATE)
    with pytest.raises(ValueError, match="never"):
        Point.parse("1:never")
