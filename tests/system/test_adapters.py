"""Adapters over a whole pool of real processes: given to every node, changed while it runs, given again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from policies.held import Adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SQL, NEWER = Adapter(name="sql", source="/l/sql@1"), Adapter(name="sql", source="/l/sql-2@2")
LAW = Adapter(name="law", source="/l/law")


async def ask(session: aiohttp.ClientSession, url: str, model: str) -> tuple[int, dict[str, Any]]:
    body = {"model": model, "prompt": "hi", "max_tokens": 4}
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        return answer.status, await answer.json()


async def asking(url: str, models: tuple[str, ...], failed: list[object], over: asyncio.Event) -> int:
    """Ask for one after another until it is over; what is not answered well goes to `failed`."""
    count = 0
    async with aiohttp.ClientSession() as session:
        while not over.is_set():
            model = models[count % len(models)]
            status, answer = await ask(session, url, model)
            if status != 200 or answer["model"] != model:
                failed.append((model, status, answer))
            count += 1
    return count


def everywhere(*adapters: Adapter) -> Callable[[Any], bool]:
    wanted = {f"{adapter.name}@{adapter.revision}" for adapter in adapters}
    return lambda pool: len(pool["nodes"]) == 2 and all(set(n["adapters"]) == wanted for n in pool["nodes"])


async def test_adapters_are_held_equal_while_they_change_and_engines_forget_them(new_stack: Any) -> None:
    engine = {"kind": "simulated", "args": ["--load-time", "0.2", "--tokens-per-second", "200", "--faults"]}
    pool = {"replicas": 2, "model": "simulated", "adapters": {"sql": SQL.source, "law": LAW.source}}
    async with new_stack({"pool.test": pool, "pool.test.engine": engine}) as stack:
        await stack.until_pool("every node holds both", everywhere(SQL, LAW))
        failed: list[object] = []
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            counts = [
                group.create_task(asking(stack.url, ("sql", "law", "simulated"), failed, over))
                for _ in range(3)
            ]
            try:
                changed = {"sql": NEWER.source, "law": LAW.source}
                stack.configure({"pool.test": {"adapters": changed}})
                done = await stack.cli("reload", "--wait")
                assert done.code == 0, done.err
                await stack.until_pool("every node holds the newer one alone", everywhere(NEWER, LAW))
                one = await stack.a_node("on-demand")
                async with aiohttp.ClientSession() as session:
                    url = f"http://{one['address']}/v1/unload_lora_adapter"
                    async with session.post(url, json={"lora_name": LAW.served_as}) as answer:
                        assert answer.status == 200
                lost = "AdapterLost"
                await stack.until("it is seen", lambda: happened(stack, lost))
                await stack.until_pool("it has it again", everywhere(NEWER, LAW))
            finally:
                over.set()
        assert not failed, failed[:3]
        assert sum(task.result() for task in counts) > 10

        async def counted() -> bool:
            text = await stack.get(stack.monitoring_port, "/metrics")
            held = 'orchestrator_adapter_nodes{adapter="sql",pool="test"} 2.0' in text
            return held and 'orchestrator_adapter_missing_nodes{adapter="law",pool="test"} 0.0' in text

        await stack.until("the metrics tell that every node holds both", counted)
        for pid, line in stack.command_lines().items():
            if " gateway " in line:  # the heir, which the reload started, is nobody's child
                os.kill(pid, signal.SIGTERM)


async def happened(stack: Any, kind: str) -> bool:
    return any(event["kind"] == kind for event in await stack.events())
