"""The stand-in of an Application Load Balancer treats connections as that does; what engines make of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from alb_load import balancer, engines, wave
from raw_http import Raw, connections

from cloud.engines.keep_alive import KEEP_ALIVE, environment
from cloud.ports import EngineSpec

PATIENCE = 60.0
LONG = 60.0  # s of idle timeout where it does not matter
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


class Target:
    """A server that plays `talk` for each request: with the connection, and which of its requests it is."""

    def __init__(self, talk: Talk) -> None:
        self.talk, self.connections, self.requests = talk, 0, 0
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for number in range(1000):
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                await self.talk(reader, writer, number)
        self.ended.set()
        writer.close()


@contextlib.asynccontextmanager
async def before(talk: Talk, idle: float = LONG) -> AsyncIterator[tuple[Target, Any, Callable[[], Any]]]:
    """A target, the balancer before it, and a function that connects to it."""
    target = Target(talk)
    server = await asyncio.start_server(target.serve, "127.0.0.1", 0)
    async with (
        asyncio.timeout(PATIENCE),
        balancer([server.sockets[0].getsockname()[1]], idle) as (alb, port),
        connections() as connect,
    ):
        yield target, alb, lambda: connect(port)
    server.close()


async def well(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
    writer.write(OK)


async def status(client: Raw, path: str = "/") -> int:
    """Ask once; the status of the answer, whose body is read."""
    await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head = (await client.reader.readuntil(b"\r\n\r\n")).decode().lower()
    if "content-length: " in head:
        await client.reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
    return int(head.split()[1])


async def test_connections_to_a_target_are_used_again() -> None:
    async with before(well) as (target, alb, connect):
        for _ in range(3):
            client = await connect()
            assert [await status(client), await status(client)] == [200, 200]
        assert (target.connections, target.requests) == (1, 6)
        assert (alb.opened, alb.reused) == (1, 5)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_request_on_a_connection_that_ends_under_it_is_lost_and_not_sent_twice(how: str) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        if number == 0:
            writer.write(OK)
        elif how == "close":
            writer.close()
        else:
            writer.transport.abort()

    async with before(once) as (target, alb, connect):
        client = await connect()
        assert [await status(client) for _ in range(4)] == [200, 502, 200, 502]
        assert target.requests == 4
        assert alb.own == {502: 2}


async def test_a_connection_that_ended_while_it_was_idle_is_not_used() -> None:
    async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with before(leaves) as (target, alb, connect):
        for _ in range(3):
            assert await status(await connect()) == 200
            await target.ended.wait()
            target.ended.clear()
            await asyncio.sleep(0.1)  # until the end was seen
        assert (target.connections, alb.own) == (3, {})


async def test_a_target_that_says_nothing_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.read()

    async with before(silent, idle=0.2) as (target, _, connect):
        assert await status(await connect()) == 504
        await target.ended.wait()


async def test_an_answer_may_take_longer_than_the_timeout_while_it_goes_on() -> None:
    async def dribbles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(8):
            writer.write(b"1\r\nx\r\n")
            await asyncio.sleep(0.25)
        writer.write(b"0\r\n\r\n")

    async with before(dribbles, idle=1.5) as (_, alb, connect):
        client = await connect()
        assert await status(client) == 200
        assert await client.reader.readuntil(b"0\r\n\r\n") == b"1\r\nx\r\n" * 8 + b"0\r\n\r\n"
        assert alb.answers == {200: 1}


@pytest.mark.parametrize(
    "length", [b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", b"Content-Length: 9\r\n\r\nx"]
)
async def test_an_answer_that_breaks_off_ends_the_clients_connection(length: bytes) -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + length)
        await writer.drain()
        writer.close()

    async with before(breaks) as (_, alb, connect):
        client = await connect()
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert (await client.reader.read()).startswith(b"HTTP/1.1 200")
        assert alb.own == {}


async def test_a_client_that_leaves_takes_its_request_along() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        asked.set()
        await reader.read()

    asked = asyncio.Event()
    async with before(silent) as (target, _, connect):
        client = await connect()
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        await asked.wait()
        client.writer.close()
        await target.ended.wait()


async def test_idle_connections_are_closed_on_both_sides() -> None:
    async with before(well, idle=0.2) as (target, _, connect):
        client = await connect()
        assert await status(client) == 200
        assert await client.reader.read() == b""
        await target.ended.wait()


async def test_a_target_that_is_not_there_and_none_at_all() -> None:
    async with balancer([1], LONG) as (alb, port), connections() as connect:
        assert await status(await connect(port)) == 502
        alb._route = lambda: None
        assert await status(await connect(port)) == 503


KEPT = 0.4  # s; scaled from the 5 s of an engine that nobody told otherwise
CLIENTS, SPREAD, ANSWER = 40, 0.05, 0.25


@contextlib.asynccontextmanager
async def waves(
    variables: dict[str, str],
) -> AsyncIterator[tuple[Callable[[], Awaitable[Counter[int]]], Any]]:
    """A function for a wave of requests, on connections that were idle for about `KEPT`; and the balancer."""
    chance = random.Random(1)

    async def one() -> Counter[int]:
        await asyncio.sleep(KEPT - chance.uniform(0.0, 3 * SPREAD))
        return await wave(port, CLIENTS, SPREAD, chance)

    async with (
        asyncio.timeout(PATIENCE),
        engines(2, ANSWER, variables) as ports,
        balancer(ports, idle_timeout=LONG, distance=0.01) as (alb, port),
    ):
        yield one, alb


@pytest.mark.slow
@pytest.mark.long
async def test_an_engine_that_closes_before_its_balancer_loses_requests() -> None:
    async with waves({KEEP_ALIVE: str(KEPT)}) as (one, _):
        while not (await one())[502]:
            pass


@pytest.mark.slow
@pytest.mark.long
async def test_engines_as_they_are_started_lose_none() -> None:
    async with waves(environment(EngineSpec(model="m", served_name="m"))) as (one, alb):
        for _ in range(12):
            assert await one() == {200: CLIENTS}
        assert alb.reused > 10 * CLIENTS, "nearly all went over connections that had been idle"
