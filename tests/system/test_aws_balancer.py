"""The daemon on EC2 with a target group: its balancer treats connections as that of AWS does."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aws_stage import MODEL, REGION, EngineProcesses, free_port, kept, network, queue_of_events, target_group

from cloud.clock import SystemClock
from cloud.engines.keep_alive import ENGINES_OWN
from orchestrator.demo.load import Load, LoadReport

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(240)]

POOL = "pool.test"
GROUP = "system-balanced"
TEMPLATE = "balanced-node"
REPLICAS = 3


@dataclass
class Site:
    """A stand-in for AWS with an engine at every running machine."""

    shim: Any
    port: int
    subnets: dict[str, str]

    def tables(self) -> dict[str, dict[str, object]]:
        """What makes a stack's pool run here, with the settings of a drain that a target group asks for."""
        aws = f"{POOL}.cloud.aws"
        return {
            POOL: {"replicas": REPLICAS},
            f"{POOL}.engine": {"allow_simulated": True},
            f"{POOL}.limits": {"spend_per_hour": "unlimited"},
            f"{POOL}.drain": {"settle": None},
            f"{POOL}.cloud": {"kind": "aws", "state_dir": None, "socket": None},
            aws: {
                "endpoint": self.shim.url,
                "instance_types": ["p5.4xlarge"],
                "engine_port": self.port,
                "poll_spot_requests": "500ms",
                "target_group": GROUP,
            },
            f"{aws}.regions.{REGION}": {
                "launch_template": TEMPLATE,
                "launch_template_version": 1,
                "notice_queue": queue_of_events(self.shim, GROUP),
            },
            f"{aws}.regions.{REGION}.subnets": dict(self.subnets),
        }

    async def balancer(self) -> dict[str, Any]:
        """Where the balancer listens, and what it did so far."""
        return await asyncio.to_thread(self.shim.order, "front", group=GROUP)

    async def ask(self, stack: Any) -> None:
        """One request through the balancer."""
        answer = await stack.get((await self.balancer())["port"], "/v1/models")
        assert answer.startswith("HTTP/1.1 200 "), answer

    @contextlib.asynccontextmanager
    async def traffic(self) -> AsyncIterator[LoadReport]:
        """Plain and streamed requests through the balancer while the body runs, until all are answered."""
        url = f"http://127.0.0.1:{(await self.balancer())['port']}"
        load = Load(url=url, model=MODEL, rate=10.0, tokens=(5, 30), seed=1, clock=SystemClock())
        stop = asyncio.Event()
        sending = asyncio.create_task(load.run(stop))
        try:
            yield load.report
        finally:
            stop.set()
            await sending


@pytest.fixture(scope="module")
def subnets(aws_shim_process: Any) -> dict[str, str]:
    """A network on the loopback and a launch template."""
    return network(aws_shim_process, "127.84", TEMPLATE)


@pytest.fixture
async def site(aws_shim: Any, subnets: dict[str, str]) -> AsyncIterator[Site]:
    aws_shim.order("set", health_checks=True, propagation=3.0, idle_ends_draining=True)
    site = Site(aws_shim, free_port(), subnets)
    async with kept(EngineProcesses(aws_shim, site.port)):
        yield site


def whole(pool: Any, target: str = "healthy") -> bool:
    """Every node is ready, shown so by the balancer, and nothing is on its way."""
    nodes = [node for node in pool["nodes"] if node["phase"] != "gone"]
    ready = [node for node in nodes if node["phase"] == "ready" and node["target"] == target]
    return len(nodes) == len(ready) == REPLICAS


async def test_a_reclaim_and_idle_gaps_lose_nothing_behind_a_balancer(site: Site, new_stack: Any) -> None:
    target_group(site.shim, GROUP)
    async with new_stack(site.tables(), parts=("daemon",)) as stack:
        pool = await stack.until_pool("the pool is as wanted", whole)
        noticed = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")
        async with site.traffic() as report:
            await asyncio.sleep(2.0)
            site.shim.order("reclaim", node=noticed)
            await stack.until_pool(
                "the noticed node is gone and the pool whole",
                lambda pool: whole(pool) and noticed not in {node["id"] for node in pool["nodes"]},
            )
        assert (report.failed, report.streams_cut) == (0, 0), report
        for _ in range(2 * REPLICAS):  # in turns, so that every node has a connection
            await site.ask(stack)
        before = await site.balancer()
        await asyncio.sleep(float(ENGINES_OWN) + 1.0)
        for _ in range(2 * REPLICAS):
            await site.ask(stack)
        after = await site.balancer()
        assert after["own"] == {}, "the balancer itself never had to say what went wrong"
        assert after["opened"] == before["opened"], "engines keep connections that are idle for so long"
        assert after["reused"] == before["reused"] + 2 * REPLICAS


async def test_a_group_that_is_checked_at_a_path_that_engines_do_not_have(site: Site, new_stack: Any) -> None:
    """The balancer takes no target for healthy and sends to all: requests are served, and status and
    the alarm's metrics say that nobody watches them."""
    target_group(site.shim, GROUP, path="/")
    async with new_stack(site.tables(), parts=("daemon",)) as stack:
        await stack.until_pool("no target is healthy", lambda pool: whole(pool, "unhealthy"))
        async with site.traffic() as report:
            await stack.turns(20)
        assert report.answered > 0
        assert report.failed == 0, report
        pool = await stack.pool()
        assert pool is not None
        assert (pool["state"], pool["problems"]) == ("down", ["alb has no usable target"])
        metrics = await stack.get(stack.monitoring_port, "/metrics")
        healthy = re.search(r'orchestrator_balancer_targets\{[^}]*state="healthy"[^}]*\} (\S+)', metrics)
        assert healthy is not None
        assert float(healthy[1]) == 0.0
        wanted = re.search(r"orchestrator_pool_wanted_nodes\{[^}]*\} (\S+)", metrics)
        assert wanted is not None
        assert float(wanted[1]) == REPLICAS
