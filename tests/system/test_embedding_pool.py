"""A pool that embeds, played as TEI is: renewed, reclaimed, killed and replaced, and no vector is lost."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

NAME = "bge"
TEXTS = ["a spot node", "another one", "and a third, which is the longest"]


def program(directory: Path) -> str:
    """What stands where TEI's router would: the server that plays it."""
    file = directory / "text-embeddings-router"
    played = (sys.executable, "-m", "cloud.engines.replay", "tei", "--task", "embed")
    slow = ("--tokens-per-second", "30", "--load-time", "0.2")  # three inputs take a tenth of a second
    file.write_text(f'#!/bin/sh\nexec {shlex.join((*played, *slow))} -- "$@"\n')
    file.chmod(0o755)
    return str(file)


class Clients:
    """Some that ask without a pause; what went wrong, and how many answers were right."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._over = asyncio.Event()
        self.right = Counter[str]()
        self.wrong: list[object] = []
        self.tokens: set[int] = set()
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(count)]

    async def _ask(self) -> None:
        async with openai.AsyncOpenAI(base_url=f"{self._url}/v1", api_key="x", max_retries=0) as sdk:
            expected: list[list[float]] | None = None
            while not self._over.is_set():
                try:
                    raw = await sdk.embeddings.with_raw_response.create(model=NAME, input=TEXTS)
                except openai.OpenAIError as error:
                    self.wrong.append(error)
                    continue
                vectors = [row.embedding for row in raw.parse().data]
                expected = expected or vectors
                if vectors != expected or len({*map(tuple, vectors)}) != len(TEXTS):
                    self.wrong.append(vectors)
                self.tokens.add(raw.parse().usage.prompt_tokens)
                self.right[raw.headers["x-orchestrator-node"]] += 1

    async def more(self, count: int) -> None:
        """Wait for so many answers more."""
        goal = self.right.total() + count
        async with asyncio.timeout(60):
            while self.right.total() < goal and not self.wrong:  # noqa: ASYNC110 - they tell nobody
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)


async def test_a_pool_of_tei_loses_nothing_while_its_nodes_go(new_stack: Any, tmp_path: Path) -> None:
    engine = {
        "kind": "tei",
        "task": "embed",
        "served_name": NAME,
        "executable": program(tmp_path),
        "args": ["--auto-truncate", "false"],
    }
    pool = {"replicas": 3, "model": "BAAI/bge-base"}
    async with new_stack({"pool.test": pool, "pool.test.engine": engine}) as stack:
        await stack.settled()
        before = set(await stack.nodes())
        clients = Clients(stack.url, 6)
        try:
            await clients.more(20)
            reclaimed = (await stack.a_node("spot"))["id"]
            await stack.admin("reclaim", node=reclaimed)
            await stack.until("it is gone", lambda: _gone(stack, reclaimed))
            await stack.settled()
            await clients.more(20)
            killed = await stack.a_node("spot")
            host = killed["address"].partition(":")[0]
            found = stack.command_lines().items()
            engines = [pid for pid, line in found if "engines.replay" in line and f" {host} " in f"{line} "]
            assert len(engines) == 1, found
            os.kill(engines[0], signal.SIGKILL)
            await stack.until("it is gone", lambda: _gone(stack, killed["id"]))
            await stack.settled()
            await clients.more(20)
            renewed = await stack.a_node("on-demand")
            done = await stack.cli("replace", renewed["id"])
            assert done.code == 0, done.err
            await stack.until("it is gone", lambda: _gone(stack, renewed["id"]))
            await stack.settled()
            await clients.more(20)
        finally:
            await clients.end()
        assert not clients.wrong, clients.wrong[:3]

        async def counted() -> dict[str, Any] | None:
            told = json.loads((await stack.cli("cost", "-o", "json", "--since", "2h")).out)
            [row] = [row for row in told["rows"] if row["group"]["pool"] == "test"]
            return row if row["requests"] >= clients.right.total() else None

        row = await stack.until("all requests are in the file", counted)
        assert clients.tokens == {row["tokens_in"] / row["requests"]}
        assert (row["tokens_out"], row["estimated_requests"]) == (0, 0)
        assert row["usd_per_mtok"] > 0
        assert {reclaimed, killed["id"], renewed["id"]} < before | set(clients.right)
        assert len(set(await stack.nodes()) - before) >= 2, "others stand in their places"


STRANGER = """
[provider.far]
kind = "openai"
url = "http://127.0.0.1:9"
[[route]]
models = ["vectors"]
task = "embed"
to = [{ pool = "test" }, { provider = "far", model = "text-embedding-3-small" }]
"""


async def test_vectors_of_another_model_are_refused_by_reload_too(new_stack: Any, tmp_path: Path) -> None:
    engine = {"kind": "tei", "task": "embed", "served_name": NAME, "executable": program(tmp_path)}
    pool = {"replicas": 1, "model": "BAAI/bge-base"}
    async with new_stack({"pool.test": pool, "pool.test.engine": engine}) as stack:
        await stack.settled()
        good = stack.config.read_text()
        for task, says in (
            ("embed", 'serves "text-embedding-3-small", and the route embeds with "bge": vectors of two'),
            ("rerank", "far is of kind openai, and none of these ranks"),
            ("chat", 'pool test is started with engine.task = "embed", and this route has task = "chat"'),
        ):
            stack.config.write_text(good + STRANGER.replace('task = "embed"', f'task = "{task}"'))
            done = await stack.cli("reload")
            assert (done.code, says in done.err) == (1, True), done.err
        stack.config.write_text(good)
        assert (await stack.cli("reload")).code == 0


async def _gone(stack: Any, node: str) -> bool:
    return node not in await stack.nodes()
