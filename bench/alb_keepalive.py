"""How many requests an Application Load Balancer loses to engines that close idle connections before it does.

    python bench/alb_keepalive.py [--requests 10000] [--clients 500] [--distance 0.001] [--quick]

A stand-in of the balancer (tests/support/aws_shim/alb.py) with its idle timeout of 60 s before three
simulated engines, each a process. They keep idle connections for 5 s, as vLLM does by itself, and then for as
long as engines are started with. Requests come in waves, in which each needs a connection of its own to an
engine, and these were idle for about 5 s: the pause between two waves is that less the time by which the
wave before was drawn out. The balancer hears of the end of a connection a millisecond late, as over a network
(`--distance`). Takes about three minutes for each of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from alb_load import balancer, engines, wave
from gateway_rig import machine, progress

from cloud.engines.keep_alive import ENGINES_OWN, KEEP_ALIVE, environment
from cloud.ports import EngineSpec

_ENGINES = 3
_ANSWER = 1.0  # s; longer than a wave takes to be sent
_IDLE_TIMEOUT = 60.0
_SPREAD = 0.1  # s within which the clients of a wave ask


async def lost(variables: Mapping[str, str], options: argparse.Namespace) -> tuple[Counter[int], int]:
    """Answers by status, and how many requests went over a connection that had served before."""
    chance, found = random.Random(options.seed), Counter[int]()
    loop = asyncio.get_running_loop()
    async with (
        engines(_ENGINES, _ANSWER, variables) as ports,
        balancer(ports, _IDLE_TIMEOUT, options.distance) as (alb, port),
    ):
        while found.total() < options.requests:
            began = loop.time()
            found += await wave(port, options.clients, _SPREAD, chance)
            drawn_out = loop.time() - began - _ANSWER
            progress(
                f"keep-alive {variables[KEEP_ALIVE]} s: {found.total()} requests, {found[502]} times 502"
            )
            await asyncio.sleep(float(ENGINES_OWN) - drawn_out)
        return found, alb.reused


async def main(options: argparse.Namespace) -> None:
    print(f"{_ENGINES} engines, idle timeout of the balancer {_IDLE_TIMEOUT:g} s; {machine()}")
    print("| engines keep idle connections for | requests | on reused connections | 502 | other failures |")
    print("|---|---|---|---|---|")
    for variables in ({KEEP_ALIVE: ENGINES_OWN}, environment(EngineSpec(model="m", served_name="m"))):
        found, reused = await lost(variables, options)
        others = found.total() - found[200] - found[502]
        print(
            f"| {variables[KEEP_ALIVE]} s | {found.total()} | {reused} | {found[502]} | {others} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument(
        "--distance", type=float, default=0.001, help="s until the end of a connection is heard"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two waves of 50: shows that it runs")
    given = parser.parse_args()
    if given.quick:
        given.requests, given.clients = 100, 50
    asyncio.run(main(given))
