"""Faults that the admin API switches on, and what the adapters make of them."""

import asyncio

import pytest

from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.local.connection import LocalCloud
from cloud.local.instances import LocalInstances
from policies.model import Market

pytestmark = pytest.mark.slow


async def test_refusals_count_down_and_pick_zone_and_market(bench):
    await bench.order("refuse", times=2, zone="a", market="spot")
    for _ in range(2):
        await bench.launch("b")
        await bench.launch("a", Market.ON_DEMAND)
        with pytest.raises(InsufficientCapacity, match="injected"):
            await bench.launch("a")
    await bench.launch("a")


@pytest.mark.parametrize(
    "error",
    [CloudError, Denied, InsufficientCapacity, Misconfigured, NotFound, QuotaExceeded, Throttled, Uncertain],
)
async def test_every_error_arrives_as_itself(bench, error):
    await bench.order("refuse", times=1, error=error.__name__)
    with pytest.raises(error, match="injected") as caught:
        await bench.launch()
    assert type(caught.value) is error


async def test_a_refusal_does_not_hit_a_token_that_is_known(bench):
    request = bench.request()
    launched = await bench.instances.launch(request)
    await bench.order("refuse", times=1)
    assert (await bench.instances.launch(request)).id == launched.id


@pytest.mark.parametrize("call", ["launch", "any"])
async def test_a_lost_answer_has_its_effect(bench, call):
    await bench.order("lose-response", call=call)
    with pytest.raises(Uncertain):
        await bench.launch()
    assert len(await bench.instances.list("pool", "")) == 1


async def test_lost_lists_are_errors_of_a_read(bench):
    # Two: the client library asks once more by itself when a read is cut off.
    await bench.order("lose-response", call="list", times=2)
    with pytest.raises(CloudError) as caught:
        await bench.instances.list("pool", "")
    assert not isinstance(caught.value, Uncertain)


async def test_throttling_hits_every_call(bench):
    await bench.order("throttle", calls=3)
    with pytest.raises(Throttled):
        await bench.instances.list("pool", "")
    with pytest.raises(Throttled):
        await bench.offerings.list("local")
    with pytest.raises(Throttled):
        await bench.launch()
    assert await bench.instances.list("pool", "") == ()


async def test_lists_can_be_slow(bench):
    await bench.order("list-delay", seconds=5.0)
    listing = asyncio.create_task(bench.instances.list("pool", ""))
    done, _ = await asyncio.wait([listing], timeout=0.1)
    assert not done
    await bench.clock.advance(5.1)
    assert await listing == ()


async def test_new_instances_can_be_missing_from_lists(bench):
    await bench.order("list-lag", seconds=10.0)
    request = bench.request()
    launched = await bench.instances.launch(request)
    assert await bench.instances.list("pool", "") == ()
    assert (await bench.instances.launch(request)).id == launched.id
    await bench.clock.advance(10.1)
    assert [instance.id for instance in await bench.instances.list("pool", "")] == [launched.id]


async def test_heal_ends_every_fault(bench):
    await bench.order("refuse", times=5)
    await bench.order("fail-list", times=5)
    await bench.order("list-lag", seconds=50.0)
    await bench.order("lose-response", call="any", times=5)
    await bench.order("capacity", zone="a", count=0)
    await bench.order("heal")
    launched = await bench.launch()
    assert [instance.id for instance in await bench.instances.list("pool", "")] == [launched.id]


@pytest.mark.parametrize(
    ("order", "values", "words"),
    [
        ("reclaim", {"node": "i-1", "notice": 3}, "notice"),
        ("reclaim", {"node": "i-1", "notice_s": -1}, "notice_s"),
        ("capacity", {"zone": "nowhere", "count": 1}, "there are a, b"),
        ("refuse", {"times": 1, "error": "Nonsense"}, "Nonsense"),
        ("refuse", {"times": -1}, "times"),
        ("lose-response", {"call": "sing"}, "call"),
        ("forge", {"node": "i-1"}, "i-1"),
    ],
)
async def test_a_wrong_order_says_what_is_wrong(bench, order, values, words):
    with pytest.raises(CloudError, match=words):
        await bench.order(order, **values)


async def test_a_cloud_that_is_not_there(short_path):
    connection = LocalCloud(short_path / "nobody.sock")
    instances = LocalInstances(connection)
    with pytest.raises(CloudError, match=r"no answer \(no such file or directory\); is it running\?$"):
        await instances.list("pool", "")
    with pytest.raises(Uncertain):
        await instances.terminate("i-1")
    await instances.close()


async def test_an_unknown_path_is_a_plain_error(bench):
    with pytest.raises(CloudError, match="404"):
        await bench.connection.read("/v1/nothing")
