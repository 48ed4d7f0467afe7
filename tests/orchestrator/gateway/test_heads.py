"""Heads of requests that are slow, large, broken, or of no use here."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from orchestrator.gateway import connection
from tests.support.raw_http import Raw

WIRES = ("http", "https")

KIB = 1024
SMALL = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Who is refused has little time to hear why: the tests wait for the end."""
    monkeypatch.setattr(connection, "_LAST_MOMENT", 0.02)


async def refused(one: Raw, status: int, code: str) -> None:
    """The next answer is this refusal, with an id, and the connection ends."""
    found, headers, body = await one.answer()
    assert (found, body["error"]["code"]) == (status, code), body
    assert headers["content-type"] == "application/json"
    assert body["error"]["request_id"] == headers["x-request-id"] != ""
    assert headers["server"] == "spot-orchestrator"
    with contextlib.suppress(ConnectionResetError):  # what it sent after that was not read
        assert await one.reader.read() == b""


@pytest.mark.parametrize("begun", [b"G", SMALL, b"POST /v1/completions HTTP/1.1\r\nHo"])
async def test_a_head_that_does_not_end_is_refused(upstreams, gateways, raw, ask, begun):
    running = await gateways(await upstreams("node"), head_timeout=0.1)
    one = await raw(running)
    await one.send(begun)
    await refused(one, 408, "head_timeout")
    assert (await ask(running)).status == 200


async def test_a_head_that_dribbles_has_no_more_time_than_another(upstreams, gateways, raw):
    running = await gateways(await upstreams("node"), head_timeout=0.3)
    one = await raw(running)

    async def dribble() -> None:
        await one.send(SMALL)
        while True:
            await one.send(b"x")
            await asyncio.sleep(0.02)

    dribbling = asyncio.create_task(dribble())
    await refused(one, 408, "head_timeout")
    dribbling.cancel()


async def test_who_is_silent_between_requests_is_not_late(upstreams, gateways, raw):
    """Nor is one that sends an empty line after its request, as RFC 9112 (2.2) wants to be borne."""
    running = await gateways(await upstreams("node"), head_timeout=0.05)
    one = await raw(running)
    for _ in range(2):
        await asyncio.sleep(0.2)
        await one.send(SMALL + b"\r\n\r\n")
        assert (await one.answer())[0] == 200


async def test_a_head_behind_a_long_answer_is_not_late_while_nobody_reads_it(
    upstreams, gateways, raw, behave
):
    node = await upstreams("node")

    async def when_told(talk):
        await node.go_on.wait()
        await behave.answer(talk)

    node.behaviour = when_told
    running = await gateways(node, head_timeout=0.1)
    one = await raw(running)
    await one.send(SMALL + b"\r\n" + SMALL + b"\r\n" + SMALL)
    await asyncio.sleep(0.4)
    node.go_on.set()
    await one.send(b"\r\n")
    assert [(await one.answer())[0] for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    "filler",
    [
        b"X-Long: " + b"x" * 66 * KIB + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (n, b"x" * KIB) for n in range(66)),
        b"".join(b"X-%d: x\r\n" % n for n in range(200)),
    ],
)
@pytest.mark.parametrize("parts", [1, 7])
async def test_a_head_that_is_too_large_is_refused(monkeypatch, upstreams, gateways, raw, ask, filler, parts):
    monkeypatch.setattr(connection, "_LAST_MOMENT", 20.0)
    node = await upstreams("node")
    running = await gateways(node)
    one = await raw(running)
    head = SMALL + filler + b"\r\n"
    size = len(head) // parts + 1
    for start in range(0, len(head), size):
        await one.send(head[start : start + size])
        await asyncio.sleep(0.005)
    found, headers, body = await one.answer()
    assert (found, body["error"]["code"]) == (431, "head_too_large")
    assert body["error"]["request_id"] == headers["x-request-id"] != ""
    assert node.seen == []
    assert (await ask(running)).status == 200


async def test_a_path_that_is_too_long_is_refused(upstreams, gateways, raw):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    await one.send(b"GET /v1/" + b"x" * 66 * KIB)
    await refused(one, 431, "head_too_large")


@pytest.mark.parametrize("fields", [[60], [1] * 60, [0] * 100])
async def test_a_head_below_the_limit_arrives(upstreams, gateways, raw, fields):
    node = await upstreams("node")
    running = await gateways(node)
    one = await raw(running)
    more = {f"x-{number}": "y" * size * KIB + "z" for number, size in enumerate(fields)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode()
    await one.send(SMALL + lines + b"\r\n")
    assert (await one.answer())[0] == 200
    assert {name: value for name, value in node.seen[0].headers.items() if name in more} == more


BROKEN = {
    "garbage": b"\x00\x01\x02 nonsense\r\n\r\n",
    "tls": bytes.fromhex("16030100dc010000d80303") + b"\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": SMALL + b"Host: other\r\n\r\n",
    "space before the colon": SMALL + b"X-A : b\r\n\r\n",
    "odd name": SMALL + b"X\xff\x80: b\r\n\r\n",
    "null in a name": SMALL + b"X\x00A: b\r\n\r\n",
    "null in a value": SMALL + b"X-A: b\x00c\r\n\r\n",
    "bare line feed": b"GET /v1/models HTTP/1.1\nHost: localhost\n\n",
    "bare carriage return": SMALL + b"X-A: b\rX-B: c\r\n\r\n",
    "folded": SMALL + b"X-A: b\r\n c\r\n\r\n",
    "two lengths": SMALL + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two different lengths": SMALL + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "list of lengths": SMALL + b"Content-Length: 2, 2\r\n\r\n{}",
    "signed length": SMALL + b"Content-Length: +2\r\n\r\n{}",
    "negative length": SMALL + b"Content-Length: -2\r\n\r\n{}",
    "huge length": SMALL + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "length and chunks": SMALL + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": SMALL + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "chunked twice": SMALL + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": SMALL + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "unknown coding": SMALL + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "other protocol": b"GET /v1/models SIP/2.0\r\nHost: localhost\r\n\r\n",
    "another version": b"GET /v1/models HTTP/3.7\r\nHost: localhost\r\n\r\n",
    "no method": b" /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "unknown method": b"FROBNICATE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("head", BROKEN.values(), ids=BROKEN)
async def test_what_is_broken_is_answered_in_json_and_reaches_nobody(upstreams, gateways, raw, ask, head):
    node = await upstreams("node")
    running = await gateways(node)
    one = await raw(running)
    await one.send(head)
    status, headers, body = await one.answer()
    assert status in (400, 405), body
    assert body["error"]["request_id"] == headers["x-request-id"] != ""
    assert await one.reader.read() == b""
    assert node.seen == []
    assert (await ask(running)).status == 200


@pytest.mark.parametrize("head", [BROKEN["garbage"], BROKEN["two lengths"]])
async def test_what_is_broken_on_a_connection_that_was_used_before(upstreams, gateways, raw, head):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    await one.send(SMALL + b"\r\n")
    assert (await one.answer())[0] == 200
    await one.send(head)
    await refused(one, 400, "bad_request")


async def test_a_connection_goes_on_after_an_error_that_leaves_nothing_behind(
    upstreams, gateways, raw, behave
):
    node = await upstreams("node", behave.status("400 Bad Request"))
    running = await gateways(node)
    one = await raw(running)
    body = b'{"stream": true}'
    post = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    for path, status in ((b"/v1/models", 400), (b"/pause", 404), (b"/v1/models", 400)):
        await one.send(SMALL.replace(b"/v1/models", path) + b"\r\n")
        assert (await one.answer())[0] == status
        await one.send(post + body)
        assert (await one.answer())[0] == 400


CHUNKS = (
    b"zz\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello!!\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\n",
    b"-1\r\n",
    b"\r\n",
)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("apart", [False, True])
async def test_broken_chunks_are_said_at_once(upstreams, gateways, raw, eventually, chunks, apart):
    node = await upstreams("node")
    running = await gateways(node)
    one = await raw(running)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    if apart:
        await one.send(head + b"1\r\n{\r\n")
        await eventually(lambda: running.gateway.metrics.active == 1)
        await one.send(chunks)
        await refused(one, 400, "bad_body")
    else:
        await one.send(head + chunks)
        await refused(one, 400, "bad_request")
    assert node.seen == []


@pytest.mark.parametrize("ending", [b"0\r\n" + b"X-A: b\r\n" * 20_000, b"1;" + b"x" * 200 * KIB])
async def test_a_body_that_goes_on_without_bytes_is_refused(upstreams, gateways, raw, eventually, ending):
    """Trailers and extensions of chunks are no part of the body, and have its head's limit."""
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    await one.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    await eventually(lambda: running.gateway.metrics.active == 1)
    answered = asyncio.create_task(one.answer())
    for start in range(0, len(ending), 10 * KIB):
        if not answered.done():
            await one.send(ending[start : start + 10 * KIB])
            await asyncio.sleep(0.02)
    status, _, body = await answered
    assert (status, body["error"]["code"]) == (400, "bad_body")


@pytest.mark.parametrize("head", [b"TRACE /v1/models", b"CONNECT localhost:22", b"PROPFIND /v1/models"])
async def test_methods_that_serve_nobody_are_refused(upstreams, gateways, raw, head):
    node = await upstreams("node")
    running = await gateways(node)
    one = await raw(running)
    await one.send(head + b" HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine\r\n\r\n")
    status, headers, body = await one.answer()
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")
    assert headers["allow"] == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert headers["x-request-id"] == body["error"]["request_id"] == "mine"
    assert node.seen == []


async def test_old_http_is_answered_and_its_connection_ends(upstreams, gateways, raw):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    await one.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert (await one.answer())[0] == 200
    assert await one.reader.read() == b""


async def test_requests_that_come_at_once_are_answered_in_turn(upstreams, gateways, raw):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    ids = [f"r-{number}" for number in range(100)]
    await one.send(b"".join(SMALL + f"X-Request-Id: {n}\r\n\r\n".encode() for n in ids))
    assert [(await one.answer())[1]["x-request-id"] for _ in ids] == ids


async def test_the_requests_that_wait_behind_an_answer_are_not_read(upstreams, gateways, raw, behave):
    """Else one client could have the gateway hold as many bodies as it likes, uncounted."""
    node = await upstreams("node")

    async def when_told(talk):
        await node.go_on.wait()
        await behave.answer(talk)

    node.behaviour = when_told
    running = await gateways(node)
    one = await raw(running)
    body = bytes(400 * KIB)
    post = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    sending = asyncio.create_task(one.send(post * 30))
    await asyncio.sleep(0.3)
    (connection,) = running.gateway._server.connections
    assert len(connection._messages) <= 2
    node.go_on.set()
    assert [(await one.answer())[0] for _ in range(30)] == [200] * 30
    await sending
    assert [json.dumps(len(seen.body)) for seen in node.seen] == [str(len(body))] * 30
