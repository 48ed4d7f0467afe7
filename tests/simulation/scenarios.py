"""Scenarios: what a simulated pool goes through, each a script that ends with the pool as it is wanted.

Used by the tests, and by `replay.py` to play one of them in a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud.sim.balancer import Traffic
from cloud.sim.effects import Point
from cloud.sim.faults import CLOUD, Fault, buying, within
from cloud.sim.invariants import Bounds
from cloud.sim.numbers import Numbers
from cloud.sim.world import Pace, Sale
from orchestrator.config.load import Config, build_config
from orchestrator.simulation.simulate import Outcome, Simulation, Wrap
from policies.events import OperatorDrained, Resumed
from policies.model import Ending, Market, Placement

ZONES = ("a", "b", "c")
PRICES = {Market.SPOT: 1.0, Market.ON_DEMAND: 3.0}

PACE = Pace(boot=(8.0, 12.0), load=(8.0, 12.0), start=(3.0, 5.0), reload=(4.0, 6.0), list_lag=(0.5, 6.0))
"""Twenty seconds from launch to ready, ten from stopped to ready; lists lag behind a restarted daemon."""


TWO_REGIONS = {"a": "east", "b": "west", "c": "east"}
"""Zones of two regions; elsewhere all are of one."""


def sales(
    capacity: int = 10, kind: str = "gpu", factor: float = 1.0, regions: Mapping[str, str] | None = None
) -> list[Sale]:
    """Three zones that sell both markets, each a little dearer than the one before, in one region or more."""
    return [
        Sale(
            placement=place(market, zone, kind, region=(regions or {}).get(zone, "region")),
            price=PRICES[market] * factor * (1 + 0.1 * number),
            capacity=capacity,
        )
        for number, zone in enumerate(ZONES)
        for market in Market
    ]


def place(market: Market, zone: str, kind: str = "gpu", *, region: str = "region") -> Placement:
    """A placement of the simulated provider."""
    return Placement("sim", region, zone, kind, market)


def place_in(sim: Simulation, market: Market, zone: str) -> Placement:
    """The same in a simulation whose zones may be in several regions."""
    return next(p for p in sim.world.prices if (p.market, p.zone, p.instance_type) == (market, zone, "gpu"))


LOOK = 2.0
"""Seconds between two looks of a daemon at the same thing, where nothing else is said."""


ALB: Mapping[str, Any] = {"budget": 45.0, "margin": 5.0, "settle": 25.0}
"""How a pool drains whose balancer routes for PROPAGATION seconds by what it held before a change."""

PROPAGATION = 20.0


def bounds(look: float, propagation: float = 0.0, longest: float = 8.0) -> Bounds:
    """What may be expected of a daemon that looks every `look` seconds, behind such a balancer, where an
    answer takes `longest` at most."""
    known = Bounds()
    return Bounds(
        track=max(known.track, 3 * look),
        forget_target=max(known.forget_target, 3 * look),
        detach=max(known.detach, 1.5 * look),
        see_loss=max(known.see_loss, 4 * look),
        enter=max(known.enter, 4 * look),
        finish=max(known.finish, longest + 2.0) + propagation,
        told_early=known.told_early + propagation,
    )


def config(
    folder: Path,
    *,
    record_turns: str = "60s",
    look: float = LOOK,
    pools: Sequence[str] = ("p",),
    budget: Mapping[str, Any] | None = None,
    **pool: Any,
) -> Config:
    """A pool of four nodes (two spot, two on-demand) at a pace that keeps runs short, or several of them.

    `budget`: what they share.

    A daemon that looks less often is more patient: one failed look is no finding at any pace.
    """
    tables: dict[str, Any] = {
        "replicas": 4,
        "drain": {"budget": 20.0, "margin": 5.0, "settle": 1.0},
        "back_to_spot": {"hold": 20.0, "stable": 10.0},
        "placement": {"refusal_half_life": 30.0},
        "health": {
            "unhealthy_after": 2.5 * look,
            "replace_after": max(20.0, 6 * look),
            "boot_timeout": 300.0,
        },
        "patience": {
            "stale_after": max(20.0, 4 * look),
            "vanish_grace": max(10.0, 2 * look),
            "effect_timeout": max(20.0, 4 * look),
        },
    }
    return build_config(
        {
            "daemon": {
                "state_dir": "state",
                "listen": "off",
                "tick": look,
                "poll_instances": look,
                "poll_targets": 2 * look,
                "poll_offerings": 60.0,
                "probe_interval": look,
                "record_turns": record_turns,
            },
            "budget": {**(budget or {})},
            "pool": {
                name: {**tables, **pool} | ({"model": name} if len(pools) > 1 else {}) for name in pools
            },
        },
        base=folder,
    )


Script = Callable[[Simulation], Awaitable[None]]


async def bootstrap(sim: Simulation) -> None:
    """From nothing to whole."""
    sim.boot()
    await sim.settle()


async def _furnished(sim: Simulation) -> None:
    sim.furnish()
    sim.boot()
    await sim.settle()
    sim.begin()


async def notice(sim: Simulation) -> None:
    """A notice in good time: the node drains, is replaced, and the pool goes back to its mix."""
    await _furnished(sim)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0, sources=sim.sources, copies=2)
    await sim.settle()


async def restarted_without_prices(sim: Simulation) -> None:
    """The price list is away, the daemon is killed and started again, and half of the nodes are lost."""
    await _furnished(sim)
    sim.world.faults.begin(("offerings",), Fault.DENIED)
    assert sim.running is not None
    sim.kill(sim.running)
    sim.boot()
    for market in Market:
        sim.world.terminate(sim.live(market)[0].id)
    await sim.settle(within=200.0)


async def region_silent(sim: Simulation) -> None:
    """One region answers nothing, and a node in the other is lost: it is replaced there meanwhile."""
    await _furnished(sim)
    end = sim.world.faults.begin(within(CLOUD, "west"), Fault.FAILED)
    await sim.clock.sleep(2 * sim.pool.patience.stale_after)
    lost = next(m for m in sim.live(Market.SPOT) if m.placement.region == "east")
    sim.board.reclaim(lost.id, after=1.0, notice=None)
    try:
        await sim.settle(within=400.0)
    finally:
        end()
    await sim.settle()


async def two_pools(sim: Simulation) -> None:
    """Two pools of one daemon lose a node each at the same time, one with notice and one without."""
    await _furnished(sim)
    for pool, told in zip(sim.pools.values(), (60.0, None), strict=True):
        spot = next(m for m in pool.world.of(pool.pool.name) if m.placement.market is Market.SPOT)
        pool.board.reclaim(spot.id, after=60.0, notice=told, sources=sim.sources)
    await sim.settle()


async def loss(sim: Simulation) -> None:
    """A spot node goes away without a word."""
    await _furnished(sim)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=1.0, notice=None)
    await sim.settle()


async def late_notice(sim: Simulation) -> None:
    """Ten seconds of notice: less than a drain takes."""
    await _furnished(sim)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=10.0)
    await sim.settle()


async def return_to_spot(sim: Simulation) -> None:
    """All spot is taken away and cannot be had for a while; then it comes back."""
    await _furnished(sim)
    spots = sim.live(Market.SPOT)
    for zone in ZONES:
        sim.world.set_capacity(place(Market.SPOT, zone), 0)
    for machine in spots:
        sim.board.reclaim(machine.id, after=45.0, notice=45.0)

    def back() -> None:
        for zone in ZONES:
            sim.world.set_capacity(place(Market.SPOT, zone), 10)

    sim.world.later(60.0, back)
    await sim.settle()


async def operator_drain(sim: Simulation) -> None:
    """An operator drains an on-demand node: its replacement is ready before it leaves."""
    await _furnished(sim)
    node = sim.live(Market.ON_DEMAND)[0].id
    await sim.operate(lambda now: OperatorDrained(at=now, node=node, budget=20.0, reason="maintenance"))
    await sim.settle()
    sim.checker.checked["operator-obeyed"] += 1
    if sim.world.machines[node].live:
        sim.checker.report("operator-obeyed", node, f"{node} was to be drained and still lives")


async def offer(sim: Simulation, load: Callable[[], Config]) -> None:
    """Have the running daemon reload a configuration that it must reject."""
    process = sim.running
    if process is None or process.frozen:
        return
    reloader = process.daemon.reloader
    offered: list[Config] = []

    def loaded() -> Config:
        offered.append(load())
        return offered[-1]

    task = sim.loop.spawn(process.name, reloader.reload(loaded))
    while not task.done() and not process.ended:
        await sim.clock.sleep(0.1)
    if task.done():
        sim.checker.checked["reload"] += 1
        taken = any(reloader.config is config for config in offered)  # others may have reloaded meanwhile
        if task.result()["outcome"] != "rejected" or taken:
            sim.checker.report("reload", process.name, f"{process.name} took up what it must reject")


async def database_away(sim: Simulation) -> None:
    """A pair loses its database in the middle of a swap, and for longer than its lease lasts.

    Meanwhile the replacement becomes ready, one node is noticed in good time, one is lost without a word and
    one falls silent.
    """
    sim.furnish()
    for host in "ab":
        sim.boot(host=host)
    await sim.settle()
    spot = sim.live(Market.SPOT)
    sim.board.reclaim(spot[0].id, after=60.0, notice=60.0, sources=sim.sources)
    await sim.clock.sleep(4.0)
    sim.database.lose()
    await sim.clock.sleep(sim.config.daemon.lease + 1.0)
    sim.board.reclaim(spot[1].id, after=60.0, notice=60.0, sources=sim.sources)
    await sim.clock.sleep(90.0)
    sim.board.reclaim(spot[2].id, after=1.0, notice=None)
    await sim.clock.sleep(60.0)
    sim.database.regain()
    await sim.settle()


async def key_not_granted(sim: Simulation) -> None:
    """Every machine is accepted and ended before it runs, until somebody fixes that and resumes."""
    sim.world.stillborn = dict.fromkeys(Market, Ending.FAULT)
    sim.boot()
    await sim.clock.sleep(60.0)
    if sim.world.launches != sim.pool.health.give_up_after:
        sim.checker.report("in-vain", "launches", f"{sim.world.launches} machines were launched in vain")
    sim.world.stillborn = {}
    await sim.operate(lambda now: Resumed(at=now, by="somebody"))
    await sim.settle()


async def spot_not_allowed(sim: Simulation) -> None:
    """Launches on spot are denied from the start: the on-demand share is built and nothing more, and what is
    lost of it is launched anew, until somebody fixes that and resumes."""
    end = sim.world.faults.begin((buying(Market.SPOT),), Fault.DENIED)
    sim.boot()
    await sim.clock.sleep(40.0)
    sim.world.terminate(sim.live(Market.ON_DEMAND)[0].id)
    await sim.clock.sleep(40.0)
    live = Counter(m.placement.market for m in sim.live())
    if live != Counter({Market.ON_DEMAND: Numbers.of(sim.pool).floor}):
        sim.checker.report("in-vain", "market", f"{dict(live)} live while spot is denied")
    end()
    await sim.operate(lambda now: Resumed(at=now, by="somebody"))
    await sim.settle()


ADAPTERS: Mapping[str, Any] = {"adapters": {name: f"/lora/{name}@1" for name in ("law", "sql", "tex")}}
SWAPPED: Mapping[str, Any] = {"adapters": {**ADAPTERS["adapters"], "sql": "/lora/sql@2"}}


async def adapters(sim: Simulation) -> None:
    """An engine forgets its adapters, a node is reclaimed, and one adapter gets a new revision meanwhile."""
    await _furnished(sim)
    await _equal(sim)
    sim.world.forget_adapters(sim.live(Market.ON_DEMAND)[0].id)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0, sources=sim.sources)
    await sim.clock.sleep(4.0)
    sim.config = config(sim.config.daemon.state_dir.parent, **{**SCENARIOS["adapters"].tables, **SWAPPED})
    wanted = sim.config.only("p").wanted
    while (process := sim.running) is None or process.daemon.reloader.config.only("p").wanted != wanted:
        if process is None or process.ended:
            await sim.clock.sleep(0.5)
            continue
        task = sim.loop.spawn(process.name, process.daemon.reloader.reload(lambda: sim.config))
        while not task.done() and not process.ended:
            await sim.clock.sleep(0.1)
    await sim.settle()
    await _equal(sim)


async def _equal(sim: Simulation, within: float = 200.0) -> None:
    """Wait until every target holds what is configured and nothing else, and is routed for just that."""
    wanted = {adapter.served_as for adapter in sim.config.only("p").wanted.adapters.wanted}
    until = sim.clock.now() + within
    while sim.clock.now() < until:
        await sim.clock.sleep(1.0)
        routed = [{held.served_as for held in spec.adapters} for spec in sim.table.active()]
        held = [sim.world.machines[spec.id].adapters for spec in sim.table.active()]
        if len(held) == sim.pool.replicas and all(names == wanted for names in routed + held):
            return
    sim.checker.report("convergence", "adapters", f"{held} are held and {routed} routed, not {wanted}")


async def stopped_standby(sim: Simulation) -> None:
    """A stopped standby takes over at a notice, and a new one is made."""
    await _furnished(sim)
    sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=60.0, notice=60.0)
    await sim.settle()


MIXED: Mapping[str, Any] = {
    "replicas": 10,
    "spot_share": 0.5,
    "units": {"big": 4},
    "placement": {"spread": 0.0, "refusal_half_life": 30.0},
    "limits": {"spend_per_hour": 36.0},  # six nodes, half of them large
}
"""Ten units, five of them on spot: a node of four and one of one on each market."""


async def mixed_sizes(sim: Simulation) -> None:
    """The large spot node is taken away: a large one covers for it, and a large one comes back."""
    sim.boot()
    await sim.settle()
    sizes = Counter((m.placement.market, m.placement.instance_type) for m in sim.live())
    if sizes != Counter((market, kind) for market in Market for kind in ("gpu", "big")):
        sim.checker.report("convergence", "sizes", f"{dict(sizes)} are not what fits ten units")
    sim.begin()
    large = next(m for m in sim.live(Market.SPOT) if m.placement.instance_type == "big")
    sim.board.reclaim(large.id, after=60.0, notice=60.0, sources=sim.sources)
    await sim.settle()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A script with the pool it is for, and what is sold to it beside machines of one unit.

    `launches` is how many machines it takes, whatever happens; `regions` are those of the zones.
    """

    name: str
    script: Script
    launches: int
    pool: Mapping[str, Any] = field(default_factory=dict)
    sold: tuple[Sale, ...] = ()
    regions: Mapping[str, str] = field(default_factory=dict)
    pools: tuple[str, ...] = ("p",)

    @property
    def tables(self) -> Mapping[str, Any]:
        """The pool's tables. Its spend cap is what six of the dearest nodes cost, and watched."""
        return {"limits": {"spend_per_hour": 21.6}, **self.pool}


SCENARIOS = {
    s.name: s
    for s in (
        Scenario(name="bootstrap", script=bootstrap, launches=4),
        Scenario(name="notice", script=notice, launches=6),
        Scenario(name="loss", script=loss, launches=6),
        Scenario(name="two_pools", script=two_pools, launches=12, pools=("p", "q")),
        Scenario(name="region_silent", script=region_silent, launches=6, regions=TWO_REGIONS),
        Scenario(name="late_notice", script=late_notice, launches=6),
        Scenario(name="return_to_spot", script=return_to_spot, launches=8),
        Scenario(name="key_not_granted", script=key_not_granted, launches=7),
        Scenario(name="spot_not_allowed", script=spot_not_allowed, launches=5),
        Scenario(name="operator_drain", script=operator_drain, launches=5),
        Scenario(name="adapters", script=adapters, launches=6, pool=ADAPTERS),
        Scenario(
            name="stopped_standby", script=stopped_standby, launches=7, pool={"standby": {"stopped": 1}}
        ),
        Scenario(
            name="mixed_sizes",
            script=mixed_sizes,
            launches=6,
            pool=MIXED,
            sold=tuple(sales(kind="big", factor=3.6)),
        ),
    )
}


def play(
    scenario: Scenario, folder: Path, *, seed: int = 1, crash: Point | None = None, wrap: Wrap | None = None
) -> Outcome:
    """One run of a scenario, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Simulation(
        config(folder, pools=scenario.pools, **scenario.tables),
        sales=[*sales(regions=scenario.regions), *scenario.sold],
        seed=seed,
        pace=PACE,
        traffic=Traffic(per_second=2.0, adapters=0.5),
        crash=crash,
        wrap=wrap,
    ).run(scenario.script)
