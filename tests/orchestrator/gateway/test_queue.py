"""The queue: priorities that age, requests that leave it for another backend, and who is let in first."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cloud.balancers.targets import TargetSet
from orchestrator.gateway.admission import AGEING, Admission, Refused
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import TargetTable
from policies.model import TargetSpec
from policies.routing import Trouble


class Room:
    """A table of one target with one place, which is taken, and a queue before it."""

    def __init__(self, *, limit=10, deadline=30.0, known=True):
        self.now = 100.0
        gate = PoolGate(targets_file=Path("t"), max_in_flight=1)
        self.table = TargetTable(now=lambda: self.now, rng=random.Random(1), gate=gate)
        self.queue = Admission(self.table, limit=limit, deadline=deadline, hopeless=1.0)
        self.served = []
        self.names = iter(range(1000))
        if known:
            spec = TargetSpec(id="a", address="a:80")
            self.table.apply(TargetSet(generation=1, pool="p", written_at=1.0, targets=(spec,)))
            (self.entry,) = self.table
            self.table.checked(self.entry, "", 1)
            self.table.take(self.entry)

    def ask(self, name, priority=0, *, leaves=(), patience=None, came_back=False):
        exchange = Exchange(name, self.now)
        exchange.priority, exchange.leaves, exchange.patience = priority, frozenset(leaves), patience
        exchange.retries = int(came_back)

        async def waits():
            entry = await self.queue.acquire(exchange, self.now)
            self.served.append(name)
            return entry

        return asyncio.create_task(waits())

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
