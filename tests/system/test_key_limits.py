"""Limits of keys over gateway processes that share a file, and are killed and replaced.

`bench/key_limits.py` measures them over minutes; here all is counted, and nothing timed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from cloud.clock import SystemClock
from orchestrator.gateway.accounts.limit_file import read_use
from policies.model import TargetSpec
from tests.support.gateway_rig import GatewayRig, until

KEY = "sk-orch-planted"
REQUESTS, FLIGHT = 40, 2


class Engine:
    """Answers at once, or, where a stream is asked for, begins one and ends it when `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.streams = self.plain = 0
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.go_on.set()
            await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if asked.get("stream"):
            return await self._stream(request)
        self.plain += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 1}
        return web.json_response(
            {"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        self.streams += 1
        try:
            await out.write(_event({"content": "well"}, None))
            await self.go_on.wait()
            await out.write(_event({}, "stop") + b"data: [DONE]\n\n")
        finally:
            self.streams -= 1
        return out


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine().running() as running:
        yield running


@pytest.fixture
async def two(tmp_path: Path, engine: Engine) -> AsyncIterator[list[GatewayRig]]:
    """Two gateways in processes of their own, with one file of keys and one of usage."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    limits = f"requests_per_minute = {REQUESTS}\nin_flight = {FLIGHT}\n"
    (tmp_path / "keys.toml").write_text(f'[key.a]\nsha256 = "{digest}"\n{limits}')
    shared = {"keys_file": str(tmp_path / "keys.toml"), "usage_file": str(tmp_path / "usage.db")}
    async with AsyncExitStack() as stack:
        rigs = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            rig = GatewayRig(tmp_path / name, shared, kept=True)
            stack.push_async_callback(rig.close)
            await rig.start()
            await rig.apply([TargetSpec(id="engine", address=engine.address)])
            rigs.append(rig)
        yield rigs


Post = Callable[..., Awaitable[aiohttp.ClientResponse]]


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    """Ask a gateway; what is returned has begun and is not read."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=100)) as session:

        async def ask(rig: GatewayRig, **fields: object) -> aiohttp.ClientResponse:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
            head = {"Authorization": f"Bearer {KEY}"}
            return await session.post(f"{rig.url}/v1/chat/completions", json=body, headers=head)

        yield ask


async def status(post: Post, rig: GatewayRig) -> int:
    async with await post(rig) as answer:
        await answer.read()
        return answer.status


@pytest.mark.slow
async def test_both_together_let_through_what_a_minute_holds(
    two: list[GatewayRig], engine: Engine, post: Post
) -> None:
    """Whoever is refused for a place in flight asks again, until the minute is used up."""

    async def client(rig: GatewayRig) -> None:
        while True:
            async with await post(rig) as answer:
                body = await answer.text()
            if answer.status == 429 and "requests a minute" in body:
                return
            assert answer.status == 200 or "in flight" in body

    await asyncio.gather(*(client(rig) for rig in two for _ in range(4)))
    assert engine.plain == REQUESTS


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_what_a_killed_process_had_in_flight_comes_free(
    two: list[GatewayRig], engine: Engine, post: Post, tmp_path: Path
) -> None:
    one, other = two
    streams = [await post(other, stream=True) for _ in range(FLIGHT)]
    assert [each.status for each in streams] == [200] * FLIGHT
    assert await status(post, one) == 429
    await other.kill()

    async def passes() -> bool:
        return await status(post, one) == 200

    await until("the places of the killed gateway come free", passes, step=0.5)
    await other.start()
    await other.apply([TargetSpec(id="engine", address=engine.address)])
    assert await status(post, other) == 200
    assert read_use(tmp_path / "usage.db", SystemClock().steady())["a"].requests >= FLIGHT + 2


@pytest.mark.slow
@pytest.mark.timeout(200)
async def test_an_heir_counts_what_the_old_process_still_answers(
    two: list[GatewayRig], engine: Engine, post: Post
) -> None:
    one, other = two
    streams = [await post(one, stream=True) for _ in range(FLIGHT)]
    old = one.pid
    await one.replace()
    assert one.pid != old
    for rig in (one, other):  # the heir, too
        assert await status(post, rig) == 429
    engine.go_on.set()
    for stream in streams:
        assert b"[DONE]" in await stream.read()

    async def passes() -> bool:
        return await status(post, one) == 200

    await until("the places of the old gateway come free", passes, step=0.2)
