"""One of two busy nodes is lost: how many requests fail, how many go on elsewhere, and how long that takes.

Two simulated engines and a gateway with default settings, in processes of their own. Every answer is judged
by its text. A node is lost in three ways: its process is killed (kill -9), every connection to it is reset
and new ones too (reset), it says nothing any more while its connections stay (SIGSTOP, silent). No request
may fail.

    python bench/gateway_loss.py
    python bench/gateway_loss.py --in-flight 100 --ways kill silent --shapes stream
    python bench/gateway_loss.py --quick -o json

Exit code 1 when a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from gateway_rig import GatewayRig, Relay, machine, progress, reference, running, until
from judged_load import Client, Question, Told, asked, faults, learnt, longest_gap

from policies.model import TargetSpec

WAYS = ("kill", "reset", "silent")
SHAPES = ("plain", "stream")
PACE = ("--tokens-per-second", "1", "--time-to-first-token", "0.5", "--max-num-seqs", "1024")
TOKENS = 24
COUNTERS = ("retries", "moved", "continuations")


async def lost(directory: Path, shape: str, way: str, in_flight: int) -> dict[str, Any]:
    """Fill two nodes, lose one, wait for every answer."""
    stream = {"stream_options": {"include_usage": True}} if shape == "stream" else {}
    asking = [asked(number, chat=True, stream=bool(stream), tokens=TOKENS, **stream) for number in range(32)]
    async with reference(directory) as address:
        questions = await learnt(address, asking)
    async with running(directory, 2, PACE) as (rig, engines):
        relay = Relay(engines[0].port)
        await relay.start()
        client = Client(rig.url)
        try:
            if way == "reset":
                await rig.apply([_spec("n0", relay.address), _spec("n1", engines[1].address)])
            held = await fill(rig, client, questions, 2 * in_flight)
            at = time.perf_counter()
            if way == "kill":
                await engines[0].kill()
            elif way == "reset":
                relay.cut()
            else:
                engines[0].freeze()
            await until_answered(client)
            counted = await rig.counted(*COUNTERS)
        finally:
            await client.close()
            await relay.close()
    return row(client.told, at, held) | {"shape": shape, "way": way, **counted}


def _spec(name: str, address: str) -> TargetSpec:
    return TargetSpec(id=name, address=address)


async def fill(rig: GatewayRig, client: Client, questions: Sequence[Question], count: int) -> int:
    """Send so many requests and wait until all are at a node; how many are at the first."""
    for number in range(count):
        client.send(questions[number % len(questions)])
        if number % 32 == 31:
            await asyncio.sleep(0.02)
    held = {}

    async def all_there() -> bool:
        held.update({row["id"]: row["in_flight"] for row in (await rig.state())["targets"]})
        begun = all(len(told.reads) > 1 for told in client.told if told.question.stream)
        return sum(held.values()) == count and begun

    await until("every request is at a node", all_there)
    return int(held["n0"])


async def until_answered(client: Client) -> None:
    while left := len(client.open()):
        progress(f"  {left} of {len(client.told)} not answered")
        await asyncio.sleep(2.0)


def row(told: Sequence[Told], at: float, held: int) -> dict[str, Any]:
    found = faults(told)
    times = [each.seconds for each in told]
    streams = [each for each in told if each.question.stream and each.node == "n0"]
    gaps = [longest_gap(each, at) for each in streams if not each.fault]
    return {
        "requests": len(told),
        "on_the_lost_node": held,
        "failed": sum(found.values()),
        "faults": dict(found),
        "continued": sum(1 for each in told if each.seams),
        "seconds_p50": round(statistics.median(times), 2),
        "seconds_max": round(max(times), 2),
        "seam_s_p50": round(statistics.median(gaps), 2) if gaps else None,
        "seam_s_max": round(max(gaps), 2) if gaps else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--in-flight", type=int, default=512, help="requests on each node")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="how the node is lost")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, help="of the requests")
    parser.add_argument("--quick", action="store_true", help="16 plain requests on each node, killed once")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.quick:
        options.in_flight, options.ways, options.shapes = 16, ("kill",), ("plain",)
    rows = []
    for shape in options.shapes:
        for way in options.ways:
            progress(f"{shape}, {way}: {options.in_flight} in flight on each of two nodes")
            with tempfile.TemporaryDirectory(prefix="loss-") as directory:
                rows.append(asyncio.run(lost(Path(directory), shape, way, options.in_flight)))
    result = {"machine": machine(), "rows": rows, "failed": sum(row["failed"] for row in rows)}
    print(json.dumps(result) if options.output == "json" else table(result))
    return 1 if result["failed"] else 0


def table(result: dict[str, Any]) -> str:
    out = [result["machine"]]
    columns = ("shape", "way", "requests", "on_the_lost_node", "failed", *COUNTERS, "continued")
    columns += ("seconds_p50", "seconds_max", "seam_s_p50", "seam_s_max")
    out.append("  ".join(columns))
    for row in result["rows"]:
        out.append("  ".join(f"{'-' if row[name] is None else row[name]!s:>{len(name)}}" for name in columns))
        out += [f"    {count} x {fault}" for fault, count in row["faults"].items()]
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(main())
