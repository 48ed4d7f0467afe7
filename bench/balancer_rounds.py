"""Requests through a real load balancer while nodes come, drain and go, and the balancer is started anew.

    python bench/balancer_rounds.py haproxy [--rounds 100] [--requests 100000] [--clients 16]
    python bench/balancer_rounds.py haproxy envoy nginx smg --quick

The balancer is the program in `.venv-balancers` (make balancers-env), started with the configuration that
`orchestrator balancer example` prints. Ten of twenty servers are its targets. In each round the one that was
there longest drains and goes, and the one that was away longest comes, while clients that keep their
connections ask, from a process of their own. Every tenth round the balancer is started anew under these
requests, by its own tools: reload (HAProxy), hot restart (Envoy), upgrade of the binary (nginx). Every tenth
round it is killed and started, and so is twice as often what has no such way (routers): clients wait
meanwhile, since nobody serves them. A request failed when it has no 200, or is answered by a server that had
left when it was sent.

`drain`: from the call to the acknowledgement, of one of ten targets; `quiet` before there are any clients,
`busy` under their requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from gateway_rig import machine  # noqa: E402

from orchestrator.percentile import percentile  # noqa: E402
from policies.model import TargetPhase, TargetSpec, TargetState  # noqa: E402
from policies.value import replace  # noqa: E402
from tests.support.balancer_load import Load, load  # noqa: E402
from tests.support.balancer_programs import PROGRAMS, BalancerProgram, missing  # noqa: E402

MUST = ["haproxy", "envoy", "nginx", "smg"]
NODES = 10
SPARE = 10
RESTART_EVERY = 10
QUIET = 30
PATIENCE = 60.0


class Rounds:
    """One balancer, the targets that it has and those that are away, and the load on it."""

    def __init__(self, program: BalancerProgram, load: Load) -> None:
        self.program, self.load = program, load
        self.balancer = program.adapter()
        self.here, self.away = deque[TargetSpec](), deque[TargetSpec]()
        self.generation = 0
        self.restarts: list[str] = []

    async def begin(self) -> None:
        """Ten targets that take requests."""
        names = [f"n{number}" for number in range(NODES + SPARE)]
        addresses = (await self.load.ask("serve", names=names))["addresses"]
        specs = [TargetSpec(id=name, address=address) for name, address in addresses.items()]
        self.here, self.away = deque(specs[:NODES]), deque(specs[NODES:])
        await self.program.start()
        await self.apply(self.here)
        await self.healthy()

    async def apply(self, targets: Any) -> float:
        """Give the balancer a set; seconds to the acknowledgement."""
        self.generation += 1
        now = asyncio.get_running_loop().time
        began = now()
        await self.balancer.apply([*targets], self.generation)
        return now() - began

    async def healthy(self) -> None:
        """Wait until every target takes requests, and no other is there."""
        wanted = {spec.id for spec in self.here}
        async with asyncio.timeout(PATIENCE):
            while True:
                shown = {t.id: t.state for t in (await self.balancer.observe()).targets}
                if set(shown) == wanted and set(shown.values()) == {TargetState.HEALTHY}:
                    return
                await asyncio.sleep(0.01)

    async def drain(self, word: str) -> float:
        """Drain the one that was there longest; seconds to the acknowledgement."""
        await self.load.ask("now", where=f"{word}, drain")
        leaving = self.here[0]
        took = await self.apply([replace(leaving, phase=TargetPhase.DRAINING), *list(self.here)[1:]])
        await asyncio.sleep(self.balancer.capabilities.propagation)
        await self.load.ask("left", name=leaving.id)
        return took

    async def remove(self, word: str) -> None:
        """Remove the one that drains."""
        await self.load.ask("now", where=f"{word}, remove")
        self.away.append(self.here.popleft())
        await self.apply(self.here)

    async def add(self, word: str) -> None:
        """Add the one that was away longest."""
        coming = self.away.popleft()
        await self.load.ask("back", name=coming.id, where=f"{word}, add")
        self.here.append(coming)
        await self.apply(self.here)

    async def start_anew(self, word: str, *, kill: bool) -> None:
        """Under the requests of clients where it can, and if it is not killed."""
        await self.load.ask("now", where=f"{word}, restart")
        how = "" if kill else await self.program.restart()
        if not how:
            await self.load.ask("pause")
            await self.program.stop()
            await self.program.start()
            how = "kill"
        self.restarts.append(how)
        await self.apply([replace(self.here[0], phase=TargetPhase.DRAINING), *list(self.here)[1:]])
        await self.load.ask("go")

    async def round(self, number: int, first: int, last: int) -> float:
        """One round of requests from the number `first` to `last`; seconds that its drain took."""
        word = f"round {number}"
        took = await self.drain(word)
        if number % RESTART_EVERY in (1, 6):
            await self.start_anew(word, kill=number % RESTART_EVERY == 6)
        await self.load.ask("until", asked=(first + last) // 2)
        await self.remove(word)
        await self.add(word)
        await self.load.ask("until", asked=last)
        await self.healthy()
        return took


async def rounds(kind: str, count: int, requests: int, clients: int, quiet: int) -> dict[str, Any]:
    """Play the rounds; what was asked, what failed, how long drains took."""
    program = PROGRAMS[kind](interval=0.2, fall=3)
    program.check = "check inter 200ms fall 3 rise 1"
    now = asyncio.get_running_loop().time
    async with load() as other:
        play = Rounds(program, other)
        try:
            await play.begin()
            alone, busy = list[float](), list[float]()
            for _ in range(quiet):
                alone.append(await play.drain("quiet"))
                await play.remove("quiet")
                await play.add("quiet")
                await play.healthy()
            await other.ask("aim", url=program.url, path="/v1/chat/completions", clients=clients)
            await other.ask("go")
            began = now()
            for number in range(count):
                first, last = requests * number // count, requests * (number + 1) // count
                busy.append(await play.round(number, first, last))
            took = now() - began
            end = await other.ask("end")
        finally:
            await play.balancer.close()
            await program.stop()
            program.remove()
    return {
        "balancer": kind,
        "machine": machine(),
        "rounds": count,
        "requests": end["asked"],
        "failed": len(end["failed"]),
        "failures": end["failed"][:5],
        "restarts": {word: play.restarts.count(word) for word in sorted(set(play.restarts))},
        "seconds": round(took, 1),
        "quiet_drain_ms": {"p50": _ms(alone, 0.5), "p95": _ms(alone, 0.95), "drains": len(alone)},
        "busy_drain_ms": {"p50": _ms(busy, 0.5), "p95": _ms(busy, 0.95), "drains": len(busy)},
        "servers_asked": sum(served > 0 for served in end["served"].values()),
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
    parser.add_argument("--quick", action="store_true", help="eight rounds with 800 requests")
    parser.add_argument("--output", "-o", choices=["json"], default="json")
    args = parser.parse_args()
    count, requests, quiet = (8, 800, 5) if args.quick else (args.rounds, args.requests, QUIET)
    failed = 0
    for kind in args.balancers:
        if why := missing(*PROGRAMS[kind].programs):
            print(json.dumps({"balancer": kind, "skipped": why}))
            continue
        found = asyncio.run(rounds(kind, count, requests, args.clients, quiet))
        failed += found["failed"]
        print(json.dumps(found), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
