"""The whole machine in virtual time: many requests over targets that die, freeze, lie, leave and come back.

The table, the queue, the watch, the health checks, the breakers, the budget and the proxy are the real ones;
engines, connections and clients are played (`played_gateway`). A run is told by its seed alone.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from played_gateway import World, quiet

from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.request import MOST_CONTINUATIONS
from orchestrator.simulation.virtual_time import virtual_time

STEP = 0.1037  # s between two looks at what must hold
STORM = 60.0  # s
FAULTS = ("die", "freeze", "error", "busy", "drain", "vanish", "leave", "burst", "replace")


def played(seed, monkeypatch, story, **settings):
    """Play a story from its seed; what fails says how to see it again."""

    async def play(loop):
        return await story(World(loop, seed, **settings))

    try:
        with quiet(monkeypatch), virtual_time(seed) as loop:
            return loop.run_until_complete(play(loop))
    except BaseException as error:
        error.add_note(f"replay: played({seed}, monkeypatch, {story.__name__}, **{settings})")
        raise


class Storm:
    """Faults at random. The first node never fails: whatever happens there is one that is well."""

    def __init__(self, world):
        self.world = world
        self.rng = random.Random(world.rng.random())
        self.later: set[asyncio.Task] = set()

    async def blow(self):
        clock = self.world.clock
        while clock.now() < self.world.until:
            await clock.sleep(self.rng.expovariate(0.7))
            getattr(self, self.rng.choice(FAULTS))()

    def victim(self):
        others = [node for node in self.world.listed.values() if node.name != "n0" and node.well]
        others = [node for node in others if node.draining_until is None]
        return self.rng.choice(others) if len(others) > 1 else None

    def after(self, seconds, *steps):
        async def wait():
            await self.world.clock.sleep(seconds)
            for step in steps:
                step()

        self.later.add(asyncio.create_task(wait()))

    def die(self):
        if node := self.victim():
            node.die()
            self.after(self.rng.uniform(0.5, 20.0), node.come_back)

    def freeze(self):
        if node := self.victim():
            node.freeze()
            self.after(self.rng.uniform(0.5, 40.0), node.thaw)

    def error(self):
        if node := self.victim():
            node.answers = self.rng.choice((500, 502, 404))
            self.after(self.rng.uniform(0.5, 10.0), node.come_back)

    def busy(self):
        if node := self.victim():
            node.answers = self.rng.choice((429, 503))
            node.retry_after = self.rng.choice((None, "0", "3", "600", "soon"))
            self.after(self.rng.uniform(0.5, 10.0), node.come_back)

    def drain(self):
        if node := self.victim():
            left = self.rng.uniform(3.0, 30.0)
            node.draining_until = self.world.clock.now() + left
            self.world.put()
            self.after(left, node.die, lambda: self.gone(node))

    def vanish(self):
        """It leaves the set, and no longer says a word."""
        if node := self.victim():
            node.freeze()
            self.gone(node)

    def replace(self):
        """Another machine under the same name."""
        if node := self.victim():
            self.gone(node)
            fresh = self.world.listed.popitem()[1]
            del self.world.nodes[fresh.address]
            fresh.name, fresh.address = node.name, f"again{self.world.made}:80"
            self.world.nodes[fresh.address] = self.world.listed[node.name] = fresh
            self.world.put()
            self.after(self.rng.uniform(0.0, 5.0), node.die)

    def gone(self, node):
        self.world.listed.pop(node.name, None)
        self.world.add()
        self.world.put()

    def leave(self):
        running = [task for task in self.world.tasks if not task.done()]
        if running:
            self.rng.choice(running).cancel()

    def burst(self):
        for _ in range(40):
            self.world.send(stream=True, tokens=self.rng.randrange(1, 30))


async def arrive(world):
    rng = random.Random(world.rng.random())
    while world.clock.now() < world.until:
        await world.clock.sleep(rng.expovariate(8.0))
        kind = rng.random()
        world.send(
            stream=kind < 0.6,
            tokens=rng.randrange(1, 60),
            repeatable=kind < 0.9,
            model="poison" if 0.55 < kind < 0.6 else "m",
        )


async def looked_at(world):
    """Check at instants at which nothing else happens."""
    while True:
        await world.clock.sleep(STEP)
        for _ in range(4):
            await asyncio.sleep(0)
        world.check()


def fault_of(request, world):
    """What is wrong with the end of a request, empty where nothing is."""
    job = request.job
    exchange, outcome = job.exchange, job.outcome
    if request.ended is None or not exchange.over:
        return "it did not end"
    if request.ended > exchange.deadline + world.gate.queue_deadline:
        return "it ended too late"
    attempts, worked = world.attempts[exchange.id], world.worked[exchange.id]
    most = 1 + world.gate.max_retries + world.moved[exchange.id]
    if worked > most or exchange.continued > MOST_CONTINUATIONS:
        return f"{worked} targets worked on it, {exchange.continued} went on"
    if worked > 1 and not job.asked.repeatable:
        return "it ran twice"
    if attempts > 60:
        return f"{attempts} attempts"
    tokens = getattr(job.response, "tokens", [])
    if tokens != list(range(len(tokens))):
        return f"tokens {tokens}"
    if outcome is Outcome.OK:
        return "" if len(tokens) == job.asked.max_tokens else f"{len(tokens)} tokens"
    if request.response is None:
        return "" if request.left else "it crashed"
    if job.asked.model == "poison":
        return "" if request.response.status in (400, 404, 500) else f"{request.response.status}"
    excused = exchange.sent_again >= world.gate.max_retries or not job.asked.repeatable
    world.unlucky += exchange.sent_again >= world.gate.max_retries
    end = getattr(request.response, "error", None) or getattr(request.response, "text", "")
    return "" if excused else f"{outcome} after {attempts} attempts at {request.ended:.1f}: {end}"


async def storm(world):
    world.until = world.clock.now() + STORM
    watcher, weather = asyncio.create_task(looked_at(world)), Storm(world)
    await asyncio.gather(arrive(world), weather.blow())
    await asyncio.wait(
        [watcher, asyncio.gather(*world.tasks, return_exceptions=True)], return_when="FIRST_COMPLETED"
    )
    world.check()
    watcher.cancel()
    assert isinstance((await asyncio.gather(watcher, return_exceptions=True))[0], asyncio.CancelledError)
    await world.end()
    for task in weather.later:
        task.cancel()
    assert not world.proxy._running
    assert not any(world.held.values())
    assert not len(world.admission)
    faults = [(r.job.exchange.id, fault) for r in world.requests if (fault := fault_of(r, world))]
    assert not faults
    assert not world.wronged
    served = sum(r.job.outcome is Outcome.OK for r in world.requests)
    assert world.unlucky <= len(world.requests) / 100
    return len(world.requests), served, sum(world.attempts.values()), asyncio.get_running_loop().steps


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_others_one_good_target_serves_all(seed, monkeypatch):
    sent, served, attempts, steps = played(seed, monkeypatch, storm, nodes=5)
    assert served > 0.8 * sent > 300
    assert attempts > sent
    assert steps > 10_000


def test_a_run_is_told_by_its_seed(monkeypatch):
    monkeypatch.setitem(globals(), "STORM", STORM / 4)
    assert played(7, monkeypatch, storm, nodes=3) == played(7, monkeypatch, storm, nodes=3)


async def crowded_drain(world):
    """Two of three targets go, and the other one has room for half of what they hold."""
    await world.clock.sleep(3.0)
    for _ in range(3 * world.gate.max_in_flight):
        world.send(stream=True, tokens=200)
    await world.clock.sleep(4.0)
    leaving = world.listed["n1"], world.listed["n2"]
    for node in leaving:
        node.draining_until = world.clock.now() + 12.0
    world.put()
    watcher = asyncio.create_task(looked_at(world))
    await world.clock.sleep(12.0)
    for node in leaving:
        node.die()
    await asyncio.gather(*world.tasks)
    watcher.cancel()
    await world.end()
    assert [fault for r in world.requests if (fault := fault_of(r, world))] == []
    assert all(r.job.outcome is Outcome.OK for r in world.requests)
    ids = [exchange_id for exchange_id, moved in world.moved.items() if moved]
    once = [r.job.exchange for r in world.requests if world.attempts[r.job.exchange.id] == 2]
    assert all(exchange.waited < 0.5 for exchange in once if exchange.id in ids), "moved to wait"
    return len(ids)


async def hasty_clients(world):
    """Clients leave in the instants in which requests get their turns."""
    rng, loop = random.Random(world.rng.random()), asyncio.get_running_loop()

    def changed():
        running = [task for task in world.tasks if not task.done()]
        if running and rng.random() < 0.3:
            loop.call_soon(rng.choice(running).cancel)

    await world.clock.sleep(3.0)
    world.table.on_change.append(changed)
    for _ in range(400):
        world.send(stream=rng.random() < 0.5, tokens=rng.randrange(1, 9))
    await asyncio.gather(*world.tasks, return_exceptions=True)
    await world.end()
    world.check()
    assert not any(world.held.values())
    assert [fault for r in world.requests if not r.left and (fault := fault_of(r, world))] == []
    return sum(request.left for request in world.requests)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_client_that_leaves_at_its_turn_takes_no_place_along(seed, monkeypatch):
    left = played(seed, monkeypatch, hasty_clients, nodes=2, max_in_flight=3, queue_deadline=900.0)
    assert 0 < left < 400


@pytest.mark.parametrize("seed", [1, 2])
def test_what_moves_before_a_drain_deadline_is_not_lost(seed, monkeypatch):
    assert played(seed, monkeypatch, crowded_drain, nodes=3, max_in_flight=20) > 0


async def failing_pool(world):
    """Every target fails at once, and clients ask on and on."""
    world.until = world.clock.now() + 60.0
    for node in world.nodes.values():
        node.answers = 502

    async def asks():
        while world.clock.now() < world.until:
            await world.send(stream=False, tokens=3)

    await world.clock.sleep(3.0)
    await asyncio.gather(*(asks() for _ in range(50)))
    await world.end()
    world.check()
    return [node.asked for node in world.nodes.values()], len(world.requests)


def test_a_pool_that_fails_as_a_whole_is_asked_seldom(monkeypatch):
    asked, requests = played(3, monkeypatch, failing_pool, nodes=3)
    assert requests > 50
    assert max(asked) < 50 + 20  # what came before the breaker opened, and the probes of a minute


async def ends_at_once(world):
    """The gateway is told to end while requests are in every stage."""
    world.until = world.clock.now() + 10.0
    weather = Storm(world)
    await asyncio.gather(arrive(world), weather.blow())
    weather.burst()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await world.proxy.end_now()
    await world.end()
    for task in weather.later:
        task.cancel()
    world.check()
    assert not any(world.held.values())
    assert all(request.ended is not None for request in world.requests)
    ended = [fault_of(request, world) for request in world.requests if request.response is not None]
    return len(world.requests), sum("gateway_stopping" in fault or "stop" in fault for fault in ended)


@pytest.mark.parametrize("seed", [5, 6])
def test_an_end_at_once_ends_every_request(seed, monkeypatch):
    sent, stopped = played(seed, monkeypatch, ends_at_once, nodes=4)
    assert 0 < stopped < sent
