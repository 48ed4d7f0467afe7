"""Pools of real llama.cpp that chat, embed and rank, struck under load by everything that befalls a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from llama_servers import CONTEXT, MODEL, PROGRAM, RANKER
from real_pools import FAULTS, QUICK, Fault, RealPool, pool_of, pools_of_two, struck

from cloud.engines.dialect import LLAMACPP
from cloud.ports import Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.llamacpp,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]

TASKS: Mapping[str, Task] = {"chat": "generate", "vectors": "embed", "ranks": "rerank"}
"""The pools, each served under its own name."""
REST = 0.1
"""Seconds between an answer and its client's next question: starts need the machine too."""


def engine(task: Task) -> dict[str, object]:
    """One request at a time: so what it says to one is the same whatever others ask."""
    words = ["--threads", "1", "--parallel", "1", "--ctx-size", str(CONTEXT)]
    words += ["--pooling", "mean"] if task == "embed" else []
    return {"kind": "llamacpp", "executable": str(PROGRAM), "task": task, "args": words}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    stack_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Any, list[RealPool]]]:
    async with stack_in(tmp_path_factory.mktemp("real"), QUICK, 0.3, ("local-cloud",)) as stack:
        models = {name: str(RANKER if task == "rerank" else MODEL) for name, task in TASKS.items()}
        engines = {name: engine(task) for name, task in TASKS.items()}
        stack.write(pools_of_two(stack.tables, models, engines))
        await stack.start("gateway", "daemon")
        pools = [await pool_of(stack, name, task, LLAMACPP) for name, task in TASKS.items()]
        yield stack, [replace(pool, clients=4, rest=REST) for pool in pools]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_node_of_each_pool_is_struck(running: tuple[Any, list[RealPool]], fault: Fault) -> None:
    """One node of every pool at the same time."""
    stack, pools = running
    async with asyncio.TaskGroup() as group:
        for pool in pools:
            group.create_task(struck(stack, pool, fault))

    async def well() -> bool:
        return {pool["state"] for pool in (await stack.status())["pools"]} == {"ok"}

    await stack.until("every pool is said to be well", well)
