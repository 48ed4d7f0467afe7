"""A pool's life over weeks: what the daemon holds must stop growing.

    python tests/simulation/soak.py                  30 simulated days
    python tests/simulation/soak.py --days 12

One daemon runs without a restart while spot nodes are taken every half hour, strangers' notices arrive,
operators drain nodes, zones are sold out for a while. Once a simulated day everything that can be reached
from the daemon is weighed: its own objects, not the simulated world's. What is remembered for a while is all
there after eight days (turns for two, events and intents for five, a number of swaps and of strangers); of
the days after that the later half may hold little more memory than the earlier one. Of a launch the journal
keeps what it cost, one line, and of an hour what every placement cost, for 400 days. Exit code 1 when one
of them grows.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sqlite3
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also under PYTHONSAFEPATH

from jobs import memory_folder, quiet
from scenarios import PACE, ZONES, place, sales

from cloud.sim.balancer import Traffic
from cloud.sim.invariants import Bounds
from orchestrator.config.load import Config, build_config
from orchestrator.metrics import metrics
from orchestrator.simulation.simulate import Simulation
from policies.events import OperatorDrained
from policies.model import Market

DAY = 86_400.0
RECLAIM_EVERY = 1_800.0
SETTLED = 8
"""Days after which memory may not grow any more."""

ALLOWED = 1.10
"""The later half of the settled days over the earlier one: days differ by the nodes that are on their way."""

PER_LAUNCH = 200
"""Bytes that a launch may leave in the journal for good: its line in the ledger."""

PER_HOUR = 800
"""Bytes that an hour may leave in the journal for 400 days: a line for each of six placements, one more."""

WAVE = 0.05
"""Share of the journal by which five days of events differ from the five before, whoever grows."""

STRANGERS = 300
"""Nodes that nobody knows and that got a notice, at the beginning: more than are remembered."""

SLOW = Bounds(track=90.0, forget_target=90.0, see_loss=90.0, settle_calls=180.0)
"""What may be expected of a daemon that looks every half minute."""

_FOREIGN = (
    "cloud.sim",
    "asyncio",
    "_asyncio",
    "orchestrator.simulation.virtual_time",
    "orchestrator.simulation.simulate",
)
_SHARED = (
    types.ModuleType,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    types.FrameType,
)


@dataclass(frozen=True)
class Weight:
    """One day: bytes in memory, bytes in use in the journal, launches so far."""

    day: int
    memory: int
    disk: int
    launches: int


def reachable(roots: Iterable[object]) -> tuple[int, Counter[str]]:
    """Bytes of all that can be reached from `roots`, and by type; code and the simulated world left out."""
    seen: set[int] = set()
    total, by_type = 0, Counter[str]()
    stack = list(roots)
    while stack:
        thing = stack.pop()
        kind = type(thing)
        if id(thing) in seen or isinstance(thing, _SHARED) or kind.__module__.startswith(_FOREIGN):
            continue
        seen.add(id(thing))
        size = sys.getsizeof(thing)
        total += size
        by_type[f"{kind.__module__}.{kind.__qualname__}"] += size
        stack += gc.get_referents(thing)
    return total, by_type


def _config(folder: Path) -> Config:
    """A pool of four that looks every half minute: a day takes seconds."""
    return build_config(
        {
            "daemon": {
                "state_dir": "state", "listen": "off", "tick": 30.0, "poll_instances": 30.0,
                "poll_targets": 30.0, "poll_offerings": 600.0, "probe_interval": 30.0, "probe_timeout": 5.0,
                "record_turns": 3600.0, "keep_turns": 2 * DAY, "keep_events": 5 * DAY,
            },
            "pool": {
                "p": {
                    "replicas": 4,
                    "drain": {"budget": 20.0, "margin": 5.0, "settle": 1.0},
                    "back_to_spot": {"hold": 60.0, "stable": 30.0},
                    "health": {"unhealthy_after": 60.0, "replace_after": 180.0, "boot_timeout": 600.0},
                    "patience": {"stale_after": 120.0, "vanish_grace": 60.0, "effect_timeout": 60.0},
                }
            },
        },
        base=folder,
    )  # fmt: skip


def soak(days: int, seed: int = 1) -> tuple[list[Weight], Counter[str], list[str]]:
    """The weight of every day, the last one's by type, and what else broke."""
    weights: list[Weight] = []
    last: Counter[str] = Counter()

    async def script(sim: Simulation) -> None:
        nonlocal last
        rng = random.Random(seed)
        sim.boot()
        await sim.settle(within=3600.0)
        for number in range(STRANGERS):
            sim.board.publish(f"i-early-{number}", deadline=sim.clock.now() + 120.0)
        for day in range(days):
            end = sim.clock.now() + DAY
            while sim.clock.now() < end:
                await _strike(sim, rng)
                await sim.clock.sleep(rng.uniform(0.5, 1.5) * RECLAIM_EVERY)
            for zone in ZONES:
                sim.world.set_capacity(place(Market.SPOT, zone), 10)
            await sim.settle(within=3600.0)
            sim.world.bury(before=sim.clock.now() - 7200.0)
            memory, last = _weigh(sim)
            disk = _used(sim.config.daemon.state_dir / "journal.db")
            weights.append(Weight(day + 1, memory, disk, sim.world.launches))

    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        sim = Simulation(
            _config(Path(folder)),
            sales=sales(),
            seed=seed,
            pace=PACE,
            traffic=Traffic(per_second=0.01),
            bounds=SLOW,
            longest=(days + 1) * DAY + 7200.0,
        )
        broken = [str(b) for b in sim.run(script).broken]
    return weights, last, broken


async def _strike(sim: Simulation, rng: random.Random) -> None:
    """A reclaim, told or not; now and then an operator, or a notice for a node that nobody knows."""
    spots = [m.id for m in sim.live(Market.SPOT)]
    if spots:
        told = rng.random() < 0.8
        sim.board.reclaim(rng.choice(spots), after=120.0 if told else 1.0, notice=120.0 if told else None)
    if rng.random() < 0.2:
        sim.board.publish(f"i-stranger-{rng.randrange(10**9)}", deadline=sim.clock.now() + 120.0)
    if rng.random() < 0.1 and (nodes := [m.id for m in sim.live(Market.ON_DEMAND)]):
        node = rng.choice(nodes)
        await sim.operate(lambda now: OperatorDrained(at=now, node=node, budget=20.0, reason="soak"))
    if rng.random() < 0.05:
        sim.world.set_capacity(place(Market.SPOT, rng.choice(ZONES)), rng.choice((0, 10)))


def _weigh(sim: Simulation) -> tuple[int, Counter[str]]:
    process = sim.running
    assert process is not None, "the daemon is down"
    gc.collect()
    return reachable([vars(process.daemon), metrics.REGISTRY])


def _used(journal: Path) -> int:
    """Bytes in use in the journal: what was let go of is used again, and the file stays as large."""
    with closing(sqlite3.connect(journal)) as db:
        pages, free, size = (
            int(db.execute(f"PRAGMA {what}").fetchone()[0])
            for what in ("page_count", "freelist_count", "page_size")
        )
    return (pages - free) * size


def grown(weights: Sequence[Weight]) -> tuple[float, float]:
    """Of the settled days: memory of the later half over the earlier, and journal bytes for each launch.

    What the journal grows by within `WAVE`, and `PER_HOUR`, counts as nothing.
    """
    settled = weights[min(SETTLED, len(weights) - 1) :]
    half = max(1, len(settled) // 2)
    earlier, later = (fmean(w.memory for w in days) for days in (settled[:half], settled[-half:]))
    launches = settled[-1].launches - settled[0].launches
    hours = (settled[-1].day - settled[0].day) * 24
    written = settled[-1].disk - (1.0 + WAVE) * settled[0].disk - PER_HOUR * hours
    return later / earlier, max(0.0, written) / launches if launches else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    quiet()
    weights, last, broken = soak(options.days, options.seed)
    memory, per_launch = grown(weights)
    sound = not broken and memory <= ALLOWED and per_launch <= PER_LAUNCH
    if options.output == "json":
        days: list[dict[str, Any]] = [asdict(w) for w in weights]
        growth = {"memory": memory, "journal_bytes_per_launch": per_launch}
        print(json.dumps({"days": days, "growth": growth, "broken": broken, "ok": sound}))
        return not sound
    print("day   memory kB   journal kB   launches")
    for weight in weights:
        print(f"{weight.day:3} {weight.memory // 1000:11,} {weight.disk // 1000:12,} {weight.launches:10,}")
    print(f"memory: later half of the settled days / earlier {memory:.3f}, at most {ALLOWED:g}")
    print(f"journal: beyond {WAVE:.0%}, {per_launch:,.0f} bytes a launch, at most {PER_LAUNCH:,}")
    if memory > ALLOWED:
        print("largest at the end: " + ", ".join(f"{n} {s // 1000} kB" for n, s in last.most_common(12)))
    for line in broken:
        print(line)
    if not sound:
        print(f"again: python tests/simulation/soak.py --days {options.days} --seed {options.seed}")
    return not sound


if __name__ == "__main__":
    sys.exit(main())
