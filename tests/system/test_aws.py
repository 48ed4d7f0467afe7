"""The daemon as a process on EC2, as a stand-in for AWS shows it: engines stand behind the instances.

Instances get addresses of the loopback, and a keeper runs a simulated engine at the address of every running
one, so the daemon, the gateway and the clients see what they would see on AWS.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aws_pool import POOL, QUEUE, TEMPLATE, TYPE, Machines, somebody_elses, tables
from aws_stage import EngineProcesses, free_port, kept, network

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def subnets(aws_shim_process: Any) -> dict[str, str]:
    """A network on the loopback and a launch template."""
    return network(aws_shim_process, "127.78", TEMPLATE)


@pytest.fixture
async def machines(aws_shim: Any) -> AsyncIterator[Machines]:
    machines = Machines(aws_shim, free_port())
    async with kept(EngineProcesses(aws_shim, machines.port)):
        yield machines


def whole(pool: Any, replicas: int = 3, spot: int = 2) -> bool:
    """Every node is ready and serves, so many of them on spot, and nothing is on its way."""
    nodes = [node for node in pool["nodes"] if node["phase"] != "gone"]
    ready = [node for node in nodes if node["phase"] == "ready" and node["target"] == "healthy"]
    on_spot = [node for node in ready if node["market"] == "spot"]
    return len(nodes) == len(ready) == replicas and len(on_spot) == spot


async def test_a_pool_on_ec2_outlives_a_reclaim_and_its_daemon(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    async with new_stack(tables(machines, subnets), parts=("gateway", "daemon")) as stack:
        await stack.until_pool("the pool is as wanted", whole)
        first = await machines.living()
        assert sorted(first.values()) == ["on-demand", "spot", "spot"]
        noticed = next(node for node, market in first.items() if market == "spot")
        async with stack.traffic() as traffic:
            machines.shim.order("reclaim", node=noticed)
            await stack.until_pool(
                "the noticed node is gone and the pool whole",
                lambda pool: whole(pool) and noticed not in {n["id"] for n in pool["nodes"]},
            )
            await traffic.answers(20)
        assert (traffic.report.failed, traffic.report.streams_cut) == (0, 0), traffic.report
        told = {e["data"]["notice"]["source"] for e in await stack.events() if e["kind"] == "NoticeSeen"}
        assert told == {"aws-queue", "aws-spot-requests"}

        before = await machines.living()
        launches = machines.shim.order("calls")["RunInstances"]
        assert len(before) == 3
        await stack.kill("daemon")
        await stack.start("daemon")
        await stack.until_pool("the pool is as wanted after a restart", whole)
        assert await machines.living() == before
        assert machines.shim.order("calls")["RunInstances"] == launches
        assert await stack.stop("daemon") == 0
    assert await machines.living() == before
    tokens = await machines.tokens()
    assert len(set(tokens)) == len(tokens)


async def test_lost_answers_throttling_and_no_spot_capacity_cost_no_machine_and_no_mix(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    order = machines.shim.order
    order("set", capacity={f"spot:{TYPE}:{zone}": 0 for zone in subnets}, describe_lag=0.3)
    order("fault", action="RunInstances", kind="lose", times=2)
    order("fault", action="RunInstances", kind="error", code="RequestLimitExceeded", status=503, after=1)
    order("fault", action="DescribeInstances", kind="error", code="InternalError", status=500, times=2)
    async with new_stack(tables(machines, subnets), parts=("gateway", "daemon")) as stack:

        def covered(pool: Any) -> bool:
            ready = [node for node in pool["nodes"] if node["phase"] == "ready"]
            return len(ready) == 3 and all(node["market"] == "on-demand" for node in ready)

        await stack.until_pool("on-demand nodes cover for spot", covered)
        order("fault", action="TerminateInstances", kind="lose", times=2)
        order("set", capacity={})
        await stack.until_pool("the pool is back on spot", whole)

        async def agreed() -> bool:
            pool = await stack.pool()
            return (
                pool is not None and whole(pool) and set(await machines.living()) == set(await stack.nodes())
            )

        await stack.until("EC2 and the daemon agree on the nodes", agreed)
    tokens = await machines.tokens()
    assert len(set(tokens)) == len(tokens)


async def test_a_kill_while_launches_and_ends_are_under_way(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """The calls have arrived at EC2 and take effect only once the daemon is dead; the next one asks again."""
    order = machines.shim.order

    async def die_amid(stack: Any, action: str) -> None:
        async def arrived() -> bool:
            return int(order("calls").get(action, 0)) > 0

        await stack.until(f"{action} has arrived", arrived)
        await stack.kill("daemon")
        order("release")
        await stack.start("daemon")

    order("fault", action="RunInstances", kind="hold", times=3)
    async with new_stack(tables(machines, subnets), parts=("gateway", "daemon")) as stack:
        await die_amid(stack, "RunInstances")
        pool = await stack.until_pool("the pool is as wanted", whole)
        assert len(await machines.tokens()) == 3  # in all, however often they were asked for
        noticed = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")
        order("fault", action="TerminateInstances", kind="hold")
        order("reclaim", node=noticed)
        await die_amid(stack, "TerminateInstances")
        await stack.until_pool(
            "the noticed node is replaced",
            lambda pool: whole(pool) and noticed not in {node["id"] for node in pool["nodes"]},
        )

        async def agreed() -> bool:
            return set(await machines.living()) == set(await stack.nodes())

        await stack.until("EC2 and the daemon agree on the nodes", agreed)
    tokens = await machines.tokens()
    assert len(set(tokens)) == len(tokens)


async def test_a_zone_is_taken_from_ten_nodes(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """Every spot node of one zone at one instant; one more with hardly any notice and one with none; copies,
    and messages about others, in between. A machine of somebody else stands by."""
    order = machines.shim.order
    theirs = await somebody_elses(machines, subnets)
    async with new_stack(tables(machines, subnets, 10), parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("the pool is as wanted", lambda pool: whole(pool, 10, 7))
        spot = [node for node in pool["nodes"] if node["market"] == "spot"]
        zone = [node["id"] for node in spot if node["zone"] == spot[0]["zone"]]
        late, silent = [node["id"] for node in spot if node["id"] not in zone][:2]
        lowest = pool["on_demand_ready"]

        async def watch_the_floor() -> None:
            nonlocal lowest
            while True:
                seen = await stack.pool()
                lowest = min(lowest, seen["on_demand_ready"] if seen is not None else lowest)
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch_the_floor())
        async with stack.traffic() as traffic:
            foreign = "i-0f0f0f0f0f0f0f0f0"
            warning = "EC2 Spot Instance Interruption Warning"
            order(
                "tell",
                kind=warning,
                detail={"instance-id": foreign, "instance-action": "terminate"},
                node=foreign,
            )
            order("tell", kind=warning, detail={"instance-id": ["nonsense"]}, node=foreign)
            order("reclaim", nodes=zone, copies=3)
            order("reclaim", node=late, late=90.0)
            order("reclaim", node=silent, notice_s=0)
            taken = {*zone, late, silent}
            await stack.until_pool(
                "all that was taken is replaced, on spot again",
                lambda pool: whole(pool, 10, 7) and not taken & {n["id"] for n in pool["nodes"]},
            )
            await traffic.answers(20)
        watching.cancel()
        assert await machines.state(theirs) == "running"
        # What a node took with it before it had answered is asked again elsewhere; a stream that had begun on
        # the node that went without a notice cannot be.
        assert traffic.report.failed == 0, traffic.report
        assert len(zone) >= 3
        assert lowest >= 3

        async def agreed() -> bool:
            return set(await machines.living()) == set(await stack.nodes())

        await stack.until("EC2 and the daemon agree on the nodes", agreed)
        counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        sqs = machines.shim.client("sqs")
        url = sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"]

        async def empty() -> bool:
            found = await asyncio.to_thread(sqs.get_queue_attributes, QueueUrl=url, AttributeNames=counts)
            return all(int(found["Attributes"][name]) == 0 for name in counts)

        await stack.until("the queue is empty", empty)
    tokens = await machines.tokens()
    assert len(set(tokens)) == len(tokens)


async def test_what_is_not_ours_any_more_is_not_ended(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """Somebody takes our tag from a node and puts it on a machine of theirs: we end neither of the two, and
    the pool is whole without them."""
    ec2, tag = machines.shim.client("ec2"), "orchestrator:pool"
    # A node that lists lack and that answers is given up after ten times as long.
    changes = {**tables(machines, subnets), f"{POOL}.patience": {"vanish_grace": "500ms"}}
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("the pool is as wanted", whole)
        gone = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")
        theirs = await somebody_elses(machines, subnets, **{tag: "test"})
        await asyncio.to_thread(ec2.delete_tags, Resources=[gone], Tags=[{"Key": tag}])
        async with stack.traffic() as traffic:
            pool = await stack.until_pool(
                "the pool is whole without it",
                lambda pool: whole(pool) and gone not in {n["id"] for n in pool["nodes"]},
            )
            await traffic.answers(20)
        assert (traffic.report.failed, traffic.report.streams_cut) == (0, 0), traffic.report
        assert theirs not in await stack.nodes()
        assert any(theirs in note for note in pool["notes"])
        assert {await machines.state(node) for node in (gone, theirs)} == {"running"}
        await stack.kill("daemon")
        await stack.start("daemon")
        await stack.until_pool("the pool is as wanted after a restart", whole)
        await stack.turns(4)
        assert {await machines.state(node) for node in (gone, theirs)} == {"running"}


async def test_a_notice_waits_for_no_list(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """No list of machines is answered from before the notice until its node is out of the balancer."""
    order = machines.shim.order
    changes = {**tables(machines, subnets), f"{POOL}.drain": {"min_serving": "50%"}}
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("the pool is as wanted", whole)
        noticed = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")
        order("fault", action="DescribeInstances", kind="hold", times=1000)
        before = order("calls")["DescribeInstances"]

        async def held() -> bool:
            return int(order("calls")["DescribeInstances"]) > before

        await stack.until("a list is on its way", held)
        order("reclaim", node=noticed)

        def detached(pool: Any) -> bool:
            return any(n["id"] == noticed and n["target"] == "draining" for n in pool["nodes"])

        await stack.until_pool("the noticed node is detached", detached)
        order("release")
        await stack.until_pool(
            "the noticed node is replaced",
            lambda pool: whole(pool) and noticed not in {node["id"] for node in pool["nodes"]},
        )


async def test_expired_credentials_freeze_changes_and_nothing_else(
    machines: Machines, subnets: dict[str, str], new_stack: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    """Status, metrics and the gateway stay up, no machine is touched; new credentials are found in the file
    and what was due is done, by the same process."""
    file, order = tmp_path / "credentials", machines.shim.order

    def write(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = x\n")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    write("FIRST")
    made = tables(machines, subnets)
    changes = {**made, f"{POOL}.patience": {"stale_after": "3s"}}
    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        await stack.until_pool("the pool is as wanted", whole)
        before = await machines.living()
        silent = next(node for node, market in before.items() if market == "spot")
        async with stack.traffic() as traffic:
            order("set", expired_keys=["FIRST"])
            pool = await stack.until_pool("the pool is degraded", lambda pool: pool["state"] == "degraded")
            assert any("ExpiredToken" in text and "renew" in text for text in pool["problems"]), pool
            order("reclaim", node=silent, notice_s=0)
            await stack.until_pool(
                "the lost node is out of the balancer",
                lambda pool: any(n["id"] == silent and n["target"] != "healthy" for n in pool["nodes"]),
            )
            await stack.turns(10)
            assert set(await machines.living()) == set(before) - {silent}
            metrics = await stack.get(stack.monitoring_port, "/metrics")
            age = re.search(r'observation_age_seconds\{[^}]*kind="cloud"[^}]*\} (\S+)', metrics)
            assert age is not None
            assert float(age[1]) > 3.0
            assert (await stack.cli("status")).code in (4, 5)
            await traffic.answers(20)
            pid = (await stack.status())["daemon"]["pid"]
            write("SECOND")
            await stack.until_pool("the pool is whole again", whole)
            assert (await stack.status())["daemon"]["pid"] == pid
        assert traffic.report.failed == 0, traffic.report


async def test_a_spot_machine_that_stops_is_replaced_and_ended_and_a_stopped_standby_is_kept(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """No event tells of it: the list of machines does."""
    made = tables(machines, subnets)
    changes = {**made, f"{POOL}.standby": {"stopped": 1}}

    def settled(pool: Any) -> bool:
        phases = sorted(node["phase"] for node in pool["nodes"] if node["phase"] != "gone")
        spot = [n for n in pool["nodes"] if n["phase"] == "ready" and n["market"] == "spot"]
        return phases == ["ready", "ready", "ready", "stopped"] and len(spot) == 2

    async with new_stack(changes, parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("three nodes work and a standby is stopped", settled)
        victim = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")
        async with stack.traffic() as traffic:
            machines.shim.order("halt", node=victim)
            pool = await stack.until_pool(
                "the stopped machine is replaced and ended, and there is a standby",
                lambda pool: settled(pool) and victim not in {n["id"] for n in pool["nodes"]},
            )
            await traffic.answers(20)
        assert traffic.report.failed == 0, traffic.report
        assert await machines.state(victim) == "terminated"
        standby = next(node["id"] for node in pool["nodes"] if node["phase"] == "stopped")
        assert await machines.state(standby) == "stopped"
        drained = [e for e in await stack.events() if e["kind"] == "DrainStarted"]
        assert {e["data"]["node"] for e in drained if e["data"]["cause"] == "notice"} == {victim}


async def test_a_warning_with_an_unreadable_time_and_a_hook_that_is_sent_to_the_queue_drain_their_nodes(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    made = tables(machines, subnets)
    sqs = machines.shim.client("sqs")
    url = sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"]
    async with new_stack(made, parts=("gateway", "daemon")) as stack:
        pool = await stack.until_pool("the pool is as wanted", whole)
        warned = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")
        hooked = next(node["id"] for node in pool["nodes"] if node["market"] == "on-demand")
        warning = {
            "source": "aws.ec2",
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "time": "soon",
            "detail": {"instance-id": warned, "instance-action": "terminate"},
        }
        hook = {
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            "LifecycleHookName": "drain",
            "EC2InstanceId": hooked,
        }
        async with stack.traffic() as traffic:
            for body in (warning, hook):
                await asyncio.to_thread(sqs.send_message, QueueUrl=url, MessageBody=json.dumps(body))
            await stack.until_pool(
                "both nodes are replaced",
                lambda pool: whole(pool) and not {warned, hooked} & {n["id"] for n in pool["nodes"]},
            )
            await traffic.answers(20)
        assert (traffic.report.failed, traffic.report.streams_cut) == (0, 0), traffic.report
        told = [e["data"]["notice"] for e in await stack.events() if e["kind"] == "NoticeSeen"]
        assert {(n["node"], n["kind"], n["source"]) for n in told} == {
            (warned, "interruption", "aws-queue"),
            (hooked, "maintenance", "aws-queue"),
        }
