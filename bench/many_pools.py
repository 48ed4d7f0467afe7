"""Many pools in one daemon: what a turn costs, memory and calls, and what one pool's trouble does to others.

The daemon runs on the real clock with its real journal and threads; the clouds, engines and balancers are the
simulated ones, whose answers take no time, so that what is measured is the daemon. Then notices come to one
pool after another: first all is well, then the decisions of another pool raise, then another pool's threads
are blocked for good (its list of machines, its target set and the file of it, each waits in a thread). Exits
with 1 when a notice took longer than the limit to leave the balancer while another pool was in trouble.

    python bench/many_pools.py [--pools 10] [--nodes 100] [--seconds 60] [--notices 40] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from cloud.clock import SystemClock
from cloud.ports import EngineSpec
from cloud.sim.balancer import SimBalancer, TargetTable, Traffic
from cloud.sim.cloud import SimInstances, SimOfferings, furnish
from cloud.sim.effects import Effect, Moment
from cloud.sim.engine import SimEngine
from cloud.sim.notices import QUEUE, NoticeBoard, SimNotices
from cloud.sim.world import Pace, Sale, SimWorld
from cloud.threads import WorkerThreads
from orchestrator.config.load import Config, build_config
from orchestrator.daemon.daemon import Daemon
from orchestrator.logs import configure_logging
from orchestrator.loop import loop as loops
from orchestrator.metrics import metrics
from orchestrator.wiring.ports import Ports
from policies.decide import decide_for
from policies.model import Market, Placement, TargetPhase

LIMIT = 0.050  # s from a notice to the balancer while another pool is in trouble
QUICK = {"pools": 4, "nodes": 20, "seconds": 10.0, "notices": 4}
_AT_ONCE = Pace(latency=(0.0, 0.0), list_lag=(0.0, 0.0), tick=0.5)


class Stage:
    """One pool's simulated surroundings."""

    def __init__(self, config: Config, number: int, clock: SystemClock) -> None:
        self.pool = config.wanted
        sales = [
            Sale(placement=Placement("sim", "r", zone, "gpu", market), price=price, capacity=10_000)
            for market, price in ((Market.SPOT, 1.0), (Market.ON_DEMAND, 3.0))
            for zone in "abc"
        ]
        rng = random.Random(number)
        self.world = SimWorld(clock, sales=sales, rng=rng, pace=_AT_ONCE)
        self.board = NoticeBoard(self.world)
        self.table = TargetTable(f"gw-{self.pool.name}", self.world, rng=rng, traffic=Traffic())
        self.engine = SimEngine(self.world, clock)
        self.blocked = WorkerThreads(f"blocked-{self.pool.name}", 8)
        self.left: dict[str, float] = {}  # node -> when its balancer let it go
        self.world.effects.watchers.append(self._look)
        furnish(self.world, self.pool)

    def _look(self, effect: Effect, moment: Moment) -> None:
        if effect.kind == "apply" and moment is Moment.AFTER:
            for node, spec in self.table.targets.items():
                if spec.phase is TargetPhase.DRAINING:
                    self.left.setdefault(node, time.perf_counter())

    def ports(self, clock: SystemClock) -> Ports:
        """What the daemon reaches of it."""
        return Ports(
            instances=SimInstances(self.world),
            offerings=SimOfferings(self.world),
            notices=(SimNotices(self.world, self.board, QUEUE, clock=clock),),
            balancers=(SimBalancer(self.table, self.world),),
            engine=self.engine,
            command=self.engine.command(EngineSpec(model="sim", served_name="sim")),
        )


async def detached(stage: Stage) -> float:
    """Seconds from a notice in a pool to its node being out of the balancer."""
    gets = [n for n, spec in stage.table.targets.items() if spec.phase is TargetPhase.ACTIVE]
    spot = (m.id for m in stage.world.of(stage.pool.name) if m.placement.market is Market.SPOT)
    node = next(node for node in spot if node in gets)
    began = time.perf_counter()
    stage.board.publish(node, deadline=stage.world.clock.now() + 120.0)
    while node not in stage.left:
        await asyncio.sleep(0.001)
        if time.perf_counter() - began > 30.0:
            raise SystemExit(f"{node} was never taken out of its balancer")
    return stage.left[node] - began


async def notices(stages: list[Stage], count: int) -> list[float]:
    """So many notices, one after another, to one pool after another."""
    found = []
    for number in range(count):
        found.append(await detached(stages[number % len(stages)]))
        await asyncio.sleep(0.2)
    return found


def turn_seconds() -> dict[str, tuple[float, float]]:
    """Count and sum of seconds of the turns so far, by part."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for family in metrics.TURN_SECONDS.collect():
        for sample in family.samples:
            if sample.name.endswith(("_count", "_sum")):
                found[sample.labels["part"]][sample.name.endswith("_sum")] += sample.value
    return {part: (values[0], values[1]) for part, values in found.items()}


def calls() -> Counter[str]:
    """Calls on the world so far, by port and operation."""
    found: Counter[str] = Counter()
    for family in metrics.CALLS.collect():
        for sample in family.samples:
            if sample.name.endswith("_total") and sample.value:
                port = sample.labels["port"].partition("-")[0]
                found[f"{port} {sample.labels['operation']}"] += int(sample.value)
    return found


def block(stage: Stage, daemon: Daemon) -> None:
    """From here on every call of this pool waits in a thread that nothing frees."""
    ports = daemon.runs[stage.pool.name].ports
    if ports is None:
        raise SystemExit(f"{stage.pool.name} does not run")

    async def waits(*_: Any, **__: Any) -> Any:
        return await stage.blocked.run(threading.Event().wait)

    for port, names in (
        (ports.instances, ("list", "launch", "terminate")),
        (ports.balancers[0], ("observe", "apply", "detach")),
        (ports.engine, ("probe",)),
    ):
        for name in names:
            if hasattr(port, name):
                setattr(port, name, waits)


def spread(found: list[float]) -> dict[str, float]:
    ordered = sorted(found)
    return {
        "median_ms": round(1e3 * statistics.median(ordered), 2),
        "p95_ms": round(1e3 * ordered[max(0, round(0.95 * len(ordered)) - 1)], 2),
        "longest_ms": round(1e3 * ordered[-1], 2),
    }


async def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    clock, names = SystemClock(), [f"pool-{number}" for number in range(options.pools)]
    settings = {"replicas": options.nodes, "drain": {"min_serving": "0%"}, "limits": {"surge": options.nodes}}
    tables = {name: {**settings, "model": name} for name in names}
    config = build_config({"daemon": {"state_dir": "state", "listen": "off"}, "pool": tables}, base=folder)
    stages = {name: Stage(config.only(name), number, clock) for number, name in enumerate(names)}
    nature = [asyncio.create_task(stage.world.run()) for stage in stages.values()]
    daemon = Daemon(config, clock=clock, listen=False, connect=lambda c, _: stages[c.pool_name].ports(clock))
    bad: set[str] = set()

    def decide(fleet: Any, world: Any, memory: Any) -> Any:
        if fleet.pool.name in bad:
            raise ZeroDivisionError("planted by the bench")
        return decide_for(fleet, world, memory)

    loops.decide_for = decide  # type: ignore[attr-defined]
    await daemon.start()
    while any(len(s.table.targets) < options.nodes for s in stages.values()):  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    await asyncio.sleep(5.0)
    before, made, used, began = turn_seconds(), calls(), time.process_time(), time.perf_counter()
    await asyncio.sleep(options.seconds)
    took, after = time.perf_counter() - began, turn_seconds()
    parts = {p: (after[p][0] - before[p][0], after[p][1] - before[p][1]) for p in after}
    turns = max(1.0, parts["decide"][0])
    result: dict[str, Any] = {
        "pools": options.pools,
        "nodes": options.nodes,
        "turns_per_second": round(turns / took, 2),
        "turn_ms": {p: round(1e3 * seconds / turns, 3) for p, (_, seconds) in parts.items()},
        "cpu_share": round((time.process_time() - used) / took, 3),
        "calls_per_second": {c: round(n / took, 2) for c, n in sorted((calls() - made).items())},
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    well = [stages[name] for name in names[: max(1, options.pools - 2)]]
    result["notice_all_well"] = spread(await notices(well, options.notices))
    bad.add(names[-1])
    result["notice_beside_an_exception"] = spread(await notices(well, options.notices))
    block(stages[names[-2]], daemon)
    await asyncio.sleep(3.0)
    result["notice_beside_blocked_threads"] = spread(await notices(well, options.notices))
    result["down"] = {name: run.why_down() for name, run in daemon.runs.items() if run.why_down()}
    bad.clear()
    for task in nature:
        task.cancel()
    await daemon.stop()
    return result


def main() -> int:
    """Print what was measured; 1 when a notice waited for another pool's trouble."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--notices", type=int, default=40)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    configure_logging("json", "critical")
    with tempfile.TemporaryDirectory(prefix="many-pools-") as folder:
        result = asyncio.run(measure(options, Path(folder)))
    result["machine"] = (
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )
    if options.output == "json":
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    troubled = ("notice_beside_an_exception", "notice_beside_blocked_threads")
    late = [key for key in troubled if result[key]["median_ms"] > 1e3 * LIMIT]
    for key in late:
        print(f"{key}: half of the notices took longer than {1e3 * LIMIT:.0f} ms", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
