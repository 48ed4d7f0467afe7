"""What it costs to record a turn in the journal, and to decide a recorded one again, at 10 to 10,000 nodes.

A steady pool whose readings and requests in flight are other ones in every turn, with node ids as EC2 makes
them. Hold: what the loop itself does between a decision and its deeds. Pack: what the journal's thread does.
Replay: one recorded turn read and decided again. Bytes are per turn once the recording has begun, and per
hour of a quiet pool at the default of one turn a minute, the beginning of an hour's recording included.
CPU time; the median of several turns.

    python bench/record_turn.py [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also under PYTHONSAFEPATH

from decide_turn import NOW, scene

from orchestrator.journal.codec import encode_memory
from orchestrator.journal.turn_codec import Packer, Unpacker, canonical, encode_pool
from orchestrator.journal.turn_log import TurnLog
from orchestrator.loop.recorder import Recorder
from policies.decide import decide, decide_for
from policies.events import NodeReady, NodeSeen, TargetsApplied
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import Instance, Pool, TargetPhase, World

SIZES = (10, 100, 1_000, 10_000)
TURNS_AN_HOUR = 60


def named(nodes: int) -> tuple[Pool, World, Memory]:
    """The scene of the other bench with ids that do not compress, and memory that knows them."""
    pool, world, _ = scene(nodes, adaptive=False, standbys=False)
    rng = random.Random(1)
    names = {i.id: f"i-{rng.getrandbits(68):017x}" for i in world.instances}
    machines = tuple(replace(i, id=names[i.id]) for i in world.instances)
    view = world.balancers["gateway"]
    targets = tuple(replace(t, id=names[t.id]) for t in view.value)
    world = replace(
        world,
        regions={r: replace(view, value=machines) for r, view in world.regions.items()},
        engines={names[n]: replace(r, node=names[n]) for n, r in world.engines.items()},
        balancers={"gateway": replace(view, value=targets)},
    )
    changes = tuple((m.id, TargetPhase.ACTIVE) for m in machines)
    applied = TargetsApplied(at=NOW - 6000.0, balancer="gateway", generation=1, changes=changes)
    memory = reduce(Memory(), *(event for m in machines for event in life(m)), applied)
    return pool, world, memory


def life(machine: Instance) -> tuple[NodeSeen, NodeReady]:
    """A machine was seen and became ready."""
    seen = NodeSeen(
        at=NOW - 7200.0,
        node=machine.id,
        token=machine.token,
        placement=machine.placement,
        launched_at=machine.launched_at,
        price=machine.price,
        address=machine.address,
        standby=None,
    )
    return seen, NodeReady(at=NOW - 7000.0, node=machine.id, address=machine.address)


def later(world: World, turn: int, rng: random.Random) -> World:
    """The world some seconds on: every engine was probed and every balancer asked again."""
    now = NOW + 60.0 * turn + rng.random()
    engines = {
        name: replace(
            reading,
            at=now - 2 * rng.random(),
            running=rng.randint(0, 20),
            progress=float(rng.randint(10**6, 10**8)),
        )
        for name, reading in world.engines.items()
    }
    view = world.balancers["gateway"]
    targets = tuple(replace(t, in_flight=rng.randint(0, 20)) for t in view.value)
    machines = tuple(replace(m) for m in world.instances)  # equal ones, read anew
    return replace(
        world,
        now=now,
        regions={r: replace(view, value=machines, at=now) for r, view in world.regions.items()},
        engines=engines,
        balancers={"gateway": replace(view, value=targets, at=now)},
    )


def measure(nodes: int, turns: int) -> dict[str, Any]:
    pool, world, memory = named(nodes)
    rng, packer, log = random.Random(2), Packer(), TurnLog()
    recorder = Recorder(log, quiet=0.0)
    stored: dict[bytes, bytes] = {}
    spent: dict[str, list[float]] = {"hold": [], "pack": [], "replay": []}
    sizes = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time_ns()
        result = work()
        spent[name].append((time.process_time_ns() - began) / 1e6)
        return result

    for turn in range(turns):
        seen = later(world, turn, rng)
        plan = decide(pool, seen, memory)
        timed("hold", lambda s=seen, p=plan: recorder.decided(pool, s, memory, p, behind=0))  # type: ignore[misc]
        body, parts = timed("pack", lambda s=seen, p=plan: packer.pack(s, p))  # type: ignore[misc]
        stored.update(parts)
        sizes.append(len(body) + sum(map(len, parts.values())))

        def again(body: bytes = body) -> bytes:
            read, _ = Unpacker(stored.get).unpack(body)
            return canonical(decide_for(Fleet.of(pool, read, memory), read, memory))

        if timed("replay", again) != canonical(plan):
            raise RuntimeError("the plan came out otherwise")
    head = len(encode_pool(pool)) + len(zlib.compress(encode_memory(memory), 1))
    each = statistics.median(sizes[1:])
    return {
        "nodes": nodes,
        "hold_us": round(statistics.median(spent["hold"]) * 1000.0, 1),
        "pack_ms": round(statistics.median(spent["pack"]), 3),
        "replay_ms": round(statistics.median(spent["replay"]), 3),
        "bytes_a_turn": round(each),
        "bytes_an_hour": round(head + sizes[0] + each * (TURNS_AN_HOUR - 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 1,000 nodes, fewer turns")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    sizes = SIZES[:3] if options.quick else SIZES
    rows = [measure(nodes, 3 if options.quick else 9) for nodes in sizes]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if options.output == "json":
        print(json.dumps({"machine": machine, "turns": rows}))
        return
    print(machine)
    print(
        f"{'nodes':>6} {'hold µs':>9} {'pack ms':>9} {'replay ms':>10} {'bytes each':>11} {'kB an hour':>11}"
    )
    for row in rows:
        print(
            f"{row['nodes']:>6} {row['hold_us']:>9.1f} {row['pack_ms']:>9.2f} {row['replay_ms']:>10.2f} "
            f"{row['bytes_a_turn']:>11} {row['bytes_an_hour'] / 1000:>11.1f}"
        )


if __name__ == "__main__":
    main()
