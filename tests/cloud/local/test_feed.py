"""The event feed and its reader: nothing lost over reconnects, restarts and wiped clouds."""

import asyncio
import shutil
from contextlib import aclosing
from dataclasses import replace

import pytest

from cloud.clock import SystemClock
from cloud.errors import Uncertain
from cloud.local.admin import LoseOrder
from cloud.local.connection import LocalCloud
from cloud.local.feed import Feed
from cloud.local.notices import LocalEventFeed
from cloud.local.server import run_local_cloud
from cloud.local.table import Table
from policies.model import NoticeKind

PATIENCE = 30.0


class Reader:
    """Collects what a feed tells, in the background."""

    def __init__(self, socket, pool="pool"):
        self.connection = LocalCloud(socket)
        self.feed = LocalEventFeed(self.connection, SystemClock(), pool=pool)
        self.seen = []
        self._task = asyncio.create_task(self._collect())

    async def _collect(self):
        async with aclosing(self.feed.stream()) as stream:
            async for notice in stream:
                self.seen.append(notice)

    async def until(self, count):
        async with asyncio.timeout(PATIENCE):
            while len(self.seen) < count:  # noqa: ASYNC110 (the reader is another task)
                await asyncio.sleep(0.005)
        return [notice.node for notice in self.seen]

    async def close(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.feed.close()


@pytest.fixture
async def reader(cloud_config):
    collecting = Reader(cloud_config.socket_path)
    yield collecting
    await collecting.close()


def publish(server, node):
    return server.feed.publish(NoticeKind.REBALANCE, node, None)


async def test_a_reader_that_came_before_the_cloud_hears_everything_over_a_restart(cloud_config, reader):
    async with run_local_cloud(cloud_config, SystemClock()) as server:
        publish(server, "i-1")
        assert await reader.until(1) == ["i-1"]
        publish(server, "i-2")
        assert await reader.until(2) == ["i-1", "i-2"]
    async with run_local_cloud(cloud_config, SystemClock()) as server:
        publish(server, "i-3")
        assert await reader.until(3) == ["i-1", "i-2", "i-3"]
    assert len({notice.id for notice in reader.seen}) == 3


async def test_a_reader_follows_a_cloud_whose_state_was_wiped(cloud_config, reader):
    async with run_local_cloud(cloud_config, SystemClock()) as server:
        for number in range(3):
            publish(server, f"i-{number}")
        await reader.until(3)
    shutil.rmtree(cloud_config.state_dir)
    async with run_local_cloud(cloud_config, SystemClock()) as server:
        publish(server, "i-new")
        assert (await reader.until(4))[-1] == "i-new"
    assert len({notice.id for notice in reader.seen}) == 4


async def test_two_readers_hear_the_same(cloud_config, reader):
    other = Reader(cloud_config.socket_path)
    async with run_local_cloud(cloud_config, SystemClock()) as server:
        for number in range(5):
            publish(server, f"i-{number}")
        assert await reader.until(5) == await other.until(5)
    await other.close()


async def test_a_pool_hears_of_its_own_machines_and_of_those_that_nobody_knows(bench):
    """From the instant of the launch on; a pool that reads nothing yet misses nothing meanwhile."""
    own = await bench.launch()
    foreign = await bench.instances.launch(replace(bench.request(), pool="other"))
    for node in (foreign.id, "i-unknown", own.id):
        publish(bench.server, node)
    reader = Reader(bench.config.socket_path)
    assert await reader.until(2) == ["i-unknown", own.id]
    for notice in reader.seen:
        await reader.feed.acknowledge(notice)
    late = Reader(bench.config.socket_path, pool="other")
    publish(bench.server, own.id)
    assert await late.until(1) == [foreign.id]
    publish(bench.server, foreign.id)
    assert await late.until(2) == [foreign.id, foreign.id]
    assert await reader.until(3) == ["i-unknown", own.id, own.id]
    await reader.close()
    await late.close()


async def test_a_long_poll_answers_at_once_when_something_comes_and_empty_when_not(tmp_path):
    table = Table(tmp_path)
    feed = Feed(table, SystemClock(), 10)
    assert await feed.after(0, "pool", 0.0) == ()
    assert await feed.after(0, "pool", 0.01) == ()
    waiting = asyncio.create_task(feed.after(0, "pool", PATIENCE))
    await asyncio.sleep(0)
    event = feed.publish(NoticeKind.REBALANCE, "i-1", None)
    assert await waiting == (event,)
    closing = asyncio.create_task(feed.after(event.seq, "pool", PATIENCE))
    await asyncio.sleep(0)
    feed.close()
    assert await closing == ()
    table.close()


async def test_the_feed_is_bounded_and_its_numbers_never_repeat(tmp_path):
    table = Table(tmp_path)
    feed = Feed(table, SystemClock(), 3)
    for number in range(5):
        feed.publish(NoticeKind.REBALANCE, f"i-{number}", None)
    assert [event.node for event in table.events_after(0, "pool")] == ["i-2", "i-3", "i-4"]
    for event in table.events_after(0, "pool"):
        feed.acknowledge(event.seq)
    table.close()
    reopened = Table(tmp_path)
    assert reopened.events_after(0, "pool") == ()
    assert Feed(reopened, SystemClock(), 3).publish(NoticeKind.REBALANCE, "i-5", None).seq == 6
    reopened.close()


async def test_a_cloud_that_does_not_answer_is_asked_less_often_each_time():
    class Paced(SystemClock):
        def __init__(self):
            super().__init__()
            self.slept = []

        async def sleep(self, seconds):
            self.slept.append(seconds)
            if len(self.slept) == 7:
                raise asyncio.CancelledError

    class Away:
        def share(self):
            return self

        async def read(self, *asked, **more):
            raise Uncertain("refused")

    clock = Paced()
    with pytest.raises(asyncio.CancelledError):
        async for _ in LocalEventFeed(Away(), clock, pool="pool").stream():
            pass
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_answers_are_lost_once_where_no_number_is_given():
    assert LoseOrder(call="list").times == 1
