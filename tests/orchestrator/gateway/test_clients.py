"""How many connections clients hold, and which of them end for one more."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket

import pytest

from orchestrator.gateway import app, clients, connection, selfcheck
from tests.support.connections import still_open

WIRES = ("http", "https")
MOST = 20


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few connections are enough for the tests; a connection is silent at once."""
    monkeypatch.setattr(app, "connections_most", lambda: MOST)
    monkeypatch.setattr(clients, "_MOMENT", 0.0)
    monkeypatch.setattr(selfcheck, "_EVERY", 600.0)  # it calls too


@pytest.fixture
def caller():
    """A way to call a gateway; connections are closed at the end."""
    with contextlib.ExitStack() as stack:

        def call(running) -> socket.socket:
            found = stack.enter_context(socket.create_connection(("127.0.0.1", running.gateway.port), 10))
            found.setblocking(False)
            return found

        yield call


def held(called: list[socket.socket]) -> list[bool]:
    """Which connections are still open."""
    return [still_open(one) for one in called]


def count(running, name: str) -> str:
    text = running.gateway.metrics.exposition().decode()
    return text.partition(f"\norchestrator_gateway_{name}_total ")[2].partition("\n")[0]


def ended(running) -> str:
    return count(running, "connections_ended")


async def test_for_one_too_many_the_longest_silent_ends(upstreams, gateways, ask, caller, eventually):
    node = await upstreams("node")
    running = await gateways(node)
    called = []
    for _ in range(MOST + 7):
        called.append(caller(running))
        await asyncio.sleep(0.01)
    await eventually(lambda: held(called) == [False] * 7 + [True] * MOST)
    assert ended(running) == "7.0"
    assert (await ask(running)).status == 200


async def test_one_that_asked_lately_is_not_the_longest_silent(upstreams, gateways, raw, caller, eventually):
    running = await gateways(await upstreams("node"))
    first, called = await raw(running), []
    for _ in range(MOST - 1):
        called.append(caller(running))
        await asyncio.sleep(0.01)
    await first.send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await first.answer())[0] == 200
    called.append(caller(running))
    await eventually(lambda: held(called) == [False] + [True] * (MOST - 1))
    assert first.open


async def test_what_is_being_answered_goes_on_and_the_newcomer_is_refused(
    upstreams, gateways, behave, ask, caller, eventually
):
    node = await upstreams("node")

    async def when_told(talk):
        await node.go_on.wait()
        await behave.answer(talk)

    node.behaviour = when_told
    running = await gateways(node)
    asked = [asyncio.create_task(ask(running)) for _ in range(MOST)]
    await eventually(lambda: node.in_flight == MOST)
    newcomer = caller(running)
    await eventually(lambda: held([newcomer]) == [False])
    node.go_on.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * MOST
    assert ended(running) == "1.0"


async def test_nor_does_one_end_that_was_answered_a_moment_ago(
    monkeypatch, upstreams, gateways, caller, eventually
):
    monkeypatch.setattr(clients, "_MOMENT", 600.0)
    running = await gateways(await upstreams("node"))
    called = [caller(running) for _ in range(MOST)]
    await asyncio.sleep(0.1)
    called.append(caller(running))
    await eventually(lambda: held(called) == [True] * MOST + [False])


async def test_half_of_a_request_keeps_nobody_out(upstreams, gateways, ask, raw, eventually):
    """However much it says: who has owed the rest of a request for longest ends for another."""
    running = await gateways(await upstreams("node"))
    halves = [await raw(running) for _ in range(MOST)]
    for one in halves:
        await one.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
    await eventually(lambda: running.gateway.metrics.active == MOST)
    assert (await ask(running)).status == 200
    await eventually(lambda: [one.open for one in halves].count(False) == 1)


async def test_the_configuration_may_allow_fewer_connections(upstreams, gateways, caller, eventually):
    running = await gateways(await upstreams("node"), connection_limit=3)
    called = [caller(running) for _ in range(5)]
    await eventually(lambda: held(called).count(True) == 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_does_not_read_its_answer_is_let_go(upstreams, gateways, wire, eventually, stream):
    """And with it what it holds: the memory, and the place at its node."""
    text = "x" * 50_000

    async def long(talk):
        if not stream:
            await talk.json({"choices": [{"message": {"content": text * 400}, "finish_reason": "stop"}]})
            return
        await talk.start_stream()
        with contextlib.suppress(ConnectionError):
            while True:
                await talk.text(text)

    node = await upstreams("node", long)
    running = await gateways(node, unread_timeout=0.2, body_rate=2**30)
    small = socket.create_connection(("127.0.0.1", running.gateway.port), 10)
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    tls = {} if wire is None else {"ssl": wire.trust(), "server_hostname": "127.0.0.1"}
    _, one = await asyncio.open_connection(sock=small, limit=1, **tls)
    body = b'{"stream": true}' if stream else b"{}"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    one.write(head + body)
    await eventually(lambda: count(running, "connections_unread") == "1.0")
    await eventually(lambda: running.gateway.metrics.active == 0)
    await eventually(lambda: running.gateway._server.connections == [])
    assert (await running.targets())["node"]["in_flight"] == 0
    one.close()


def test_of_many_who_do_not_read_those_with_most_are_let_go():
    class Connection:
        aborted = False

        def abort(self):
            self.aborted = True

    ends = []
    unread = connection.Unread(100, lambda: ends.append(1))
    small, large, middle, last = [Connection() for _ in range(4)]
    for one, size in ((small, 10), (large, 50), (middle, 40), (last, 5)):
        unread.waits(one, size)
    assert [one.aborted for one in (small, large, middle, last)] == [False, True, False, False]
    unread.read(middle)
    unread.read(middle)
    unread.waits(last, 85)
    assert [one.aborted for one in (small, middle, last)] == [False] * 3
    unread.waits(middle, 200)
    assert [one.aborted for one in (small, middle, last)] == [False, True, False]
    assert len(ends) == 2


async def test_who_reads_slowly_gets_everything(upstreams, gateways, behave, raw):
    node = await upstreams("node", behave.tokens(3000))
    running = await gateways(node, unread_timeout=5.0)
    one = await raw(running)
    body = b'{"stream": true}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    await one.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    got = b""
    while part := await one.reader.read(10_000):
        got += part
        await asyncio.sleep(0.001)
    assert got.count(b"data: ") == 3003
    assert b"[DONE]" in got


@pytest.mark.parametrize(
    ("limit", "most"), [(64, 16), (1024, 384), (524_288, 262_016), (resource.RLIM_INFINITY, 2**31)]
)
def test_clients_hold_half_of_the_descriptors(monkeypatch, limit, most):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert clients.connections_most() == most
