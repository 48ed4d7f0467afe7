"""Simulated hours in one CPU-second, at 10, 100 and 1,000 nodes, and what they are spent on.

The whole daemon on virtual time: its loop, observer, actuator, journal and policies at the default pace, in
a simulated cloud with traffic and with the checker on. Calm: a whole pool to which nothing happens. Stormy:
some of the spot nodes are noticed or lost every minute, a share of all calls fails, and the daemon is killed
every two minutes. Beside it the replay behind `orchestrator simulate`, which has no sockets, no journal and
no waiting: the same decisions on a synthetic market. CPU time; the shares are samples of the stack taken in
the same run, by the innermost part of the project that is on it.

    python bench/simulation_speed.py [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from cloud.local.synthetic import SyntheticParameters, synthesise
from cloud.sim.balancer import Traffic
from cloud.sim.faults import Rates
from cloud.sim.world import Sale
from orchestrator.backtest.replay import Decide, replay
from orchestrator.backtest.scenario import cut
from orchestrator.config.load import build_config
from orchestrator.simulation.simulate import Simulation
from policies.model import Limits, Market, Placement, Pool

SIZES = (10, 100, 1000)
CALM_MINUTES = {10: 120.0, 100: 30.0, 1000: 4.0}
STORMY_MINUTES = {10: 60.0, 100: 20.0, 1000: 3.0}
QUICK_SECONDS = {10: 60.0, 100: 20.0, 1000: 4.0}
REPLAYED_DAYS = {10: 14.0, 100: 7.0, 1000: 0.5}
QUICK_DAYS = {10: 1.0, 100: 0.1, 1000: 0.01}

EACH_MINUTE = 0.05
"""Share of the spot nodes that a storm takes every minute, two thirds of them told two minutes before."""

KILLED_EVERY = 120.0

PARTS = (
    ("policies/", "decide"),
    ("orchestrator/loop/loop.py", "loop"),
    ("orchestrator/loop/observer.py", "observe"),
    ("orchestrator/loop/inbox.py", "loop"),
    ("orchestrator/loop/actuator.py", "loop"),
    ("orchestrator/daemon/daemon.py", "start"),
    ("orchestrator/simulation/virtual_time.py", "time"),
    ("orchestrator/simulation/simulate.py", "world"),
    ("orchestrator/", "journal"),
    ("cloud/sim/checker.py", "checker"),
    ("cloud/sim/", "world"),
)
"""Which file belongs to which part, the first that fits."""

ORDER = ("decide", "loop", "observe", "journal", "start", "world", "checker", "time", "other")

_ROOT = str(Path(__file__).parents[1]) + os.sep
_SAMPLE_EVERY = 0.002


class Sampler:
    """Counts which part of the project the CPU is in."""

    def __init__(self) -> None:
        self.parts: Counter[str] = Counter()

    def _take(self, _: int, frame: FrameType | None) -> None:
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(_ROOT):
                file = file[len(_ROOT) :]
                self.parts[next((part for start, part in PARTS if file.startswith(start)), "other")] += 1
                return
            frame = frame.f_back
        self.parts["other"] += 1

    @contextmanager
    def on(self) -> Iterator[None]:
        """Sample while the block runs."""
        before = signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, _SAMPLE_EVERY, _SAMPLE_EVERY)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            signal.signal(signal.SIGPROF, before)

    def shares(self) -> dict[str, float]:
        """The share of each part."""
        total = max(1, self.parts.total())
        return {part: round(self.parts[part] / total, 3) for part in ORDER}


# -- the whole daemon ------------------------------------------------------------------------------


def simulation(folder: Path, nodes: int) -> Simulation:
    """A pool at the default pace, in three zones that sell as many nodes as it wants."""
    config = build_config(
        {
            "daemon": {"state_dir": "state", "listen": "off"},
            "pool": {"bench": {"replicas": nodes, "limits": {"surge": max(2, nodes // 5)}}},
        },
        base=folder,
    )
    sales = [
        Sale(placement=Placement("sim", "region", zone, "gpu", market), price=price, capacity=nodes)
        for zone in "abc"
        for market, price in ((Market.SPOT, 1.0), (Market.ON_DEMAND, 3.0))
    ]
    return Simulation(config, sales=sales, traffic=Traffic(per_second=nodes / 2.0))


async def calm(sim: Simulation, seconds: float) -> None:
    """Nothing happens."""
    await sim.clock.sleep(seconds)


async def stormy(sim: Simulation, seconds: float) -> None:
    """Nodes go, calls fail, the daemon dies."""
    sim.world.faults.rates = Rates(lost=0.02, throttled=0.02, failed=0.02)
    sim.checker.faults_on = True
    rng, end = sim.world.rng, sim.clock.now() + seconds
    killed_at = sim.clock.now()
    while sim.clock.now() < end:
        spots = [m for m in sim.live(Market.SPOT) if m.reclaim_at is None]
        for machine in rng.sample(spots, k=min(len(spots), max(1, round(len(spots) * EACH_MINUTE)))):
            told = rng.random() < 2.0 / 3.0
            sim.board.reclaim(machine.id, after=120.0 if told else 1.0, notice=120.0 if told else None)
        if sim.clock.now() - killed_at >= KILLED_EVERY and sim.running is not None:
            killed_at = sim.clock.now()
            sim.kill(sim.running)
            sim.restart_later()
        await sim.clock.sleep(min(60.0, max(1.0, end - sim.clock.now())))


def daemon(
    nodes: int, case: Callable[[Simulation, float], Awaitable[None]], seconds: float
) -> dict[str, Any]:
    """Measure one case from the moment at which the pool is whole."""
    sampler, spent = Sampler(), 0.0

    async def script(sim: Simulation) -> None:
        nonlocal spent
        sim.furnish()
        sim.boot()
        await sim.settle(within=600.0)
        began = time.process_time()
        with sampler.on():
            await case(sim, seconds)
        spent = time.process_time() - began

    with tempfile.TemporaryDirectory() as folder:
        outcome = simulation(Path(folder), nodes).run(script)
    if outcome.broken:
        raise SystemExit(f"{nodes} nodes, {case.__name__}: {outcome.broken[0]}")
    return {
        "nodes": nodes,
        "what": "daemon",
        "case": case.__name__,
        "simulated_h": round(seconds / 3600.0, 3),
        "cpu_s": round(spent, 3),
        "h_per_cpu_s": round(seconds / 3600.0 / spent, 4),
        "shares": sampler.shares(),
    }


# -- the replay ------------------------------------------------------------------------------------


def replayed(nodes: int, days: float) -> dict[str, Any]:
    """The replay of a market in which a zone can hold a third of the pool and more."""
    market = synthesise(SyntheticParameters(days=days, most=max(4, nodes // 2)), seed=1)
    scenario = cut(market, replicas=nodes)
    pool = Pool(name="bench", replicas=nodes, limits=Limits(surge=nodes, launches_per_minute=nodes))
    sampler = Sampler()
    began = time.process_time()
    with sampler.on():
        replay(scenario, pool, Decide("70/30"), warm_up=0.0)
    spent = time.process_time() - began
    return {
        "nodes": nodes,
        "what": "replay",
        "case": "market",
        "simulated_h": round(scenario.seconds / 3600.0, 3),
        "cpu_s": round(spent, 3),
        "h_per_cpu_s": round(scenario.seconds / 3600.0 / spent, 2),
        "shares": {"decide": sampler.shares()["decide"]},
    }


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """All rows."""
    for nodes in SIZES:
        for case, minutes in ((calm, CALM_MINUTES), (stormy, STORMY_MINUTES)):
            yield daemon(nodes, case, QUICK_SECONDS[nodes] if quick else minutes[nodes] * 60.0)
    for nodes in SIZES:
        yield replayed(nodes, (QUICK_DAYS if quick else REPLAYED_DAYS)[nodes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few simulated seconds of each")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if options.output == "json":
        print(json.dumps({"machine": machine, "rows": list(measure(quick=options.quick))}, indent=2))
        return
    print(f"{machine}, load {os.getloadavg()[0]:.1f}")
    print(f"{'nodes':>6} {'what':7} {'case':7} {'hours':>7} {'CPU-s':>7} {'h/CPU-s':>9}  shares")
    for row in measure(quick=options.quick):
        shares = "  ".join(f"{part} {share:.0%}" for part, share in row["shares"].items() if share >= 0.005)
        name = f"{row['nodes']:>6} {row['what']:7} {row['case']:7}"
        print(
            f"{name} {row['simulated_h']:7.2f} {row['cpu_s']:7.2f} {row['h_per_cpu_s']:9.3f}  {shares}",
            flush=True,
        )


if __name__ == "__main__":
    main()
