"""One reclaim on AWS, heard three times over: the queue, the spot requests, the node's own agent."""

import asyncio
from contextlib import aclosing
from typing import Any

import boto3
import pytest
import structlog

from cloud.aws.instances import AwsInstances
from cloud.aws.notice_calls import NoticeCalls
from cloud.aws.notice_queue import QueueNotices
from cloud.aws.spot_requests import SpotRequestNotices
from cloud.clock import SystemClock
from cloud.ports import EngineCommand, LaunchRequest
from policies.events import NodeSeen, NoticeSeen
from policies.memory import Memory, reduce
from policies.model import Confidence, InstanceState, Market, NoticeKind, Observed, Placement, Pool, World
from tests.support.scene import noticed

pytestmark = pytest.mark.slow

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def queue_url(aws_shim):
    """A queue and the rule that fills it."""
    where: dict[str, Any] = {"region_name": "us-east-1", "endpoint_url": aws_shim.url}
    sqs, events = boto3.client("sqs", **where), boto3.client("events", **where)
    url = sqs.create_queue(QueueName="three")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="three", EventPattern='{"source": ["aws.ec2"]}')
    events.put_targets(Rule="three", Targets=[{"Id": "queue", "Arn": arn}])
    return url


async def launch(instances, place):
    """A spot node that runs."""
    zone = next(iter(place.subnets))
    placement = Placement("aws", place.region, zone, place.instance_types[0], Market.SPOT)
    request = LaunchRequest(
        token="three-1", pool="pool", placement=placement, command=EngineCommand(argv=("true",))
    )
    launched = await instances.launch(request)
    async with asyncio.timeout(PATIENCE):
        while True:
            for instance in await instances.list("pool", "us-east-1"):
                if instance.id == launched.id and instance.state is InstanceState.RUNNING:
                    return instance
            await SystemClock().sleep(0.05)


async def first(source):
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        async for notice in stream:
            await source.acknowledge(notice)
            return notice
    raise AssertionError("the stream ended")


async def test_each_source_alone_hears_of_a_reclaim_and_together_they_doom_the_node_once(
    aws_shim, aws_clients, aws_place, queue_url, machine, serve
):
    clock, calls = SystemClock(), NoticeCalls(aws_clients)
    instances = AwsInstances([(aws_clients, aws_place)], clock=clock)
    node = await launch(instances, aws_place)
    served, itself = await serve(owned=lambda name: name == node.id), machine(id=node.id)
    itself.start("--url", served.url)
    sources = [
        QueueNotices(calls, clock, url=queue_url, wait=1, owned=lambda name: name == node.id),
        SpotRequestNotices(calls, clock, interval=0.05),
        served.receiver,
    ]
    try:
        hearing = [asyncio.create_task(first(source)) for source in sources]
        aws_shim.order("reclaim", node=node.id)
        itself.order("interrupt", after=120)
        heard = await asyncio.gather(*hearing)
    finally:
        for source in sources:
            await source.close()
        await calls.close()
        await instances.close()

    assert [notice.kind for notice in heard] == [NoticeKind.INTERRUPTION] * 3
    assert {notice.node for notice in heard} == {node.id}
    assert len({notice.source for notice in heard}) == 3
    confirmed, reported = Confidence.CONFIRMED, Confidence.REPORTED
    assert [notice.confidence for notice in heard] == [confirmed, confirmed, reported]

    seen = NodeSeen(
        at=node.launched_at,
        node=node.id,
        token=node.token,
        placement=node.placement,
        launched_at=node.launched_at,
        price=node.price,
        address=node.address,
        standby=None,
    )
    memory = reduce(Memory(), seen, *(NoticeSeen(at=clock.now(), notice=n) for n in heard for _ in range(3)))
    world = World(now=clock.now(), regions={"": Observed(value=(node,), at=clock.now())})
    believed = noticed(Pool(name="pool", replicas=1), world, memory)
    assert set(believed) == {node.id}
    assert believed[node.id].confidence is confirmed
    assert len(memory.nodes[node.id].notices) == 3
    assert [refusal.weight for refusal in memory.reclaims.values()] == [1.0]
