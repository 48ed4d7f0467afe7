"""Requests that are with engines while something happens to a node, and what the gateway says meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp


async def gateway_state(stack: Any) -> dict[str, Any]:
    """What the gateway says of itself."""
    connector = aiohttp.UnixConnector(str(stack.sockets / "gateway"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get("http://gateway/v1/state") as answer,
    ):
        state: dict[str, Any] = await answer.json()
        return state


@contextlib.asynccontextmanager
async def long_requests(stack: Any, count: int = 12, tokens: int = 150) -> AsyncIterator[list[str]]:
    """Plain requests of some seconds, all with an engine when the body begins; how each ended, afterwards."""
    ends: list[str] = []
    body = {"model": "simulated", "prompt": "a long one", "max_tokens": tokens, "ignore_eos": True}

    async def ask(session: aiohttp.ClientSession) -> None:
        try:
            async with session.post(f"{stack.url}/v1/completions", json=body) as answer:
                whole = answer.status == 200 and (await answer.json())["usage"]["completion_tokens"] == tokens
                ends.append("whole" if whole else f"status {answer.status}")
        except (aiohttp.ClientError, OSError) as error:
            ends.append(repr(error))

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        tasks = [asyncio.create_task(ask(session)) for _ in range(count)]

        async def spread() -> bool:
            busy = [t["in_flight"] for t in (await gateway_state(stack))["targets"]]
            return sum(busy) >= count and min(busy) > 0

        try:
            await stack.until("every node works on some of the requests", spread)
            yield ends
        finally:
            await asyncio.gather(*tasks)
