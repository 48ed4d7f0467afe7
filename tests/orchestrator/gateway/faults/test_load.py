"""Faults under load: nodes that fail fast, that are full, that come back; clients that ask for nonsense."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.orchestrator.gateway.faults import plain_faults as p
from tests.orchestrator.gateway.faults import rig
from tests.orchestrator.gateway.faults.answers import marker_of, script_for
from tests.orchestrator.gateway.faults.playing import Fault, Play
from tests.orchestrator.gateway.faults.sdk import Client, Verdict, expected_of, judge
from tests.orchestrator.gateway.faults.table import CHAT, CHAT_STREAM
from tests.support.upstreams import Conversation, Upstream

GOOD_DELAY = 0.005  # s a good node takes: a failing one is always quicker
OVER = asyncio.Event  # what holds a stream open until a test lets it end


def scripted(talk: Conversation) -> Play:
    """The good answer to a request, to be played; there is no client to wait for."""
    script = script_for(talk.request.path, talk.request.body)
    assert script is not None
    part = asyncio.Event()
    part.set()
    return Play(talk, script, part)


def played(how: Fault) -> Callable[[Conversation], Awaitable[None]]:
    """A behaviour that meets every request with this fault; what is no request of a client is not known."""

    async def behave(talk: Conversation) -> None:
        if not marker_of(talk.request.body):
            await talk.json({"detail": "Not Found"}, "404 Not Found")
            return
        await how(scripted(talk))

    return behave


async def good(play: Play) -> None:
    await asyncio.sleep(GOOD_DELAY)
    await play.whole()


@contextlib.asynccontextmanager
async def pool(directory, *behaviours: Fault, weights: tuple[int, ...] = (), **settings: Any):
    """A gateway before one node for each behaviour; every node has passed its first check."""
    nodes = [Upstream(f"node-{number}") for number in range(len(behaviours))]
    try:
        for node, behaviour in zip(nodes, behaviours, strict=True):
            node.behaviour = played(behaviour)
            await node.start()
        async with rig.gateway(directory, **settings) as running:
            specs = [
                node.spec(weight=weight)
                for node, weight in zip(nodes, weights or (100,) * len(nodes), strict=True)
            ]
            await running.push(*specs)
            await rig.until_ready(running)
            yield running, nodes
    finally:
        for node in nodes:
            await node.stop()


@contextlib.asynccontextmanager
async def client_of(running):
    client = Client(running.url)
    try:
        yield client
    finally:
        await client.http.aclose()


async def crowd(
    running, clients: int, each: int, carriers=(CHAT, CHAT_STREAM), name=rig.marker
) -> Counter[Any]:
    """So many clients with one connection each ask so often, one request after another; the verdicts."""

    async def one(number: int) -> list[Verdict]:
        verdicts = []
        async with client_of(running) as client:
            for turn in range(each):
                carrier, told = carriers[(number + turn) % len(carriers)], name()
                verdicts.append(judge(await client.ask(carrier, told), expected_of(carrier, told)))
        return verdicts

    return Counter(
        verdict.word for part in await asyncio.gather(*map(one, range(clients))) for verdict in part
    )


def asked(node: Upstream) -> int:
    """Requests of clients that a node saw."""
    return sum(1 for request in node.seen if marker_of(request.body))


@pytest.mark.parametrize("fault", [p.unavailable, p.internal_error, p.limited, p.not_found])
async def test_a_node_that_fails_fast_gets_little(tmp_path, fault):
    async with pool(tmp_path, fault, good, good) as (running, nodes):
        assert await crowd(running, clients=20, each=20) == {"whole": 400}
        assert asked(nodes[0]) < 100


async def test_one_clients_bad_requests_eject_nobody(tmp_path):
    bad: set[str] = set()

    async def strict(play: Play) -> None:
        await (p.bad_request if marker_of(play.talk.request.body) in bad else good)(play)

    def bad_marker() -> str:
        bad.add(name := rig.marker())
        return name

    async with pool(tmp_path, strict, strict, strict) as (running, nodes):
        others = asyncio.create_task(crowd(running, clients=4, each=25))
        assert await crowd(running, clients=10, each=50, carriers=(CHAT,), name=bad_marker) == {400: 500}
        assert await others == {"whole": 100}
        states = await running.targets()
        assert {row["state"] for row in states.values()} == {"healthy"}
        assert sum(map(asked, nodes)) <= 100 + 3 * 500


def busy_engine(slots: int) -> Fault:
    """An engine that runs so many streams at once and lets the others wait without a byte."""
    free = asyncio.Semaphore(slots)

    async def behave(play: Play) -> None:
        async with free:
            await play.head()
            for event in play.script.events:
                await play.chunks(event)
                await asyncio.sleep(0.02)
            await play.end()

    return behave


async def test_waiting_at_a_busy_node_is_no_fault(tmp_path):
    """Four times of what two nodes run at once; the last waits for many times the first-token timeout."""
    async with pool(tmp_path, busy_engine(4), busy_engine(4), first_token_timeout=0.4) as (running, nodes):
        assert await crowd(running, clients=64, each=1, carriers=(CHAT_STREAM,)) == {"whole": 64}
        assert sum(map(asked, nodes)) == 64


async def test_what_is_too_much_is_refused_with_a_time_to_come_back(tmp_path):
    settings = {"max_in_flight": 4, "queue_limit": 8, "queue_deadline": 0.5}
    async with pool(tmp_path, busy_engine(4), busy_engine(4), **settings) as (running, _):
        words = await crowd(running, clients=64, each=1, carriers=(CHAT_STREAM,))
    assert words.total() == 64
    assert set(words) <= {"whole", 429, 503}  # each of these numbers carries a Retry-After, or is `untyped`
    assert words["whole"] >= 8


async def test_a_node_that_comes_back_is_trusted_with_its_first_progress(tmp_path):
    """The stream that tries a node after its quiet time need not end before others may follow."""
    held, behaviour = OVER(), {"first": p.internal_error}

    async def holding(play: Play) -> None:
        await play.begin()
        await held.wait()
        await play.chunks(*play.script.events[play.middle :])
        await play.end()

    async def first(play: Play) -> None:
        await behaviour["first"](play)

    settings = {"max_in_flight": 1, "breaker_open": 0.3}
    async with pool(tmp_path, first, good, weights=(300, 100), **settings) as (running, nodes):
        assert await crowd(running, clients=1, each=8) == {"whole": 8}
        behaviour["first"] = holding
        nodes[1].behaviour = played(holding)
        asking = [asyncio.create_task(crowd(running, 1, 1, (CHAT_STREAM,))) for _ in range(3)]
        async with asyncio.timeout(rig.PATIENCE):
            while nodes[0].in_flight < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        held.set()
        assert [await task for task in asking] == [{"whole": 1}] * 3


@pytest.mark.parametrize("fault", [p.internal_error, p.resets_at_once, p.unavailable, p.html])
async def test_a_pool_that_fails_as_a_whole_is_not_hammered(tmp_path, fault):
    async with pool(tmp_path, fault, fault, fault, breaker_longest=1.0) as (running, nodes):
        words = await crowd(running, clients=60, each=2)
        assert words.total() == 120
        assert set(words) <= {500, 502, 503}
        assert sum(map(asked, nodes)) <= 3 * 120
        for node in nodes:
            node.behaviour = played(good)
        async with asyncio.timeout(rig.PATIENCE):
            while set(await crowd(running, clients=3, each=1)) != {"whole"}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_connections_that_nodes_close_without_a_word_cost_nothing(tmp_path):
    """As llama.cpp does it: an answer is good, the next request on its connection meets a closed one."""
    served: set[int] = set()

    async def once(play: Play) -> None:
        if id(play.talk.writer) in served:
            play.close()
            return
        served.add(id(play.talk.writer))
        kept.append(play.talk.writer)
        await play.whole()

    kept: list[asyncio.StreamWriter] = []  # so that no two of them have the same id
    async with pool(tmp_path, once, once) as (running, _):
        assert await crowd(running, clients=1, each=30) == {"whole": 30}


@pytest.mark.parametrize(("texts", "outcome"), [(0, "whole"), (1, "broken")])
async def test_a_request_that_stands_still_on_a_node_that_moves_is_moved(tmp_path, texts, outcome):
    """The nodes are well, they answer checks and others' streams; this one request gets nothing more."""
    stuck: set[str] = set()

    async def forgetful(play: Play) -> None:
        name = marker_of(play.talk.request.body)
        if name in stuck:
            stuck.remove(name)
            await play.head()
            await play.chunks(*play.script.events[: texts * play.middle])
            await play.leave()
            return
        await good(play)

    settings = {"first_token_timeout": 0.6, "stall_least": 0.5, "stall_factor": 5.0, "idle_timeout": 1.0}
    async with pool(tmp_path, forgetful, forgetful, **settings) as (running, _), client_of(running) as client:
        others = asyncio.create_task(crowd(running, clients=4, each=1000))
        stuck.add(name := rig.marker())
        got = await client.ask(CHAT_STREAM, name)
        assert not others.done()
        others.cancel()
        assert judge(got, expected_of(CHAT_STREAM, name)).word == outcome
