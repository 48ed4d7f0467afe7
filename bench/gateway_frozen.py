"""A node that says nothing: how soon its requests go on elsewhere, and that nothing moves too soon.

Two simulated engines and a gateway with default settings, in processes of their own, with plain requests and
streams on both nodes; every answer is judged by its text. Each round does one of two things to a node:

frozen   SIGSTOP for good. Its requests must be at the other node within health_timeout + 2 x health_interval,
         5 s by default; the gateway's own count of what is at a node is asked for every 20 ms.
silent   SIGSTOP for 4 s beside four busy loops, then SIGCONT. Nothing may move: no retry, no continuation,
         no node that counts as unhealthy.

    python bench/gateway_frozen.py
    python bench/gateway_frozen.py --rounds 10 --requests 100
    python bench/gateway_frozen.py --quick -o json

Exit code 1 when a request failed, or stayed longer, or moved in a silence of 4 s.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from gateway_rig import Engine, GatewayRig, machine, progress, reference, running, until
from judged_load import Client, Question, asked, faults, learnt, longest_gap

LIMIT = 5.0
SILENCE = 4.0
MOST_OVERRUN = 0.2
"""Seconds by which a busy machine may prolong a silence; a longer one says nothing and is played again."""

LOOPS = 4
PACE = ("--tokens-per-second", "10", "--time-to-first-token", "0.2", "--max-num-seqs", "512")
TOKENS = 120
COUNTERS = ("retries", "moved", "continuations", "breaker_opened", "streams_cut")


async def measure(
    rounds: int, requests: int, directory: Path, kinds: tuple[str, ...]
) -> list[dict[str, Any]]:
    found = []
    rng = random.Random(1)
    async with reference(directory) as address:
        plain = [asked(number, chat=True, stream=False, tokens=TOKENS) for number in range(16)]
        streams = [asked(number, chat=True, stream=True, tokens=TOKENS) for number in range(16)]
        questions = await learnt(
            address, (each for pair in zip(plain, streams, strict=True) for each in pair)
        )
    load = [questions[number % len(questions)] for number in range(requests)]
    for kind in kinds * rounds:
        row = await anew(directory, kind, load, rng)
        while kind == "silent" and row["silent_s"] > SILENCE + MOST_OVERRUN:
            progress(f"  silent for {row['silent_s']:.2f} s: played again")
            row = await anew(directory, kind, load, rng)
        progress(f"  {row}")
        found.append(row)
    return found


async def anew(directory: Path, kind: str, load: Sequence[Question], rng: random.Random) -> dict[str, Any]:
    """One round with processes of its own."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        async with running(Path(place), 2, PACE) as (rig, engines):
            await asyncio.sleep(rng.uniform(0.0, 1.0))
            return await one(rig, engines[0], kind, load)


async def one(rig: GatewayRig, engine: Engine, kind: str, load: Sequence[Question]) -> dict[str, Any]:
    """One round: load, the signal, the answers."""
    client = Client(rig.url)
    before = await rig.counted(*COUNTERS)
    try:
        for question in load:
            client.send(question)
        watch = Watch(rig, engine.name)

        async def running_all() -> bool:
            await watch.look()
            return watch.active == len(load) and all(
                len(told.reads) > 2 for told in client.told if told.question.stream
            )

        await until("every request runs", running_all)
        held = watch.anew()
        at = time.perf_counter()
        silent = await freeze(engine, watch) if kind == "frozen" else await silence(engine, watch)
        at_node = [told for told in client.told if told.node == engine.name]
        while client.open():  # noqa: ASYNC110 - answers are waited for one by one elsewhere
            await asyncio.sleep(0.1)
        if kind == "frozen":
            engine.thaw()
    finally:
        await client.close()
    after = await rig.counted(*COUNTERS)
    found = faults(client.told)
    gaps = [longest_gap(told, at) for told in at_node if not told.fault]
    return {
        "kind": kind,
        "at_the_node": held,
        "silent_s": round(silent, 3),
        "all_left_after_s": watch.left_after(at),
        "seam_s_p50": round(statistics.median(gaps), 2) if gaps else None,
        "seam_s_max": round(max(gaps), 2) if gaps else None,
        "states": sorted(watch.states),
        "failed": sum(found.values()),
        "faults": dict(found),
        **{name: after[name] - before[name] for name in COUNTERS},
    }


class Watch:
    """What the gateway says of one node, look after look."""

    def __init__(self, rig: GatewayRig, name: str) -> None:
        self._rig = rig
        self._name = name
        self._emptied: float | None = None
        self.states: set[str] = set()
        self.held = self.active = 0

    async def look(self) -> None:
        """Ask once."""
        state = await self._rig.state()
        self.active = sum(row["in_flight"] for row in state["targets"])
        row = next(row for row in state["targets"] if row["id"] == self._name)
        self.held = row["in_flight"]
        self.states.add(row["state"])
        if self.held == 0 and self._emptied is None:
            self._emptied = time.perf_counter()

    def anew(self) -> int:
        """Forget what was seen; how much the node holds."""
        self._emptied = None
        self.states.clear()
        return self.held

    async def during(self, seconds: float) -> None:
        """Look every 20 ms for so long, or until the node holds nothing."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0 and self.held:
            await self.look()
            await asyncio.sleep(min(0.02, left))

    def left_after(self, at: float) -> float | None:
        """Seconds from an instant until the node held nothing; None when it always held something."""
        return None if self._emptied is None else round(self._emptied - at, 2)


async def freeze(engine: Engine, watch: Watch) -> float:
    """Stop it and wait until it holds nothing, at most twenty times the limit; how long it was silent."""
    at = time.perf_counter()
    engine.freeze()
    await watch.during(20 * LIMIT)
    return time.perf_counter() - at


async def silence(engine: Engine, watch: Watch) -> float:
    """Stop it for a while beside busy loops; how long it really was silent."""
    with busy_loops():
        await asyncio.sleep(0.5)
        at = time.perf_counter()
        engine.freeze()
        looking = asyncio.create_task(watch.during(SILENCE + 3.0))
        await asyncio.sleep(SILENCE - (time.perf_counter() - at))
        engine.thaw()
        seconds = time.perf_counter() - at
        await looking
    return seconds


@contextlib.contextmanager
def busy_loops() -> Iterator[None]:
    """Processes that do nothing but use the processor."""
    with contextlib.ExitStack() as ends:
        for _ in range(LOOPS):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            ends.callback(loop.wait)
            ends.callback(loop.kill)
        yield


def missed(row: dict[str, Any]) -> str:
    """What a round did not show; "" for a good one."""
    if row["failed"]:
        return f"{row['failed']} failed"
    if row["kind"] == "frozen":
        late = row["all_left_after_s"] is None or row["all_left_after_s"] > LIMIT
        return f"a request stayed for more than {LIMIT:.0f} s" if late else ""
    moved = [name for name in COUNTERS if row[name]] + [s for s in row["states"] if s != "healthy"]
    return f"in a silence of {SILENCE:.0f} s: {', '.join(moved)}" if moved else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each of the two is done")
    parser.add_argument(
        "--requests", type=int, default=48, help="on both nodes together, half of them streams"
    )
    parser.add_argument("--kinds", nargs="+", choices=("frozen", "silent"), default=("frozen", "silent"))
    parser.add_argument(
        "--quick", action="store_true", help="one silence, to see that it runs; judges nothing"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.requests, options.kinds = 1, 8, ("silent",)
    with tempfile.TemporaryDirectory(prefix="frozen-") as directory:
        rows = asyncio.run(measure(options.rounds, options.requests, Path(directory), tuple(options.kinds)))
    result = {
        "machine": machine(),
        "limit_s": LIMIT,
        "rounds": rows,
        "missed": [*filter(None, map(missed, rows))],
    }
    print(json.dumps(result) if options.output == "json" else table(result))
    return 1 if result["missed"] and not options.quick else 0


def table(result: dict[str, Any]) -> str:
    out = [result["machine"]]
    columns = (
        "kind",
        "at_the_node",
        "silent_s",
        "all_left_after_s",
        "seam_s_p50",
        "seam_s_max",
        *COUNTERS,
        "failed",
    )
    out.append("  ".join(columns))
    out += ["  ".join(f"{row[name]!s:>{len(name)}}" for name in columns) for row in result["rounds"]]
    return "\n".join([*out, *(f"missed: {text}" for text in result["missed"])])


if __name__ == "__main__":
    sys.exit(main())
