"""Adapters in the table, the queue and the watch: who holds which, who waits for one, who goes for one."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.balancers.targets import TargetSet
from orchestrator.gateway.adapters import Adapters, addressed
from orchestrator.gateway.admission import Admission, Refused
from orchestrator.gateway.asked import ask
from orchestrator.gateway.config import GatewayConfig, GatewayError, PoolGate
from orchestrator.gateway.entry import Wish
from orchestrator.gateway.failure import Failure, of_status
from orchestrator.gateway.request import Exchange
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.watch import Watch
from policies.held import Held
from policies.model import TargetPhase, TargetSpec
from policies.routing import Trouble
from tests.support.hand_clock import HandClock

SQL, NEW_SQL = (Held(name="sql", served_as=f"sql@{rev}", revision=rev) for rev in ("aaaa1111", "bbbb2222"))
LAW = Held(name="law", served_as="law@cccc3333", revision="cccc3333")
GATE = PoolGate(targets_file=Path("t"), served="base", loaded=("sql", "law"))


class World:
    """Targets a, b and c, of which the first holds sql, under a hand-turned clock."""

    def __init__(self, **settings):
        self.clock = HandClock()
        gate = replace(GATE, **({"max_in_flight": 1} | settings))
        self.table = TargetTable(now=self.clock.now, rng=random.Random(3), gate=gate)
        self.adapters = Adapters(gate.loaded, self.table, self.clock.now)
        self.queue = Admission(
            self.table,
            limit=gate.queue_limit,
            deadline=gate.queue_deadline,
            hopeless=1.0,
            missed=self.adapters.missed,
        )
        self.watch = Watch(self.table, self.queue, self.clock, drain_margin=gate.drain_margin)
        self.generation = 0
        self.holding(a=[SQL], b=[], c=[])

    def holding(self, phases=(), **held):
        self.generation += 1
        specs = [
            TargetSpec(
                id=node,
                address=f"{node}:80",
                adapters=tuple(adapters),
                phase=TargetPhase.DRAINING if node in phases else TargetPhase.ACTIVE,
            )
            for node, adapters in held.items()
        ]
        self.table.apply(
            TargetSet(generation=self.generation, pool="p", written_at=1.0, targets=tuple(specs))
        )
        for entry in self.table:
            self.table.checked(entry, "", 1)

    def entry(self, node):
        return next(entry for entry in self.table if entry.spec.id == node)

    def ask(self, name="sql", *, leaves=(), patience=None):
        exchange = Exchange(name, self.clock.now())
        exchange.wish.adapter = name
        exchange.leaves, exchange.patience = frozenset(leaves), patience
        return asyncio.create_task(self.queue.acquire(exchange, self.clock.now()))

    def passes(self, seconds, *silent):
        for _ in range(round(seconds / 0.1)):
            self.clock.at += 0.1
            for entry in self.table:
                if entry.spec.id not in silent:
                    entry.clock.answered(self.clock.now(), passed=True)
                elif entry.clock.asked_at is None:
                    entry.clock.asked(self.clock.now())
            self.watch.look(self.clock.now())


async def turn():
    for _ in range(5):
        await asyncio.sleep(0)


def chosen(world, wish):
    return {entry and entry.spec.id for entry in (world.table.choose(wish) for _ in range(20))}


# -- who gets a request ---------------------------------------------------------------------------


def test_a_request_goes_to_who_holds_its_adapter_and_to_nobody_else():
    world = World()
    assert chosen(world, Wish(adapter="sql")) == {"a"}
    assert chosen(world, Wish(adapter="law")) == {None}
    assert chosen(world, Wish()) == {"a", "b", "c"}


def test_those_of_one_key_stay_together_among_the_holders():
    world = World(max_in_flight=100)
    assert chosen(world, Wish(key=7, adapter="sql")) == {"a"}
    world.holding(a=[SQL], b=[SQL], c=[])
    for _ in range(10):
        (home,) = chosen(world, Wish(key=7, adapter="sql"))
        for node in "ab":  # ten more for each, and none for c
            world.table.take(world.entry(node), Wish(adapter="sql"))
        assert chosen(world, Wish(key=7, adapter="sql")) == {home}


def test_where_no_target_is_well_none_without_the_adapter_is_tried():
    """Sending to the least bad of all targets is for requests that any of them might answer."""
    world = World()
    for node in "abc":
        world.table.lose(world.entry(node), "ill")
    assert chosen(world, Wish(adapter="sql")) == {"a"}
    assert chosen(world, Wish(adapter="law")) == {None}


def test_of_two_revisions_the_first_gets_the_new_requests_and_either_goes_on():
    world = World()
    world.holding(a=[NEW_SQL, SQL], b=[NEW_SQL])
    a = world.entry("a")
    wish = Wish(adapter="sql")
    world.table.take(a, wish)
    assert wish.held is NEW_SQL or wish.held == NEW_SQL
    old = Wish(adapter="sql")
    old.revision = SQL.revision
    assert chosen(world, old) == {None}  # a is busy, and b has another
    world.table.give(a, wish)
    assert chosen(world, old) == {"a"}
    world.table.take(a, old)
    assert old.held == SQL


def test_what_a_target_did_not_know_it_is_not_asked_for_a_while_or_until_it_is_told_again():
    world = World()
    world.holding(a=[SQL, LAW], b=[SQL])
    world.table.lacks(world.entry("a"), SQL)
    assert chosen(world, Wish(adapter="sql")) == {"b"}
    assert chosen(world, Wish(adapter="law")) == {"a"}
    world.passes(2.1)
    assert chosen(world, Wish(adapter="sql")) == {"a", "b"}
    world.table.lacks(world.entry("a"), SQL)
    world.holding(a=[SQL, LAW], b=[SQL])
    assert chosen(world, Wish(adapter="sql")) == {"a", "b"}


def test_a_request_that_is_under_way_counts_until_it_ends_whatever_the_set_says():
    world = World()
    a, wish = world.entry("a"), Wish(adapter="sql")
    world.table.take(a, wish)
    assert a.lent == {SQL: 1}
    world.holding(a=[], b=[SQL], c=[])
    assert a.lent == {SQL: 1}
    assert wish.held == SQL
    assert a.spec.adapters == ()
    world.table.give(a, wish)
    assert a.lent == {}


# -- who waits ------------------------------------------------------------------------------------


async def test_a_cold_adapter_is_waited_for_longer_than_a_pool_that_is_down():
    world = World(queue_deadline=30.0)
    waits = world.ask("law")
    await turn()
    assert world.adapters.describe()["law"]["cold"]
    world.passes(25.0)
    assert not waits.done()
    world.holding(a=[SQL], b=[LAW], c=[])
    assert (await waits).spec.id == "b"
    assert not world.adapters.describe()["law"]["cold"]
    assert world.adapters.of("law").cold == 1


async def test_it_ends_with_the_queue_s_deadline_and_says_why():
    world = World(queue_deadline=5.0)
    waits = world.ask("law")
    await turn()
    world.passes(5.2)
    with pytest.raises(Refused, match="within 5 s, or lacks the adapter 'law'") as refused:
        await waits
    assert refused.value.trouble is Trouble.WAITED


async def test_it_ends_soon_where_no_target_is_there_that_could_load_it():
    world = World()
    for node in "abc":
        world.table.lose(world.entry(node), "ill")
        world.entry(node).clock.moved_at = -1e9
    waits = world.ask("law")
    await turn()
    world.clock.at += 0.1
    world.watch.look(world.clock.now())
    world.clock.at += 1.1
    world.watch.look(world.clock.now())
    with pytest.raises(Refused, match="holds the adapter 'law'") as refused:
        await waits
    assert refused.value.trouble is Trouble.DOWN


async def test_one_that_has_somewhere_else_to_go_does_not_wait_and_marks_it_all_the_same():
    world = World()
    with pytest.raises(Refused) as refused:
        await world.ask("law", leaves=[Trouble.DOWN])
    assert refused.value.trouble is Trouble.DOWN
    assert world.adapters.cold("law")
    world.passes(11.0)
    assert not world.adapters.cold("law")


async def test_one_that_waits_for_a_holder_that_dies_leaves_then():
    world = World()
    first = world.ask("sql", leaves=[Trouble.DOWN])
    second = world.ask("sql", leaves=[Trouble.DOWN])
    await turn()
    assert first.done()
    assert not second.done()
    world.table.lose(world.entry("a"), "gone")
    world.passes(0.1, "a")
    with pytest.raises(Refused):
        await second


async def test_one_with_patience_leaves_when_that_is_over():
    world = World()
    waits = world.ask("law", patience=2.0)
    await turn()
    world.passes(2.2)
    with pytest.raises(Refused, match="within 2 s") as refused:
        await waits
    assert refused.value.trouble is Trouble.WAITED


async def test_those_that_wait_for_an_adapter_hold_up_nobody_else_and_keep_their_order():
    world = World()
    cold = [world.ask("law") for _ in range(3)]
    await turn()
    assert (await world.ask("sql")).spec.id == "a"
    assert {(await world.ask("")).spec.id for _ in range(2)} == {"b", "c"}
    full = world.ask("")
    await turn()
    assert not full.done()
    world.holding(a=[SQL], b=[LAW], c=[])
    world.table.give(world.entry("b"))
    await turn()
    assert [task.done() for task in (*cold, full)] == [True, False, False, False]
    world.table.give(world.entry("c"))
    await turn()
    assert [task.done() for task in (*cold, full)] == [True, False, False, True]
    for task in cold[1:]:
        task.cancel()


async def test_cold_ones_fill_half_of_the_places_and_a_full_queue_keeps_nobody_from_a_free_target():
    world = World(queue_limit=4)
    cold = [world.ask("law") for _ in range(3)]
    await turn()
    with pytest.raises(Refused) as refused:
        await cold[2]
    assert refused.value.full
    for _ in range(3):
        await world.ask("")
    plain = [world.ask("") for _ in range(3)]
    await turn()
    assert [task.done() for task in plain] == [False, False, True]
    world.table.give(world.entry("c"))
    await turn()
    assert [task.done() for task in plain[:2]] == [True, False]
    for task in (*cold[:2], *plain[:2]):
        task.cancel()
    await asyncio.gather(*cold, *plain, return_exceptions=True)


async def test_the_rest_of_a_stream_waits_for_its_revision_unless_another_has_taken_its_place():
    world = World()
    rest = Wish(adapter="sql")
    rest.revision = "gone0000"
    assert not world.table.hopeful(rest)  # a holds another
    rest.revision = SQL.revision
    world.holding(a=[], b=[], c=[])
    assert world.table.hopeful(rest)
    assert world.table.down(rest)


# -- who goes for one -----------------------------------------------------------------------------


class Owner:
    """A request at the only holder of its adapter."""

    def __init__(self, adapter="sql"):
        self.wish = Wish(adapter=adapter)
        self.revision = SQL.revision
        self.movable = True

    def can_move(self):
        return self.movable

    def can_leave(self):
        return False

    def fits(self, entry):
        return True

    def seconds_left(self, entry):
        return None


async def lost(world, owner, *silent):
    """The failure that a request of `owner` at a meets while these are silent for 5 s."""
    leash = world.watch.hold(owner, world.entry("a"), streams=True, deadline=1e9)
    leash.began()

    async def waits():
        with leash:
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    world.passes(5.0, *silent)
    await turn()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return leash.failure


async def test_what_the_only_holder_had_goes_where_the_adapter_can_be_loaded():
    assert await lost(World(), Owner(), "a") is Failure.LOST
    assert await lost(World(), Owner(adapter=""), "a") is Failure.LOST
    world = World()
    assert await lost(world, Owner(), "a", "b", "c") is None  # there is nowhere to load it
    fixed = Owner()
    fixed.movable = False
    assert await lost(World(), fixed, "a") is None


# -- how engines are asked ------------------------------------------------------------------------


def posted(path="/v1/chat/completions", **fields):
    body = {"model": "base", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]} | fields
    return ask("POST", path, "application/json", json.dumps(body).encode())


def test_an_engine_that_loads_adapters_is_asked_by_its_own_name():
    sent = addressed(posted(model="sql"), SQL, GATE)
    assert json.loads(sent.body())["model"] == "sql@aaaa1111"
    asked = posted()
    assert addressed(asked, None, GATE) is asked


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_llamacpp_is_asked_by_number_and_for_its_model_with_none_applied(path):
    """An empty list would have all of them applied."""
    gate = replace(GATE, numbered=True)
    second = Held(name="law", number=1, revision="cccc3333")
    body = json.loads(addressed(posted(path, model="law"), second, gate).body())
    assert (body["model"], body["lora"]) == ("base", [{"id": 1, "scale": 1.0}])
    body = json.loads(addressed(posted(path), None, gate).body())
    assert (body["model"], body["lora"]) == ("base", [{"id": 0, "scale": 0.0}])


def vllm_says(name):
    error = {"message": f"The model `{name}` does not exist.", "type": "NotFoundError", "param": "model"}
    return json.dumps({"error": error | {"code": 404}}).encode()


SGLANG = (
    b'{"object":"error","message":"The following requested LoRA adapters are not loaded: {\'sql@aaaa1111\'}"}'
)


@pytest.mark.parametrize(
    ("status", "body", "held", "failure"),
    [
        (404, vllm_says("sql@aaaa1111"), SQL, Failure.NO_ADAPTER),
        (400, SGLANG, SQL, Failure.NO_ADAPTER),
        (404, vllm_says("sql@aaaa1111"), None, Failure.REFUSED_HERE),
        (404, vllm_says("another"), SQL, Failure.REFUSED_HERE),
        (404, b'{"detail":"Not Found"}', SQL, Failure.REFUSED_HERE),
        (404, b"no JSON", SQL, Failure.REFUSED_HERE),
        (400, b'{"error":{"message":"sql@aaaa1111 has 9 tokens of context"}}', SQL, Failure.REFUSED_HERE),
        (404, vllm_says(""), Held(name="sql", number=0), Failure.REFUSED_HERE),
        (200, vllm_says("sql@aaaa1111"), SQL, None),
    ],
)
def test_a_target_without_the_adapter_is_told_from_a_request_that_is_wrong(status, body, held, failure):
    assert of_status(status, body, draining=False, held=held) is failure


# -- names ----------------------------------------------------------------------------------------


def configured(tmp_path, **settings):
    gate = replace(GATE, name="chat", **settings)
    return GatewayConfig(socket=tmp_path / "s", pools=(gate,), default_route="")


def test_a_gateway_with_adapters_goes_by_names_and_the_model_is_what_is_asked_where_none_is(tmp_path):
    config = configured(tmp_path)
    assert config.routed
    assert config.unnamed == "base"
    plain = configured(tmp_path, loaded=())
    assert not plain.routed
    assert GATE.names == ("base", "sql", "law")


def test_the_default_may_be_an_adapter(tmp_path):
    config = replace(configured(tmp_path), default_route="sql")
    assert config.unnamed == "sql"
    with pytest.raises(GatewayError, match="no route 'poem'"):
        replace(config, default_route="poem")
