"""Requests through a real load balancer while nodes come, drain and go, and the balancer restarts.

    python bench/balancer_rounds.py haproxy [--rounds 100] [--requests 100000] [--clients 16]
    python bench/balancer_rounds.py haproxy envoy nginx smg --quick

The balancer is the program in `.venv-balancers` (make balancers-env), started with the configuration that
`orchestrator balancer example` prints, beside whatever load the machine has. Of ten servers one drains, goes
and comes back in each round, while clients that keep their connections ask. Every tenth round the balancer
is reloaded as its own tools do it where it can be (HAProxy, nginx: the old process finishes what it has), or
killed and started again (Envoy, routers); clients stop for a kill, since nobody serves then. A request failed
when it has no 200, or is answered by a server that had left when it was sent. `drain`: from the call to the
acknowledgement, of one of ten targets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.percentile import percentile  # noqa: E402
from policies.model import TargetPhase, TargetState  # noqa: E402
from tests.support.balancer_programs import PROGRAMS, BalancerProgram, missing  # noqa: E402
from tests.support.named_backends import NamedBackend  # noqa: E402

MUST = ["haproxy", "envoy", "nginx", "smg"]
NODES = 10
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
RESTART_EVERY = 10
PATIENCE = 60.0


class Load:
    """Clients that ask one after the other, and what went wrong."""

    def __init__(self, url: str, path: str) -> None:
        self._url, self._path = url, path
        self.asked = 0
        self.failed: list[str] = []
        self.left: set[str] = set()  # servers that must get nothing any more
        self.going = asyncio.Event()
        self.idle = 0
        self.over = False
        self.where = ""

    async def client(self) -> None:
        """Ask until it is over; wait while `going` is not set."""
        timeout = aiohttp.ClientTimeout(total=30.0)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not self.over:
                if not self.going.is_set():
                    self.idle += 1
                    await self.going.wait()
                    self.idle -= 1
                gone = set(self.left)
                try:
                    async with session.post(self._url + self._path, json=BODY) as answer:
                        text = await answer.text()
                        if answer.status != 200:
                            self.failed.append(f"{self.where}: {answer.status} {text[:80]}")
                        elif (name := str(json.loads(text)["name"])) in gone:
                            self.failed.append(f"{self.where}: answered by {name}, which had left")
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.failed.append(f"{self.where}: {type(error).__name__} {error}")
                self.asked += 1


async def _until(what: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _restart(program: BalancerProgram, load: Load, clients: int) -> str:
    """Reload the balancer under load, or kill it while nobody asks."""
    if await program.reload():
        return "reload"
    load.going.clear()

    async def quiet() -> bool:
        return load.idle == clients

    await _until(quiet)
    await program.stop()
    await program.start()
    return "kill"


async def rounds(kind: str, count: int, requests: int, clients: int) -> dict[str, Any]:
    """Play the rounds; what was asked, what failed, how long drains took."""
    program = PROGRAMS[kind](interval=0.2, fall=3)
    program.check = "check inter 200ms fall 3 rise 1"
    servers = [NamedBackend(f"n{number}") for number in range(NODES)]
    for server in servers:
        await server.start()
    await program.start()
    balancer = program.adapter()
    generation, drains, restarts = 1, list[float](), list[str]()
    now = asyncio.get_running_loop().time

    async def healthy() -> bool:
        states = {t.id: t.state for t in (await balancer.observe()).targets}
        return set(states) == {s.name for s in servers} and set(states.values()) == {TargetState.HEALTHY}

    await balancer.apply([server.spec() for server in servers], generation)
    await _until(healthy)
    load = Load(program.url, "/v1/chat/completions")
    load.going.set()
    tasks = [asyncio.create_task(load.client()) for _ in range(clients)]
    for number in range(count):
        goal = requests * (number + 1) // count
        leaving, rest = servers[number % NODES], [s for s in servers if s is not servers[number % NODES]]
        others = [server.spec() for server in rest]
        load.where = f"round {number}, drain"
        began = now()
        await balancer.apply([leaving.spec(TargetPhase.DRAINING), *others], generation := generation + 1)
        drains.append(now() - began)
        await asyncio.sleep(balancer.capabilities.propagation)
        load.left.add(leaving.name)
        if number % RESTART_EVERY == 1:
            load.where = f"round {number}, restart"
            restarts.append(await _restart(program, load, clients))
            await balancer.apply([leaving.spec(TargetPhase.DRAINING), *others], generation := generation + 1)
            load.going.set()
        load.where = f"round {number}, remove"
        await balancer.apply(others, generation := generation + 1)
        while load.asked < goal - requests // count // 2 and not load.failed:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        load.where = f"round {number}, add"
        load.left.discard(leaving.name)
        await balancer.apply([server.spec() for server in servers], generation := generation + 1)
        while load.asked < goal and not load.failed:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await _until(healthy)
    load.over = True
    await asyncio.gather(*tasks)
    await balancer.close()
    await program.stop()
    program.remove()
    for server in servers:
        await server.stop()
    return {
        "balancer": kind,
        "rounds": count,
        "requests": load.asked,
        "failed": len(load.failed),
        "failures": load.failed[:5],
        "restarts": {word: restarts.count(word) for word in sorted(set(restarts))},
        "drain_ms_p50": _ms(drains, 0.5),
        "drain_ms_p95": _ms(drains, 0.95),
        "servers_asked": sum(server.served > 0 for server in servers),
    }


def _ms(seconds: list[float], share: float) -> float:
    return round(1000 * (percentile(seconds, share) or 0.0), 1)


def main() -> None:
    """Run it for each balancer and print one line of JSON each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("balancers", nargs="*", default=MUST, help="which")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="three rounds with 300 requests")
    parser.add_argument("--output", "-o", choices=["json"], default="json")
    args = parser.parse_args()
    count, requests = (3, 300) if args.quick else (args.rounds, args.requests)
    failed = 0
    for kind in args.balancers:
        if why := missing(*PROGRAMS[kind].programs):
            print(json.dumps({"balancer": kind, "skipped": why}))
            continue
        found = asyncio.run(rounds(kind, count, requests, args.clients))
        failed += found["failed"]
        print(json.dumps(found), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
