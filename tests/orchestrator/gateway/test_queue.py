"""The queue: priorities that age, requests that leave it for another backend, and who is let in first."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cloud.balancers.targets import TargetSet
from orchestrator.gateway.admission import AGEING, Admission, Refused
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.entry import Wish
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import TargetTable
from policies.held import Held
from policies.model import TargetSpec, TargetState
from policies.routing import Trouble


class Room:
    """A table of one target with one place, which is taken, and a queue before it."""

    def __init__(self, *, limit=10, deadline=30.0, known=True, missed=None):
        self.now = 100.0
        gate = PoolGate(targets_file=Path("t"), max_in_flight=1)
        self.table = TargetTable(now=lambda: self.now, rng=random.Random(1), gate=gate)
        self.queue = Admission(self.table, limit=limit, deadline=deadline, hopeless=1.0, missed=missed)
        self.served = []
        self.names = iter(range(1000))
        if known:
            spec = TargetSpec(id="a", address="a:80")
            self.table.apply(TargetSet(generation=1, pool="p", written_at=1.0, targets=(spec,)))
            (self.entry,) = self.table
            self.table.checked(self.entry, "", 1)
            self.table.take(self.entry)

    def ask(self, name, priority=0, *, leaves=(), patience=None, came_back=False, adapter=""):
        exchange = Exchange(name, self.now)
        exchange.wish = Wish(adapter=adapter)
        exchange.priority, exchange.leaves, exchange.patience = priority, frozenset(leaves), patience
        exchange.retries = int(came_back)

        async def waits():
            entry = await self.queue.acquire(exchange, self.now)
            self.served.append(name)
            return entry

        task = asyncio.create_task(waits())
        task.wish = exchange.wish
        return task

    async def turn(self):
        for _ in range(5):
            await asyncio.sleep(0)

    async def one_ends(self):
        self.table.give(self.entry)
        await self.turn()


async def test_the_most_urgent_goes_first_and_age_makes_urgent():
    room = Room()
    tasks = [room.ask("old low", -1)]
    await room.turn()
    room.now += AGEING + 1
    tasks += [room.ask("first"), room.ask("high", 1), room.ask("second"), room.ask("low", -1)]
    tasks += [room.ask("came back", -9, came_back=True)]
    await room.turn()
    for _ in tasks:
        await room.one_ends()
    assert room.served == ["came back", "high", "old low", "first", "second", "low"]


async def test_nobody_starves_below_a_flood_of_urgent_requests():
    room = Room(limit=1000)
    low = room.ask("low", 0)
    await room.turn()
    for number in range(100):
        room.ask(f"urgent {number}", 3)
        await room.turn()
        await room.one_ends()
        room.now += 1.0
        if low.done():
            break
    assert low.done()
    assert number == pytest.approx(3 * AGEING, abs=2)


@pytest.mark.parametrize(
    ("leaves", "ends"),
    [({Trouble.SATURATED}, Trouble.SATURATED), ({Trouble.DOWN}, None), (set(), None)],
)
async def test_a_busy_pool_is_left_at_once_by_who_leaves_for_that(leaves, ends):
    room = Room()
    task = room.ask("r", leaves=leaves)
    await room.turn()
    if ends is None:
        assert not task.done()
        assert len(room.queue) == 1
        await room.one_ends()
        assert room.served == ["r"]
    else:
        assert task.exception().trouble is ends
        assert len(room.queue) == 0


async def test_a_free_place_is_taken_by_who_would_leave():
    room = Room()
    await room.one_ends()
    task = room.ask("r", leaves={Trouble.SATURATED, Trouble.DOWN})
    await room.turn()
    assert task.result() is room.entry


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_pool_that_goes_down_is_left_at_once_or_after_a_while(leaves):
    room = Room()
    task = room.ask("r", leaves={Trouble.DOWN} if leaves else ())
    await room.turn()
    room.table.blame(room.entry, Failure.CONNECT)
    room.queue.look(room.now)
    await room.turn()
    assert task.done() is leaves
    room.now += 1.1
    room.queue.look(room.now)
    await room.turn()
    assert task.exception().trouble is Trouble.DOWN


async def test_a_pool_that_nobody_told_of_is_down_only_for_who_can_leave():
    room = Room(known=False)
    leaver, waiter = room.ask("leaver", leaves={Trouble.DOWN}), room.ask("waiter")
    await room.turn()
    assert leaver.exception().trouble is Trouble.DOWN
    room.now += 10.0
    room.queue.look(room.now)
    assert not waiter.done()


async def test_a_target_that_brought_something_lately_and_refuses_now_is_no_hope_for_who_can_leave():
    room = Room()
    room.entry.clock.moved(room.now, None)
    room.table.blame(room.entry, Failure.CONNECT)
    assert room.table.hopeful()
    leaver, waiter = room.ask("leaver", leaves={Trouble.DOWN}), room.ask("waiter")
    await room.turn()
    assert leaver.exception().trouble is Trouble.DOWN
    assert not waiter.done()


async def test_patience_ends_the_waiting():
    room = Room()
    task, other = room.ask("r", patience=2.0), room.ask("other")
    await room.turn()
    room.now += 1.9
    room.queue.look(room.now)
    assert not task.done()
    room.now += 0.2
    room.queue.look(room.now)
    await room.turn()
    assert task.exception().trouble is Trouble.WAITED
    assert not other.done()


@pytest.mark.parametrize(("patience", "trouble"), [(None, Trouble.SATURATED), (5.0, Trouble.WAITED)])
async def test_a_queue_that_is_full_is_as_long_as_any_patience(patience, trouble):
    room = Room(limit=1)
    room.ask("first")
    await room.turn()
    task = room.ask("second", patience=patience)
    await room.turn()
    assert (task.exception().trouble, task.exception().full) == (trouble, True)


async def test_who_leaves_while_waiting_leaves_nothing_behind():
    room = Room()
    task = room.ask("r", 5)
    await room.turn()
    task.cancel()
    await room.turn()
    assert len(room.queue) == 0
    task = room.ask("again")
    await room.turn()
    room.table.give(room.entry)  # it is handed over ...
    task.cancel()  # ... in the same instant
    await room.turn()
    assert room.entry.in_flight == 0
    with pytest.raises(asyncio.CancelledError):
        await task


def test_what_a_refusal_tells():
    refused = Refused("no", Trouble.DOWN)
    assert (str(refused), refused.trouble, refused.full) == ("no", Trouble.DOWN, False)


@pytest.mark.parametrize("before", [0.0, 20.0])
async def test_all_the_waiting_of_a_request_counts_also_that_before_a_retry(before):
    room = Room(deadline=30.0)
    exchange = Exchange("r", room.now)
    exchange.waited = before
    task = asyncio.create_task(room.queue.acquire(exchange, room.now))
    await room.turn()
    began = room.now
    while not task.done() and room.now < began + 100.0:
        room.now += 0.5
        room.queue.look(room.now)
        await room.turn()
    assert task.exception().trouble is Trouble.WAITED
    assert room.now - began == 30.0 - before


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_place_that_comes_free_as_a_client_leaves_goes_to_the_next_in_line(when):
    """No request waits for ever beside an idle target: no further change would wake it."""
    room = Room()
    leaver, _, behind = room.ask("leaver"), room.ask("waits"), room.ask("behind")
    await room.turn()
    if when == "before":
        leaver.cancel()
        room.table.give(room.entry)
    else:
        room.table.give(room.entry)
        leaver.cancel()
    await room.turn()
    assert room.served == ["waits"]
    assert not behind.done()
    assert (len(room.queue), room.entry.in_flight) == (1, 1)
    await room.one_ends()
    assert room.served == ["waits", "behind"]
    with pytest.raises(asyncio.CancelledError):
        await leaver


async def test_each_in_the_queue_ends_for_its_own_reason_and_the_others_stay():
    room = Room(deadline=30.0)
    impatient, late, waiter = (
        room.ask("impatient", patience=2.0),
        Exchange("late", room.now),
        room.ask("waiter"),
    )
    late.deadline = room.now + 4.0
    late_one = asyncio.create_task(room.queue.acquire(late, room.now))
    last = room.ask("last")
    await room.turn()

    async def look(at):
        room.now = 100.0 + at
        room.queue.look(room.now)
        await room.turn()
        return [task.done() for task in (impatient, late_one, waiter, last)]

    assert await look(1.9) == [False] * 4
    assert await look(2.0) == [True, False, False, False]
    assert await look(3.9) == [True, False, False, False]
    assert await look(4.0) == [True, True, False, False]
    assert await look(29.9) == [True, True, False, False]
    assert await look(30.0) == [True] * 4
    troubles = [task.exception().trouble for task in (impatient, late_one, waiter, last)]
    assert troubles == [Trouble.WAITED, Trouble.SATURATED, Trouble.WAITED, Trouble.WAITED]
    assert "within 2 s" in str(impatient.exception())
    assert "within 30 s" in str(last.exception())
    assert len(room.queue) == 0


async def test_the_time_without_hope_is_counted_anew_each_time():
    room = Room(deadline=1000.0)
    task = room.ask("r")
    await room.turn()

    async def look(seconds, *, hope):
        room.entry.health = TargetState.HEALTHY if hope else TargetState.UNHEALTHY
        room.now += seconds
        room.queue.look(room.now)
        await room.turn()
        return task.done()

    assert not await look(0.0, hope=False)
    assert not await look(0.9, hope=False)
    assert not await look(0.0, hope=True)
    assert not await look(5.0, hope=False)
    assert not await look(0.9, hope=False)
    assert await look(0.1, hope=False)
    assert task.exception().trouble is Trouble.DOWN


@pytest.mark.parametrize(("limit", "places"), [(4, 2), (5, 2), (1, 0)])
async def test_requests_for_an_adapter_that_nobody_holds_wait_in_half_of_the_places_at_most(limit, places):
    told = []
    room = Room(limit=limit, missed=lambda name, *, first: told.append((name, first)))
    cold = [room.ask(f"cold {n}", adapter="a") for n in range(places + 1)]
    await room.turn()
    assert [task.done() for task in cold] == [False] * places + [True]
    assert cold[-1].exception().full
    assert told == [("a", True)] * (places + 1)
    others = [room.ask(f"other {n}") for n in range(limit - places + 1)]
    await room.turn()
    assert [task.done() for task in others] == [False] * (limit - places) + [True]
    room.queue.look(room.now)
    assert told[places + 1 :] == [("a", False)] * bool(places), "asked once for all that wait for the same"


async def test_who_waits_for_a_missing_adapter_holds_up_no_other_and_leaves_where_it_can():
    room = Room()
    cold, again = room.ask("cold", adapter="a"), room.ask("again", adapter="a")
    plain = room.ask("plain")
    leaver = room.ask("leaver", adapter="a", leaves={Trouble.DOWN})
    await room.turn()
    assert leaver.exception().trouble is Trouble.DOWN
    assert "holds the adapter 'a'" in str(leaver.exception())
    await room.one_ends()
    assert room.served == ["plain"]
    held = Held(name="a")
    spec = TargetSpec(id="a", address="a:80", adapters=(held,))
    room.table.apply(TargetSet(generation=2, pool="p", written_at=1.0, targets=(spec,)))
    await room.one_ends()
    assert room.served == ["plain", "cold"]
    assert room.entry.lent == {held: 1}
    room.table.give(room.entry, cold.wish)
    await room.turn()
    assert room.served == ["plain", "cold", "again"]
    assert plain.done()
    assert again.done()
