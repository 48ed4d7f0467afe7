"""Request bodies that are slow, broken, too large, or too many."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.gateway.intake import Pace

WIRES = ("http", "https")

MIB = 1024 * 1024


def head(length: int | None, more: str = "") -> bytes:
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n{how}\r\n{more}\r\n".encode()


def held(running: Any) -> int:
    return running.gateway._proxy._intake.held


@pytest.mark.parametrize(
    ("now", "received", "until"),
    [
        (0.0, 0, 30.0),  # nothing came
        (20.0, 40_000, 50.0),  # fast enough: silence counts from the last byte
        (20.0, 10_000, 40.0),  # too slow: as if they had come as fast as they have to
        (29.0, 29, 30.029),  # a byte a second
        (60.0, 40_000, 70.0),
    ],
)
def test_a_body_fails_when_it_is_silent_or_slower_than_the_least_rate(now, received, until):
    assert Pace(30.0, 1000).until(0.0, now, received) == pytest.approx(until)


async def test_a_body_that_stops_is_refused_and_its_connection_ends(upstreams, gateways, raw, ask):
    running = await gateways(await upstreams("node"), body_timeout=0.2)
    slow = await raw(running)
    await slow.send(head(1000) + b"half")
    status, headers, body = await slow.answer()
    assert (status, body["error"]["code"]) == (408, "body_timeout")
    assert body["error"]["request_id"] == headers["x-request-id"] != ""
    assert headers["connection"] == "close"
    assert held(running) == 0
    assert (await ask(running)).status == 200


async def test_a_body_that_dribbles_is_refused_though_it_is_never_silent(upstreams, gateways, raw):
    running = await gateways(await upstreams("node"), body_timeout=0.5, body_rate=1000)
    slow = await raw(running)
    await slow.send(head(1000))

    async def dribble() -> None:
        while True:
            await slow.send(b"x")
            await asyncio.sleep(0.05)

    dribbling = asyncio.create_task(dribble())
    status, _, body = await slow.answer()
    dribbling.cancel()
    assert (status, body["error"]["code"]) == (408, "body_timeout")


async def test_a_large_body_arrives_whole_in_whatever_pieces(upstreams, gateways, raw):
    node = await upstreams("node")
    running = await gateways(node)
    body = bytes(range(256)) * 160 * 1024  # 40 MiB
    one = await raw(running)
    await one.send(head(len(body)))
    await one.send(body)
    assert (await one.answer())[0] == 200
    await one.send(head(None))
    for start in range(0, len(body), 7 * MIB):
        piece = body[start : start + 7 * MIB]
        await one.send(b"%x;name=value\r\n%s\r\n" % (len(piece), piece))
    await one.send(b"0\r\nTrailer: x\r\n\r\n")
    assert (await one.answer())[0] == 200
    assert [seen.body == body for seen in node.seen] == [True, True]
    assert all("trailer" not in seen.headers for seen in node.seen)


@pytest.mark.parametrize("length", [None, 2 * MIB])
async def test_a_body_beyond_its_limit_is_refused_clearly(upstreams, gateways, raw, length):
    node = await upstreams("node")
    running = await gateways(node, body_limit=MIB)
    one = await raw(running)
    await one.send(head(length))
    for _ in range(2):
        await one.send((b"%x\r\n%s\r\n" % (MIB, bytes(MIB))) if length is None else bytes(MIB))
    status, _, body = await one.answer()
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    assert str(MIB) in body["error"]["message"]
    assert node.seen == []


async def test_who_waits_to_be_invited_is_only_when_the_request_is_fit(upstreams, gateways, raw):
    """A refusal comes instead of `100 Continue`, so that nothing is sent for nothing."""
    running = await gateways(await upstreams("node"), body_limit=MIB)
    one = await raw(running)
    await one.send(head(2 * MIB, "Expect: 100-continue\r\n"))
    assert (await one.answer())[0] == 413
    other = await raw(running)
    await other.send(head(2, "Expect: 100-continue\r\n"))
    assert await other.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await other.send(b"{}")
    assert (await other.answer())[0] == 200
    old = await raw(running)
    await old.send(head(2, "Expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0") + b"{}")
    assert (await old.answer())[0] == 200


async def test_the_largest_body_that_still_comes_makes_room(upstreams, gateways, raw, ask, eventually):
    running = await gateways(await upstreams("node"), body_limit=MIB, bodies_limit=3 * MIB)
    large = [await raw(running) for _ in range(3)]
    for number, one in enumerate(large):
        await one.send(head(MIB) + bytes(MIB - 10 - number))
    await eventually(lambda: held(running) == 3 * MIB - 33)
    assert (await ask(running)).status == 200
    status, headers, body = await large[0].answer()
    assert (status, body["error"]["code"]) == (503, "bodies_too_large")
    assert int(headers["retry-after"]) > 0
    for number, one in enumerate(large[1:], 1):
        await one.send(bytes(10 + number))
        assert (await one.answer())[0] == 200
    await eventually(lambda: held(running) == 0)


async def test_bodies_that_are_held_for_their_answers_count_too(
    upstreams, gateways, raw, ask, behave, eventually
):
    node = await upstreams("node")

    async def when_told(talk: Any) -> None:
        await node.go_on.wait()
        await behave.answer(talk)

    node.behaviour = when_told
    running = await gateways(node, body_limit=MIB, bodies_limit=MIB)
    first, second, third = [await raw(running) for _ in range(3)]
    await first.send(head(MIB) + bytes(MIB))
    await eventually(lambda: node.in_flight == 1)
    await second.send(head(10, "Expect: 100-continue\r\n"))
    assert (await second.answer())[0] == 503
    await third.send(head(None) + b"5\r\n01234\r\n")
    assert (await third.answer())[0] == 503
    node.go_on.set()
    assert (await first.answer())[0] == 200
    assert (await ask(running)).status == 200


async def test_a_client_that_leaves_inside_its_body_leaves_nothing(upstreams, gateways, raw, eventually):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    await one.send(head(MIB) + bytes(MIB // 2))
    await eventually(lambda: held(running) == MIB // 2)
    one.writer.close()
    await eventually(lambda: held(running) == 0)
    assert running.gateway.metrics.active == 0
