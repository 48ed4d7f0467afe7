"""What every adapter of `Notices` keeps, and what the sources of one provider keep together."""

import asyncio
from contextlib import aclosing

import pytest

from policies.model import Confidence, InstanceState, Market, NoticeKind

pytestmark = pytest.mark.slow

PATIENCE = 30.0


async def running_spot_node(world):
    launched = await world.instances.launch(await world.request("t-1", Market.SPOT))
    instance = await world.until_state(launched.id, InstanceState.RUNNING)
    world.metadata.watch([instance])
    return instance


async def first(source, kind):
    async with asyncio.timeout(PATIENCE), aclosing(source.stream()) as stream:
        async for notice in stream:
            if notice.kind is kind:
                return notice
    raise AssertionError("the stream ended")


async def test_both_sources_tell_of_the_same_interruption(notice_world):
    node = await running_spot_node(notice_world)
    before = notice_world.clock.now()
    await notice_world.reclaim(node.id, notice_s=12_000)
    told = [
        await first(source, NoticeKind.INTERRUPTION) for source in (notice_world.feed, notice_world.metadata)
    ]
    assert {notice.node for notice in told} == {node.id}
    assert all(notice.deadline is not None and notice.deadline > before for notice in told)
    # EC2's metadata is exact to the second.
    assert told[0].deadline == pytest.approx(told[1].deadline, abs=1.0)
    assert [notice.source for notice in told] == [notice_world.feed.name, notice_world.metadata.name]
    assert told[0].id != told[1].id
    assert all(before <= notice.seen_at <= notice_world.clock.now() for notice in told)


async def test_only_the_cloud_itself_is_confirmed(notice_world):
    node = await running_spot_node(notice_world)
    await notice_world.reclaim(node.id, notice_s=12_000)
    from_cloud = await first(notice_world.feed, NoticeKind.INTERRUPTION)
    from_node = await first(notice_world.metadata, NoticeKind.INTERRUPTION)
    assert from_cloud.confidence is Confidence.CONFIRMED
    assert from_node.confidence is Confidence.REPORTED


async def test_a_rebalance_recommendation_has_no_deadline(notice_world):
    node = await running_spot_node(notice_world)
    await notice_world.recommend(node.id)
    for source in (notice_world.feed, notice_world.metadata):
        notice = await first(source, NoticeKind.REBALANCE)
        assert (notice.node, notice.deadline) == (node.id, None)


async def test_an_unacknowledged_notice_comes_again_to_a_new_reader_with_the_same_id(notice_world):
    node = await running_spot_node(notice_world)
    await notice_world.reclaim(node.id, notice_s=12_000)
    told = await first(notice_world.feed, NoticeKind.INTERRUPTION)
    again = await first(notice_world.feed, NoticeKind.INTERRUPTION)
    assert (again.id, again.node, again.deadline) == (told.id, told.node, told.deadline)


async def test_an_acknowledged_notice_comes_no_more_from_a_queue(notice_world):
    node = await running_spot_node(notice_world)
    await notice_world.recommend(node.id)
    notice = await first(notice_world.feed, NoticeKind.REBALANCE)
    await notice_world.feed.acknowledge(notice)
    await notice_world.feed.acknowledge(notice)
    await notice_world.reclaim(node.id, notice_s=12_000)
    async with asyncio.timeout(PATIENCE), aclosing(notice_world.feed.stream()) as stream:
        async for told in stream:
            assert told.kind is NoticeKind.INTERRUPTION
            break


async def test_the_node_is_there_until_its_deadline_and_gone_after_it(notice_world):
    node = await running_spot_node(notice_world)
    await notice_world.reclaim(node.id, notice_s=300)
    notice = await first(notice_world.feed, NoticeKind.INTERRUPTION)
    await notice_world.until_state(node.id, InstanceState.TERMINATED)
    assert notice_world.clock.now() >= notice.deadline - 0.01
