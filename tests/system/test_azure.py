"""The daemon and the gateway as processes on Azure, as a stand-in for it shows it.

Engines stand behind the machines, and on each runs the agent that the machine was given for its first boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_stage import EngineProcesses, free_port, kept
from azure_nodes import AgentProcesses, kept_agents
from azure_stage import (
    GROUP,
    IMAGE,
    REGION,
    SIZE,
    SSH_KEY,
    SUBSCRIPTION,
    AzureStandIn,
    running_stand_in,
    subnet,
)
from node_bench import SECRET

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

POOL = "pool.test"
NOTICE = 10.0  # s, as Azure often gives


@pytest.fixture(scope="module")
def azure() -> Iterator[AzureStandIn]:
    pytest.importorskip("azure.mgmt.compute", reason="the extra [azure] is not installed")
    with running_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
async def engines(azure: AzureStandIn) -> AsyncIterator[int]:
    """Engines at the addresses of all running machines; their port."""
    await asyncio.to_thread(azure.order, "reset")
    await asyncio.to_thread(azure.order, "set", boot=0.3, turn=0.2)
    port = free_port()
    async with kept(EngineProcesses(azure, port)):
        yield port


def tables(azure: AzureStandIn, port: int, secret: Path, replicas: int = 3) -> dict[str, dict[str, object]]:
    cloud = f"{POOL}.cloud.azure"
    secret.write_bytes(SECRET + b"\n")
    secret.chmod(0o600)
    return {
        POOL: {"replicas": replicas},
        f"{POOL}.engine": {"allow_simulated": True},
        f"{POOL}.limits": {"spend_per_hour": "unlimited"},
        f"{POOL}.agents": {"listen": f"127.0.0.1:{free_port()}", "secret_file": str(secret)},
        f"{POOL}.cloud": {"kind": "azure", "state_dir": None, "socket": None},
        cloud: {
            "endpoint": azure.url,
            "prices_endpoint": f"{azure.url}/api/retail/prices",
            "subscription": SUBSCRIPTION,
            "instance_types": [SIZE],
            "image": IMAGE,
            "ssh_public_key": SSH_KEY,
            "engine_port": port,
        },
        f"{cloud}.regions.{REGION}": {"resource_group": GROUP, "subnet": subnet(), "zones": ["1", "2"]},
    }


def whole(pool: Any, replicas: int = 3, spot: int = 2) -> bool:
    """Every node is ready and serves, so many of them on spot, and nothing is on its way."""
    nodes = [node for node in pool["nodes"] if node["phase"] != "gone"]
    ready = [node for node in nodes if node["phase"] == "ready" and node["target"] == "healthy"]
    on_spot = [node for node in ready if node["market"] == "spot"]
    return len(nodes) == len(ready) == replicas and len(on_spot) == spot


async def living(azure: AzureStandIn) -> dict[str, str]:
    return await asyncio.to_thread(azure.living, "test")


async def test_a_notice_of_ten_seconds_is_a_late_drain_and_no_lost_request(
    azure: AzureStandIn, engines: int, new_stack: Any, tmp_path: Path
) -> None:
    """Streams of half a minute: the drain cannot end in time, and what it cuts is carried on elsewhere."""
    changes = tables(azure, engines, tmp_path / "secret")
    changes[f"{POOL}.drain"] = {"budget": "30s", "margin": "1s"}
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        await stack.until_pool("the pool is as wanted", whole)
        agents = AgentProcesses(azure, tmp_path / "nodes", stack.full_environment)
        async with kept_agents(agents):

            async def heard() -> bool:
                metrics = await stack.get(stack.monitoring_port, "/metrics")
                return 'orchestrator_pool_agents_heard{pool="test"} 3.0' in metrics

            await stack.until("every agent is heard", heard)
            taken = next(node for node, market in (await living(azure)).items() if market == "spot")
            async with stack.traffic(rate=0.8, shortest=1200, longest=1500) as traffic:
                await asyncio.to_thread(azure.order, "preempt", node=taken, seconds=NOTICE)
                await stack.until_pool(
                    "the node is gone and the pool whole",
                    lambda pool: whole(pool) and taken not in {n["id"] for n in pool["nodes"]},
                )
                await traffic.answers(5)
            told = await stack.get(stack.gateway_metrics_port, "/metrics")
        assert (traffic.report.failed, traffic.report.streams_cut) == (0, 0), traffic.report
        resent = sum(
            map(float, re.findall(r"^orchestrator_gateway_retries_total\{.*\} (\S+)$", told, re.MULTILINE))
        )
        assert traffic.report.streams_continued + resent >= 1, traffic.report  # so the drain was late
        events = await stack.events()
        told = [e["data"]["notice"] for e in events if e["kind"] == "NoticeSeen"]
        assert {(n["node"], n["source"], n["kind"]) for n in told} == {(taken, "node-agent", "interruption")}
        drained = [e["data"]["node"] for e in events if e["kind"] == "DrainStarted"]
        assert drained[0] == taken  # on-demand cover may follow, once spot is back
        ended = [m for m in await asyncio.to_thread(azure.machines, "test") if m["id"] == taken]
        assert [m["id"] for m in ended] == [taken]  # by Azure, whose clock nobody stopped
        tokens = [m["token"] for m in await asyncio.to_thread(azure.machines, "test")]
        assert len(set(tokens)) == len(tokens)


async def test_a_pool_on_azure_outlives_kills_lost_answers_and_a_lack_of_spot(
    azure: AzureStandIn, engines: int, new_stack: Any, tmp_path: Path
) -> None:
    def order(name: str, **values: Any) -> Any:
        return asyncio.to_thread(azure.order, name, **values)

    await order("fault", action="create", kind="lose", times=2)
    await order("fault", action="create", kind="fail-later", code="ZonalAllocationFailed", message="no room")
    await order("fault", action="list", code="InternalServerError", status=500, times=2)
    changes = tables(azure, engines, tmp_path / "secret")
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        await stack.until_pool("the pool is as wanted", whole)
        before = await living(azure)
        assert sorted(before.values()) == ["on-demand", "spot", "spot"]
        launches = (await order("calls"))["calls"]["create"]
        await stack.kill("daemon")
        await stack.start("daemon")
        await stack.until_pool("the pool is as wanted after a restart", whole)
        assert await living(azure) == before
        assert (await order("calls"))["calls"]["create"] == launches

        taken = next(node for node, market in before.items() if market == "spot")
        await order("evict", node=taken)  # without a word
        await stack.until_pool(
            "the node is replaced",
            lambda pool: whole(pool) and taken not in {n["id"] for n in pool["nodes"]},
        )

        async def agreed() -> bool:
            left = await order("left")
            nodes = set(await stack.nodes())
            return set(left["machines"]) == nodes and len(left["disks"]) == len(left["interfaces"]) == len(
                nodes
            )

        await stack.until("Azure and the daemon agree on the nodes, and nothing is left of others", agreed)
        assert await stack.stop("daemon") == 0
    with contextlib.suppress(KeyError):
        assert (await order("calls"))["calls"]["stop"] == 0
    tokens = [m["token"] for m in await asyncio.to_thread(azure.machines, "test")]
    assert len(set(tokens)) == len(tokens)
