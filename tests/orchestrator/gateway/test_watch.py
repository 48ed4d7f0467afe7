"""The watch ends waits in vain, moves what would outlive its node, and refuses who waits too long."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from hand_clock import HandClock

from cloud.balancers.targets import TargetSet
from orchestrator.gateway.admission import Admission, Refused
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.entry import Wish
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.watch import Watch
from policies.held import Held
from policies.model import TargetPhase, TargetSpec, TargetState


class Owner:
    """A request as the watch sees it."""

    def __init__(self):
        self.wish = Wish()
        self.revision = ""
        self.movable = True
        self.leaving = False
        self.left = None

    def can_move(self):
        return self.movable

    def can_leave(self):
        return self.leaving

    def fits(self, entry):
        return True

    def seconds_left(self, entry):
        return self.left


class World:
    """Two targets and a watch, under a hand-turned clock."""

    def __init__(self, **settings):
        self.clock = HandClock()
        self.config = PoolGate(targets_file=Path("t"), **settings)
        self.table = TargetTable(now=self.clock.now, rng=random.Random(1), gate=self.config)
        self.admission = Admission(self.table, limit=10, deadline=30.0, hopeless=1.0)
        self.watch = Watch(self.table, self.admission, self.clock, drain_margin=self.config.drain_margin)
        self.put(TargetSpec(id="a", address="h:1"), TargetSpec(id="b", address="h:2"))
        for entry in self.table:
            self.table.checked(entry, "", 1)
        self.owner = Owner()

    def put(self, *specs):
        self.table.apply(TargetSet(generation=1, pool="p", written_at=1.0, targets=specs))

    def entry(self, node):
        return next(entry for entry in self.table if entry.spec.id == node)

    def leash(self, node="a", *, begun=False, deadline=3600.0):
        leash = self.watch.hold(
            self.owner, self.entry(node), streams=True, deadline=self.clock.now() + deadline
        )
        if begun:
            leash.began()
        return leash

    def passes(self, seconds, *silent):
        """Time passes in steps; all but `silent` targets answer their checks."""
        for _ in range(round(seconds / 0.1)):
            self.clock.at += 0.1
            for entry in self.table:
                if entry.spec.id not in silent:
                    entry.clock.answered(self.clock.now(), passed=True)
                elif entry.clock.asked_at is None:
                    entry.clock.asked(self.clock.now())
            self.watch.look(self.clock.now())


async def played(world, leash, *steps):
    """Play `steps` while the leash waits."""

    async def waits():
        with leash:
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    for step in steps:
        step()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    if task.done():
        assert isinstance(task.exception(), TimeoutError)
        return leash.failure
    task.cancel()
    return None


async def test_a_lost_target_loses_its_requests_only_where_another_is_well():
    world = World()
    assert await played(world, world.leash(), lambda: world.passes(5.0, "a")) is Failure.LOST
    assert world.entry("a").health.value == "unhealthy"
    world = World()
    assert await played(world, world.leash(), lambda: world.passes(30.0, "a", "b")) is None
    assert await played(world, world.leash(), lambda: world.passes(70.0, "a", "b")) is Failure.LOST


async def test_a_lost_pool_loses_its_requests_where_another_backend_is_there():
    world = World()
    world.owner.leaving = True
    assert await played(world, world.leash(), lambda: world.passes(3.0, "a", "b")) is None
    assert await played(world, world.leash(), lambda: world.passes(3.0, "a", "b")) is Failure.LOST


async def test_a_client_that_leaves_in_the_instant_of_a_failure_has_left():
    leash = World().leash()

    async def waits():
        with leash:
            await asyncio.get_running_loop().create_future()

    for leaves in (False, True):
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        leash.pull(Failure.LOST)
        if leaves:
            task.cancel()
        with pytest.raises(asyncio.CancelledError if leaves else TimeoutError):
            await task
        leash = World().leash()


async def test_what_cannot_move_stays_until_the_end():
    world = World()
    world.owner.movable = False
    assert await played(world, world.leash(), lambda: world.passes(30.0, "a")) is None


async def test_new_requests_avoid_a_target_that_leaves_a_check_unanswered():
    world = World()
    world.passes(2.0, "a")
    assert {world.table.choose().spec.id for _ in range(10)} == {"b"}


async def test_a_deadline_ends_a_wait_for_good():
    world = World()
    world.owner.movable = False
    leash = world.leash(deadline=3.0)
    assert await played(world, leash, lambda: world.passes(4.0)) is Failure.DEADLINE


def draining(world, deadline):
    world.put(
        TargetSpec(id="a", address="h:1", phase=TargetPhase.DRAINING, drain_deadline=deadline),
        TargetSpec(id="b", address="h:2"),
    )


@pytest.mark.parametrize(("left", "moves"), [(None, True), (100.0, True), (1.0, False)])
async def test_what_would_outlive_its_node_moves_before_the_deadline(left, moves):
    world = World()
    world.owner.left = left
    leash = world.leash(begun=True)
    draining(world, world.clock.now() + 60.0)

    def lives(seconds):
        for _ in range(round(seconds / 0.1)):
            leash.moved()
            world.passes(0.1)

    early = await played(world, leash, lambda: lives(49.0))
    assert early is None
    leash = world.leash(begun=True)
    assert await played(world, leash, lambda: lives(2.0)) is (Failure.MOVED if moves else None)


async def test_no_more_move_at_once_than_others_have_room_for():
    world = World(max_in_flight=2)
    world.entry("b").in_flight = 1
    draining(world, world.clock.now() + 5.0)
    leashes = [world.leash(begun=True) for _ in range(8)]

    async def waits(leash):
        with leash:
            await asyncio.get_running_loop().create_future()

    tasks = [asyncio.create_task(waits(leash)) for leash in leashes]
    await asyncio.sleep(0)
    world.watch.look(world.clock.now())
    _, waiting = await asyncio.wait(tasks, timeout=0)
    assert [one.failure for one in leashes].count(Failure.MOVED) == 3
    assert world.entry("b").in_flight == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_that_does_not_read_makes_no_target_look_stalled():
    world = World()
    leash = world.leash(begun=True)
    leash.clock.at_client = True
    assert await played(world, leash, lambda: world.passes(200.0)) is None
    leash = world.leash(begun=True)
    leash.clock.at_client = True

    def read():
        leash.clock.at_client = False

    late = await played(world, leash, lambda: world.passes(200.0), read, lambda: world.passes(16.0))
    assert late is Failure.STALLED


async def test_a_request_for_what_one_target_has_does_not_move():
    world = World()
    world.owner.wish.home = "a"
    draining(world, world.clock.now() + 5.0)
    leash = world.leash(begun=True)
    assert await played(world, leash, lambda: world.watch.look(world.clock.now())) is None


SQL = Held(name="sql", served_as="sql@1f", revision="1f")


def holder(world, *, movable=True):
    """A request under way at the only target that holds its adapter."""
    world.put(TargetSpec(id="a", address="h:1", adapters=(SQL,)), TargetSpec(id="b", address="h:2"))
    world.owner.wish.adapter, world.owner.movable = "sql", movable
    return world.leash()


async def test_a_request_whose_adapter_was_lost_with_its_only_holder_goes_where_it_can_be_loaded():
    world = World()
    assert await played(world, holder(world), lambda: world.passes(5.0, "a")) is Failure.LOST
    world = World()
    stays = holder(world, movable=False)
    assert await played(world, stays, lambda: world.passes(5.0, "a")) is None, "it cannot move"


async def test_a_request_without_an_adapter_waits_for_no_other_target_to_be_well():
    world = World()
    world.entry("b").health, world.entry("b").refuses = TargetState.INITIAL, True  # it starts
    assert await played(world, world.leash(), lambda: world.passes(5.0, "a")) is None


async def test_a_holder_that_is_merely_slow_still_has_its_adapter():
    world = World()
    leash = holder(world)
    leash.began()
    assert await played(world, leash, lambda: world.passes(20.0)) is None


async def test_a_gateway_that_is_always_late_still_looks():
    class Late(HandClock):
        async def sleep(self, seconds):
            self.at += 0.5
            if self.at > 1020.0:
                raise asyncio.CancelledError

    world, looks = World(), []
    watch = Watch(world.table, world.admission, Late(), drain_margin=1.0)
    watch.look = looks.append
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    assert len(looks) == 20


async def test_nothing_moves_where_no_other_target_is():
    world = World()
    leash = world.leash(begun=True)
    draining(world, world.clock.now() + 5.0)
    world.table.checked(world.entry("b"), "down", 1)
    world.table.lose(world.entry("b"), "down")
    assert await played(world, leash, lambda: world.watch.look(world.clock.now())) is None


def waiting(world):
    exchange = Exchange("r", world.clock.now())
    return asyncio.create_task(world.admission.acquire(exchange, world.clock.now()))


async def test_those_that_come_back_are_served_before_new_ones_and_in_order():
    world, served = World(max_in_flight=1), []
    for entry in world.table:
        entry.in_flight = 2

    async def waits(name, *, again):
        exchange = Exchange(name, world.clock.now())
        exchange.retries, exchange.wish.again = int(again), again
        entry = await world.admission.acquire(exchange, world.clock.now())
        served.append(name)
        world.table.give(entry)

    tasks = []
    for name in ("new", "first", "second", "third"):
        tasks.append(asyncio.create_task(waits(name, again=name != "new")))
        await asyncio.sleep(0)
    world.table.give(world.entry("a"))
    world.table.give(world.entry("a"))
    await asyncio.gather(*tasks)
    assert served == ["first", "second", "third", "new"]


async def test_a_turn_that_nobody_takes_goes_to_the_next_at_once():
    """Its waiter was given up in the instant in which a target became free."""
    world = World(max_in_flight=1)
    for entry in world.table:
        entry.in_flight = 1
    first, second = waiting(world), waiting(world)
    await asyncio.sleep(0)
    first.cancel()
    world.table.give(world.entry("a"))
    assert world.entry("a").in_flight == 1, "it has the second one's request already"
    assert (await second).spec.id == "a"


async def test_all_that_there_is_room_for_are_served_at_once():
    """One change makes room for several, such as a node of more units."""
    world = World(max_in_flight=1)
    for entry in world.table:
        entry.in_flight = 1
    tasks = [waiting(world) for _ in range(3)]
    await asyncio.sleep(0)
    world.put(TargetSpec(id="a", address="h:1", weight=300), TargetSpec(id="b", address="h:2"))
    assert world.entry("a").in_flight == 3
    await asyncio.wait(tasks, timeout=0)
    assert [task.done() for task in tasks] == [True, True, False]
    tasks[2].cancel()


async def test_a_wait_ends_on_time_behind_one_that_was_given_up():
    world = World()
    fill(world)
    now = world.clock.now()
    first, given_up = waiting(world), waiting(world)
    exchange = Exchange("r", now)
    exchange.deadline = now + 3.0
    last = asyncio.create_task(world.admission.acquire(exchange, now))
    await asyncio.sleep(0)
    given_up.cancel()
    world.admission.look(now + 3.0)
    with pytest.raises(Refused, match="before its time was over"):
        await last
    assert not first.done()
    first.cancel()


async def test_no_request_waits_beyond_its_own_end():
    world = World()
    fill(world)
    exchange = Exchange("r", world.clock.now())
    exchange.deadline = world.clock.now() + 3.0
    task = asyncio.create_task(world.admission.acquire(exchange, world.clock.now()))
    await asyncio.sleep(0)
    world.passes(4.0)
    with pytest.raises(Refused, match="before its time was over"):
        await task


def fill(world):
    for entry in world.table:
        entry.in_flight = world.config.max_in_flight


async def test_a_request_waits_for_a_busy_pool_and_not_for_a_dead_one():
    world = World()
    fill(world)
    task = waiting(world)
    await asyncio.sleep(0)
    world.passes(29.0)
    assert not task.done()
    world.passes(2.0)
    with pytest.raises(Refused, match="within 30 s"):
        await task

    world = World()
    for entry in world.table:
        for _ in range(3):
            world.table.blame(entry, Failure.BAD_GATEWAY)
    world.clock.at += 0.2
    task = waiting(world)
    await asyncio.sleep(0)
    world.watch.look(world.clock.now())
    assert not task.done()
    fill(world)
    for entry in world.table:
        for _ in range(9):
            entry.breaker.begin(world.clock.now())
            world.table.blame(entry, Failure.BAD_GATEWAY)
        entry.clock.moved_at = -1e9
    for _ in range(15):
        world.clock.at += 0.1
        world.watch.look(world.clock.now())
    with pytest.raises(Refused, match="no target is there"):
        await task
