"""What a new account does to a pool, and what a person sees of it.

Keys that are not granted, a role that is not there, engines that never answer, a block that ends.

The daemon is a process; EC2 is the stand-in at its strictest.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aws_pool import POOL, TYPE, Machines, tables
from aws_stage import REGION, EnginesHere, free_port, kept, network

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(240)]

TEMPLATE = "first-day-node"
RESERVATION = "cr-0123456789abcdef0"
WAVE = 30
"""Machines that a pool wants at once: six times what EC2 launches at once."""
ILL = "\x1b[2J\x1b]0;owned\x07\x1b[31mloading\x1b[0m\r\n\u202e[bold]\n" * 20_000
LAST = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def subnets(aws_shim_process: Any) -> dict[str, str]:
    """A network on the loopback and a launch template."""
    return network(aws_shim_process, "127.79", TEMPLATE)


@pytest.fixture
async def machines(aws_shim: Any) -> Any:
    """EC2 with an engine at every machine that runs."""
    machines = Machines(aws_shim, free_port())
    async with kept(EnginesHere(aws_shim, machines.port)):
        yield machines


def made(machines: Machines, subnets: dict[str, str], **pool: Any) -> dict[str, dict[str, object]]:
    """The tables of a pool; `pool` are keys of the pool itself."""
    found = tables(machines, subnets, template=TEMPLATE)
    found[POOL] = {**found[POOL], **pool}
    return found


async def alarms(stack: Any) -> list[str]:
    """The names of the alarms that were raised, each time that it was."""
    return [event["data"]["name"] for event in await stack.events() if event["kind"] == "AlarmRaised"]


async def exposition(stack: Any) -> str:
    """The daemon's metrics."""
    _, body = await asyncio.to_thread(stack.ask, "GET", "/metrics")
    return str(body, "utf-8")


def standing(text: str) -> dict[str, float]:
    """The alarms of an exposition by name."""
    found = re.findall(r'^orchestrator_alarm\{name="([^"]+)",pool="test"\} (\S+)$', text, re.M)
    return {name: float(value) for name, value in found}


async def ended(machines: Machines, node: str) -> bool:
    """The machine is on its way out or gone."""
    return await machines.state(node) in ("shutting-down", "terminated")


async def test_an_account_whose_key_is_not_granted_ends_with_three_launches_and_one_alarm(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """EC2 accepts every launch and ends it while it is pending: the volumes cannot be decrypted."""
    replicas = 12
    machines.shim.order("set", default_key="arn:aws:kms:us-east-1:123456789012:key/1")
    async with new_stack(made(machines, subnets, replicas=replicas), parts=("gateway", "daemon")) as stack:
        await stack.until_pool(
            "the pool has given up, and all failed boots are told of",
            lambda pool: len(pool["failed_boots"]) == 3 and "not started once" in " ".join(pool["problems"]),
        )
        await stack.turns(20)
        assert len(await machines.tokens()) <= 3, await stack.events()
        assert await machines.living() == {}
        assert await alarms(stack) == ["never-started"]
        assert standing(await exposition(stack)) == {"never-started": 1.0}
        pool = await stack.pool()
        (problem,) = [text for text in pool["problems"] if "not started once" in text]
        assert "Client.InternalError" in problem
        assert "orchestrator resume" in problem
        shown = await stack.cli("status")
        warned = [line for line in shown.out.splitlines() if line.startswith("! ")]
        assert len([line for line in warned if "has not started once" in line]) == 1, warned
        assert "Client.InternalError" in shown.out
        (told,) = [text for text in pool["problems"] if "boots failed in the last hour" in text]
        assert "KMS key" in told
        failed = pool["failed_boots"][-1]
        assert f"see `orchestrator node {failed['node']}`" in told
        story = await stack.cli("node", failed["node"])
        assert story.code == 0
        assert "Client.InternalError" in story.out
        assert any(line.strip() == failed["commands"][0] for line in story.out.splitlines())
        assert "aws policy" in failed["commands"][0]

        # Nobody paused it. A try before the key is granted costs as many launches again, and says so again.
        assert (await stack.status())["daemon"]["paused"] is None
        asked = await asyncio.to_thread(stack.ask, "POST", "/v1/resume", b'{"by": "somebody"}')
        assert (asked[0], json.loads(asked[1])) == (200, {"text": "Resumed."})
        await stack.until_pool(
            "the pool has given up again",
            lambda pool: len(pool["failed_boots"]) == 6 and "not started once" in " ".join(pool["problems"]),
        )
        await stack.turns(20)
        assert len(await machines.tokens()) <= 6, await stack.events()
        assert await alarms(stack) == ["never-started"] * 2

        # The key is granted, somebody says so, and the same process makes the pool whole.
        machines.shim.order("set", default_key="")
        assert (await stack.cli("resume")).code == 0
        await stack.until_pool("the pool is whole", lambda pool: pool["ready"] == replicas)


async def test_an_account_without_the_role_of_spot_holds_its_floor_and_buys_no_more_on_demand(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    machines.shim.order("set", spot_role=False)
    async with new_stack(made(machines, subnets, replicas=10), parts=("gateway", "daemon")) as stack:
        await stack.until_pool(
            "the floor is there and spot is paused",
            lambda pool: pool["on_demand_ready"] == 3 and any("spot" in p for p in pool["problems"]),
        )
        await stack.turns(20)
        assert sorted((await machines.living()).values()) == ["on-demand"] * 3
        assert set(await alarms(stack)) == {"market-paused"}
        text = await exposition(stack)
        assert standing(text) == {"market-paused": 1.0}
        assert f'orchestrator_pool_market_paused{{market="spot",pool="test",region="{REGION}"}} 1.0' in text
        pool = await stack.pool()
        assert pool["failed_boots"] == []
        (problem,) = [text for text in pool["problems"] if "ServiceLinkedRole" in text]
        assert "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com" in problem

        machines.shim.order("set", spot_role=True)
        assert (await stack.cli("resume")).code == 0
        await stack.until_pool("the pool is whole", lambda pool: pool["spot_ready"] == 7)
        assert sorted((await machines.living()).values()) == ["on-demand"] * 3 + ["spot"] * 7


async def test_a_key_that_only_spot_lacks_buys_no_more_on_demand_than_the_floor(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """On-demand machines start, spot machines end while they are pending; some launches are throttled."""
    key = "arn:aws:kms:us-east-1:123456789012:key/1"
    machines.shim.order("set", default_key=key, key_grants={key: ["on-demand"]})
    async with new_stack(made(machines, subnets, replicas=8), parts=("gateway", "daemon")) as stack:
        await stack.until_pool(
            "the floor is there and spot is paused",
            lambda pool: pool["on_demand_ready"] == 3 and any("is paused" in p for p in pool["problems"]),
        )
        await stack.turns(20)
        ever = Counter(m["market"] for m in machines.shim.machines("test"))
        assert ever["on-demand"] == 3, await stack.events()
        assert await alarms(stack) == ["market-paused"]

        machines.shim.order("set", key_grants={key: ["on-demand", "spot"]})

        async def none_on_its_way() -> bool:
            return all(m["state"] in ("running", "terminated") for m in machines.shim.machines("test"))

        await stack.until("what was launched without the grant has ended", none_on_its_way)
        assert (await stack.cli("resume")).code == 0
        pool = await stack.until_pool("the pool is whole", lambda pool: pool["spot_ready"] == 5)
        assert not [p for p in pool["problems"] if "failed" in p]


async def test_a_boot_that_is_given_up_shows_what_its_machine_wrote(
    aws_shim: Any, subnets: dict[str, str], new_stack: Any
) -> None:
    """No engine ever answers. The machine writes a megabyte that means ill, and why in its last line."""
    aws_shim.order("set", console={"*": ILL + LAST})
    machines = Machines(aws_shim, free_port())
    changes = made(machines, subnets, replicas=6)  # fewer than the failed boots that are remembered
    changes[f"{POOL}.health"] = {"boot_timeout": "2s", "give_up_after": 2}
    async with new_stack(changes, parts=("daemon",)) as stack:
        pool = await stack.until_pool("a boot failed", lambda pool: pool["failed_boots"])
        node = pool["failed_boots"][0]["node"]
        await stack.until("its machine has ended", lambda: ended(machines, node))
        await stack.turns(5)
        # One alone that is given up is replaced; after the second nothing takes a place.
        assert len(await machines.tokens()) <= 6 + 1

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


async def test_a_wave_of_launches_above_ec2s_rate_marks_nothing_refused(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    changes = made(machines, subnets, replicas=WAVE)
    changes[f"{POOL}.limits"] = {**changes[f"{POOL}.limits"], "launches_per_minute": 10 * WAVE, "surge": WAVE}
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        await stack.until_pool("the pool is whole", lambda pool: pool["ready"] == WAVE)
        ended = [event["data"] for event in await stack.events() if event["kind"] == "IntentClosed"]
        # a call that a busy machine answers late is asked again; none is taken for a refusal
        assert {e["outcome"] for e in ended} <= {"done", "throttled", "uncertain"}, ended
        assert sorted((await machines.living()).values()).count("spot") == WAVE * 7 // 10
        assert len(set(await machines.tokens())) == len(await machines.living()) == WAVE


async def test_a_capacity_block_that_runs_out_takes_the_nodes_in_it_and_no_other(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """EC2 tells once, forty minutes before the block ends; its machines are ended from thirty before."""
    order, (inside, outside) = machines.shim.order, sorted(subnets)
    order(
        "set",
        reservations={f"{TYPE}:{inside}": RESERVATION},
        capacity={f"on-demand:{TYPE}:{inside}": 1},
    )
    changes = made(machines, subnets, replicas=3, spot_share="0%")
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("the pool is whole", lambda pool: pool["ready"] == 3)
        zones = {node["id"]: node["zone"] for node in pool["nodes"] if node["phase"] == "ready"}
        assert sorted(zones.values()) == [inside, outside, outside]
        (noticed,) = [node for node, zone in zones.items() if zone == inside]
        ends = datetime.now(UTC) + timedelta(minutes=40)
        detail = {"capacity-reservation-id": RESERVATION, "end-date": ends.isoformat(timespec="seconds")}
        async with stack.traffic() as traffic:
            order("tell", kind="Capacity Block Expiration Warning", detail=detail, node=RESERVATION)
            await stack.until_pool(
                "the node in the block is replaced",
                lambda pool: pool["ready"] == 3 and noticed not in {n["id"] for n in pool["nodes"]},
            )
            await traffic.answers(20)
        assert (traffic.report.failed, traffic.report.streams_cut) == (0, 0), traffic.report
        told = [e["data"]["notice"] for e in await stack.events() if e["kind"] == "NoticeSeen"]
        assert [(n["node"], n["kind"], n["source"]) for n in told] == [(noticed, "maintenance", "aws-queue")]
        assert told[0]["deadline"] == pytest.approx((ends - timedelta(minutes=30)).timestamp(), abs=1.0)
        assert set(zones) - {noticed} <= set(await machines.living())
