"""Engines, clients and faults in virtual time, around the real table, queue, watch, checks and proxy."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import orjson
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict

from cloud.balancers.targets import TargetSet
from orchestrator.gateway.accounts.desk import Desk
from orchestrator.gateway.accounts.keyfile import ClientKeys
from orchestrator.gateway.asked import ask
from orchestrator.gateway.attempt import AttemptFailed, Attempts
from orchestrator.gateway.config import one_pool
from orchestrator.gateway.continuation import Broken, Capability, Way
from orchestrator.gateway.endings import Answer, Endings
from orchestrator.gateway.failure import Failure, of_status
from orchestrator.gateway.ids import RequestIds
from orchestrator.gateway.job import Job
from orchestrator.gateway.lane import Lane
from orchestrator.gateway.metrics import GatewayMetrics, Outcome
from orchestrator.gateway.proxy import Proxy
from orchestrator.gateway.request import Stage
from orchestrator.gateway.router import Router
from orchestrator.gateway.tries import Tries
from orchestrator.simulation.virtual_time import VirtualClock, VirtualTimeLoop
from policies.model import TargetPhase, TargetSpec

EPOCH = 1_000_000.0
_KEY = ConnectionKey("node", 80, False, True, None, None, None)


class Node:
    """An engine. `answers` is the status of every answer, `retry_after` what it says with it."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self.address = f"{name}:80"
        self.rng = rng
        self.gap = rng.uniform(0.02, 0.2)
        self.answers = 200
        self.retry_after: str | None = None
        self.draining_until: float | None = None
        self.refuses = False
        self.asked = 0
        self._dead = asyncio.Event()
        self._moves = asyncio.Event()
        self._moves.set()

    @property
    def well(self) -> bool:
        return self._moves.is_set() and not self.refuses and self.answers == 200

    def freeze(self) -> None:
        self._moves.clear()

    def thaw(self) -> None:
        self._moves.set()

    def die(self) -> None:
        """Every connection is reset, and none is accepted."""
        self.refuses = True
        self._moves.set()
        self._dead.set()

    def come_back(self) -> None:
        self.refuses, self.answers, self.retry_after = False, 200, None
        self._dead = asyncio.Event()
        self._moves.set()

    async def connect(self) -> None:
        if self.refuses:
            raise Broken(Failure.CONNECT, "refused")
        self.asked += 1

    async def works(self, seconds: float) -> None:
        """Takes so long, and longer while it is frozen. Raises Broken when it dies."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._dead.wait()
        await self._moves.wait()
        if self._dead.is_set():
            raise Broken(Failure.DISCONNECTED, "reset")

    @contextlib.asynccontextmanager
    async def health(self):
        """A check as the checker's session makes it."""
        if self.refuses:
            raise aiohttp.ClientConnectorError(_KEY, ConnectionRefusedError(111, "refused"))
        async with asyncio.timeout(4.4):
            await self._moves.wait()
        yield SimpleNamespace(status=200)


class Out:
    """What a client has. A slow one takes its time for some pieces."""

    content_type = "text/event-stream"
    prepared = True

    def __init__(self, world: World) -> None:
        self.world = world
        self.tokens: list[int] = []
        self.error = b""

    async def write(self, data: bytes) -> None:
        if b"stream_interrupted" in data:
            self.error = data
        if self.world.rng.random() < 0.002:
            await self.world.clock.sleep(self.world.rng.uniform(1.0, 40.0))


class Played(Attempts):
    """Attempts that follow the rules of the real ones, with engines that are played."""

    def __init__(self, world: World, **parts) -> None:
        super().__init__(**parts)
        self.world = world

    async def run(self, job, entry):
        node = self.world.nodes[entry.spec.address]
        job.body_for(entry)
        with self._failures_named(job, leash := self._leash(job, entry)), leash:
            await node.connect()
            await node.works(node.gap)
            self._refused(job, node, entry)
            self.world.worked[job.exchange.id] += 1
            if not job.asked.stream:
                await node.works(node.gap * job.asked.max_tokens)
                leash.moved()
                leash.began()
                self._table.good(entry)
                job.response, job.outcome = Out(self.world), Outcome.OK
                job.response.tokens.extend(range(job.asked.max_tokens))
                return job.response
            job.judge = SimpleNamespace(whole=False, usage=None, chunks=0, tokens=lambda: None)
            await self._tokens(job, leash, node)
        return await self._close(job, b"")

    async def resume(self, job, entry):
        node = self.world.nodes[entry.spec.address]
        with self._failures_named(job, leash := self._leash(job, entry)), leash:
            await node.connect()
            await node.works(node.gap)
            self._refused(job, node, entry)
            job.judge = None
            await self._tokens(job, leash, node)
        return await self._close(job, b"")

    def _refused(self, job, node, entry) -> None:
        status = 400 if job.asked.model == "poison" and node.answers == 200 else node.answers
        if status == 200:
            return
        body = b'{"error": {"message": "no"}}'
        headers = CIMultiDict({} if node.retry_after is None else {"Retry-After": node.retry_after})
        failure = of_status(status, body, draining=entry.draining)
        raise AttemptFailed(failure, f"it answered {status}", Answer(status, headers, body))

    async def _tokens(self, job, leash, node):
        while True:
            await node.works(node.gap * node.rng.uniform(0.5, 1.5))
            leash.moved()
            if job.exchange.stage is not Stage.STREAMING:
                self._begun(job, leash)
                job.response = job.response or Out(self.world)
            said = job.response.tokens
            last = len(said) + 1 == job.asked.max_tokens
            if job.transcript is not None:
                assert job.transcript.tokens == len(said)
                job.transcript.take(*_event(len(said), last=last))
            said.append(len(said))
            if job.judge is not None:
                job.judge.whole = last
            leash.clock.at_client = True
            await job.response.write(b"data: {}\n\n")
            leash.clock.at_client = False
            if last:
                return


def _event(number: int, *, last: bool):
    choice = {
        "index": 0,
        "delta": {"content": "x"},
        "token_ids": [number],
        "finish_reason": "stop" if last else None,
    }
    chunk = {"id": "c", "object": "o", "created": 1, "model": "m", "choices": [choice]}
    if not number:
        chunk["prompt_token_ids"] = [1, 2]
    return b"data: " + orjson.dumps(chunk) + b"\n\n", chunk


class PlayedProxy(Proxy):
    """The real one, but for the reading of requests."""

    async def _read(self, request, exchange):
        exchange.read_at = self._clock.now()
        job = Job(request, exchange, request.asked)
        request.job = job
        return job


class PlayedLane(Lane):
    """The real one, but for the headers of requests."""

    async def serve(self, job, candidate):
        self._forwarding = SimpleNamespace(to_node=lambda request, id: CIMultiDict())
        return await super().serve(job, candidate)


class PlayedTries(Tries):
    """The real ones; counts what each target holds."""

    world: World

    def _goes_on(self, job, entry, error, sent_at):
        self.world.moved[job.exchange.id] += error.failure is Failure.MOVED
        if entry.spec.id == "n0" and error.failure is not Failure.REFUSED_HERE:
            self.world.wronged.append(error.failure)
        return super()._goes_on(job, entry, error, sent_at)

    async def _attempt(self, job, entry):
        self.world.held[entry] += 1
        self.world.attempts[job.exchange.id] += 1
        try:
            return await super()._attempt(job, entry)
        finally:
            self.world.held[entry] -= 1


class World:
    """A gateway's core, its nodes, and what is known of every request."""

    def __init__(self, loop: VirtualTimeLoop, seed: int, nodes: int, **settings) -> None:
        self.rng = random.Random(seed)
        self.clock = VirtualClock(loop, epoch=EPOCH)
        self.config = one_pool(targets_file=Path("t"), socket=Path("s"), **settings)
        self.gate = gate = self.config.pools[0]
        clock = self.clock
        self.metrics = GatewayMetrics(clock.now)
        endings = Endings(self.config.retry_after)
        self.lane = lane = PlayedLane(
            config=self.config,
            gate=gate,
            metrics=self.metrics,
            endings=endings,
            clock=clock,
            rng=random.Random(seed),
            stopping=lambda: self.proxy.stopping,
        )
        self.table, self.admission, self.checker = lane.table, lane.admission, lane.health
        self.watch = lane._watch
        self.own_session = self.checker._session
        self.checker._session = SimpleNamespace(get=self._health, close=self.own_session.close)
        parts = {"table": self.table, "metrics": lane.metrics, "clock": clock}
        attempts = Played(
            self,
            **parts,
            answer_limit=self.config.answer_limit,
            session=self.own_session,
            watch=self.watch,
            stopping=lambda: self.proxy.stopping,
        )
        lane._tries = PlayedTries(
            **parts,
            admission=self.admission,
            attempts=attempts,
            policy=lane._tries._policy,
            endings=endings,
        )
        lane._tries.world = self
        router = Router(self.config, {lane.name: lane}, {}, endings=endings, metrics=self.metrics, seed=0.0)
        desk = Desk(self.config, endings=endings, metrics=self.metrics, clock=clock)
        self.proxy = PlayedProxy(
            config=self.config,
            router=router,
            keys=ClientKeys(None, clock),
            gate=desk.gate,
            endings=endings,
            metrics=self.metrics,
            metering=desk.metering,
            ids=RequestIds(random.Random(seed)),
            clock=clock,
        )
        self.nodes: dict[str, Node] = {}
        self.listed: dict[str, Node] = {}
        self.held: Counter = Counter()
        self.attempts: Counter = Counter()  # by request
        self.worked: Counter = Counter()  # those of them at targets that began to work on it
        self.moved: Counter = Counter()  # those of them that left their target on purpose
        self.wronged: list[Failure] = []  # what the first node is said to have failed in
        self.unlucky = 0  # requests that met as many bad targets as a request may
        self.requests: list = []
        self.tasks: list[asyncio.Task] = []
        self.generation = 0
        self.made = 0
        for _ in range(nodes):
            self.add()
        self.put()
        self.running = [asyncio.create_task(self.watch.run())]

    def _health(self, url):
        return self.nodes[f"{url.host}:80"].health()

    def add(self) -> Node:
        """One more node, in the set from the next `put` on."""
        node = Node(f"n{self.made}", self.rng)
        self.made += 1
        self.nodes[node.address] = self.listed[node.name] = node
        return node

    def put(self) -> None:
        """Hand the gateway the set as it is."""
        self.generation += 1
        self.table.apply(
            TargetSet(
                generation=self.generation,
                pool="p",
                written_at=1.0,
                targets=tuple(self._spec(node) for node in self.listed.values()),
            )
        )
        self.checker.sync()

    def _spec(self, node: Node) -> TargetSpec:
        if node.draining_until is None:
            return TargetSpec(id=node.name, address=node.address)
        return TargetSpec(
            id=node.name,
            address=node.address,
            phase=TargetPhase.DRAINING,
            drain_deadline=node.draining_until,
        )

    def send(self, *, stream: bool, tokens: int, repeatable: bool = True, model: str = "m") -> asyncio.Task:
        """One request."""
        body = {"model": model, "messages": [], "stream": stream, "max_tokens": tokens}
        asked = ask("POST", "/v1/chat/completions", "application/json", orjson.dumps(body))
        request = SimpleNamespace(
            headers=CIMultiDict(),
            method="POST",
            transport=None,
            asked=dataclasses.replace(asked, repeatable=repeatable),
            job=None,
            left=False,
            response=None,
            began=self.clock.now(),
            ended=None,
        )
        task = asyncio.create_task(self._served(request))
        self.requests.append(request)
        self.tasks.append(task)
        return task

    async def _served(self, request) -> None:
        try:
            request.response = await self.proxy.handle(request)
        except asyncio.CancelledError:
            request.left = True
            raise
        finally:
            request.ended = self.clock.now()

    def check(self) -> None:
        """What holds at every step."""
        for entry in self.table:
            assert entry.in_flight == self.held[entry] >= 0, f"{entry.spec.id}: {self.held[entry]}"
        assert sum(self.held.values()) == sum(entry.in_flight for entry in self.table)
        assert self.metrics.active == len(self.proxy._running)

    async def end(self) -> None:
        """Wait for every request, and take everything down."""
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for task in self.running:
            task.cancel()
        await self.checker.close()


class Quiet:
    """A log that says nothing."""

    def __getattr__(self, _):
        return lambda *_, **__: None


@contextlib.contextmanager
def quiet(monkeypatch) -> Iterator[None]:
    """Say nothing to the log, and let every engine that is well tell what it can do."""

    async def can(session, address, _):
        try:
            async with session.get(SimpleNamespace(host=address.partition(":")[0])):
                return Capability(Way.DERENDER, identity="m", why="")
        except (aiohttp.ClientError, TimeoutError) as error:
            return Capability(why=str(error))

    with monkeypatch.context() as patch:
        for module in ("proxy", "health"):
            patch.setattr(f"orchestrator.gateway.{module}.log", Quiet())
        patch.setattr("orchestrator.gateway.health.probe", can)
        yield
