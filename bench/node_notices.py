"""How soon the control host hears what a node's metadata say, by cloud, and that systemd stops the machine.

A node agent as a process of its own, a stand-in for the metadata service of each cloud
(tests/support/imds) and the receiver of the daemon. The clock runs from the order to the stand-in, or the
signal of systemd, until the notice is yielded. The agent polls as it does by default: EC2's metadata every
five seconds, Azure's every second, Compute Engine's by a long poll.

    python bench/node_notices.py [--rounds 20] [--cloud gcp] [--quick] [-o json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import structlog.testing
from gateway_rig import machine
from node_bench import Imds, Machine, Served, running_imds

WAYS = ("gcp", "azure", "aws", "shutdown")
LIMITS = {"gcp": 0.5, "azure": 1.5, "shutdown": 1.0}
"""Seconds within which a notice must be heard."""
PATIENCE = 60.0


async def reported(served: Served, machine: Machine) -> None:
    """Wait for the first report."""
    async with asyncio.timeout(PATIENCE):
        while served.receiver.report(machine.id) is None:  # noqa: ASYNC110 - nothing wakes for a report
            await asyncio.sleep(0.02)


async def heard(way: str, imds: Imds, directory: Path, number: int) -> float:
    """Seconds from the word of the cloud, or of systemd, until the receiver yields the notice."""
    cloud = "aws" if way == "shutdown" else way
    served = Served()
    machine = Machine(imds, directory, id=f"{way}-{number}", cloud=cloud)
    usual = ("--interval", "5", "--heartbeat", "10")
    without = ("--cloud", "none", "--node-id", machine.id) if way == "shutdown" else ()
    await served.open()
    try:
        machine.start("--url", served.url, *usual, *without)
        await reported(served, machine)
        await asyncio.sleep(0.5 + 0.37 * (number % 5))  # at any phase of a poll
        began = time.perf_counter()
        if way == "shutdown":
            machine.stop_system()
        else:
            machine.order("interrupt" if cloud == "aws" else "preempt")
        async with asyncio.timeout(PATIENCE), aclosing(served.receiver.stream()) as stream:
            async for _ in stream:
                return time.perf_counter() - began
        raise RuntimeError("the stream ended")
    finally:
        machine.close()
        await served.close()


async def measure(ways: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by the way that the notice takes."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="nn") as directory, running_imds() as imds:
        for number in range(rounds):
            for way in ways:
                found[way].append(await heard(way, imds, Path(directory), number))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cloud", action="append", choices=WAYS, help="only these ways; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one round: shows that it runs, measures little")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    ways = options.cloud or list(WAYS)
    with structlog.testing.capture_logs():
        found = asyncio.run(measure(ways, 1 if options.quick else options.rounds))
    rows = {
        way: {
            "rounds": len(seconds),
            "p50_s": round(statistics.median(seconds), 3),
            "max_s": round(max(seconds), 3),
            "limit_s": LIMITS.get(way),
            "kept": way not in LIMITS or max(seconds) <= LIMITS[way],
        }
        for way, seconds in found.items()
    }
    if options.output == "json":
        print(json.dumps({"machine": machine(), "heard": rows}))
    else:
        print(machine())
        print(f"{'way':10}{'rounds':>8}{'p50 s':>8}{'max s':>8}{'limit':>8}")
        for way, row in rows.items():
            print(f"{way:10}{row['rounds']:8}{row['p50_s']:8}{row['max_s']:8}{row['limit_s'] or '-':>8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
