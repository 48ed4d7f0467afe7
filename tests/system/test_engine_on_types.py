"""Nodes start their engine with the flags of their instance type: from the file to the running process."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ENGINE = "pool.test.engine"


async def test_a_type_has_its_own_flags_and_others_have_the_pools(new_stack: Any) -> None:
    async def lengths(stack: Any) -> set[int]:
        """How long requests may be, as every node says."""
        found = set()
        async with aiohttp.ClientSession() as session:
            for node in (await stack.nodes()).values():
                async with session.get(f"http://{node['address']}/v1/models") as answer:
                    found |= {model["max_model_len"] for model in (await answer.json())["data"]}
        return found

    args = ["--load-time", "0.2", "--max-model-len", "8192"]
    other = {f'{ENGINE}.on."another.type"': {"args": ["--max-model-len", "1024"]}}
    own = {f'{ENGINE}.on."local.gpu"': {"args": ["--max-model-len", "4096"]}}
    async with new_stack({ENGINE: {"args": args}, **other}) as stack:
        await stack.settled()
        usual = {node["build"] for node in (await stack.nodes()).values()}
        assert await lengths(stack) == {8192}
        # New nodes have what the file says of their type; those that run stay as they are until they go.
        await stack.stop("daemon")
        stack.configure(own)
        await stack.start("daemon")
        await stack.settled()
        assert await lengths(stack) == {8192}
        before = set(await stack.nodes())
        await stack.admin("reclaim", node=(await stack.a_node("spot"))["id"])
        await stack.until_pool("a new node serves", lambda pool: {n["id"] for n in pool["nodes"]} - before)
        await stack.settled()
        assert await lengths(stack) == {8192, 4096}
        builds = {node["build"] for node in (await stack.nodes()).values()}
        assert len(usual) == 1
        assert len(builds) == 2
        assert usual < builds
