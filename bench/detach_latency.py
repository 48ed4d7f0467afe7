"""How long a detach takes: from the call of `apply()` to the gateway's acknowledgement.

A gateway process without load, a target set of the given size, and one change after another: a node is set
to draining, then to active again. After the acknowledgement no request is routed by the old set.

    python bench/detach_latency.py [--pushes 500] [--targets 10] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from gateway_rig import machine

from cloud.balancers.gateway import GatewayBalancer
from cloud.clock import SystemClock
from cloud.errors import Uncertain
from policies.model import TargetPhase, TargetSpec

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 20


def targets(count: int, draining: int | None) -> list[TargetSpec]:
    """A set of this size, one target of it draining. The addresses refuse connections at once."""
    return [
        TargetSpec(
            id=f"i-{number:017x}",
            address=f"127.1.{number // 250}.{number % 250 + 1}:1",
            phase=TargetPhase.DRAINING if number == draining else TargetPhase.ACTIVE,
        )
        for number in range(count)
    ]


async def measure(pushes: int, size: int, directory: Path) -> list[float]:
    """The latencies in seconds."""
    settings = {
        "targets_file": str(directory / "targets.json"),
        "socket": str(directory / "gw.sock"),
        "port": 0,
        "health_interval": 60.0,
    }
    gateway = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "orchestrator.gateway",
        json.dumps(settings),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
    )
    balancer = GatewayBalancer(
        socket=directory / "gw.sock",
        targets_file=directory / "targets.json",
        pool="bench",
        clock=SystemClock(),
    )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    await balancer.observe()
                    break
                except Uncertain:
                    await asyncio.sleep(0.05)
        latencies = []
        for generation in range(1, WARM_UP + pushes + 1):
            wanted = targets(size, 0 if generation % 2 else None)
            start = time.perf_counter()
            await balancer.apply(wanted, generation)
            latencies.append(time.perf_counter() - start)
            await balancer.flush()  # the file of one change must not disturb the next
            await asyncio.sleep(0.002)
        return latencies[WARM_UP:]
    finally:
        await balancer.close()
        gateway.kill()
        await gateway.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pushes", type=int, default=500)
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="50 pushes: shows that it runs, measures little")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gw") as directory:
        latencies = asyncio.run(
            measure(50 if options.quick else options.pushes, options.targets, Path(directory))
        )
    cuts = statistics.quantiles(latencies, n=100)
    rows = {
        "machine": machine(),
        "pushes": len(latencies),
        "targets": options.targets,
        "p50_ms": round(cuts[49] * 1e3, 3),
        "p99_ms": round(cuts[98] * 1e3, 3),
        "max_ms": round(max(latencies) * 1e3, 3),
    }
    if options.output == "json":
        print(json.dumps(rows))
    else:
        print("\n".join(f"{name:10}{value}" for name, value in rows.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
