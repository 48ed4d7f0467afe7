"""Spot machines are taken back as the market says, with notice in time, late, or never."""

import random
import sys

import pytest

from cloud.errors import InsufficientCapacity, NotFound
from cloud.local.config import Channels, Reclaiming
from cloud.local.reclaims import choose_victims
from policies.model import InstanceState, Market, NoticeKind

pytestmark = pytest.mark.slow


async def pool_of(bench, *zones):
    nodes = [(await bench.launch(zone)).id for zone in zones]
    await bench.clock.advance(bench.config.boot_delay + 0.1)
    return nodes


def interruptions(events):
    return [event for event in events if event["kind"] == "interruption"]


async def test_a_fall_of_capacity_takes_the_surplus_with_notice(run_bench, recorded):
    async with run_bench(market=recorded(a=[3, 1, 1], b=[3, 3, 3])) as bench:
        nodes = await pool_of(bench, "a", "a", "a", "b")
        assert await bench.events() == []
        await bench.clock.advance(599.0 - bench.config.boot_delay)
        assert await bench.events() == []
        await bench.clock.advance(2.0)
        told = interruptions(await bench.events())
        assert len(told) == 2
        victims = {event["node"] for event in told}
        assert victims < set(nodes[:3])
        fell = bench.server._identity.origin + 600.0
        assert [event["deadline"] for event in told] == pytest.approx([fell + 120.0] * 2, abs=0.001)
        await bench.clock.advance(118.0)
        assert set((await bench.states()).values()) == {"running"}
        await bench.clock.advance(2.0)
        states = await bench.states()
        assert {node for node, state in states.items() if state == "terminated"} == victims
        numbers = await bench.statistics()
        assert (numbers["preemptions_with_notice"], numbers["preemptions_without_notice"]) == (2, 0)
        assert {p["node"] for p in numbers["preemptions"]} == victims
        assert all(p["vanished_at"] is not None for p in numbers["preemptions"])
        assert numbers["orphans"] == []


async def test_a_late_notice_shows_shortly_before_the_deadline(run_bench):
    rules = Reclaiming(notice=100.0, late_share=1.0, late_notice=10.0)
    async with run_bench(reclaiming=rules) as bench:
        [node] = await pool_of(bench, "a")
        at = bench.clock.now()
        await bench.order("capacity", zone="a", count=0)
        await bench.clock.advance(89.0)
        assert await bench.events() == []
        await bench.clock.advance(2.0)
        [told] = await bench.events()
        assert told["deadline"] == pytest.approx(at + 100.0, abs=0.001)
        await bench.clock.advance(10.0)
        assert (await bench.states())[node] == "terminated"
        assert (await bench.statistics())["preemptions_with_notice"] == 1


async def test_a_missing_notice_kills_without_a_word_until_it_is_gone(run_bench):
    async with run_bench(reclaiming=Reclaiming(notice=100.0, missing_share=1.0)) as bench:
        [node] = await pool_of(bench, "a")
        await bench.order("capacity", zone="a", count=0)
        await bench.clock.advance(99.0)
        assert await bench.events() == []
        assert (await bench.states())[node] == "running"
        await bench.clock.advance(2.0)
        [told] = await bench.events()
        assert (told["kind"], told["node"]) == ("state-change", node)
        numbers = await bench.statistics()
        assert (numbers["preemptions_with_notice"], numbers["preemptions_without_notice"]) == (0, 1)


async def test_shares_of_late_and_missing_notices_are_kept(run_bench):
    rules = Reclaiming(notice=100.0, late_share=0.3, late_notice=10.0, missing_share=0.2)
    async with run_bench(reclaiming=rules) as bench:
        drawn = [bench.server.reclaims._draw() for _ in range(4000)]
        assert {lead for lead, _ in drawn} == {100.0}
        shown = [shown for _, shown in drawn]
        assert shown.count(None) / 4000 == pytest.approx(0.2, abs=0.03)
        assert shown.count(10.0) / 4000 == pytest.approx(0.3, abs=0.03)


async def test_a_recommendation_comes_ahead_and_names_the_victims(run_bench, recorded):
    async with run_bench(
        market=recorded(a=[4, 2, 2]), reclaiming=Reclaiming(notice=120.0, rebalance_lead=300.0)
    ) as bench:
        await pool_of(bench, "a", "a", "a", "a")
        await bench.clock.advance(299.0 - bench.config.boot_delay)
        assert await bench.events() == []
        await bench.clock.advance(2.0)
        told = await bench.events()
        assert {event["kind"] for event in told} == {"rebalance"}
        assert [event["deadline"] for event in told] == [None, None]
        recommended = {event["node"] for event in told}
        await bench.clock.advance(300.0)
        assert {event["node"] for event in interruptions(await bench.events())} == recommended


async def test_a_noticed_node_holds_no_capacity(bench):
    nodes = await pool_of(bench, "a", "a", "a", "a")
    with pytest.raises(InsufficientCapacity):
        await bench.launch("a")
    await bench.order("reclaim", node=nodes[0])
    await bench.launch("a")
    with pytest.raises(InsufficientCapacity):
        await bench.launch("a")


async def test_capacity_is_the_markets_again_after_an_override(bench):
    await bench.order("capacity", zone="a", count=0)
    with pytest.raises(InsufficientCapacity):
        await bench.launch("a")
    await bench.launch("b")
    await bench.order("capacity", zone="a", count=None)
    await bench.launch("a")


async def test_an_override_of_on_demand(bench):
    await bench.launch("a", Market.ON_DEMAND)
    await bench.order("capacity", zone="a", count=1, market="on-demand")
    with pytest.raises(InsufficientCapacity):
        await bench.launch("a", Market.ON_DEMAND)
    await bench.launch("a")


async def test_on_demand_machines_are_never_reclaimed_by_the_market(bench):
    launched = await bench.launch("a", Market.ON_DEMAND)
    await bench.order("capacity", zone="a", count=0)
    await bench.order("capacity", zone="a", count=0, market="on-demand")
    await bench.clock.advance(1000.0)
    assert (await bench.states())[launched.id] == "running"


async def test_a_zone_is_reclaimed_as_a_whole(bench):
    in_a = await pool_of(bench, "a", "a")
    in_b = await pool_of(bench, "b")
    on_demand = (await bench.launch("a", Market.ON_DEMAND)).id
    answer = await bench.order("reclaim-zone", zone="a", notice_s=60)
    assert sorted(answer["nodes"]) == sorted(in_a)
    await bench.clock.advance(61.0)
    states = await bench.states()
    assert {states[node] for node in in_a} == {"terminated"}
    assert {states[node] for node in (*in_b, on_demand)} == {"running"}


async def test_notice_zero_is_no_notice(bench):
    [node] = await pool_of(bench, "a")
    await bench.order("reclaim", node=node, notice_s=0)
    await bench.clock.advance(0.0)
    assert (await bench.states())[node] == "terminated"
    assert interruptions(await bench.events()) == []
    assert (await bench.statistics())["preemptions_without_notice"] == 1


async def test_a_machine_still_booting_can_be_reclaimed(bench):
    node = (await bench.launch("a")).id
    await bench.order("reclaim", node=node, notice_s=1)
    await bench.clock.advance(bench.config.boot_delay * 2)
    assert (await bench.states())[node] == "terminated"
    assert (await bench.statistics())["groups"] == {}


async def test_a_machine_terminated_in_time_does_not_vanish(bench):
    [node] = await pool_of(bench, "a")
    await bench.order("reclaim", node=node, notice_s=60)
    await bench.instances.terminate(node)
    await bench.until(lambda: bench.server._table.get(node).state is InstanceState.TERMINATED)
    await bench.clock.advance(61.0)
    [preemption] = (await bench.statistics())["preemptions"]
    assert preemption["noticed_at"] is not None
    assert preemption["vanished_at"] is None
    assert [event["kind"] for event in await bench.events()] == ["interruption"]


async def test_a_machine_that_drains_too_long_is_cut_at_the_deadline(bench):
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
    argv = (sys.executable, "-S", "-c", f"{script}; time.sleep(600)")
    node = (await bench.up(argv=argv, stop_grace=60.0)).id
    await bench.until(lambda: "up" in bench.server.machines.log_path(node).read_text())
    await bench.order("reclaim", node=node, notice_s=3)
    await bench.instances.terminate(node)
    await bench.clock.advance(2.9)
    assert (await bench.states())[node] == "shutting-down"
    await bench.clock.advance(0.2)
    assert (await bench.states())[node] == "terminated"


async def test_the_same_machine_is_reclaimed_once(bench):
    [node] = await pool_of(bench, "a")
    await bench.order("reclaim", node=node)
    with pytest.raises(NotFound, match="already"):
        await bench.order("reclaim", node=node)
    with pytest.raises(NotFound, match="no instance"):
        await bench.order("reclaim", node="i-none")


async def test_the_feed_can_be_slow_or_silent(run_bench):
    async with run_bench(channels=Channels(feed_delay=30.0)) as bench:
        nodes = await pool_of(bench, "a", "a", "a")
        await bench.order("reclaim", node=nodes[0])
        await bench.clock.advance(29.0)
        assert await bench.events() == []
        await bench.clock.advance(2.0)
        assert [event["node"] for event in await bench.events()] == [nodes[0]]
        await bench.order("channels", feed=False)
        await bench.order("reclaim", node=nodes[1])
        await bench.clock.advance(200.0)
        assert {event["node"] for event in await bench.events()} == {nodes[0]}
        await bench.order("channels", feed=True, feed_delay=0, state_changes=False)
        await bench.order("reclaim", node=nodes[2], notice_s=5)
        await bench.clock.advance(6.0)
        assert [event["node"] for event in await bench.events()][-1] == nodes[2]
        assert [event["kind"] for event in await bench.events()][-1] == NoticeKind.INTERRUPTION


async def test_speed_shortens_everything_alike(run_bench, recorded):
    async with run_bench(market=recorded(a=[1, 0, 0]), speed=60.0) as bench:
        node = (await bench.launch("a")).id
        await bench.clock.advance(0.6)
        assert (await bench.states())[node] == "running"
        await bench.clock.advance(9.5)
        [told] = await bench.events()
        assert told["deadline"] == pytest.approx(bench.server._identity.origin + 10.0 + 2.0, abs=0.001)
        await bench.clock.advance(2.0)
        assert (await bench.states())[node] == "terminated"


async def test_cost_follows_the_price_from_launch_to_end(run_bench, recorded):
    source = recorded(prices={"a": [1.0, 2.0, 3.0]}, a=[4, 4, 4])
    async with run_bench(market=source) as bench:
        await bench.clock.advance(300.0)
        node = (await bench.launch("a")).id
        await bench.clock.advance(900.0)
        assert (await bench.get(node)).price == 3.0
        await bench.instances.terminate(node)
        await bench.until(lambda: bench.server._table.get(node).state is InstanceState.TERMINATED)
        await bench.clock.advance(5000.0)
        [cost] = (await bench.statistics())["costs"]
        assert cost["market_hours"] == pytest.approx(0.25)
        assert cost["cost_usd"] == pytest.approx((300 * 1.0 + 600 * 2.0) / 3600)
        assert cost["cost_on_demand_usd"] == pytest.approx(900 * 4.0 / 3600)


async def test_victims_are_drawn_by_the_generator_alone(bench):
    await pool_of(bench, "a", "a", "a", "a")
    held = bench.server.machines.held("a", "local.gpu", Market.SPOT)
    first = choose_victims(held, 2, random.Random(5))
    assert first == choose_victims(list(reversed(held)), 2, random.Random(5))
    assert len(first) == 2
    assert choose_victims(held, 4, random.Random(5)) == ()
    assert len(choose_victims(held, 0, random.Random(5))) == 4
    draws = {tuple(m.id for m in choose_victims(held, 2, random.Random(seed))) for seed in range(50)}
    assert len(draws) > 4
