"""How many connections clients hold, and which of them end for one more."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket

import pytest

from orchestrator.gateway import app, clients
from tests.support.connections import still_open

MOST = 20


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few connections are enough for the tests; a connection is silent at once."""
    monkeypatch.setattr(app, "connections_most", lambda: MOST)
    monkeypatch.setattr(clients, "_MOMENT", 0.0)


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


def ended(running) -> str:
    text = running.gateway.metrics.exposition().decode()
    return text.partition("\norchestrator_gateway_connections_ended_total ")[2].partition("\n")[0]


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


async def test_one_that_asked_lately_is_not_the_longest_silent(upstreams, gateways, caller, eventually):
    running = await gateways(await upstreams("node"))
    called = []
    for _ in range(MOST):
        called.append(caller(running))
        await asyncio.sleep(0.01)
    called[0].send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    async def answered() -> bool:
        with contextlib.suppress(BlockingIOError):
            return called[0].recv(1000).startswith(b"HTTP/1.1 200")
        return False

    await eventually(answered)
    called.append(caller(running))
    await eventually(lambda: held(called) == [True, False] + [True] * (MOST - 1))


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


@pytest.mark.parametrize(
    ("limit", "most"), [(64, 16), (1024, 384), (524_288, 262_016), (resource.RLIM_INFINITY, 2**31)]
)
def test_clients_hold_half_of_the_descriptors(monkeypatch, limit, most):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert clients.connections_most() == most
