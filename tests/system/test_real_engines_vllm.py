"""Pools of real vLLM that generate and embed, struck under load by everything that befalls a node.

A node's start takes most of what a machine with two cores has for 20 s or more, so both pools are struck at
the same time. Two rounds are played, and all of them with ORCHESTRATOR_EVERY_FAULT=1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from engine_bench import ENCODER, ENCODER_ARGS, MODEL, VLLM, available
from real_pools import FAULTS, Fault, RealPool, engine_processes, pool_of, pools_of_two, struck

from cloud.engines.dialect import VLLM as DIALECT
from cloud.engines.vllm_cpu import CPU_ARGS, CPU_ENV
from cloud.errors import CloudError
from cloud.ports import Task
from orchestrator.views.api import NodeView

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(3600),
]

START = 900.0
"""Seconds that a start may take where many share the machine."""

REST = 0.3
"""Seconds between an answer and its client's next question: starts need the machine too."""

TASKS: Mapping[str, Task] = {"chat": "generate", "vectors": "embed"}
"""The pools, each served under its own name."""

SETTINGS: dict[str, dict[str, object]] = {
    "daemon": {"probe_interval": "1s", "probe_timeout": "10s"},
    "pool.test": {"spot_share": "100%"},
    "pool.test.placement": {"refusal_half_life": "60s"},
    "pool.test.health": {"replace_after": "15s", "boot_timeout": f"{START:.0f}s"},
    "pool.test.patience": {"effect_timeout": "60s"},
}


async def _freeze_core(stack: Any, node: NodeView) -> None:
    """What computes stands still; what answers requests says that all is well."""
    os.kill(engine_processes(stack, node)[1], signal.SIGSTOP)


async def _refuse_memory(stack: Any, node: NodeView) -> None:
    """No process of it gets any more memory, and then comes a request that needs some."""
    for pid in engine_processes(stack, node):
        resource.prlimit(pid, resource.RLIMIT_AS, (0, resource.RLIM_INFINITY))
    await _want_memory(node)


async def _run_out_of_memory(stack: Any, node: NodeView) -> None:
    """The kernel ends it as soon as it needs more memory, which it does for long requests."""
    starving = asyncio.create_task(TABLE["out of memory"].strike(stack, node))
    while not starving.done():
        await _want_memory(node)
        await asyncio.sleep(0)
    await starving


async def _want_memory(node: NodeView) -> None:
    """Ask for what needs more memory than the requests of this module's clients."""
    words = "one and another one " * 100
    bodies: Mapping[str, dict[str, object]] = {
        "/v1/completions": {"model": "chat", "prompt": words, "prompt_logprobs": 20, "n": 4},
        "/v1/embeddings": {"model": "vectors", "input": [words[:1000]] * 400},
    }
    async with aiohttp.ClientSession() as session:
        for path, body in bodies.items():  # one of them is not for this node
            with contextlib.suppress(aiohttp.ClientError):
                await session.post(f"http://{node['address']}{path}", json=body)


TABLE = {fault.name: fault for fault in FAULTS}

KNOWN = TABLE | {
    "out of memory": Fault(name="out of memory", strike=_run_out_of_memory, cause="sick"),
    "no more memory": Fault(name="no more memory", strike=_refuse_memory, cause="sick"),
    "frozen core": Fault(name="frozen core", strike=_freeze_core, cause="sick"),
}


@dataclass(frozen=True, slots=True)
class Round:
    """What strikes a node of the pool that generates, and what one of the pool that embeds."""

    chat: str
    vectors: str

    def __str__(self) -> str:
        return f"{self.chat}, {self.vectors}"


ALWAYS = (Round("drain", "reclaim"), Round("frozen core", "kill -9"))
AT_LEISURE = (
    Round("kill -9", "frozen core"),
    Round("reclaim", "drain"),
    Round("out of memory", "no more memory"),
    Round("no more memory", "out of memory"),
    Round("crash", "frozen"),
    Round("frozen", "crash"),
)


def engine(task: Task) -> dict[str, object]:
    return {
        "kind": "vllm",
        "executable": str(VLLM),
        "task": task,
        "args": list(CPU_ARGS if task == "generate" else ENCODER_ARGS),
        "env": dict(CPU_ENV),
    }


async def _seen(stack: Any) -> dict[str, Any]:
    with contextlib.suppress(CloudError):
        found: dict[str, Any] = await stack.statistics()
        return found
    return {}


async def _started(stack: Any) -> list[RealPool]:
    """Both pools, whole, and what their clients ask."""
    models = {name: str(MODEL if task == "generate" else ENCODER) for name, task in TASKS.items()}
    stack.write(pools_of_two(stack.tables, models, {name: engine(task) for name, task in TASKS.items()}))
    await stack.until("the cloud answers", lambda: _seen(stack))
    for zone in ("local-1a", "local-1b", "local-1c"):  # cover for spot would be a second start
        await stack.admin("capacity", zone=zone, count=0, market="on-demand")
    await stack.start("gateway", "daemon")
    await stack.settled(patience=START)
    chat = await pool_of(stack, "chat", "generate", DIALECT, tokens=150)
    vectors = await pool_of(stack, "vectors", "embed", DIALECT)
    ranks = await pool_of(stack, "vectors", "rerank", DIALECT)  # a model that embeds also ranks
    both = replace(vectors, questions=(*vectors.questions, *ranks.questions))
    return [replace(pool, clients=4, rest=REST) for pool in (chat, both)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    stack_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Any, list[RealPool]]]:
    available("vllm-embed")
    async with stack_in(tmp_path_factory.mktemp("real"), SETTINGS, 0.3, ("local-cloud",)) as stack:
        yield stack, await _started(stack)


async def _played(running: tuple[Any, list[RealPool]], played: Round) -> None:
    stack, pools = running
    await stack.settled(patience=START)
    faults = (KNOWN[played.chat], KNOWN[played.vectors])
    async with asyncio.TaskGroup() as group:
        for pool, fault in zip(pools, faults, strict=True):
            group.create_task(struck(stack, pool, fault, patience=START))


@pytest.mark.parametrize("played", ALWAYS, ids=str)
async def test_a_node_of_each_pool_is_struck(running: tuple[Any, list[RealPool]], played: Round) -> None:
    await _played(running, played)


@pytest.mark.skipif(os.environ.get("ORCHESTRATOR_EVERY_FAULT") != "1", reason="minutes for each round")
@pytest.mark.parametrize("played", AT_LEISURE, ids=str)
async def test_a_node_of_each_pool_is_struck_otherwise(
    running: tuple[Any, list[RealPool]], played: Round
) -> None:
    await _played(running, played)
