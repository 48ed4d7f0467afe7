"""Time of one turn of the loop by part, at 10 to 10,000 nodes, and what of it grows faster than linear.

A pool in steady state, and the same pool in the turn in which a tenth of its nodes is noticed at once, all of
its spot nodes are, half of its machines are gone without a word, or half of it is wanted no more. The parts
are those of the loop: observe (events into memory, facts, the fleet view), decide (the policies with the
invariants), act (the records that are journalled, and memory with them). I/O is left out. CPU time; the
minimum of several turns, also a node, standbys counted. `--mix adaptive`: the same pool under the adaptive
mix, with the on-demand nodes that it insures itself with, and as many stopped standbys as nodes
(`--standbys 0`: with none). `--compare`: steady pools under both mixes, and what ten times the nodes cost.

    python bench/decide_turn.py [--quick] [--mix adaptive | --compare] [--standbys N] [-o json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.loop.loop import records
from policies import observations
from policies.actions import Drain, Launch, Terminate
from policies.decide import decide_for
from policies.events import (
    DaemonStarted,
    Event,
    NodeReady,
    NodeSeen,
    NoticeSeen,
    PoolConfigured,
    PoolWhole,
    TargetsApplied,
)
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import (
    EVERYWHERE,
    AdaptiveRules,
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Limits,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Offering,
    Placement,
    Pool,
    StandbyKind,
    StandbyRules,
    Target,
    TargetPhase,
    TargetState,
    World,
)

SIZES = (10, 100, 1_000, 10_000)
NOW = 1_000_000.0
_ROUNDS = 40  # of decisions within which a pool must have settled
PRICES = {Market.SPOT: 1.0, Market.ON_DEMAND: 3.0}
ZONES = tuple(f"zone-{letter}" for letter in "abcdef")


def scene(
    nodes: int, *, adaptive: bool, standbys: int, held: Counter[Placement] | None = None
) -> tuple[Pool, World, Memory]:
    """A whole pool: 70 % spot, spread over zones, everything ready and serving, and stopped standbys.

    `held`: how many of its nodes stand where, if not so.
    """
    limits = Limits(surge=max(2, nodes // 5), launches_per_minute=nodes)
    pool = Pool(name="bench", replicas=nodes, limits=limits, standby=StandbyRules(stopped=standbys))
    instances = _standbys(standbys)
    markets = [Market.SPOT] * pool.spot_wanted + [Market.ON_DEMAND] * pool.on_demand_floor
    held = held or Counter(_place(number, market) for number, market in enumerate(markets))
    for number, place in enumerate(sorted(held.elements(), key=lambda p: p.market is Market.ON_DEMAND)):
        instances.append(
            Instance(
                id=f"i-{number:06d}",
                pool="bench",
                token=f"bench/1/{number}",
                placement=place,
                state=InstanceState.RUNNING,
                address=f"10.0.{number // 250}.{number % 250}:8000",
                launched_at=NOW - 7200.0,
                price=PRICES[place.market],
            )
        )
    running = [i for i in instances if i.state is InstanceState.RUNNING]
    offerings = tuple(
        Offering(placement=_place(number, market), price=PRICES[market])
        for number in range(len(ZONES))
        for market in Market
    )
    world = World(
        now=NOW,
        regions={EVERYWHERE: Observed(value=tuple(instances), at=NOW)},
        engines={i.id: EngineReading(node=i.id, at=NOW, ready=True, ok=True, running=3) for i in running},
        balancers={
            "gateway": Observed(
                value=tuple(
                    Target(id=i.id, address=i.address, state=TargetState.HEALTHY, in_flight=3)
                    for i in running
                ),
                at=NOW,
            )
        },
        offerings={"sim": Observed(value=offerings, at=NOW)},
        epoch=1,
    )
    events: list[Event] = [DaemonStarted(at=0.0, epoch=1), PoolConfigured(at=0.0, replicas=nodes)]
    for i in instances:
        events.append(
            NodeSeen(
                at=NOW - 7200.0,
                node=i.id,
                token=i.token,
                placement=i.placement,
                launched_at=i.launched_at,
                price=i.price,
                address=i.address,
                standby=i.standby,
            )
        )
        events.append(NodeReady(at=NOW - 7000.0, node=i.id, address=i.address))
    changes = tuple((i.id, TargetPhase.ACTIVE) for i in running)
    events.append(TargetsApplied(at=NOW - 6000.0, balancer="gateway", generation=1, changes=changes))
    events.append(PoolWhole(at=NOW - 6000.0))
    if adaptive:
        pool = replace(pool, spot_share=1.0, adaptive=AdaptiveRules())
    return pool, world, reduce(Memory(), *events)


def _place(number: int, market: Market) -> Placement:
    return Placement("sim", "r", ZONES[number % len(ZONES)], "gpu", market)


def _standbys(count: int) -> list[Instance]:
    return [
        Instance(
            id=f"s-{number:06d}",
            pool="bench",
            token=f"bench/0/{number}",
            placement=_place(number, Market.ON_DEMAND),
            state=InstanceState.STOPPED,
            address="",
            launched_at=NOW - 7200.0,
            price=PRICES[Market.ON_DEMAND],
            standby=StandbyKind.STOPPED,
        )
        for number in range(count)
    ]


def steady(nodes: int, *, adaptive: bool, standbys: int) -> tuple[Pool, World, Memory]:
    """A scene in which nothing is left to do: the mix that the policies settle on."""
    held: Counter[Placement] | None = None
    for _ in range(_ROUNDS):
        pool, world, memory = scene(nodes, adaptive=adaptive, standbys=standbys, held=held)
        known = reduce(memory, *observations.changes(pool, world, memory))
        fleet = Fleet.of(pool, world, known)
        actions = decide_for(fleet, world, known).actions
        if not actions:
            return pool, world, memory
        held = Counter(n.placement for n in fleet.nodes if n.capacity)
        held.update(a.placement for a in actions if isinstance(a, Launch))
        held.subtract(fleet.by_id[a.node].placement for a in actions if isinstance(a, Drain | Terminate))
    raise SystemExit(f"a pool of {nodes} nodes does not settle: {actions[0]}")


def notices(world: World, share: float) -> tuple[Event, ...]:
    """A notice for the first `share` of the spot nodes."""
    spot = [i for i in world.instances if i.placement.market is Market.SPOT]
    running = sum(i.state is InstanceState.RUNNING for i in world.instances)
    return tuple(
        NoticeSeen(
            at=NOW,
            notice=Notice(
                id=f"n-{i.id}",
                kind=NoticeKind.INTERRUPTION,
                node=i.id,
                deadline=NOW + 120.0,
                source="feed",
                confidence=Confidence.CONFIRMED,
                seen_at=NOW,
            ),
        )
        for i in spot[: max(1, int(running * share))]
    )


def turn(pool: Pool, world: World, memory: Memory, events: Sequence[Event]) -> dict[str, float]:
    """One turn without its I/O; CPU milliseconds by part."""
    spent: dict[str, float] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time_ns()
        result = work()
        spent[name] = (time.process_time_ns() - began) / 1e6
        return result

    def observe() -> tuple[Memory, Fleet]:
        heard = reduce(memory, *events)
        known = reduce(heard, *observations.changes(pool, world, heard))
        return known, Fleet.of(pool, world, known)

    known, fleet = part("observe", observe)
    plan = part("decide", lambda: decide_for(fleet, world, known))
    part("act", lambda: reduce(known, *records(world.now, plan.actions)))
    return spent


def cases(
    nodes: int, *, adaptive: bool = False, standbys: int = 0
) -> list[tuple[str, Pool, World, Memory, Sequence[Event]]]:
    pool, world, memory = steady(nodes, adaptive=adaptive, standbys=standbys)
    ended = tuple(
        replace(machine, state=InstanceState.TERMINATED)
        if number % 2 and machine.state is InstanceState.RUNNING
        else machine
        for number, machine in enumerate(world.instances)
    )
    lost = replace(world, regions={r: replace(view, value=ended) for r, view in world.regions.items()})
    smaller = replace(pool, replicas=max(1, nodes // 2), limits=replace(pool.limits, disruption=1.0))
    fewer = (PoolConfigured(at=NOW, replicas=smaller.replicas), PoolWhole(at=NOW))
    return [
        ("steady", pool, world, memory, ()),
        ("10% noticed", pool, world, memory, notices(world, 0.1)),
        ("spot noticed", pool, world, memory, notices(world, 0.7)),
        ("half lost", pool, lost, memory, ()),
        ("half wanted", smaller, world, memory, fewer),
    ]


def measure(nodes: int, repeat: int, *, adaptive: bool, standbys: int) -> list[dict[str, Any]]:
    rows = []
    for case, pool, world, memory, events in cases(nodes, adaptive=adaptive, standbys=standbys):
        runs = [turn(pool, world, memory, events) for _ in range(repeat)]
        best = {name: min(run[name] for run in runs) for name in runs[0]}
        total = sum(best.values())
        rows.append(
            {
                "nodes": nodes,
                "machines": len(world.instances),
                "case": case,
                "ms": round(total, 3),
                "us_per_node": round(total * 1000.0 / len(world.instances), 2),
                **{f"{name}_share": round(value / total, 3) for name, value in best.items()},
            }
        )
    return rows


def compared(sizes: Sequence[int], repeat: int, standbys: Callable[[int], int]) -> list[dict[str, Any]]:
    """Adaptive pools against 70/30 pools by what a node costs, and against themselves of a tenth the size."""
    rows, smaller = [], dict[str, float]()
    for nodes in sizes:
        fixed = measure(nodes, repeat, adaptive=False, standbys=0)
        adaptive = measure(nodes, repeat, adaptive=True, standbys=standbys(nodes))
        for one, other in zip(adaptive, fixed, strict=True):
            case, before = one["case"], smaller.get(one["case"])
            rows.append(
                {
                    "nodes": nodes,
                    "case": case,
                    "us_per_node": one["us_per_node"],
                    "us_per_node_70_30": other["us_per_node"],
                    "ratio": round(one["us_per_node"] / other["us_per_node"], 2),
                    "growth": None if before is None else round(one["ms"] / before, 1),
                }
            )
            smaller[case] = one["ms"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,000 nodes, fewer turns")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--mix", choices=("70/30", "adaptive"), default="70/30")
    which.add_argument("--compare", action="store_true", help="both mixes, and each size with the one before")
    parser.add_argument("--standbys", type=int, help="stopped standbys; default: none, adaptive: one a node")
    options = parser.parse_args()
    adaptive = options.mix == "adaptive"

    def standbys(nodes: int) -> int:
        if options.standbys is not None:
            return int(options.standbys)
        return nodes if adaptive or options.compare else 0

    sizes, repeat = (SIZES[:3], 3) if options.quick else (SIZES, 7)
    if options.compare:
        rows = compared(sizes, repeat, standbys)
    else:
        rows = [
            row
            for nodes in sizes
            for row in measure(nodes, repeat, adaptive=adaptive, standbys=standbys(nodes))
        ]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if options.output == "json":
        print(json.dumps({"machine": machine, "turns": rows}))
        return
    print(machine)
    (_show_compared if options.compare else _show)(rows)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'nodes':>6}  {'case':<12} {'ms a turn':>10} {'us a node':>10}  observe  decide     act")
    for row in rows:
        shares = "  ".join(f"{row[f'{name}_share']:>6.0%}" for name in ("observe", "decide", "act"))
        print(
            f"{row['nodes']:>6}  {row['case']:<12} {row['ms']:>10.2f} {row['us_per_node']:>10.2f}  {shares}"
        )


def _show_compared(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'nodes':>6}  {'case':<12} {'us a node':>10} {'70/30':>8} {'ratio':>6}  time of a tenth the nodes"
    )
    for row in rows:
        growth = "" if row["growth"] is None else f"x {row['growth']}"
        print(
            f"{row['nodes']:>6}  {row['case']:<12} {row['us_per_node']:>10.2f}"
            f" {row['us_per_node_70_30']:>8.2f} {row['ratio']:>6.2f}  {growth}"
        )


if __name__ == "__main__":
    main()
