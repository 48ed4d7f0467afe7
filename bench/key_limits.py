"""Limits of keys: what several gateway processes together let through, against what they may.

Two gateways in processes of their own share one file. For each limit there is a key, and clients that ask for
far more than it allows: at once and without end, at both gateways, and again when they are told. An engine
here counts what reaches it; its answers are of very different lengths, which nobody tells before. On the way
one gateway is killed with -9 and started again, the other hands over to a new process.

Requests and tokens are compared as averages of a minute, requests in flight by the most at one time, dollars
by what was booked in all. Then each kind of key has many plain requests alone, and the gateway's CPU time per
request tells what limits cost.

    python bench/key_limits.py
    python bench/key_limits.py --minutes 10 -o json
    python bench/key_limits.py --quick

Exit code 1 when more than a tenth beyond a limit was let through, or less than nine tenths of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from gateway_rig import GatewayRig, machine, progress

from orchestrator.gateway.spend_file import read_totals
from policies.model import TargetSpec
from policies.spend import PICO, Price, Rates, Usage, cost

LIMITS = {"requests_per_minute": 600, "tokens_per_minute": 60_000, "in_flight": 8, "usd_per_day": 0.25}
CLIENTS = 12  # of each key at each gateway
CHARGE = {"input": "1", "output": "10"}
PRICE = Price(Rates.of(**CHARGE))
MOST = 400  # tokens that each request allows its answer
OFF = 0.1  # of a limit
PROMPT = "how much is allowed? " * 8


@dataclass
class Counted:
    """What the engine saw of one key."""

    began: list[float] = field(default_factory=list)
    tokens: int = 0
    cost: int = 0
    open: int = 0
    most_open: int = 0


class Engine:
    """Answers like an engine, and counts by the name in a request's text."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.seen: dict[str, Counted] = {}
        self._runner: web.AppRunner
        self.address = ""

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stop."""
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _answer(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = asked["messages"][0]["content"].partition(":")[0]
        seen = self.seen.setdefault(name, Counted())
        # most answers are short, some are as long as they may be
        usage = Usage(fresh=self._rng.randint(30, 60), cached=0, cache_write=0, output=self._length())
        seen.began.append(time.monotonic())
        seen.open += 1
        seen.most_open = max(seen.most_open, seen.open)
        try:
            if name != "plain":
                await asyncio.sleep(self._rng.uniform(0.1, 0.9))
        finally:
            seen.open -= 1
        seen.tokens += usage.prompt + usage.output
        seen.cost += cost(PRICE, usage)
        told = {"prompt_tokens": usage.fresh, "completion_tokens": usage.output}
        choice = {"index": 0, "message": {"role": "assistant", "content": "so much"}, "finish_reason": "stop"}
        return web.json_response({"id": "c", "object": "chat.completion", "choices": [choice], "usage": told})

    def _length(self) -> int:
        return MOST if self._rng.random() < 0.15 else self._rng.randint(1, 40)


def secret_of(name: str) -> str:
    """The key of this name."""
    return f"sk-orch-bench-{name}"


def write_keys(path: Path) -> None:
    """The file of keys: one for each limit, one with all of them far away, one without, one that is over."""
    far = dict.fromkeys(("requests_per_minute", "in_flight"), 10**6) | {"tokens_per_minute": 10**9}
    tables = {name: {name: limit} for name, limit in LIMITS.items()}
    tables |= {"far": far, "free": {}, "over": {"requests_per_minute": 1}}
    lines = []
    for name, limits in tables.items():
        digest = hashlib.sha256(secret_of(name).encode()).hexdigest()
        lines += [f"[key.{name}]", f'sha256 = "{digest}"', 'hint = "----"']
        lines += [
            f'{limit} = "{value}"' if limit == "usd_per_day" else f"{limit} = {value}"
            for limit, value in limits.items()
        ]
    path.write_text("\n".join(lines) + "\n")


class Play:
    """The whole run."""

    def __init__(self, directory: Path, *, seconds: float, disturb: bool, seed: int) -> None:
        self._directory = directory
        self._seconds = seconds
        self._disturb = disturb
        self._rng = random.Random(seed)
        self.engine = Engine(self._rng)
        self.rigs: list[GatewayRig] = []
        self.answers: dict[str, Counter[str]] = {name: Counter() for name in LIMITS}
        self.disturbances: list[str] = []

    async def run(self) -> dict[str, Any]:
        """Play it, and compare."""
        keys = self._directory / "keys.toml"
        write_keys(keys)
        shared = {"keys_file": keys, "usage_file": self._directory / "usage.db"}
        shared |= {"spend_file": self._directory / "spend.db"}
        settings: dict[str, Any] = {name: str(path) for name, path in shared.items()} | {"charge": CHARGE}
        await self.engine.start()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.engine.close)
            for name in ("one", "two", "open"):
                (self._directory / name).mkdir()
                own = {"usage_file": str(self._directory / "open" / "usage.db")}
                rig = GatewayRig(self._directory / name, own if name == "open" else settings, kept=True)
                stack.push_async_callback(rig.close)
                await rig.start()
                await rig.apply([TargetSpec(id="engine", address=self.engine.address)])
                self.rigs.append(rig)
            costs = await self._costs()
            began = time.monotonic()
            await self._load(began)
            rows = self._rows(time.monotonic() - began)
        return {"rows": rows, "disturbances": self.disturbances, "cpu_us_per_request": costs}

    async def _load(self, began: float) -> None:
        """Ask for more than is allowed until the time is over."""
        disturbing = asyncio.create_task(self._disturbances(began))
        await asyncio.gather(
            *(
                self._client(name, rig, began + self._seconds)
                for name in LIMITS
                for rig in self.rigs[:2]
                for _ in range(CLIENTS)
            )
        )
        await disturbing

    async def _client(self, name: str, rig: GatewayRig, until: float) -> None:
        """Ask again and again, after a refusal when it says."""
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while (left := until - time.monotonic()) > 0:
                try:
                    status, wait = await self._ask(session, rig, name, secret_of(name))
                except (aiohttp.ClientError, OSError):
                    self.answers[name]["lost"] += 1
                    status, wait = 0, 0.2
                else:
                    self.answers[name][str(status)] += 1
                if wait:
                    await asyncio.sleep(min(wait, left))

    async def _ask(
        self, session: aiohttp.ClientSession, rig: GatewayRig, name: str, secret: str
    ) -> tuple[int, float]:
        """One request: its status, and the seconds to wait before the next."""
        fields = {
            "model": "m",
            "max_tokens": MOST,
            "messages": [{"role": "user", "content": f"{name}: {PROMPT}"}],
        }
        head = {"Authorization": f"Bearer {secret}"}
        async with session.post(f"{rig.url}/v1/chat/completions", json=fields, headers=head) as answer:
            await answer.read()
            return answer.status, float(answer.headers.get("Retry-After", 0))

    async def _disturbances(self, began: float) -> None:
        if not self._disturb:
            return
        one, two, _ = self.rigs
        for share, what in ((1 / 3, "killed"), (2 / 3, "handed over")):
            await asyncio.sleep(began + self._seconds * share - time.monotonic())
            if what == "killed":
                await two.kill()
                await two.start()
            else:
                await one.replace()
            self.disturbances.append(what)
            progress(f"a gateway was {what}")

    async def _costs(self) -> dict[str, int]:
        """CPU time of the gateway per plain request, by kind of key, in us: the least of all rounds."""
        one, _, open_ = self.rigs
        kinds = [("no keys", open_), ("free", one), ("far", one), ("over", one)]
        found: dict[str, float] = {}
        for _ in range(2 if self._seconds < SHORT else 5):
            self._rng.shuffle(kinds)
            for name, rig in kinds:
                spent = _cpu(rig.pid)
                async with aiohttp.ClientSession() as session:
                    await asyncio.gather(*(self._alone(session, rig, name) for _ in range(8)))
                cost = (_cpu(rig.pid) - spent) / (8 * ALONE) * 1e6
                found[name] = min(cost, found.get(name, cost))
        return {name: round(found[name]) for name in ("no keys", "free", "far", "over")}

    async def _alone(self, session: aiohttp.ClientSession, rig: GatewayRig, name: str) -> None:
        for _ in range(ALONE):
            status, _ = await self._ask(session, rig, "plain", secret_of(name))
            if status != 200 and name != "over":
                raise RuntimeError(f"a request alone was answered with {status}")

    def _rows(self, seconds: float) -> list[dict[str, Any]]:
        minutes = seconds / 60
        [today] = read_totals(self._directory / "spend.db", time.time())
        rows = []
        for name, limit in LIMITS.items():
            seen, answers = self.engine.seen[name], self.answers[name]
            measured = {
                "requests_per_minute": len(seen.began) / minutes,
                "tokens_per_minute": seen.tokens / minutes,
                "in_flight": seen.most_open,
                "usd_per_day": seen.cost / PICO,
            }[name]
            row: dict[str, Any] = {
                "limit": name,
                "allowed": limit,
                "measured": round(measured, 3),
                "of it": round(measured / limit, 3),
                "answered": answers["200"],
                "refused": answers["429"],
                "refused_a_client_and_minute": round(answers["429"] / (2 * CLIENTS) / minutes, 1),
                "lost_with_a_gateway": answers["lost"],
            }
            if name == "requests_per_minute":
                row["most_in_60_s"] = _most_in_a_minute(seen.began)
            if name == "usd_per_day":
                row["booked"] = round(today.of_key(name) / PICO, 4)
            rows.append(row)
        return rows


ALONE = 250  # requests of one client
SHORT = 30.0  # seconds; a run below is a quick one


def _cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _most_in_a_minute(at: list[float]) -> int:
    """The most that began in any 60 seconds."""
    most = first = 0
    for last, moment in enumerate(at):
        while at[first] <= moment - 60:
            first += 1
        most = max(most, last - first + 1)
    return most


def holds(row: dict[str, Any], *, whole: bool) -> bool:
    """Whether what was measured is within a tenth of the limit; `whole`: of at least a minute."""
    return bool(row["of it"] <= 1 + OFF and (row["of it"] >= 1 - OFF or not whole))


async def played(arguments: argparse.Namespace) -> int:
    """Play and print; the exit code."""
    with tempfile.TemporaryDirectory(prefix="limits-") as directory:
        seconds = 8.0 if arguments.quick else arguments.minutes * 60
        play = Play(Path(directory), seconds=seconds, disturb=not arguments.quick, seed=arguments.seed)
        result = await play.run()
    if arguments.quick:  # a burst: what a minute holds, in less than one
        for row in result["rows"]:
            if row["limit"].endswith("per_minute"):
                row["measured"] = round(row["measured"] * seconds / 60, 3)
                row["of it"] = round(row["measured"] / row["allowed"], 3)
    if arguments.output == "json":
        print(json.dumps(result))
    else:
        print(machine())
        for row in result["rows"]:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
        print(f"disturbed: {', '.join(result['disturbances']) or 'not'}")
        print(f"CPU per request in us: {result['cpu_us_per_request']}")
    return 0 if all(holds(row, whole=not arguments.quick) for row in result["rows"]) else 1


def main() -> int:
    """Read the words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a moment only")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return asyncio.run(played(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
