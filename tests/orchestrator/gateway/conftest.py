"""Upstream servers that misbehave in the ways real engines do, and gateways in front of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cloud.clock import SystemClock
from cloud.ports import Clock
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.config import one_pool
from policies.model import TargetPhase, TargetSpec
from tests.support.certificates import Pair, pair
from tests.support.raw_http import Raw, connections
from tests.support.running_gateway import Running
from tests.support.upstreams import Behave, Behaviour, Upstream

PATIENCE = 20.0  # s after which a condition that should come true counts as never coming true


@pytest.fixture
def behave() -> type[Behave]:
    return Behave


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module with WIRES = ("http", "https") has its tests run over each of them."""
    if "wire" in metafunc.fixturenames and (wires := getattr(metafunc.module, "WIRES", ())):
        metafunc.parametrize("wire", wires, indirect=True)


@pytest.fixture
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Pair | None:
    """What gateways show their clients: nothing, in plain HTTP, or a certificate."""
    return pair(tmp_path).write() if getattr(request, "param", "http") == "https" else None


@pytest.fixture
def draining() -> Callable[[Upstream], TargetSpec]:
    return lambda upstream: upstream.spec(phase=TargetPhase.DRAINING)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Wait until a condition (a function or a coroutine function) holds."""

    async def wait(condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                held = condition()
                if asyncio.iscoroutine(held):
                    held = await held
                if held:
                    return
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture
async def upstreams() -> AsyncIterator[Callable[..., Awaitable[Upstream]]]:
    """Start an upstream: `await upstreams("a", behaviour)`."""
    started: list[Upstream] = []

    async def start(name: str, behaviour: Behaviour | None = None) -> Upstream:
        upstream = Upstream(name)
        if behaviour is not None:
            upstream.behaviour = behaviour
        await upstream.start()
        started.append(upstream)
        return upstream

    yield start
    for upstream in started:
        await upstream.stop()


@pytest.fixture
async def gateways(
    tmp_path: Path, eventually: Any, wire: Pair | None
) -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Start a gateway: `await gateways(upstream, ..., setting=value)`. Its targets are healthy on return.

    Health checks are frequent and retries fast; timeouts are long unless a test is about them.
    """
    running: list[Running] = []

    async def start(
        *upstreams: Upstream | TargetSpec, clock: Clock | None = None, **settings: Any
    ) -> Running:
        defaults: dict[str, Any] = {
            "targets_file": tmp_path / "targets.json",
            "socket": tmp_path / "gw.sock",
            "port": 0,
            "poll_interval": 0.02,
            "health_interval": 0.05,
            "queue_deadline": PATIENCE,
            "seed": 1,
            "linger": 0.0,
        }
        if wire is not None:
            defaults |= {"tls_cert_file": wire.certificate, "tls_key_file": wire.key}
        config = one_pool(**(defaults | settings))
        one = Running(Gateway(config, clock or SystemClock()), config)
        await one.gateway.start()
        running.append(one)
        if upstreams:
            await one.push(*upstreams)
            await eventually(one.all_checked)
        return one

    yield start
    for one in running:
        await one.stop()


@pytest.fixture
async def client(wire: Pair | None) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=True if wire is None else wire.trust())
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


@pytest.fixture
async def raw(wire: Pair | None) -> AsyncIterator[Callable[[Running], Awaitable[Raw]]]:
    """Connect to a gateway: `await raw(running)`."""
    async with connections(tls=None if wire is None else wire.trust()) as connect:
        yield lambda running: connect(running.gateway.port)


@dataclass
class Reply:
    """What a client got."""

    status: int
    headers: Any
    text: str

    @property
    def events(self) -> list[Any]:
        """The stream's events, `[DONE]` as that string."""
        datas = [part.removeprefix("data: ") for part in self.text.split("\n\n") if part]
        return [data if data == "[DONE]" else json.loads(data) for data in datas]

    @property
    def said(self) -> str:
        """The text of the stream."""
        rows = [event["choices"][0] for event in self.events if event != "[DONE]" and "choices" in event]
        return "".join(row["delta"].get("content", "") for row in rows)

    @property
    def error(self) -> Any:
        """The error of a stream that was cut, or of a plain answer."""
        if self.text.startswith("data:"):
            return next((event["error"] for event in self.events if "error" in event), None)
        return json.loads(self.text).get("error")


@pytest.fixture
def ask(client: aiohttp.ClientSession) -> Callable[..., Awaitable[Reply]]:
    """Send one chat request: `await ask(running, stream=True)`; `on_first` is set at the first bytes."""

    async def send(
        running: Running,
        *,
        stream: bool = False,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        headers: dict[str, str] | None = None,
        on_first: asyncio.Event | None = None,
        **fields: Any,
    ) -> Reply:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream} | fields
        data = json.dumps(body).encode() if method == "POST" else None
        async with client.request(method, running.url + path, data=data, headers=headers) as answer:
            first = await answer.content.readany()
            if on_first is not None:
                on_first.set()
            return Reply(answer.status, answer.headers, (first + await answer.read()).decode())

    return send
