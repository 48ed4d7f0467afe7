"""Three nodes, and a gateway with default settings in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cloud.clock import SystemClock
from cloud.engines.simulated_server.api import Api, ApiSettings
from cloud.engines.simulated_server.core import Core, CoreSettings
from cloud.engines.simulated_server.metrics import Metrics
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.config import one_pool
from tests.orchestrator.gateway.faults import plain_faults as p
from tests.orchestrator.gateway.faults.answers import Script, marker_of, script_for
from tests.orchestrator.gateway.faults.playing import Fault, Play
from tests.support.running_gateway import Running
from tests.support.upstreams import Conversation, Upstream

PATIENCE = 20.0
NODES = 3
_NUMBERS = itertools.count(random.SystemRandom().getrandbits(31))


def marker() -> str:
    """A marker that no other request has."""
    return f"q{next(_NUMBERS):08x}"


@contextlib.asynccontextmanager
async def simulated_engine() -> AsyncIterator[str]:
    """The address of a simulated engine in this process; it tells token ids and can go on from them."""
    clock = SystemClock()
    settings = CoreSettings(
        tokens_per_second=5000.0,
        time_to_first_token=0.0,
        max_num_seqs=64,
        max_model_len=8192,
        seed=0,
        mean_length=0,
    )
    core = Core(clock, settings, Metrics("m"))
    api = Api(clock, core, ApiSettings(model="m", served_name="m", scale_out=True))
    runner = web.AppRunner(api.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running = asyncio.create_task(core.run())
    try:
        yield "{}:{}".format(*runner.addresses[0][:2])
    finally:
        running.cancel()
        await runner.cleanup()


class Pool:
    """The nodes. Those in `faulty` meet every inference request with `fault`; the others are good.

    A good node holds its answers back until every node has a request: so each faulty node meets one.
    With an `engine`, answers are its own: the nodes stand before it and break them.
    """

    def __init__(self, engine: str = "", session: aiohttp.ClientSession | None = None) -> None:
        self.nodes = [Upstream(f"node-{number}") for number in range(NODES)]
        self.fault: Fault | None = None
        self.faulty: list[Upstream] = []
        self.met: Counter[str] = Counter()
        self._parts: dict[str, asyncio.Event] = {}
        self._reached: set[str] = set()
        self._engine = engine
        self._session = session
        self._all_busy = asyncio.Event()
        for node in self.nodes:
            node.behaviour = self._behave
            if engine:
                node.asked = self._behave

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()

    async def stop(self) -> None:
        for node in self.nodes:
            await node.stop()

    async def break_nodes(self, fault: Fault, count: int) -> None:
        """From here on so many nodes have the fault."""
        self.fault, self.faulty = fault, self.nodes[:count]
        if fault is p.refuses_connections:
            for node in self.faulty:
                await node.stop_listening()
            self._all_busy.set()

    async def heal(self) -> None:
        """From here on every node is good."""
        if self.fault is p.refuses_connections:
            for node in self.faulty:
                await node.start()
        for node in self.nodes:
            node.frozen = False
        self.faulty = []
        self._all_busy.set()

    async def _behave(self, talk: Conversation) -> None:
        name = marker_of(talk.request.body)
        script = (
            await self._ask_engine(talk) if self._engine else script_for(talk.request.path, talk.request.body)
        )
        if script is None:
            await talk.json({"detail": "Not Found"}, "404 Not Found")
            return
        play = Play(talk, script, self.part_of(name))
        asked = bool(script.events) if self._engine else bool(name)
        if not asked:  # one of the gateway's own questions
            await play.whole()
            return
        self._reached.add(talk.upstream.name)
        if len(self._reached) == len(self.nodes):
            self._all_busy.set()
        if talk.upstream in self.faulty and self.fault is not None:
            if name:
                self.met[name] += 1
            await self.fault(play)
        else:
            await self._all_busy.wait()
            await play.whole()

    def part_of(self, name: str) -> asyncio.Event:
        """Set once the client of this request was shown text, and where a request has no marker."""
        event = self._parts.setdefault(name, asyncio.Event())
        if not name:
            event.set()
        return event

    async def _ask_engine(self, talk: Conversation) -> Script | None:
        """The engine's answer, as a script; None where it does not know the path."""
        assert self._session is not None
        request = talk.request
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": request.headers.get("x-request-id", ""),
        }
        url = f"http://{self._engine}{request.path}"
        async with self._session.request(request.method, url, data=request.body, headers=headers) as answer:
            body = await answer.read()
        if answer.status != 200:
            return None
        if answer.content_type != "text/event-stream":
            return Script(kind=answer.content_type, body=body)
        return Script(
            answer.headers["Content-Type"], events=tuple(e + b"\n\n" for e in body.split(b"\n\n") if e)
        )


@contextlib.asynccontextmanager
async def gateway(directory: Path, **settings: Any) -> AsyncIterator[Running]:
    """A gateway with default settings but these, and those that a test of its own needs."""
    ours: dict[str, Any] = {
        "targets_file": directory / "targets.json",
        "socket": directory / f"{uuid.uuid4().hex[:8]}.sock",
        "port": 0,
        "seed": 1,
        "linger": 0.0,
    }
    config = one_pool(**(ours | settings))
    running = Running(Gateway(config, SystemClock()), config)
    await running.gateway.start()
    try:
        yield running
    finally:
        await running.stop()


async def until_ready(running: Running, *, ids: bool = False) -> None:
    """Every target has passed its first check and, where it tells `ids`, is known to be able to go on."""

    async def ready() -> bool:
        rows = (await running.targets()).values()
        known = all((row["continuation"] or {}).get("way") == "derender" for row in rows)
        return all(row["state"] == "healthy" for row in rows) and (known or not ids)

    async with asyncio.timeout(PATIENCE):
        while not await ready():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
