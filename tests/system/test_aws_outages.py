"""Parts of AWS that are down for long: the price list over a restart of the daemon, one region of two.

With the settings that a user gets who writes none. With `OUTAGE_SECONDS=600` the outage of a region is as
long as docs/explanation/aws.md reports it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from aws_stage import REGION, EngineProcesses, free_port, kept, network, queue_of_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(300 + 2 * int(os.environ.get("OUTAGE_SECONDS", "0"))),
]

OUTAGE = float(os.environ.get("OUTAGE_SECONDS", "40"))
"""Seconds for which a region answers 503; more than `patience.stale_after`, so that its list is too old."""

TYPE = "p5.4xlarge"
POOL = "pool.test"
TEMPLATE = "outage-node"
OTHER_REGION = "us-west-2"
WITHIN = 60.0
"""Seconds within which half of the nodes must be replaced."""

_PACES = ("tick", "poll_instances", "poll_targets", "poll_offerings", "probe_interval", "probe_timeout")
_QUICK = {
    f"{POOL}.{table}": dict.fromkeys(keys)
    for table, keys in {
        "drain": ("budget", "margin", "settle"),
        "back_to_spot": ("hold", "stable"),
        "placement": ("refusal_half_life", "reclaim_half_life"),
        "health": ("unhealthy_after", "replace_after", "boot_timeout"),
        "patience": ("stale_after", "vanish_grace", "effect_timeout"),
        "limits": ("surge", "launches_per_minute"),
    }.items()
}
DEFAULTS: Mapping[str, Mapping[str, object]] = {**_QUICK, "daemon": dict.fromkeys(_PACES)}
"""What takes back the hurry of the stacks of other tests."""


@dataclass
class Site:
    """A stand-in for AWS with what a user has there: by region its subnets and the queue of its notices."""

    shim: Any
    port: int
    subnets: Mapping[str, Mapping[str, str]]

    def tables(self, *regions: str, replicas: int) -> dict[str, Mapping[str, object]]:
        """What makes a stack's pool run in these regions, with default settings."""
        aws = f"{POOL}.cloud.aws"
        made: dict[str, Mapping[str, object]] = {
            **DEFAULTS,
            POOL: {"replicas": replicas},
            f"{POOL}.engine": {"allow_simulated": True},
            f"{POOL}.limits": {"spend_per_hour": "unlimited"},
            f"{POOL}.cloud": {"kind": "aws", "state_dir": None, "socket": None},
            aws: {"endpoint": self.shim.url, "instance_types": [TYPE], "engine_port": self.port},
        }
        for region in regions:
            made[f"{aws}.regions.{region}"] = {
                "launch_template": TEMPLATE,
                "launch_template_version": 1,
                "notice_queue": queue_of_events(self.shim, "outage-notices", region),
            }
            made[f"{aws}.regions.{region}.subnets"] = self.subnets[region]
        return made

    async def living(self) -> dict[str, dict[str, Any]]:
        """Machines of the pool that are not ending, by id."""
        machines = await asyncio.to_thread(self.shim.machines, "test")
        return {m["id"]: m for m in machines if m["state"] in ("pending", "running")}

    async def end(self, *nodes: str, region: str = REGION) -> None:
        """Somebody ends machines by hand."""
        ec2 = self.shim.client("ec2", region)
        await asyncio.to_thread(ec2.terminate_instances, InstanceIds=list(nodes))

    async def launched_once(self) -> bool:
        """No token has two machines."""
        machines = await asyncio.to_thread(self.shim.machines, "test")
        return max(Counter(m["token"] for m in machines).values()) == 1


@pytest.fixture(scope="module")
def subnets(aws_shim_process: Any) -> dict[str, dict[str, str]]:
    """A network on the loopback and a launch template in each region."""
    blocks = {REGION: "127.86", OTHER_REGION: "127.87"}
    return {r: network(aws_shim_process, block, TEMPLATE, r) for r, block in blocks.items()}


@pytest.fixture
async def site(aws_shim: Any, subnets: dict[str, dict[str, str]]) -> AsyncIterator[Site]:
    site = Site(aws_shim, free_port(), subnets)
    async with kept(EngineProcesses(aws_shim, site.port)):
        yield site


def in_service(pool: Any, market: str = "") -> set[str]:
    """Nodes that are ready and get requests."""
    return {
        n["id"]
        for n in pool["nodes"]
        if n["phase"] == "ready" and n["target"] == "healthy" and market in ("", n["market"])
    }


async def test_the_price_list_is_down_over_a_restart_and_half_the_nodes_end(
    site: Site, new_stack: Any
) -> None:
    """Replaced within a minute, whether prices were known before the restart (spot) or never (on demand)."""
    order = site.shim.order
    order("set", pricing=False)
    async with new_stack(site.tables(REGION, replicas=4), parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("four nodes serve", lambda pool: len(in_service(pool)) == 4)
        order("fault", action="DescribeSpotPriceHistory", kind="error", code="InternalError", times=10**6)
        await stack.kill("daemon")
        await stack.start("daemon")
        await stack.until_pool("the daemon sees its nodes again", lambda pool: len(in_service(pool)) == 4)
        spot = sorted(in_service(pool, "spot"))
        ended = {spot[0], min(in_service(pool) - {spot[0]})}
        async with stack.traffic() as traffic:
            await site.end(*ended)
            at = time.monotonic()

            async def whole() -> bool:
                seen = await stack.pool()
                return seen is not None and len(in_service(seen) - ended) == 4

            await stack.until("what ended is replaced", whole, patience=WITHIN)
            print(f"price list down: replaced within {time.monotonic() - at:.1f} s")
            await traffic.answers(20)
        assert traffic.report.failed == 0, traffic.report
        problems = (await stack.pool())["problems"]
        assert any("price" in text for text in problems), problems
    assert await site.launched_once()


async def test_one_of_two_regions_is_down_while_the_other_loses_its_spot_nodes(
    site: Site, new_stack: Any
) -> None:
    """The floor is held and requests are served; nothing of the silent region is ended or launched twice."""
    order, replicas = site.shim.order, 6
    changes = site.tables(REGION, OTHER_REGION, replicas=replicas)
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("six nodes serve", lambda pool: len(in_service(pool)) == replicas)
        floor = pool["on_demand_floor"]
        before = await site.living()
        by_region = Counter(m["zone"][:-1] for m in before.values())
        assert set(by_region) == {REGION, OTHER_REGION}, f"equal prices are not spread: {by_region}"
        silent = {n for n, m in before.items() if m["zone"].startswith(OTHER_REGION)}
        least = {"floor": pool["on_demand_ready"], "serving": len(in_service(pool))}

        async def watch() -> None:
            while True:
                seen = await stack.pool()
                if seen is not None:
                    least["floor"] = min(least["floor"], seen["on_demand_ready"])
                    least["serving"] = min(least["serving"], len(in_service(seen)))
                await asyncio.sleep(0.2)

        watching = asyncio.create_task(watch())
        async with stack.traffic() as traffic:
            order("outage", regions=[OTHER_REGION])
            down_at, reclaimed = time.monotonic(), set[str]()
            # The first reclaim comes once the silent region's list is too old to act on.
            await asyncio.sleep(min(35.0, OUTAGE))
            while not reclaimed or time.monotonic() - down_at < OUTAGE:
                pool = await stack.pool()
                healthy = {n for n, m in (await site.living()).items() if m["zone"].startswith(REGION)}
                taken = sorted(in_service(pool, "spot") & healthy - reclaimed)
                for node in taken[:1]:
                    order("reclaim", node=node, notice_s=20.0)
                    reclaimed.add(node)
                await stack.until_pool(
                    "what was reclaimed is replaced in the region that answers",
                    lambda pool: len(in_service(pool) - reclaimed) >= replicas,
                )
                if not taken:
                    await asyncio.sleep(1.0)
            problems = (await stack.pool())["problems"]
            assert any(OTHER_REGION in text for text in problems), problems
            assert silent <= set(await site.living()), "nodes of the silent region stay"
            order("outage")
            await stack.until_pool(
                "all is well again", lambda pool: not any(OTHER_REGION in text for text in pool["problems"])
            )
            await traffic.answers(20)
        watching.cancel()
        print(f"region down for {OUTAGE:.0f} s: {len(reclaimed)} reclaims, least {least}, {traffic.report}")
        assert traffic.report.failed == 0, traffic.report
        assert traffic.report.streams_cut == 0, traffic.report
        assert least["floor"] >= floor
        assert least["serving"] >= replicas - 2
    assert await site.launched_once()
