"""The scripts that show planted bugs, and what is done to the world for them."""

from __future__ import annotations

import dataclasses
from functools import partial

from scenarios import PACE, Script, bootstrap, config, offer, place

from cloud.ports import EngineCommand, LaunchRequest
from cloud.sim.faults import Fault
from cloud.sim.notices import METADATA
from orchestrator.simulation.simulate import Simulation
from policies.events import OperatorDrained, Paused
from policies.model import Market, NoticeKind


def forget_tokens(sim: Simulation) -> None:
    sim.world.launch = lambda request: sim.world.described(sim.world.add(request))  # type: ignore[method-assign]


async def bootstrap_with_lost_answer(sim: Simulation) -> None:
    sim.world.pace = dataclasses.replace(PACE, list_lag=(8.0, 8.0))
    sim.world.faults.arm("launch", Fault.LOST)
    await bootstrap(sim)


async def beside_another_pool(sim: Simulation) -> None:
    for number in range(5):
        request = LaunchRequest(
            token=f"p/9/{number}",
            pool="another",
            placement=place(Market.SPOT, "a"),
            command=EngineCommand(argv=("sim",)),
        )
        machine = sim.world.add(request)
        machine.visible_at = machine.until = machine.loaded_at = sim.clock.now()
    await bootstrap(sim)


async def steady(sim: Simulation) -> None:
    """A whole pool with nothing to do."""
    sim.furnish()
    sim.boot()
    await sim.settle(steady=60.0)


async def forged_for_all(sim: Simulation) -> None:
    """Every node says that it goes away, and none does."""
    await whole(sim)
    await sim.clock.sleep(10.0)
    for machine in sim.live():
        sim.board.publish(machine.id, deadline=sim.clock.now() + 15.0, sources=(METADATA,))
    await sim.settle()


async def interrupted_on_demand(sim: Simulation) -> None:
    """The cloud says spot interruption of nodes that are no spot nodes."""
    await whole(sim)
    for machine in sim.live(Market.ON_DEMAND):
        sim.board.publish(machine.id, deadline=sim.clock.now() + 60.0)
    await sim.settle()


async def journal_lost(sim: Simulation) -> None:
    await whole(sim)
    assert sim.running is not None
    sim.kill(sim.running)
    sim.lose_journal()
    sim.boot()
    await sim.settle(within=120.0)


async def a_stranger_with_our_tag(sim: Simulation) -> None:
    request = LaunchRequest(
        token="web-7",
        pool=sim.pool.name,
        placement=place(Market.ON_DEMAND, "c"),
        command=EngineCommand(argv=("sim",)),
    )
    machine = sim.world.add(request, foreign=True)
    machine.visible_at = machine.until = machine.loaded_at = sim.clock.now()
    await whole(sim)


async def wrong_clock(sim: Simulation) -> None:
    """The host is an hour ahead of the provider, and its daemon is awake for longer than a boot takes."""
    sim.ahead = 3600.0
    sim.boot()
    await sim.settle()
    await sim.clock.sleep(sim.pool.health.boot_timeout)
    sim.world.terminate(sim.live()[0].id)
    await sim.settle()


async def usurped(sim: Simulation) -> None:
    """A daemon hangs, another is started in its place, and the first wakes up in the middle of a swap."""
    await whole(sim)
    first = sim.running
    assert first is not None
    sim.freeze(first)
    (sim.config.daemon.state_dir / "lease").unlink()
    sim.boot()
    await sim.clock.sleep(10.0)
    sim.thaw(first)
    for machine in sim.live(Market.SPOT):
        sim.board.reclaim(machine.id, after=60.0, notice=60.0)
    await sim.settle(within=300.0)


async def drained_all_at_once(sim: Simulation) -> None:
    """An operator asks for the drain of every on-demand node."""
    await whole(sim)
    for machine in sim.live(Market.ON_DEMAND):
        asked = partial(OperatorDrained, node=machine.id, budget=20.0, reason="maintenance")
        await sim.operate(lambda now, asked=asked: asked(at=now))
    await sim.settle()


async def started_short(sim: Simulation) -> None:
    """From nothing to what the budget holds of what the pools want."""
    sim.boot()
    await sim.clock.sleep(120.0)


async def partitioned(sim: Simulation) -> None:
    """The daemon's host reaches none of the nodes; the balancer does. The only node must stay."""
    await whole(sim)
    sim.checker.faults_on = True
    sim.world.faults.arm("launch", Fault.QUOTA, times=1000)
    sim.world.faults.unreachable |= {m.id for m in sim.live()}
    await sim.clock.sleep(120.0)
    sim.world.faults.unreachable.clear()
    sim.world.faults.disarm("launch")
    sim.checker.faults_on = False
    await sim.settle()


async def balancer_forgets(sim: Simulation) -> None:
    """A drain is acknowledged and forgotten."""
    await whole(sim)
    sim.checker.faults_on = True
    sim.world.faults.forgetful = True
    node = sim.live(Market.ON_DEMAND)[0].id
    deadline = sim.clock.now() + 20.0
    sim.board.publish(node, kind=NoticeKind.MAINTENANCE, deadline=deadline)
    await sim.clock.sleep(90.0)
    sim.world.faults.forgetful = False
    sim.checker.faults_on = False
    await sim.settle()


async def reloaded(sim: Simulation) -> None:
    """Somebody writes a word where a number belongs, and reloads."""
    await whole(sim)
    await offer(sim, lambda: config(sim.config.daemon.state_dir.parent, replicas="many"))
    await sim.settle()


async def whole(sim: Simulation) -> None:
    """A whole pool under a daemon."""
    sim.furnish()
    sim.boot()
    await sim.settle()


async def noticed_on_a_slow_disk(sim: Simulation) -> None:
    """A notice comes while a write of the journal takes seconds."""
    await whole(sim)
    sim.world.faults.slow_disk = 4.0
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
    await sim.clock.sleep(90.0)
    sim.world.faults.slow_disk = 0.0
    await sim.settle()


async def paused(sim: Simulation) -> None:
    """An operator wants hands off, and a node is lost meanwhile."""
    await whole(sim)
    await sim.operate(lambda now: Paused(at=now, by="somebody", reason="maintenance", until=now + 60.0))
    sim.world.terminate(sim.live()[0].id)
    await sim.clock.sleep(70.0)
    await sim.settle()


async def lists_away(sim: Simulation) -> None:
    """A node is noticed when nobody could list machines for longer than a list is good for."""
    await whole(sim)
    end = sim.world.faults.begin(("list",), Fault.FAILED)
    await sim.clock.sleep(sim.pool.patience.stale_after + 10.0)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
    await sim.clock.sleep(30.0)
    end()
    await sim.settle()


async def frozen_when_a_launch_is_decided(sim: Simulation) -> None:
    """The process stands still while it writes a launch down, for longer than a list is good for."""
    await whole(sim)
    sim.world.faults.slow_disk = 4.0
    sim.world.terminate(sim.live()[0].id)
    process = sim.running
    while process is None or (loop := process.loop(sim.pool.name)) is None or not loop.memory.intents:
        await sim.clock.sleep(0.1)
        process = sim.running
    sim.freeze(process)
    await sim.clock.sleep(sim.pool.patience.stale_after + 30.0)
    sim.world.faults.slow_disk = 0.0
    sim.thaw(process)
    await sim.settle()


async def two_noticed(sim: Simulation) -> None:
    """All spot is noticed at once, in good time: one node serves on until its replacement is ready."""
    await whole(sim)
    await sim.clock.sleep(20.0)
    for machine in sim.live(Market.SPOT):
        sim.board.reclaim(machine.id, after=120.0, notice=120.0, sources=sim.sources)
    await sim.settle()


def told_by(source: str) -> Script:
    """One source alone tells that a node is taken away."""

    async def script(sim: Simulation) -> None:
        await whole(sim)
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0, sources=(source,))
        await sim.settle()

    return script


async def lost_while_a_standby_warms_up(sim: Simulation) -> None:
    """A spot node is lost while the machine that is to be a stopped standby still runs."""
    sim.furnish()
    sim.boot()
    while sim.world.launches == 4:
        await sim.clock.sleep(1.0)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=1.0, notice=None)
    await sim.settle()


async def all_lost(sim: Simulation) -> None:
    """Every node is ended by hand, and all have to be launched anew."""
    await whole(sim)
    for machine in sim.live():
        sim.world.terminate(machine.id)
    await sim.settle(within=120.0)


async def a_write_fails(sim: Simulation) -> None:
    """The first write of a target set after a notice fails."""
    await whole(sim)
    sim.world.faults.arm("apply", Fault.FAILED)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
    await sim.settle()


async def given_time(sim: Simulation) -> None:
    """A whole pool for long enough to find its mix."""
    await whole(sim)
    await sim.clock.sleep(240.0)
