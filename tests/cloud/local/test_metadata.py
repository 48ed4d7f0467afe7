"""The metadata service of a node answers as EC2's does, and its reader is not fooled."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import aiohttp
import pytest

from cloud.local.metadata import utc
from policies.model import NoticeKind

pytestmark = pytest.mark.slow

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
PATIENCE = 30.0


class Node:
    """A client on a node."""

    def __init__(self, bench, instance):
        self.base = f"http://{instance.address.rpartition(':')[0]}:{bench.config.metadata_port}"
        self.session = aiohttp.ClientSession()

    async def token(self, headers=None):
        async with self.session.put(
            f"{self.base}/latest/api/token", headers={TTL: "60"} if headers is None else headers
        ) as answer:
            return answer.status, await answer.text()

    async def get(self, path, token):
        headers = {} if token is None else {TOKEN: token}
        async with self.session.get(f"{self.base}/latest/{path}", headers=headers) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def node(bench):
    instance = await bench.up()
    client = Node(bench, instance)
    client.id = instance.id
    yield client
    await client.session.close()


async def read(node, path):
    _, token = await node.token()
    return await node.get(path, token)


async def test_a_token_is_needed(bench, node):
    assert (await node.get("meta-data/instance-id", None))[0] == 401
    assert (await node.get("meta-data/instance-id", "wrong"))[0] == 401
    assert (await node.token({}))[0] == 400
    assert (await node.token({TTL: "0"}))[0] == 400
    assert (await node.token({TTL: "21601"}))[0] == 400
    assert (await node.token({TTL: "60", "X-Forwarded-For": "1.2.3.4"}))[0] == 403
    status, token = await node.token()
    assert status == 200
    assert await node.get("meta-data/instance-id", token) == (200, node.id)
    await bench.clock.advance(61.0)
    assert (await node.get("meta-data/instance-id", token))[0] == 401


async def test_a_token_is_good_on_its_own_node_only(bench, node):
    other = Node(bench, await bench.up())
    _, token = await node.token()
    assert (await other.get("meta-data/instance-id", token))[0] == 401
    await other.session.close()


async def test_what_a_node_knows_of_itself(node):
    assert await read(node, "meta-data/placement/availability-zone") == (200, "a")
    assert await read(node, "meta-data/placement/region") == (200, "r")
    assert await read(node, "meta-data/instance-life-cycle") == (200, "spot")
    assert await read(node, "meta-data/instance-type") == (200, "local.gpu")
    assert await read(node, "meta-data/events/maintenance/scheduled") == (200, "[]")
    assert (await read(node, "meta-data/nothing"))[0] == 404


async def test_the_notice_shows_when_it_is_given(bench, node):
    action, rebalance = "meta-data/spot/instance-action", "meta-data/events/recommendations/rebalance"
    assert (await read(node, action))[0] == 404
    assert (await read(node, rebalance))[0] == 404
    await bench.order("recommend", node=node.id)
    assert await read(node, rebalance) == (200, f'{{"noticeTime":"{utc(bench.clock.now())}"}}')
    await bench.order("reclaim", node=node.id, notice_s=120)
    deadline = utc(bench.clock.now() + 120)
    assert await read(node, action) == (200, f'{{"action":"terminate","time":"{deadline}"}}')
    assert await read(node, "meta-data/spot/termination-time") == (200, deadline)


async def test_a_late_notice_shows_late(bench, node):
    await bench.order("channels", metadata_delay=30)
    await bench.order("reclaim", node=node.id, notice_s=120)
    await bench.clock.advance(29.0)
    assert (await read(node, "meta-data/spot/instance-action"))[0] == 404
    await bench.clock.advance(2.0)
    assert (await read(node, "meta-data/spot/instance-action"))[0] == 200
    await bench.order("channels", metadata=False)
    assert (await read(node, "meta-data/spot/instance-action"))[0] == 404


async def test_metadata_goes_with_its_machine(bench, node):
    await bench.order("reclaim", node=node.id, notice_s=0)
    await bench.clock.advance(0.0)
    with pytest.raises(aiohttp.ClientError):
        await node.get("meta-data/instance-id", None)


async def test_a_forged_notice_shows_and_nothing_comes_of_it(bench, node):
    await bench.order("forge", node=node.id, deadline_s=10)
    assert (await read(node, "meta-data/spot/instance-action"))[0] == 200
    await bench.clock.advance(100.0)
    assert (await bench.get(node.id)).state == "running"
    assert (await bench.statistics())["preemptions"] == []
    await bench.order("forge", node=node.id, kind="rebalance")
    assert (await read(node, "meta-data/spot/instance-action"))[0] == 404
    assert (await read(node, "meta-data/events/recommendations/rebalance"))[0] == 200
    await bench.order("forge", node=node.id, kind="none")
    assert (await read(node, "meta-data/events/recommendations/rebalance"))[0] == 404


def test_times_are_written_as_ec2_writes_them():
    assert utc(1505722920.0) == "2017-09-18T08:22:00Z"
    assert utc(1505722920.25) == "2017-09-18T08:22:00.250Z"
    assert utc(1505722920.9999) == "2017-09-18T08:22:01Z"


async def collect(bench, source, kind):
    """The first notice of a kind, moving the clock on while the source polls."""

    async def find():
        async with aclosing(source.stream()) as stream:
            async for notice in stream:
                if notice.kind is kind:
                    return notice

    finding = asyncio.create_task(find())
    async with asyncio.timeout(PATIENCE):
        while not finding.done():
            await asyncio.wait([finding], timeout=0.01)
            await bench.clock.advance(0.5)
    return finding.result()


async def test_the_reader_renews_a_token_that_is_no_longer_good(bench):
    instance = await bench.up()
    source = bench.metadata()
    source.watch([instance])
    await bench.order("recommend", node=instance.id)
    await collect(bench, source, NoticeKind.REBALANCE)
    bench.server.metadata._tokens.clear()
    await bench.order("reclaim", node=instance.id, notice_s=100_000)
    assert (await collect(bench, source, NoticeKind.INTERRUPTION)).node == instance.id
    await source.close()


async def test_the_reader_believes_only_the_node_it_asked_for(bench):
    instance = await bench.up()
    stranger = replace(instance, id="i-stranger")  # its address was given to another machine
    await bench.order("reclaim", node=instance.id, notice_s=100_000)
    source = bench.metadata()
    source.watch([stranger])
    polled = await source._poll("i-stranger", instance.address.rpartition(":")[0], bench.config.metadata_port)
    assert polled == []
    source.watch([stranger, instance])
    assert (await collect(bench, source, NoticeKind.INTERRUPTION)).node == instance.id
    await source.close()


async def test_a_node_that_does_not_answer_delays_no_other(bench):
    instance = await bench.up()
    dead = replace(instance, id="i-dead", address=instance.address.replace(".1:", ".250:"))
    await bench.order("reclaim", node=instance.id, notice_s=100_000)
    source = bench.metadata()
    source.watch([dead, instance])
    assert (await collect(bench, source, NoticeKind.INTERRUPTION)).node == instance.id
    await source.close()


async def test_only_running_nodes_are_watched(bench):
    pending = await bench.launch()
    source = bench.metadata()
    source.watch([pending])
    assert source._hosts == {}
    await source.close()
