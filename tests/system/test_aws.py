"""The daemon as a process on EC2, as a stand-in for AWS shows it: engines stand behind the instances.

Instances get addresses of the loopback, and a keeper runs a simulated engine at the address of every running
one, so the daemon, the gateway and the clients see what they would see on AWS.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest

pytestmark = pytest.mark.slow

PATIENCE = 60.0
REGION = "us-east-1"
TYPE = "p5.4xlarge"
POOL = "pool.test"


@dataclass
class Machines:
    """EC2 as seen from outside of the daemon, with an engine at every running instance."""

    shim: Any
    ec2: Any
    port: int
    engines: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    def described(self) -> list[dict[str, Any]]:
        """Every instance of the pool."""
        asked = [{"Name": "tag:orchestrator:pool", "Values": ["test"]}]
        pages = self.ec2.get_paginator("describe_instances").paginate(Filters=asked)
        return [m for page in pages for r in page["Reservations"] for m in r["Instances"]]

    async def living(self) -> dict[str, str]:
        """Instances that are not ending: id to market."""
        return {
            machine["InstanceId"]: machine.get("InstanceLifecycle", "on-demand")
            for machine in await asyncio.to_thread(self.described)
            if machine["State"]["Name"] in ("pending", "running")
        }

    async def keep(self) -> None:
        """An engine runs where an instance does, and dies with it."""
        while True:
            for machine in await asyncio.to_thread(self.described):
                node, runs = machine["InstanceId"], machine["State"]["Name"] == "running"
                if runs and node not in self.engines:
                    self.engines[node] = await self._engine(machine)
                elif not runs and node in self.engines and self.engines[node].returncode is None:
                    self.engines[node].kill()
            await asyncio.sleep(0.1)

    async def _engine(self, machine: dict[str, Any]) -> asyncio.subprocess.Process:
        host = machine["PrivateIpAddress"]
        options = {
            "model": "simulated",
            "served-model-name": "simulated",
            "host": host,
            "port": str(self.port),
            "load-time": "0.1",
            "tokens-per-second": "50",
            "max-num-seqs": "8",
            "shutdown-timeout": "5",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cloud.engines.simulated_server",
            *words,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def end(self) -> None:
        """Kill every engine."""
        for engine in self.engines.values():
            with contextlib.suppress(ProcessLookupError):
                engine.kill()
            await engine.wait()


@pytest.fixture(scope="module")
def subnets(aws_shim_process: Any) -> dict[str, str]:
    """A network on the loopback and a launch template."""
    ec2: Any = boto3.client("ec2", region_name=REGION, endpoint_url=aws_shim_process.url)
    vpc = ec2.create_vpc(CidrBlock="127.78.0.0/16")["Vpc"]["VpcId"]
    made = {}
    for number, zone in enumerate((f"{REGION}a", f"{REGION}b")):
        block = f"127.78.{number}.0/24"
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)
        made[zone] = subnet["Subnet"]["SubnetId"]
    ec2.create_launch_template(
        LaunchTemplateName="system-node", LaunchTemplateData={"ImageId": "ami-12345678"}
    )
    return made


def queue_of_events(url: str) -> str:
    """A queue that EventBridge fills with the events of EC2; its URL."""
    sqs: Any = boto3.client("sqs", region_name=REGION, endpoint_url=url)
    events: Any = boto3.client("events", region_name=REGION, endpoint_url=url)
    queue = str(sqs.create_queue(QueueName="system-notices")["QueueUrl"])
    named = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    events.put_rule(Name="system", EventPattern='{"source": ["aws.ec2"]}')
    events.put_targets(Rule="system", Targets=[{"Id": "q", "Arn": named["Attributes"]["QueueArn"]}])
    return queue


@pytest.fixture
async def machines(aws_shim: Any) -> AsyncIterator[Machines]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ec2: Any = boto3.client("ec2", region_name=REGION, endpoint_url=aws_shim.url)
    machines = Machines(aws_shim, ec2, port)
    keeping = asyncio.create_task(machines.keep())
    yield machines
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    await machines.end()


def tables(machines: Machines, subnets: dict[str, str], replicas: int = 3) -> dict[str, dict[str, object]]:
    """What makes a stack's pool run on EC2."""
    aws = f"{POOL}.cloud.aws"
    return {
        POOL: {"replicas": replicas},
        f"{POOL}.cloud": {"kind": "aws", "state_dir": None, "socket": None},
        aws: {
            "endpoint": machines.shim.url,
            "instance_types": [TYPE],
            "engine_port": machines.port,
            "poll_spot_requests": "500ms",
        },
        f"{aws}.regions.{REGION}": {
            "launch_template": "system-node",
            "launch_template_version": 1,
            "notice_queue": queue_of_events(machines.shim.url),
        },
        f"{aws}.regions.{REGION}.subnets": dict(subnets),
    }


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
        doomed = next(node for node, market in first.items() if market == "spot")
        async with stack.traffic() as traffic:
            machines.shim.order("reclaim", node=doomed)
            await stack.until_pool(
                "the doomed node is gone and the pool whole",
                lambda pool: whole(pool) and doomed not in {n["id"] for n in pool["nodes"]},
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
    tokens = [machine["ClientToken"] for machine in await asyncio.to_thread(machines.described)]
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
    tokens = [machine["ClientToken"] for machine in await asyncio.to_thread(machines.described)]
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
        launched = {machine["InstanceId"] for machine in await asyncio.to_thread(machines.described)}
        assert launched == set(await stack.nodes())  # three in all, however often they were asked for
        doomed = next(node["id"] for node in pool["nodes"] if node["market"] == "spot")
        order("fault", action="TerminateInstances", kind="hold")
        order("reclaim", node=doomed)
        await die_amid(stack, "TerminateInstances")
        await stack.until_pool(
            "the doomed node is replaced",
            lambda pool: whole(pool) and doomed not in {node["id"] for node in pool["nodes"]},
        )

        async def agreed() -> bool:
            return set(await machines.living()) == set(await stack.nodes())

        await stack.until("EC2 and the daemon agree on the nodes", agreed)
    tokens = [machine["ClientToken"] for machine in await asyncio.to_thread(machines.described)]
    assert len(set(tokens)) == len(tokens)


async def test_a_zone_is_taken_from_ten_nodes(
    machines: Machines, subnets: dict[str, str], new_stack: Any
) -> None:
    """Every spot node of one zone within a moment; one more with hardly any notice and one with none; copies,
    and messages about others, in between."""
    order = machines.shim.order
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
            for node in zone:
                order("reclaim", node=node, copies=3)
            order("reclaim", node=late, late=90.0)
            order("reclaim", node=silent, notice_s=0)
            taken = {*zone, late, silent}
            await stack.until_pool(
                "all that was taken is replaced, on spot again",
                lambda pool: whole(pool, 10, 7) and not taken & {n["id"] for n in pool["nodes"]},
            )
            await traffic.answers(20)
        watching.cancel()
        # What a node took with it before it had answered is asked again elsewhere; a stream that had begun on
        # the node that went without a notice cannot be.
        assert traffic.report.failed == 0, traffic.report
        assert lowest >= 3

        async def agreed() -> bool:
            return set(await machines.living()) == set(await stack.nodes())

        await stack.until("EC2 and the daemon agree on the nodes", agreed)
        counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        sqs: Any = boto3.client("sqs", region_name=REGION, endpoint_url=machines.shim.url)
        url = sqs.get_queue_url(QueueName="system-notices")["QueueUrl"]

        async def empty() -> bool:
            found = await asyncio.to_thread(sqs.get_queue_attributes, QueueUrl=url, AttributeNames=counts)
            return all(int(found["Attributes"][name]) == 0 for name in counts)

        await stack.until("the queue is empty", empty)
    tokens = [machine["ClientToken"] for machine in await asyncio.to_thread(machines.described)]
    assert len(set(tokens)) == len(tokens)
