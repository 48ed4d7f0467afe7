"""The gateway dies, freezes or is replaced: what the daemon says of it, with the settings that a pool has."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(300)]

PACES = ("tick", "poll_instances", "poll_targets", "poll_offerings", "probe_interval", "probe_timeout")
CHANGES = {
    "daemon": dict.fromkeys(PACES),
    "pool.test.gateway": {"health_interval": None},
    "pool.test.health": dict.fromkeys(("unhealthy_after", "replace_after", "boot_timeout")),
    "pool.test.patience": dict.fromkeys(("stale_after", "vanish_grace", "effect_timeout")),
}

Fault = Callable[[Any], Awaitable[Callable[[], Awaitable[None]]]]


async def killed(stack: Any) -> Callable[[], Awaitable[None]]:
    await stack.kill("gateway")
    return lambda: stack.start("gateway")


async def frozen(stack: Any) -> Callable[[], Awaitable[None]]:
    pid = stack.parts["gateway"].pid
    os.kill(pid, signal.SIGSTOP)

    async def thaw() -> None:
        os.kill(pid, signal.SIGCONT)

    return thaw


async def answers(stack: Any, port: int, path: str) -> str:
    with contextlib.suppress(OSError):
        return str((await stack.get(port, path)).partition("\r\n")[0])
    return ""


@contextlib.asynccontextmanager
async def out_of_order(stack: Any, fault: Fault) -> AsyncIterator[None]:
    """The gateway as the fault leaves it, and as it was afterwards."""
    heal = await fault(stack)
    try:
        yield
    finally:
        await heal()


@pytest.mark.parametrize("fault", [killed, frozen], ids=["killed", "frozen"])
async def test_a_gateway_that_serves_nobody_is_an_outage_everywhere(fault: Fault, new_stack: Any) -> None:
    async with new_stack(CHANGES) as stack:
        await stack.settled()
        async with out_of_order(stack, fault):
            await stack.until_pool("the pool is down", lambda pool: pool["state"] == "down")
            done = await stack.cli("status")
            assert done.code == 7
            assert done.out.startswith("test  DOWN  0/4 serving  4 ready")
            assert "! gateway has not answered for" in done.out
            nodes = await stack.cli("nodes", "-o", "json")
            assert [n["target"] for n in json.loads(nodes.out)["nodes"]] == ["unknown"] * 4
            assert "503" in await answers(stack, stack.monitoring_port, "/readyz")
            page = await stack.get(stack.monitoring_port, "/metrics")
            assert 'orchestrator_pool_state{pool="test",state="down"} 1.0' in page
            assert 'orchestrator_pool_serving_nodes{pool="test"} 0.0' in page
            done = await stack.cli("pause", "--reason", "to look at it")
            await stack.turns(2)
            done = await stack.cli("status")
            assert (done.code, "paused by" in done.out) == (7, True)
            await stack.cli("resume")
        await stack.until_pool("the pool is well", lambda pool: pool["state"] == "ok")
        done = await stack.cli("status")
        assert done.code == 0
        assert done.out.startswith("test  OK  4/4 serving  4 ready")
        assert "200" in await answers(stack, stack.monitoring_port, "/readyz")
        await stack.until_pool(
            "its gateway has checked every target",
            lambda pool: {n["target"] for n in pool["nodes"]} == {"healthy"},
        )


async def test_a_gateway_that_hands_over_is_no_outage(new_stack: Any) -> None:
    async with new_stack(CHANGES) as stack:
        await stack.settled()
        states: list[str] = []

        def seen(pool: Any) -> bool:
            states.append(pool["state"])
            return len(states) > 40

        connector = aiohttp.UnixConnector(str(stack.sockets / "gateway"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.post("http://gateway/v1/replace", json={}) as answer,
        ):
            assert answer.status == 200
            heir = (await answer.json())["pid"]
        try:
            await stack.until_pool("a while has passed", seen)
            await stack.turns(10)
            await stack.until_pool("and some more", lambda pool: seen(pool) and pool["state"] == "ok")
        finally:
            os.kill(heir, signal.SIGTERM)
        assert "down" not in states
