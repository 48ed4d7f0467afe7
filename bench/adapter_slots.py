"""More adapters than fit: how many requests wait for a load, and for how long, by use and at random.

    python bench/adapter_slots.py [--adapters 200] [--nodes 4] [--slots 32] [--skew 1.0] [--minutes 15]
    python bench/adapter_slots.py --quick

The whole daemon runs on virtual time over a simulated cloud whose engines load an adapter in half a second to
one and a half. Requests for adapters come at `--rate` a second and follow Zipf's law. What is measured begins
after `--warm` minutes. "random" puts adapters on nodes at random: what a request waits for takes the place of
any other. A request is cold when no node could take it as it came; its wait is until one does, to a quarter
of a second.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import structlog

from cloud.sim.balancer import Traffic
from cloud.sim.world import Pace, Sale
from orchestrator.config.load import build_config
from orchestrator.percentile import percentile
from orchestrator.simulation.simulate import Simulation
from policies import adapter_set
from policies.held import AdapterUse
from policies.model import Market, Placement


def at_random(
    wanted: Sequence[str],
    use: Mapping[str, AdapterUse],
    has: Mapping[str, Set[str]],
    *,
    slots: int | None,
    serving: Set[str] = frozenset(),
) -> dict[str, frozenset[str]]:
    """In the place of `policies.adapters.assign`: by chance, whatever is used how much.

    The same chance for the same holdings: decisions are pure.
    """
    room = slots or len(wanted)
    held = {node: {n for n in sorted(has[node]) if n in wanted} for node in sorted(has)}
    waiting = {name for name in wanted if name in use and use[name].waiting}
    rng = random.Random(repr((sorted((n, sorted(names)) for n, names in held.items()), sorted(waiting))))
    for names in held.values():
        while len(names) > room:
            names.remove(rng.choice(sorted(names - waiting) or sorted(names)))
    for name in sorted(waiting):
        nodes = [n for n in held if n in serving] or [*held]
        if nodes and not any(name in held[n] for n in nodes):
            names = held[rng.choice(nodes)]
            if len(names) >= room:
                names.remove(rng.choice(sorted(names - waiting) or sorted(names)))
            names.add(name)
    for names in held.values():
        others = sorted({*wanted} - names)
        names.update(rng.sample(others, k=min(len(others), max(0, room - len(names)))))
    return {node: frozenset(names) for node, names in held.items()}


def simulation(folder: Path, given: argparse.Namespace) -> Simulation:
    """A pool of on-demand nodes that nothing happens to but requests."""
    names = [f"a{number:03d}" for number in range(given.adapters)]
    pool: dict[str, Any] = {
        "replicas": given.nodes,
        "spot_share": 0.0,
        "adapters": {name: f"/lora/{name}" for name in names},
        "adapter_slots": given.slots,
    }
    config = build_config(
        {"daemon": {"state_dir": "state", "listen": "off"}, "pool": {"bench": pool}}, base=folder
    )
    sales = [Sale(placement=Placement("sim", "r", "a", "gpu", Market.ON_DEMAND), price=3.0)]
    return Simulation(
        config,
        sales=sales,
        seed=given.seed,
        pace=Pace(tick=0.25, adapter=(0.5, 1.5)),
        traffic=Traffic(per_second=given.rate, adapters=1.0, skew=given.skew),
        longest=86_400.0,
    )


def measure(given: argparse.Namespace, policy: str) -> dict[str, Any]:
    """One run."""
    found: dict[str, Any] = {"policy": policy}

    async def script(sim: Simulation) -> None:
        traffic = sim.table.adapters
        if traffic is None:
            raise SystemExit("the pool has no adapters")
        sim.furnish()
        sim.boot()
        await sim.clock.sleep(60.0 * given.warm)
        asked, waits, loads = traffic.asked, len(traffic.waits), _loads(sim)
        await sim.clock.sleep(60.0 * given.minutes)
        waited = traffic.waits[waits:]
        found["requests"] = traffic.asked - asked
        found["cold"] = len(waited)
        found["cold_share"] = round(len(waited) / max(1, traffic.asked - asked), 4)
        found["wait_median_s"], found["wait_p95_s"] = percentile(waited, 0.5), percentile(waited, 0.95)
        found["wait_longest_s"] = max(waited, default=0.0)
        found["loads"] = _loads(sim) - loads
        found["missed"] = traffic.missed

    with tempfile.TemporaryDirectory() as folder:
        usual = adapter_set.assign
        if policy == "random":
            adapter_set.assign = at_random
        try:
            outcome = simulation(Path(folder), given).run(script)
        finally:
            adapter_set.assign = usual
    if outcome.broken:
        raise SystemExit(f"{policy}: {outcome.broken[0]}")
    return found


def _loads(sim: Simulation) -> int:
    return sum(effect.kind == "load" for effect in sim.effects.log)


def main() -> None:
    """Measure both and print a line each."""
    known = argparse.ArgumentParser(description="More adapters than fit.")
    known.add_argument("--adapters", type=int, default=200)
    known.add_argument("--nodes", type=int, default=4)
    known.add_argument("--slots", type=int, default=32, help="of each node")
    known.add_argument("--skew", type=float, default=1.0, help="of Zipf's law")
    known.add_argument("--rate", type=float, default=10.0, help="requests a second")
    known.add_argument("--warm", type=float, default=10.0, help="minutes before it is measured")
    known.add_argument("--minutes", type=float, default=15.0)
    known.add_argument("--seed", type=int, default=1)
    known.add_argument("--policies", default="use,random")
    known.add_argument("--quick", action="store_true", help="a fifth of the adapters for two minutes")
    given = known.parse_args()
    if given.quick:
        given.adapters, given.slots, given.warm, given.minutes = 40, 8, 1.0, 2.0
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for policy in given.policies.split(","):
        print(json.dumps(measure(given, policy)), flush=True)


if __name__ == "__main__":
    main()
