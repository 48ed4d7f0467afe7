"""Machines that never start, on EC2 as a stand-in shows it: what a person sees, and what is left.

The pool of a new account: first nothing of it can start, then nothing that starts becomes ready.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from aws_stage import REGION, EngineProcesses, free_port, kept, network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

POOL = "pool.test"
TEMPLATE = "failed-boots"
KEY = {"code": "Client.InternalError", "message": "Client error on launch", "after": 0.05}
ILL = "\x1b[2J\x1b]0;owned\x07\x1b[31mloading\x1b[0m\r\n\u202e[bold]\n" * 20_000
LAST = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def subnets(aws_shim_process: Any) -> dict[str, str]:
    """A network on the loopback and a launch template."""
    return network(aws_shim_process, "127.83", TEMPLATE)


def tables(shim: Any, subnets: dict[str, str], port: int, **health: object) -> dict[str, dict[str, object]]:
    """A pool of eight nodes on EC2."""
    aws = f"{POOL}.cloud.aws"
    return {
        POOL: {"replicas": 8},
        f"{POOL}.engine": {"allow_simulated": True},
        f"{POOL}.limits": {"spend_per_hour": "unlimited"},
        f"{POOL}.health": health,
        f"{POOL}.cloud": {"kind": "aws", "state_dir": None, "socket": None},
        aws: {"endpoint": shim.url, "instance_types": ["p5.4xlarge"], "engine_port": port},
        f"{aws}.regions.{REGION}": {"launch_template": TEMPLATE, "launch_template_version": 1},
        f"{aws}.regions.{REGION}.subnets": dict(subnets),
    }


def alarms(text: str) -> dict[str, float]:
    """The alarms of an exposition by name."""
    found = re.findall(r'^orchestrator_alarm\{name="([^"]+)",pool="test"\} (\S+)$', text, re.M)
    return {name: float(value) for name, value in found}


async def test_an_account_whose_key_is_not_granted_costs_three_launches_and_one_alarm(
    aws_shim: Any, subnets: dict[str, str], new_stack: Any
) -> None:
    aws_shim.order("set", launch_faults={"*": KEY})
    port = free_port()
    async with (
        kept(EngineProcesses(aws_shim, port)),
        new_stack(tables(aws_shim, subnets, port), parts=("daemon",)) as stack,
    ):
        pool = await stack.until_pool(
            "nothing more is launched and all failed boots are told of",
            lambda pool: len(pool["failed_boots"]) == 3 and "not started once" in " ".join(pool["problems"]),
        )
        await stack.turns(5)
        assert aws_shim.order("calls")["RunInstances"] == 3
        assert aws_shim.living("test") == {}

        (told,) = [p for p in pool["problems"] if "boots failed in the last hour" in p]
        assert "Client.InternalError: Client error on launch" in told
        assert "KMS key" in told
        failed = pool["failed_boots"][-1]
        assert f"see `orchestrator node {failed['node']}`" in told

        text = await asyncio.to_thread(stack.ask, "GET", "/metrics")
        assert alarms(text[1].decode()) == {"never-started": 1.0}
        raised = [e["data"]["name"] for e in await stack.events() if e["kind"] == "AlarmRaised"]
        assert raised == ["never-started"]

        story = await stack.cli("node", failed["node"])
        assert story.code == 0
        assert "Client.InternalError: Client error on launch" in " ".join(story.out.split())
        assert any(line.strip() == failed["commands"][0] for line in story.out.splitlines())
        assert "kms create-grant" in story.out

        aws_shim.order("set", launch_faults={})  # the key is granted
        assert (await stack.cli("resume")).code == 0
        await stack.until_pool("the pool starts", lambda pool: pool["ready"] == 8)


async def test_an_account_without_the_role_for_spot_gets_its_floor_and_one_alarm(
    aws_shim: Any, subnets: dict[str, str], new_stack: Any
) -> None:
    """What is missing of spot is not bought on demand; the alarm has the command that mends it."""
    aws_shim.order("set", spot_role=False)
    port = free_port()
    async with (
        kept(EngineProcesses(aws_shim, port)),
        new_stack(tables(aws_shim, subnets, port), parts=("daemon",)) as stack,
    ):
        pool = await stack.until_pool(
            "the floor is there and spot is paused",
            lambda pool: pool["ready"] == 3 and "is paused" in " ".join(pool["problems"]),
        )
        await stack.turns(5)
        assert sorted(aws_shim.living("test").values()) == ["on-demand"] * 3
        told = [p for p in pool["problems"] if "is paused" in p]
        assert len(told) == 1
        assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in told[0]
        assert pool["failed_boots"] == []
        text = await asyncio.to_thread(stack.ask, "GET", "/metrics")
        assert alarms(text[1].decode()) == {"market-paused": 1.0}
        paused = f'orchestrator_pool_market_paused{{market="spot",pool="test",region="{REGION}"}} 1.0'
        assert paused in text[1].decode()

        aws_shim.order("set", spot_role=True)
        assert (await stack.cli("resume")).code == 0
        await stack.until_pool("the pool is whole", lambda pool: pool["ready"] == 8)


async def test_a_boot_that_is_given_up_shows_what_its_machine_wrote(
    aws_shim: Any, subnets: dict[str, str], new_stack: Any
) -> None:
    """No engine ever answers. The machine writes a megabyte that means ill, and why in its last line."""
    aws_shim.order("set", console={"*": ILL + LAST})
    async with new_stack(
        tables(aws_shim, subnets, free_port(), boot_timeout="2s", give_up_after=2), parts=("daemon",)
    ) as stack:
        pool = await stack.until_pool("a boot failed", lambda pool: pool["failed_boots"])
        node = pool["failed_boots"][0]["node"]
        await stack.until("its machine has ended", lambda: ended(aws_shim, node))
        await stack.turns(5)
        # One alone that is given up is replaced; after the second nothing takes a place.
        assert len(aws_shim.machines("test")) <= 8 + 1

        story = await stack.cli("node", node)
        assert LAST in " ".join(story.out.split())
        assert "not ready 2 s after its start" in " ".join(story.out.split())
        assert "--max-model-len" in story.out
        as_json = await stack.cli("node", node, "-o", "json")
        failed = json.loads(as_json.out)["failed_boot"]
        assert failed["console"][-1] == LAST
        assert len("\n".join(failed["console"]).encode()) <= 4096
        assert all(line.isprintable() for line in failed["console"])
        for shown in (story, as_json, await stack.cli("status"), await stack.cli("events")):
            assert shown.code in (0, 2, 3, 4, 5, 6, 7, 8)
            assert not set(shown.out) & {"\x1b", "\x07", "\r", "\u202e", "\x9b"}


async def ended(shim: Any, node: str) -> bool:
    """The machine is on its way out or gone."""
    machines = (await asyncio.to_thread(shim.order, "machines"))["machines"]
    return all(m["state"] in ("shutting-down", "terminated") for m in machines if m["id"] == node)
