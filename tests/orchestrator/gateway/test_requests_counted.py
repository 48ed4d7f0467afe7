"""What a request does to its connection, to readiness and to the metrics, at times that the test sets."""

from __future__ import annotations

import asyncio
import json

import pytest

BODY = b'{"model":"m","messages":[]}'
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n"
)
PLAIN = HEAD % len(BODY) + b"\r\n" + BODY


class Turned:
    """A clock that stands still until it is turned; who sleeps on it sleeps."""

    def __init__(self):
        self.at = 1000.0

    def now(self):
        return self.at

    def steady(self):
        return self.at

    async def sleep(self, seconds):
        await asyncio.sleep(seconds)


def metrics(running):
    """The value of each series by its whole name, without the prefix that all share."""
    found = {}
    for line in running.gateway.metrics.exposition().decode().splitlines():
        if line.startswith("orchestrator_gateway_"):
            name, value = line.removeprefix("orchestrator_gateway_").rsplit(" ", 1)
            found[name] = float(value)
    return found


# -- the connection ------------------------------------------------------------------------------------


async def test_a_plain_answer_keeps_its_connection(upstreams, gateways, raw):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    for _ in range(3):
        await one.send(PLAIN)
        status, headers, _ = await one.answer()
        assert (status, headers.get("connection")) == (200, None)
    assert one.open


@pytest.mark.parametrize(
    ("request_", "status", "kept"),
    [
        (HEAD % 2 + b"\r\n{}", 400, True),  # understood, and refused
        (PLAIN.replace(b"v1/chat/completions", b"nothing/here"), 404, True),
        (HEAD % 99_999_999 + b"Expect: 100-continue\r\n\r\n", 413, False),  # its body was not read
        (
            PLAIN.replace(
                b"Host: 127.0.0.1\r\n", b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            ),
            501,
            False,
        ),
    ],
)
async def test_a_refusal_ends_the_connection_only_where_more_of_the_request_may_come(
    upstreams, gateways, raw, request_, status, kept
):
    running = await gateways(await upstreams("node"))
    one = await raw(running)
    if status == 400:
        request_ = request_.replace(b"{}", b"{,")
    await one.send(request_)
    got, headers, _ = await one.answer()
    assert (got, headers.get("connection") != "close") == (status, kept)
    if kept:
        await one.send(PLAIN)
        assert (await one.answer())[0] == 200
    assert metrics(running)['requests_total{outcome="bad_request"}'] == 1.0


async def test_a_plain_answer_has_the_engines_own_status_and_the_end_of_a_stopping_gateway_says_so(
    upstreams, gateways, raw, eventually, behave
):
    async def made(talk):
        choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}
        await talk.json({"choices": [choice]}, "201 Created")

    node = await upstreams("node", made)
    running = await gateways(node)
    one = await raw(running)
    await one.send(PLAIN)
    assert (await one.answer())[0] == 201
    node.behaviour = behave.silent
    await one.send(PLAIN.replace(b"Host", b"X-Request-Id: mine\r\nHost"))
    await eventually(lambda: node.in_flight == 1)
    stopping = asyncio.create_task(running.gateway.stop(linger=0.0, drain_timeout=0.0))
    status, headers, body = await one.answer()
    assert (status, body["error"]["code"], headers["x-request-id"]) == (503, "gateway_stopping", "mine")
    assert (headers["connection"], "retry-after" in headers) == ("close", True)
    await stopping
    running.stopped = True
    assert metrics(running)['requests_total{outcome="refused"}'] == 1.0


# -- readiness -----------------------------------------------------------------------------------------


async def test_it_is_ready_while_one_target_of_the_set_is_well(upstreams, gateways, client, eventually):
    ill, well = await upstreams("ill"), await upstreams("well")
    running = await gateways()

    async def ready():
        async with client.get(running.url + "/readyz") as answer:
            text = await answer.text()
            return answer.status, text if answer.status == 200 else json.loads(text)["error"]["code"]

    assert await ready() == (503, "no_target")
    ill.health = "500 Internal Server Error"
    await running.push(ill, well)
    await eventually(lambda: running.lane.table.any_sound())
    assert await ready() == (200, "ok\n")
    well.health = "500 Internal Server Error"
    await eventually(lambda: not running.lane.table.any_sound())
    states = {row["state"] for row in (await running.targets()).values()}
    assert states == {"unhealthy"}, "both are still in the set"
    assert await ready() == (503, "no_target")
    ill.health = "200 OK"
    await eventually(lambda: running.lane.table.any_sound())
    assert (await ready())[0] == 200


# -- how long --------------------------------------------------------------------------------------------


async def test_the_times_of_a_request_are_counted_apart(upstreams, gateways, ask, behave, eventually):
    """Two seconds in the queue, three until its first byte, five until its end."""
    clock = Turned()

    async def slow(talk):
        await talk.upstream.go_on.wait()
        await talk.start_stream()
        await talk.text("a")
        await finish.wait()
        await talk.text("", "stop")
        await talk.done()
        await talk.end_stream()

    finish, begun = asyncio.Event(), asyncio.Event()
    node = await upstreams("node", slow)
    running = await gateways(node, clock=clock, max_in_flight=1)
    first = asyncio.create_task(ask(running, stream=True))
    await eventually(lambda: node.in_flight == 1)
    second = asyncio.create_task(ask(running, stream=True, on_first=begun))
    await eventually(lambda: len(running.lane.admission) == 1)
    node.go_on.set()
    finish.set()
    clock.at += 2.0
    assert (await first).status == 200
    node.go_on.clear()
    finish.clear()
    await eventually(lambda: len(node.seen) == 2)
    before = metrics(running)
    assert before["queue_seconds_sum"] == 2.0
    assert before["queue_seconds_count"] == 2.0
    assert before['queue_seconds_bucket{le="+Inf"}'] == 2.0
    assert (before["first_byte_seconds_sum"], before["request_seconds_sum"]) == (2.0, 2.0)
    clock.at += 3.0
    node.go_on.set()
    await begun.wait()
    clock.at += 5.0
    finish.set()
    assert (await second).status == 200
    await eventually(lambda: running.gateway.metrics.active == 0)
    after = metrics(running)
    assert after["first_byte_seconds_sum"] - before["first_byte_seconds_sum"] == 5.0
    assert after["request_seconds_sum"] - before["request_seconds_sum"] == 10.0
    assert (after["first_byte_seconds_count"], after["request_seconds_count"]) == (2.0, 2.0)
    assert after["queue_seconds_sum"] == 2.0
    assert after["stream_chunks_total"] == 4.0


async def test_a_plain_answer_has_its_first_byte_when_it_is_whole(
    upstreams, gateways, ask, behave, eventually
):
    clock = Turned()

    async def slow(talk):
        await talk.upstream.go_on.wait()
        await behave.answer(talk)

    node = await upstreams("node", slow)
    running = await gateways(node, clock=clock)
    asking = asyncio.create_task(ask(running))
    await eventually(lambda: node.in_flight == 1)
    assert metrics(running)["first_byte_seconds_count"] == 0.0
    clock.at += 7.0
    node.go_on.set()
    assert (await asking).status == 200
    found = metrics(running)
    assert (found["first_byte_seconds_sum"], found["first_byte_seconds_count"]) == (7.0, 1.0)


# -- how it ended ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "stream", "status", "outcome", "failure"),
    [
        ("500 Internal Server Error", False, 500, "upstream_error", "engine_error"),
        ("500 Internal Server Error", True, 500, "upstream_error", "engine_error"),
        ("503 Service Unavailable", False, 503, "upstream_error", "unavailable"),
        ("400 Bad Request", False, 400, "client_error", "refused_here"),
        ("reset_at_once", False, 502, "failed", "disconnected"),
        ("error_first", True, 502, "failed", "engine_error"),
    ],
)
async def test_the_last_answer_is_the_engines_own_where_it_gave_one(
    upstreams, gateways, ask, behave, way, stream, status, outcome, failure
):
    """The words of a dying engine reach the client with their status, as they would without a gateway."""
    said = "EngineCore encountered an issue"
    how = behave.status(way, said) if way[0].isdigit() else getattr(behave, way)
    running = await gateways(
        *[await upstreams(f"n{n}", how) for n in range(2)], max_retries=1, health_interval=30.0
    )
    reply = await ask(running, stream=stream)
    assert reply.status == status
    if status != 502:
        assert (reply.error["message"], reply.error["code"]) == (said, status)
    else:
        assert reply.error["code"] == "upstream_failed"
    found = metrics(running)
    ended = {name: n for name, n in found.items() if name.startswith("requests_total") and n}
    assert ended == {f'requests_total{{outcome="{outcome}"}}': 1.0}
    failed = {name: n for name, n in found.items() if name.startswith("attempt_failures_total")}
    assert failed == {f'attempt_failures_total{{reason="{failure}"}}': 2.0}
    again = {name: n for name, n in found.items() if name.startswith("retries_total")}
    assert again == {f'retries_total{{reason="{failure}"}}': 1.0}
    assert not [name for name in found if name.startswith("streams_cut_total")]


async def test_a_stream_that_is_cut_is_counted_with_its_reason_and_its_chunks(
    upstreams, gateways, ask, behave, eventually
):
    node = await upstreams("node", behave.after_tokens(2, behave.then_error))
    running = await gateways(node)
    begun = asyncio.Event()
    asking = asyncio.create_task(ask(running, stream=True, on_first=begun))
    await begun.wait()
    node.go_on.set()
    reply = await asking
    assert reply.error is not None
    found = metrics(running)
    assert found['streams_cut_total{reason="engine_error"}'] == 1.0
    assert found['attempt_failures_total{reason="engine_error"}'] == 1.0
    assert found['requests_total{outcome="cut"}'] == 1.0
    assert found["stream_chunks_total"] == 3.0
    assert not [name for name in found if name.startswith("retries_total")]
    assert sum(name.startswith("continuations_total") for name in found) == 0


# -- an event without an end -----------------------------------------------------------------------------


async def endless(talk):
    """One event that never ends, as fast as it is taken; what it brought is counted in bytes."""
    talk.upstream.sent = 0
    await talk.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"')
    while talk.upstream.sent < 50_000_000:
        await talk.chunk(b"x" * 50_000)
        talk.upstream.sent += 50_000


@pytest.mark.parametrize("begun", [False, True])
async def test_an_event_without_an_end_is_given_up_at_the_limit(upstreams, gateways, ask, behave, begun):
    """It costs no memory beyond the limit of an answer: at first another target is asked, later it is cut."""

    async def bad(talk):
        await talk.start_stream()
        if begun:
            await talk.text("a")
        await endless(talk)

    node, good = await upstreams("node", bad), await upstreams("good")
    limits = {"answer_limit": 200_000, "health_interval": 30.0}
    running = await gateways(node, **limits)
    if not begun:
        await running.push(node, good)
        running.lane.table._rng.seed(1)
        for entry in running.lane.table:
            entry.in_flight = int(entry.spec.id == "good") * 5
    reply = await ask(running, stream=True)
    assert (reply.error is not None) is begun
    assert node.seen
    assert metrics(running)['attempt_failures_total{reason="bad_response"}'] == 1.0
    assert node.sent < 10_000_000, "what the sockets hold and a little more"


async def test_an_event_of_more_than_one_piece_below_the_limit_is_whole(upstreams, gateways, ask, behave):
    async def long(talk):
        await talk.start_stream()
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
        event %= b"x" * 150_000
        for at in range(0, len(event), 40_000):
            await talk.chunk(event[at : at + 40_000])
        await talk.text("", "stop")
        await talk.done()
        await talk.end_stream()

    running = await gateways(await upstreams("node", long), answer_limit=200_000)
    reply = await ask(running, stream=True)
    assert reply.error is None
    assert len(reply.said) == 150_000
