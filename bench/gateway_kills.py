"""Requests through a gateway whose nodes are killed and stopped, and which is handed over and killed itself.

Three simulated engines, a gateway with default settings whose sockets outlive it as systemd's do, and a
daemon that pushes targets while it lives. By chance a node is killed with -9 and comes back, a node is
stopped with SIGSTOP and goes on or is killed, the gateway hands over to a new process, the daemon dies for a
while so that only the targets file is left, the gateway is killed with -9. One node at least is whole at any
time, and known to be so by the gateway.
Requests are plain, streamed and for vectors; every answer is judged by its text.

What the killed gateway held is counted on its own. Of everything else no request may fail.

    python bench/gateway_kills.py
    python bench/gateway_kills.py --requests 500 --seed 7
    python bench/gateway_kills.py --quick -o json

The seed fixes requests and disturbances, which come at numbers of requests; what meets what depends on the
machine too. Exit code 1 when a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from gateway_rig import Engine, GatewayRig, machine, progress, quantile, reference, running, until
from judged_load import Client, Question, Told, faults, learnt, mixed

from cloud.balancers.gateway import GatewayBalancer
from cloud.errors import Denied, Uncertain
from policies.model import TargetSpec

NODES = 3
CLIENTS = 48
PACE = ("--tokens-per-second", "40", "--time-to-first-token", "0.05", "--max-num-seqs", "64")
TOKENS = (4, 48)
DIFFERENT = 500  # questions, each asked again and again
EVERY = (25, 110)  # requests between two disturbances
LOOK = 0.25  # s between two looks of the daemon

CHANCES = {"node killed": 9, "node stopped": 8, "handed over": 4, "daemon killed": 3, "gateway killed": 2}


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What happens once so many requests were sent. `seconds` is how long a node or the daemon is away."""

    after: int
    what: str
    node: int
    seconds: float
    dies: bool


def course(rng: random.Random, requests: int) -> Iterator[Disturbance]:
    """The disturbances of a run."""
    after = rng.randint(*EVERY)
    while after < requests:
        what = rng.choices(list(CHANCES), list(CHANCES.values()))[0]
        seconds = rng.uniform(0.5, 9.0) if what == "node stopped" else rng.uniform(0.2, 4.0)
        yield Disturbance(after, what, rng.randrange(NODES), seconds, dies=rng.random() < 0.3)
        after += rng.randint(*EVERY)


class Daemon:
    """Pushes the nodes whose processes run, as the real one does; while it is dead nobody does."""

    def __init__(self, rig: GatewayRig, engines: list[Engine]) -> None:
        self._rig = rig
        self._engines = engines
        self._generation = 1
        self._dead_until = 0.0
        self.task = asyncio.create_task(self._run())

    def die(self, seconds: float) -> None:
        """Say nothing for so long."""
        self._dead_until = max(self._dead_until, time.perf_counter() + seconds)

    async def _run(self) -> None:
        while True:
            balancer = self._rig.new_balancer()
            try:
                while (left := self._dead_until - time.perf_counter()) <= 0:
                    with contextlib.suppress(Uncertain, Denied):
                        await self._look(balancer)
                    await asyncio.sleep(LOOK)
            finally:
                await balancer.close()
            await asyncio.sleep(left)

    async def _look(self, balancer: GatewayBalancer) -> None:
        seen = await balancer.observe()
        living = [TargetSpec(id=e.name, address=e.address) for e in self._engines if e.running]
        if {target.id for target in seen.targets} != {target.id for target in living}:
            self._generation = max(self._generation, seen.generation) + 1
        await balancer.apply(living, self._generation)


class Run:
    """One run: who asks, what disturbs, what came of it."""

    def __init__(self, rig: GatewayRig, engines: list[Engine], client: Client, seed: int) -> None:
        self._rig = rig
        self._engines = engines
        self._client = client
        self._daemon = Daemon(rig, engines)
        self._seed = seed
        self._away: set[int] = set()
        self._gateway_is_whole = asyncio.Lock()
        self.done: Counter[str] = Counter()
        self.with_the_gateway: set[str] = set()
        self.log: list[tuple[float, str]] = []

    async def play(self, questions: list[Question]) -> None:
        """Ask all questions from CLIENTS clients, and disturb meanwhile."""
        rng = random.Random(f"{self._seed} disturbances")
        left, plan = iter(questions), course(rng, len(questions))
        due = next(plan, None)

        async def clients_turn(disturbing: asyncio.TaskGroup) -> None:
            nonlocal due
            for question in left:
                await self._client.ask(question)
                while due is not None and len(self._client.told) >= due.after:
                    now, due = due, next(plan, None)
                    disturbing.create_task(self._disturb(now))

        telling = asyncio.create_task(self._tell())
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(clients_turn(tasks))
        finally:
            for task in (self._daemon.task, telling):
                task.cancel()
            await asyncio.gather(self._daemon.task, telling, return_exceptions=True)

    async def _tell(self) -> None:
        told = self._client.told
        while True:
            await asyncio.sleep(10.0)
            progress(f"  {len(told)} sent, {len(self._client.open())} open, faults {dict(faults(told))}")

    async def _disturb(self, what: Disturbance) -> None:
        if what.what.startswith("node"):
            if what.node in self._away or len(self._away) + 1 >= NODES:
                return
            self._away.add(what.node)
            self._note(f"{what.what}: n{what.node} for {what.seconds:.1f} s, dies {what.dies}", what.what)
            await self._node_away(self._engines[what.node], what)
            await until(f"the gateway has n{what.node} again", lambda: self._is_back(what.node))
            self._away.discard(what.node)
        elif what.what == "daemon killed":
            self._note(f"daemon killed for {2 * what.seconds:.1f} s", what.what)
            self._daemon.die(2 * what.seconds)
        else:
            async with self._gateway_is_whole:
                self._note(what.what, what.what)
                await (self._rig.replace() if what.what == "handed over" else self._kill_gateway())

    async def _node_away(self, engine: Engine, what: Disturbance) -> None:
        if what.what == "node stopped":
            engine.freeze()
            await asyncio.sleep(what.seconds)
            if not what.dies:
                engine.thaw()
                return
        await engine.kill()
        await asyncio.sleep(what.seconds)
        await engine.start()

    async def _is_back(self, node: int) -> bool:
        """Whether the gateway takes a node for healthy; with the daemon dead it may not know of it."""
        try:
            targets = (await self._rig.state())["targets"]
        except (OSError, aiohttp.ClientError):
            return False
        return any(row["id"] == f"n{node}" and row["state"] == "healthy" for row in targets)

    async def _kill_gateway(self) -> None:
        """What is sent before its end is known may be with it: also on a connection that it had kept."""
        at = time.perf_counter()
        await self._rig.kill()
        await asyncio.sleep(LOOK)
        self.with_the_gateway |= {told.id for told in self._client.told if not told.over or told.ended > at}
        await self._rig.start()

    def _note(self, text: str, kind: str) -> None:
        self.log.append((time.perf_counter(), text))
        self.done[kind] += 1


async def play(directory: Path, requests: int, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{seed} requests")
    async with reference(directory) as address:
        known = await learnt(address, mixed(rng, min(requests, DIFFERENT), TOKENS))
    async with running(directory, NODES, PACE, kept=True) as (rig, engines):
        client = Client(rig.url)
        run = Run(rig, engines, client, seed)
        began = time.perf_counter()
        try:
            await run.play(rng.choices(known, k=requests))
        finally:
            await client.close()
        return summary(run, client.told, time.perf_counter() - began)


def summary(run: Run, told: list[Told], seconds: float) -> dict[str, Any]:
    with_it = [each for each in told if each.id in run.with_the_gateway and _by_connection(each)]
    lost = {each.id for each in with_it}
    rest = [each for each in told if each.id not in lost]
    found = faults(rest)
    return {
        "requests": len(told),
        "seconds": round(seconds, 1),
        "kinds": dict(sorted(Counter(each.question.kind for each in told).items())),
        "disturbances": dict(run.done),
        "continued": sum(1 for each in told if each.seams),
        "seams": sum(each.seams for each in told),
        "seconds_p50": round(quantile([each.seconds for each in rest], 0.5), 2),
        "seconds_p99": round(quantile([each.seconds for each in rest], 0.99), 2),
        "seconds_max": round(max(each.seconds for each in rest), 2),
        "in_flight_at_kills_of_the_gateway": len(run.with_the_gateway),
        "lost_with_the_gateway": len(with_it),
        "failed": sum(found.values()),
        "faults": dict(found),
        "first_failed": [_described(run, each) for each in rest if each.fault][:20],
    }


def _by_connection(told: Told) -> bool:
    return told.fault.startswith("connection:")


def _described(run: Run, told: Told) -> str:
    """A failed request with what was done before its end."""
    meanwhile = [f"{at - told.began:+.1f} s {text}" for at, text in run.log if at < told.ended][-4:]
    return (
        f"{told.id} {told.question.kind} at {told.node or 'no node'}: {told.fault} after "
        f"{told.seconds:.1f} s; {'; '.join(meanwhile)}. {told.said}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, help="how many are sent")
    parser.add_argument("--seed", type=int, default=1, help="of requests and disturbances")
    parser.add_argument("--keep", metavar="DIRECTORY", help="leave the logs of all processes there")
    parser.add_argument("--quick", action="store_true", help="150 requests, to see that it runs")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    requests = 150 if options.quick else options.requests
    line = f"python bench/gateway_kills.py --requests {requests} --seed {options.seed}"
    progress(line)
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        try:
            result = asyncio.run(play(Path(directory), requests, options.seed))
        finally:
            if options.keep:
                shutil.copytree(directory, options.keep, ignore=shutil.ignore_patterns("*.sock"))
    result = {"machine": machine(), "replay": line, **result}
    print(json.dumps(result) if options.output == "json" else table(result))
    return 1 if result["failed"] else 0


def table(result: dict[str, Any]) -> str:
    def words(value: object) -> str:
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    lines = [f"{name.replace('_', ' '):36} {words(value)}" for name, value in result.items()]
    return "\n".join([*lines[:-1], *(f"    {each}" for each in result["first_failed"])])


if __name__ == "__main__":
    sys.exit(main())
