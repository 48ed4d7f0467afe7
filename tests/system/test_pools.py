"""A second pool comes and goes by reload while clients ask the first, with real processes for everything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

OF_THE_PROCESS = ("listen", "metrics_listen", "socket")


def beside(tables: Mapping[str, Mapping[str, object]], name: str) -> dict[str, dict[str, object]]:
    """The tables of a file with one pool, and those of a second one that is like it."""
    found = {table: dict(keys) for table, keys in tables.items()}
    found["gateway"] = {key: found["pool.test.gateway"].pop(key) for key in OF_THE_PROCESS}
    for table in [table for table in found if table.startswith("pool.test")]:
        found[table.replace("pool.test", f"pool.{name}")] = dict(found[table])
    found[f"pool.{name}"] |= {"model": name, "replicas": 2}
    return found


class Clients:
    """Asks one model again and again; `answers` counts statuses, and errors by name."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = f"{url}/v1/chat/completions", model
        self.answers: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Clients:
        self._session = aiohttp.ClientSession()
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _ask(self) -> None:
        while True:
            self.answers[await ask(self._session, self._url, self._model)] += 1
            await asyncio.sleep(0.02)


async def ask(session: aiohttp.ClientSession, url: str, model: str) -> str:
    """How one request ends: its status, or the name of an error."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    try:
        async with session.post(url, json=body) as answer:
            await answer.read()
            return str(answer.status)
    except aiohttp.ClientError as error:
        return type(error).__name__


async def pools_are(stack: Any, *names: str) -> None:
    """Wait until the daemon has just these pools, all of them well."""

    async def states() -> dict[str, str]:
        return {pool["name"]: pool["state"] for pool in (await stack.status())["pools"]}

    for _ in range(600):
        if (now := await states()) == dict.fromkeys(names, "ok"):
            return
        await asyncio.sleep(0.2)
    pytest.fail(f"the pools are {now}, not {names}")


async def test_a_pool_comes_and_goes_while_clients_ask_another(stack: Any, toml_writer: Any) -> None:
    await stack.settled()
    alone = {table: dict(keys) for table, keys in stack._tables.items()}
    both = beside(alone, "extra")
    url = f"{stack.url}/v1/chat/completions"
    async with Clients(stack.url, "simulated") as clients, aiohttp.ClientSession() as session:
        toml_writer(stack.config, both, {})
        done = await stack.cli("reload")
        assert done.code == 0, done.err
        await pools_are(stack, "test", "extra")
        assert await ask(session, url, "extra") == "200", "the gateway was replaced, and knows the name"
        first = {node["id"] for pool in (await stack.status())["pools"][:1] for node in pool["nodes"]}

        left = {table: keys for table, keys in both.items() if not table.startswith("pool.extra")}
        toml_writer(stack.config, left, {})
        done = await stack.cli("reload")
        assert (done.code, "pool.extra: it ends for good: its 2 nodes" in done.err) == (1, True)
        assert await ask(session, url, "extra") == "200"
        done = await stack.cli("reload", "--force")
        assert done.code == 0, done.err
        await pools_are(stack, "test")
        for _ in range(100):
            if await ask(session, url, "extra") == "404":
                break
            await asyncio.sleep(0.2)
        assert await ask(session, url, "extra") == "404", "the gateway was replaced, and forgot the name"
        assert {node["id"] for node in (await stack.status())["pools"][0]["nodes"]} == first
    stack.end_heirs()
    assert clients.answers.keys() == {"200"}
    assert clients.answers["200"] > 50
