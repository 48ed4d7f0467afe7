"""Questions over HTTP to what is dead, silent, endless, foreign or cut off: errors of a port, no others."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cloud.balancers.exchange import Exchange
from cloud.errors import Misconfigured, Uncertain

WHOLE = b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}'


@asynccontextmanager
async def answering(data: bytes, *, hangs: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends these bytes on every connection, then ends it unless it hangs; what it heard."""
    over, heard = asyncio.Event(), list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(data)
        if hangs:
            await over.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        over.set()
        server.close()


async def asked(url: str, *, timeout: float = 20.0, most: int = 1000, token: str = "") -> tuple[int, bytes]:
    exchange = Exchange("the peer", url, timeout=timeout, token=token, warm=False)
    return await exchange.ask("GET", "/state", most=most)


async def test_an_answer_that_breaks_off_is_uncertain_wherever_it_does() -> None:
    for length in range(len(WHOLE)):
        async with answering(WHOLE[:length]) as (url, _):
            with pytest.raises(Uncertain, match=r"^the peer cannot be reached: "):
                await asked(url)
    async with answering(WHOLE) as (url, heard):
        assert await asked(url, token="secret") == (200, b'{"a":1}')
        assert b"Authorization: Bearer secret\r\n" in heard[0]


@pytest.mark.parametrize("data", [b"", WHOLE[:20], WHOLE[:-1]], ids=["nothing", "half a head", "half a body"])
async def test_what_hangs_is_uncertain(data: bytes) -> None:
    async with answering(data, hangs=True) as (url, _):
        with pytest.raises(Uncertain, match=r"did not answer within 0\.1 s"):
            await asked(url, timeout=0.1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x00\xff" * 500, "cannot be reached"),
        (b"HTTP/1.1 999999 OK\r\n\r\n", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001, "sent more than 1000 bytes"),
    ],
    ids=["noise", "status", "length", "head", "endless"],
)
async def test_what_speaks_no_http_or_never_ends_is_uncertain(data: bytes, why: str) -> None:
    async with answering(data) as (url, _):
        with pytest.raises(Uncertain, match=why):
            await asked(url)


async def test_a_short_answer_that_is_a_long_one_is_not_unpacked() -> None:
    packed = zlib.compress(b"x" * 10_000_000)[:900]
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(packed)
    async with answering(head + packed) as (url, heard):
        assert await asked(url) == (200, packed)
        assert b"Accept-Encoding: identity\r\n" in heard[0]


async def test_a_redirection_is_not_followed() -> None:
    """It may lead in a circle, or to another host, which would be shown the token."""
    async with answering(b"HTTP/1.1 307 Moved\r\nLocation: /state\r\nContent-Length: 0\r\n\r\n") as (
        url,
        heard,
    ):
        assert await asked(url, token="secret") == (307, b"")
        assert len(heard) == 1


@pytest.mark.parametrize("token", ["a\nb", "a\r\nX: y", "tökén", "a\0"])
async def test_a_token_that_no_header_can_hold_is_said_and_is_not_in_the_message(token: str) -> None:
    with pytest.raises(Misconfigured, match="the token for the peer has") as caught:
        await asked("http://127.0.0.1:9", token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("warm", [True, False])
async def test_questions_at_the_same_time_do_not_end_each_other(warm: bool) -> None:
    """As when a set is written while the balancer is looked at: one is answered before the other."""
    first, asked_twice, count = asyncio.Event(), asyncio.Event(), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        await reader.readuntil(b"\r\n\r\n")
        count += 1
        if count == 1:
            first.set()
            await asked_twice.wait()
        writer.write(WHOLE)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        exchange = Exchange("the peer", url, timeout=20.0, warm=warm)
        slow = asyncio.create_task(exchange.ask("GET"))
        await first.wait()
        assert (await exchange.ask("GET"))[0] == 200
        asked_twice.set()
        assert (await slow)[0] == 200
        await exchange.close()
