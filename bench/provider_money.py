"""Money: what is booked against what two providers billed, through failures, clients that leave and kills.

Two providers that bill by a rule known here, one for each form, behind a gateway in a process of its own.
Requests are plain and streamed, chat and messages, with cached prompts and tools; providers refuse, break
off, fall silent and tell no usage; clients leave. The gateway is killed with -9 while it works, several
times, hands over to a new process, ends and is started again. All the while what is booked and held is read
from the file.

Each request has a number in its limit of tokens, so that the amount that is held for it is its own: what a
killed gateway left behind is told apart, and everything else must be booked exactly.

    python bench/provider_money.py
    python bench/provider_money.py --requests 300 --kills 2 -o json

Exit code 1 when a picodollar is missing, or a cap was overshot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
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

from gateway_rig import machine, progress, until
from paid_provider import CUT, HANG, NO_USAGE, Line, PaidProvider, Seen, answers

from cloud.providers.prices import OwnPrice, OwnRates
from orchestrator.gateway.spend_file import read_totals
from policies.spend import PICO, Price, cost, dollars, usd
from policies.spend_bound import bound, ceiling

CLIENTS = 24
CAPS = {"claude": usd("1.2"), "gpt": usd("2.2"), "tight": usd("0.5")}
"""Of providers and of a route, for 1,000 requests: less than these would cost."""
PROVIDERS = ("claude", "gpt")
OWN = OwnPrice(  # a price of the answer that no number of prompt tokens adds up to
    OwnRates(input="3", output="15.000001", cached="0.30", cache_write="3.75"),
    most_output=2**20,
    context=2**20,
)
REFUSED, FAILS, ONCE = "please-refuse", "please-fail", "please-come-again"
LEAVES_AFTER = 0.5  # s
MODEL = "big"

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("hello there", {}),
    "stream": ("hello there", {"stream": True}),
    "stream with usage": ("hello there", {"stream": True, "stream_options": {"include_usage": True}}),
    "cached": ("a cached prompt", {}),
    "cached stream": ("a cached prompt", {"stream": True}),
    "tools": ("use it", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
    "refused": (REFUSED, {}),
    "fails": (FAILS, {}),
    "taken the second time": (ONCE, {}),
    "breaks off": (CUT, {"stream": True}),
    "breaks off plain": (CUT, {}),
    "tells no usage": (NO_USAGE, {}),
    "streams no usage": (NO_USAGE, {"stream": True}),
    "client leaves": (HANG, {}),
    "client leaves stream": (HANG, {"stream": True}),
}
WEIGHTS = [16, 16, 8, 8, 8, 8, 3, 3, 4, 4, 2, 3, 3, 3, 4]
ROUTES = {"assistant": "claude", "writer": "gpt", "tight": "gpt"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client."""

    number: int
    kind: str
    route: str
    messages: bool

    @property
    def path(self) -> str:
        """Where it goes."""
        return "/v1/messages" if self.messages else "/v1/chat/completions"

    @property
    def fields(self) -> dict[str, Any]:
        """Its body."""
        words, more = KINDS[self.kind]
        told = [{"role": "user", "content": f"{words} {self.number:05d}"}]
        more = {key: value for key, value in more.items() if not (self.messages and key == "stream_options")}
        return {"model": self.route, "messages": told, "max_tokens": 64 + self.number, **more}


def requests_of(count: int, rng: random.Random) -> list[Request]:
    """The requests, in order."""
    kinds = rng.choices(list(KINDS), WEIGHTS, k=count)
    return [
        Request(number, kind, rng.choice(list(ROUTES)), messages=kind != "tools" and rng.random() < 0.4)
        for number, kind in enumerate(kinds)
    ]


@dataclass
class Ledger:
    """What one provider would invoice: what each request must be booked at, by what is held for it."""

    price: Price
    owed: dict[int, int] = field(default_factory=dict)
    asked: Counter[int] = field(default_factory=Counter)

    async def behave(self, api: PaidProvider, seen: Seen, line: Line) -> None:
        """Answer as the words of the request say, and note what it costs."""
        words, most = json.dumps(seen.fields["messages"]), self.most(seen)
        self.asked[most] += 1
        if REFUSED in words:
            await line.error(400, "not like this")
        elif FAILS in words:
            await line.error(500, "an error of mine")
        elif ONCE in words and self.asked[most] == 1:
            await line.error(529, "overloaded", Retry_After="0")
        else:
            untold = any(word in words for word in (CUT, HANG, NO_USAGE))
            self.owed[most] = most if untold else cost(self.price, seen.usage)
            await answers(api, seen, line)

    def most(self, seen: Seen) -> int:
        """What is held for a request."""
        return ceiling(self.price, bound(seen.fields)).amount


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Process:
    """The gateway."""

    def __init__(self, directory: Path, ports: dict[str, int], caps: dict[str, int]) -> None:
        self._directory = directory
        self._settings = {"directory": str(directory), "ports": ports, "caps": caps, "port": free_port()}
        self._handle = -1
        self.up = asyncio.Event()
        self.url = f"http://127.0.0.1:{self._settings['port']}"

    async def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._directory / "gateway.log").open("ab") as log:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, "--gateway", json.dumps(self._settings)), stdout=log, stderr=log
            )
        self._serves(child.pid)
        await until("the gateway answers", self._answers)
        self.up.set()

    async def hand_over(self) -> None:
        """Let a new process take over, while the old one ends what it has."""
        post = "http://gateway/v1/replace"
        async with self._control() as session, session.post(post, json={}) as answer:
            told = await answer.json()
        self._serves(told["pid"])

    async def end(self, number: signal.Signals) -> None:
        """Kill it, or have it end, and wait until it is gone."""
        self.up.clear()
        signal.pidfd_send_signal(self._handle, number)
        await until("the gateway's process ends", self._gone)

    def _serves(self, pid: int) -> None:
        self._handle = os.pidfd_open(pid)

    async def _gone(self) -> bool:
        return bool(select.select([self._handle], [], [], 0)[0])

    def _control(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(path=str(self._directory / "gw.sock"))
        return aiohttp.ClientSession(connector=connector)

    async def _answers(self) -> bool:
        if await self._gone():
            raise RuntimeError((self._directory / "gateway.log").read_text()[-2000:])
        try:
            async with self._control() as session, session.get("http://gateway/healthz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False


def serve(text: str) -> None:
    """The gateway's process."""
    from orchestrator.gateway.app import serve as serve_gateway
    from orchestrator.gateway.config import GatewayConfig, ProviderSpec
    from orchestrator.gateway.handover import inheritance
    from policies.routing import Backend, Kind, Route

    settings = json.loads(text)
    directory = Path(settings["directory"])
    kinds = {"claude": "anthropic", "gpt": "openai"}
    config = GatewayConfig(
        socket=directory / "gw.sock",
        spend_file=directory / "spend.db",
        port=settings["port"],
        linger=0.0,
        routes=tuple(
            Route(
                models=(name,),
                backends=(Backend(kind=Kind.PROVIDER, name=provider, model=MODEL),),
                usd_per_day_pico=settings["caps"].get(name),
            )
            for name, provider in ROUTES.items()
        ),
        providers={
            name: ProviderSpec(
                name=name,
                kind=kinds[name],
                url=f"http://127.0.0.1:{port}",
                usd_per_day_pico=settings["caps"][name],
                prices={MODEL: OWN},
            )
            for name, port in settings["ports"].items()
        },
    )
    with inheritance() as given:
        serve_gateway(config, given)


class Play:
    """The whole run."""

    def __init__(self, directory: Path, arguments: argparse.Namespace) -> None:
        self._rng = random.Random(arguments.seed)
        self._directory = directory
        self._requests = requests_of(arguments.requests, self._rng)
        self._next = 0
        apart = arguments.requests // (arguments.kills + 1)
        self._kills = [
            apart * turn + self._rng.randrange(apart // 3) for turn in range(1, arguments.kills + 1)
        ]
        self.caps = {name: cap * arguments.requests // 1_000 for name, cap in CAPS.items()}
        price = Price(OWN.rates.rates(), most_output=OWN.most_output, context=OWN.context)
        self.ledgers = {name: Ledger(price) for name in PROVIDERS}
        self.answers: Counter[str] = Counter()
        self.disturbances: Counter[str] = Counter()
        self.lost = 0
        self.highest: dict[str, int] = dict.fromkeys(CAPS, 0)
        self._done = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """Play it, and compare."""
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            ports = {}
            for name, ledger in self.ledgers.items():
                api = PaidProvider(ledger.behave)
                await api.start()
                stack.push_async_callback(api.stop)
                ports[name] = api.port
            self._gateway = Process(self._directory, ports, self.caps)
            await self._gateway.start()
            watching = asyncio.create_task(self._watch())
            await asyncio.gather(self._disturb(), *(self._client() for _ in range(CLIENTS)))
            await self._gateway.end(signal.SIGTERM)
            self._done.set()
            await watching
        return {**self.compared(), "seconds": round(time.monotonic() - began, 1)}

    async def _client(self) -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while self._next < len(self._requests):
                request, self._next = self._requests[self._next], self._next + 1
                await self._gateway.up.wait()
                await self._ask(session, request)

    async def _ask(self, session: aiohttp.ClientSession, request: Request) -> None:
        patience = LEAVES_AFTER if HANG in KINDS[request.kind][0] else 60.0
        try:
            async with asyncio.timeout(patience):
                async with session.post(self._gateway.url + request.path, json=request.fields) as answer:
                    body = await answer.read()
        except TimeoutError:
            self.answers["left"] += 1
        except (aiohttp.ClientError, OSError):
            self.lost += 1
        else:
            capped = answer.status == 503 and b"of $" in body
            self.answers["cap" if capped else str(answer.status)] += 1

    async def _disturb(self) -> None:
        """At its numbers of requests kill the gateway, let it hand over, or end it as it should be."""
        for turn, number in enumerate(self._kills):
            while self._next < number:  # noqa: ASYNC110 - clients count it up
                await asyncio.sleep(0.002)
            what = ("killed", "handed over", "killed", "ended")[turn % 4]
            if what == "handed over":
                await self._gateway.hand_over()
            else:
                await self._gateway.end(signal.SIGKILL if what == "killed" else signal.SIGTERM)
                await self._gateway.start()
            self.disturbances[what] += 1
            progress(f"{number} requests, {what}")

    async def _watch(self) -> None:
        """Read what is booked and held, as often as can be."""
        while not self._done.is_set():
            [today] = read_totals(self._directory / "spend.db", time.time())
            for name in PROVIDERS:
                now = today.amount(provider=name) + today.held(provider=name)
                self.highest[name] = max(self.highest[name], now)
            now = today.amount(route="tight") + today.held(route="tight")
            self.highest["tight"] = max(self.highest["tight"], now)
            await asyncio.sleep(0.001)

    def compared(self) -> dict[str, Any]:
        """What is booked against what is owed, but for what killed gateways left."""
        [today] = read_totals(self._directory / "spend.db", time.time())
        with contextlib.closing(sqlite3.connect(self._directory / "spend.db")) as db:
            left = db.execute("SELECT provider, amount FROM held").fetchall()
        rows, wrong = {}, 0
        for name, ledger in self.ledgers.items():
            held = [amount for provider, amount in left if provider == name]
            owed = sum(amount for most, amount in ledger.owed.items() if most not in held)
            booked = today.amount(provider=name)
            wrong += abs(booked - owed)
            rows[name] = {
                "requests_billed": len(ledger.owed),
                "booked": dollars(booked),
                "billed": dollars(owed),
                "difference_pico": booked - owed,
                "left_by_kills": len(held),
                "of_them_never_sent": sum(amount not in ledger.owed for amount in held),
                "left_by_kills_dollars": sum(held) / PICO,
            }
        return {
            "requests": len(self._requests),
            "kinds": dict(Counter(request.kind for request in self._requests)),
            "answers": dict(self.answers),
            "lost_with_the_gateway": self.lost,
            "disturbances": dict(self.disturbances),
            "providers": rows,
            "wrong_pico": wrong,
            "highest_of_cap": {name: round(self.highest[name] / cap, 4) for name, cap in self.caps.items()},
            "overshot": [name for name, cap in self.caps.items() if self.highest[name] > cap],
        }


@contextlib.asynccontextmanager
async def _directory() -> AsyncIterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="money-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


async def played(arguments: argparse.Namespace) -> int:
    """Play and print; the exit code."""
    async with _directory() as directory:
        result = await Play(directory, arguments).run()
    if arguments.output == "json":
        print(json.dumps(result))
    else:
        print(machine())
        for name, value in result.items():
            print(f"{name:24} {value}")
    return 1 if result["wrong_pico"] or result["overshot"] else 0


def main() -> int:
    """Read the words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=8, help="and hand-overs and ends among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a moment only")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--gateway", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gateway:
        serve(arguments.gateway)
        return 0
    if arguments.quick:
        arguments.requests, arguments.kills = 150, 2
    return asyncio.run(played(arguments))


if __name__ == "__main__":
    sys.exit(main())
