"""What every adapter of `Notices` keeps, and what the sources of one provider keep together."""

import asyncio
from contextlib import aclosing

import pytest

from cloud.kinds import KINDS
from policies.model import InstanceState, Market, NoticeKind

pytestmark = pytest.mark.slow

PATIENCE = 30.0
WHOLE = 1.1  # s by which a time in whole seconds is off, and clocks of two processes


async def running_spot_node(world):
    launched = await world.instances.launch(await world.request("t-1", Market.SPOT))
    instance = await world.until_state(launched.id, InstanceState.RUNNING)
    world.watch(instance)
    return instance


async def first(source, kind):
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        async for notice in stream:
            if notice.kind is kind:
                return notice
    raise AssertionError("the stream ended")


def telling(world, kind):
    """The sources that tell of this kind."""
    found = [told_by for told_by in world.sources if kind in told_by.tells]
    if not found:
        pytest.skip(f"this provider tells nobody of any {kind}")
    return found


def queue_of(world):
    """The source that holds notices until they are acknowledged."""
    queues = [told_by.source for told_by in world.sources if told_by.queues]
    if not queues:
        pytest.skip("this provider has no queue of notices")
    (queue,) = queues
    return queue


async def test_every_source_tells_of_the_same_interruption(notice_world):
    node = await running_spot_node(notice_world)
    before = notice_world.clock.now()
    await notice_world.reclaim(node.id, notice_s=12_000)
    took = notice_world.clock.now() - before
    telling_it = telling(notice_world, NoticeKind.INTERRUPTION)
    told = [await first(told_by.source, NoticeKind.INTERRUPTION) for told_by in telling_it]
    assert {notice.node for notice in told} == {node.id}
    assert all(notice.deadline is not None and notice.deadline > before for notice in told)
    # Clouds write times in whole seconds, each when it says so, which is while the reclaim is asked for.
    pairs = list(zip(told, telling_it, strict=True))
    named = [notice.deadline for notice, told_by in pairs if not told_by.counts_on]
    assert max(named, default=0.0) - min(named, default=0.0) <= WHOLE + took
    for notice, told_by in pairs:
        if (
            told_by.counts_on
        ):  # from when the node saw it, which was after the reclaim and before it was heard
            assert before - WHOLE <= notice.deadline - told_by.counts_on <= notice.seen_at + WHOLE
    assert [notice.source for notice in told] == [told_by.source.name for told_by in telling_it]
    assert len({notice.id for notice in told}) == len(told)
    assert all(before <= notice.seen_at <= notice_world.clock.now() for notice in told)


async def test_only_the_cloud_itself_is_confirmed(notice_world):
    node = await running_spot_node(notice_world)
    await notice_world.reclaim(node.id, notice_s=12_000)
    for told_by in telling(notice_world, NoticeKind.INTERRUPTION):
        notice = await first(told_by.source, NoticeKind.INTERRUPTION)
        assert notice.confidence is told_by.confidence


async def test_a_rebalance_recommendation_has_no_deadline(notice_world):
    recommending = telling(notice_world, NoticeKind.REBALANCE)
    node = await running_spot_node(notice_world)
    await notice_world.recommend(node.id)
    for told_by in recommending:
        notice = await first(told_by.source, NoticeKind.REBALANCE)
        assert (notice.node, notice.deadline) == (node.id, None)


async def test_maintenance_is_told_apart_and_names_its_time(notice_world):
    maintaining = telling(notice_world, NoticeKind.MAINTENANCE)
    node = await running_spot_node(notice_world)
    before = notice_world.clock.now()
    ahead = await notice_world.maintain(node.id)
    for told_by in maintaining:
        notice = await first(told_by.source, NoticeKind.MAINTENANCE)
        assert (notice.node, notice.confidence) == (node.id, told_by.confidence)
        assert before - WHOLE <= notice.deadline - ahead <= notice_world.clock.now() + WHOLE


async def test_an_unacknowledged_notice_comes_again_to_a_new_reader_with_the_same_id(notice_world):
    queue = queue_of(notice_world)
    node = await running_spot_node(notice_world)
    await notice_world.reclaim(node.id, notice_s=12_000)
    told = await first(queue, NoticeKind.INTERRUPTION)
    again = await first(queue, NoticeKind.INTERRUPTION)
    assert (again.id, again.node, again.deadline) == (told.id, told.node, told.deadline)


async def test_an_acknowledged_notice_comes_no_more_from_a_queue(notice_world):
    queue = queue_of(notice_world)
    node = await running_spot_node(notice_world)
    await notice_world.recommend(node.id)
    notice = await first(queue, NoticeKind.REBALANCE)
    await queue.acknowledge(notice)
    await queue.acknowledge(notice)
    await notice_world.reclaim(node.id, notice_s=12_000)
    async with asyncio.timeout(PATIENCE), aclosing(queue.stream()) as stream:
        async for told in stream:
            assert told.kind is NoticeKind.INTERRUPTION
            break


async def test_a_source_that_is_read_and_answered_holds_nothing_back(notice_world):
    node = await running_spot_node(notice_world)
    await notice_world.reclaim(node.id, notice_s=12_000)

    async def read(source):
        async with aclosing(source.stream()) as stream:
            async for notice in stream:
                await source.acknowledge(notice)

    for told_by in notice_world.sources:
        reading = asyncio.create_task(read(told_by.source))
        try:
            async with asyncio.timeout(PATIENCE):
                while not 0.0 <= told_by.source.age() <= 10.0:  # noqa: ASYNC110 - a source tells nobody
                    await asyncio.sleep(0.02)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_the_node_is_there_until_its_deadline_and_gone_after_it(notice_world):
    if not notice_world.chooses_notice:
        pytest.skip("this provider's notices always state two minutes, which is too long to wait for")
    node = await running_spot_node(notice_world)
    await notice_world.reclaim(node.id, notice_s=300)
    notice = await first(notice_world.sources[0].source, NoticeKind.INTERRUPTION)
    await notice_world.until_state(node.id, InstanceState.TERMINATED)
    assert notice_world.clock.now() >= notice.deadline - 0.01


def test_every_kind_of_cloud_is_in_these_suites(cloud_worlds):
    assert set(KINDS) <= set(cloud_worlds)
