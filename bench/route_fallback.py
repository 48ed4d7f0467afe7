"""What a route with a provider is worth when every node of its pool is killed at once.

A real pool on this machine: local cloud, gateway and daemon in processes of their own, and one more simulated
engine that stands for an API outside (kind openai). Clients ask for the route's name without a pause, half of
them for streams. In the middle every node is killed with SIGKILL: once while the daemon lives, which replaces
them, and once while it is dead, when the same engines are started again on their ports.

Counted are requests that failed, streams that had begun and ended with an error event, the time from the kill
to the first answer of the provider, and from the first node that is ready to the first answer of the pool.

    python bench/route_fallback.py
    python bench/route_fallback.py --requests 2000 -o json
    python bench/route_fallback.py --quick

Exit code 1 when a request failed, a begun stream did not end typed, the provider answered later than 1 s
after the kill, or the pool later than 2 s after its first node was ready.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "system"))

import conftest
from gateway_rig import Engine, machine, progress

CLIENTS = 48
PROVIDER_WITHIN, BACK_WITHIN = 1.0, 2.0  # s
ENGINE = ("--tokens-per-second", "200", "--time-to-first-token", "0.05")
ROUTE = """
[provider.api]
kind = "openai"
url = "http://{address}/v1"

[[route]]
models = ["assistant"]
to = [{{ pool = "test" }}, {{ provider = "api", model = "simulated" }}]
"""
CHANGES: dict[str, dict[str, object]] = {
    "pool.test.engine": {"kind": "simulated", "args": ["--load-time", "0.2", *ENGINE]},
    "pool.test.gateway": {"health_interval": "300ms"},
}


@dataclass
class Seen:
    """What became of the requests. Times are of `time.perf_counter`."""

    ends: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    firsts: list[tuple[float, str]] = field(default_factory=list)  # first bytes, and whose

    def first(self, whose: str, after: float) -> float:
        """When the first answer of a backend after a moment began; infinite for never."""
        return min((at for at, who in self.firsts if who == whose and at >= after), default=float("inf"))


class Load:
    """Clients that ask without a pause until `enough`."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._numbers = itertools.count()
        self.seen = Seen()
        self.enough = asyncio.Event()

    @property
    def sent(self) -> int:
        """Requests that have ended."""
        return self.seen.ends.total()

    async def run(self) -> None:
        """Ask until it is enough."""
        timeout = aiohttp.ClientTimeout(total=60.0)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(self._client(session) for _ in range(CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self.enough.is_set():
            number = next(self._numbers)
            try:
                end = await self._one(session, number)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                end = "failed"
                self.seen.failures.append(f"request {number}: {type(error).__name__} {error}")
            self.seen.ends[end] += 1

    async def _one(self, session: aiohttp.ClientSession, number: int) -> str:
        stream = number % 2 == 0
        body = {
            "model": "assistant",
            "stream": stream,
            "max_tokens": 5 + number % 60,
            "messages": [{"role": "user", "content": f"request {number}"}],
        }
        async with session.post(self._url, json=body) as answer:
            if answer.status != 200:
                raise ValueError(f"{answer.status} {(await answer.text())[:300]}")
            who = "api" if answer.headers["X-Orchestrator-Backend"].startswith("api") else "pool"
            self.seen.firsts.append((time.perf_counter(), who))
            text = await answer.text()
        self.seen.by[who] += 1
        if not stream:
            if not json.loads(text)["choices"][0]["message"]["content"]:
                raise ValueError(f"an empty answer: {text[:300]}")
            return "plain"
        if text.endswith("data: [DONE]\n\n"):
            return "stream"
        if '"content"' in text and '"code":"stream_interrupted"' in text:
            return "stream cut, typed"
        raise ValueError(f"a stream ends with {text[-300:]!r}")


@contextlib.asynccontextmanager
async def pool_with_route(directory: Path) -> AsyncIterator[conftest.Stack]:
    """The pool, settled, its route and the provider behind that."""
    provider = Engine("api", directory, ENGINE)
    try:
        await provider.start()
        async with conftest.running_stack(directory, CHANGES, 0.3, ("local-cloud",)) as stack:
            with stack.config.open("a") as file:
                file.write(ROUTE.format(address=provider.address))
            await stack.start("gateway", "daemon")
            await stack.settled()
            yield stack
    finally:
        await provider.close()


def nodes_of(stack: conftest.Stack) -> dict[int, list[str]]:
    """The processes of its nodes, and their command lines."""
    found = {}
    for pid, line in stack.command_lines().items():
        if "simulated_server" in line:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            found[pid] = [word.decode() for word in words]
    return found


async def ready_node(stack: conftest.Stack, killed_at: float) -> float:
    """When a node that the gateway knows answers its health check, after all were killed."""
    control = aiohttp.UnixConnector(path=str(stack.sockets / "gateway"))
    async with aiohttp.ClientSession(connector=control) as gateway, aiohttp.ClientSession() as direct:
        while True:
            async with gateway.get("http://gateway/v1/state") as answer:
                addresses = [row["address"] for row in (await answer.json())["targets"]]
            for address in addresses:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with direct.get(f"http://{address}/health") as answer:
                        if answer.status == 200:
                            return time.perf_counter()
            if time.perf_counter() - killed_at > conftest.PATIENCE:
                raise AssertionError("no node came back")
            await asyncio.sleep(0.02)


async def measure(directory: Path, requests: int, *, daemon: bool) -> dict[str, Any]:
    """One loss of the whole pool, with the daemon or without."""
    started: list[asyncio.subprocess.Process] = []
    async with pool_with_route(directory) as stack:
        load = Load(stack.url)
        sending = asyncio.create_task(load.run())
        try:
            await _sent(load, requests // 3)
            if not daemon:
                await stack.kill("daemon")
            nodes = nodes_of(stack)
            killed_at = time.perf_counter()
            for pid in nodes:
                os.kill(pid, signal.SIGKILL)
            if not daemon:
                await _sent(load, requests // 2)  # the provider carries all of it for a while
                for words in nodes.values():
                    started.append(
                        await asyncio.create_subprocess_exec(
                            *words,
                            env=stack.full_environment,
                            stdout=asyncio.subprocess.DEVNULL,
                            stderr=asyncio.subprocess.DEVNULL,
                        )
                    )
            ready_at = await ready_node(stack, killed_at)
            async with asyncio.timeout(conftest.PATIENCE):
                while load.seen.first("pool", ready_at) == float("inf"):  # noqa: ASYNC110 - a load tells nobody
                    await asyncio.sleep(0.01)
            await _sent(load, requests)
        finally:
            load.enough.set()
            await sending
            for child in started:
                child.kill()
                await child.wait()
    seen = load.seen
    return {
        "daemon": "lives" if daemon else "dead",
        "nodes_killed": len(nodes),
        "requests": load.sent,
        "failed": seen.ends["failed"],
        "streams_cut_typed": seen.ends["stream cut, typed"],
        "answered_by": dict(seen.by),
        "provider_after_kill_s": round(seen.first("api", killed_at) - killed_at, 3),
        "pool_after_ready_s": round(seen.first("pool", ready_at) - ready_at, 3),
        "failures": seen.failures[:5],
    }


async def _sent(load: Load, count: int) -> None:
    """Wait until so many requests have ended."""
    while load.sent < count:  # noqa: ASYNC110 - a load tells nobody
        await asyncio.sleep(0.01)


def missed(row: dict[str, Any]) -> list[str]:
    """What does not hold of what must."""
    found = []
    if row["failed"]:
        found.append(f"{row['failed']} requests failed: {row['failures']}")
    for name, limit in (("provider_after_kill_s", PROVIDER_WITHIN), ("pool_after_ready_s", BACK_WITHIN)):
        if row[name] > limit:
            found.append(f"{name}: {row[name]} is above {limit}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, help="of each of the two; at least")
    parser.add_argument("--quick", action="store_true", help="600 requests, the daemon lives")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    rows = []
    for daemon in (True,) if options.quick else (True, False):
        progress(f"  the daemon {'lives' if daemon else 'is dead'}")
        with tempfile.TemporaryDirectory(prefix="orch-") as directory:
            requests = 600 if options.quick else options.requests
            rows.append(asyncio.run(measure(Path(directory), requests, daemon=daemon)))
    faults = [fault for row in rows for fault in missed(row)]
    if options.output == "json":
        print(json.dumps({"machine": machine(), "runs": rows, "missed": faults}))
    else:
        print(machine())
        for row in rows:
            print("\n".join(f"  {name:24}{value}" for name, value in row.items()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
