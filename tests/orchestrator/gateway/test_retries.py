"""Before the client has a byte, any failure of a target leads to another attempt."""

from __future__ import annotations

import asyncio

import pytest

from cloud.engines.keep_alive import ENGINES_OWN
from orchestrator.gateway import upstream
from orchestrator.gateway.config import IDLE


def _badly(behave):
    """Every way an attempt can fail before the first byte, with the reason it is counted under."""
    shutdown = "cannot schedule new futures after shutdown"
    return {
        "reset": (behave.reset_at_once, "disconnected"),
        "close": (behave.close_at_once, "disconnected"),
        "garbage": (behave.garbage, "bad_response"),
        "reset in a plain answer": (behave.reset_in_plain_answer, "disconnected"),
        "400": (behave.status("400 Bad Request"), "refused_here"),
        "404": (behave.status("404 Not Found"), "refused_here"),
        "429": (behave.status("429 Too Many Requests"), "rate_limited"),
        "500": (behave.status("500 Internal Server Error"), "server_error"),
        "502": (behave.status("502 Bad Gateway"), "bad_gateway"),
        "503": (behave.status("503 Service Unavailable", "The engine is currently busy"), "unavailable"),
        "504": (behave.status("504 Gateway Timeout"), "bad_gateway"),
        "engine died": (
            behave.status("500 Internal Server Error", "EngineCore encountered an issue"),
            "engine_error",
        ),
        "shutdown 500": (behave.status("500 Internal Server Error", shutdown), "engine_error"),
        "abort": (behave.abort_plain, "aborted"),
    }


def _badly_streaming(behave):
    return {
        "abort": (behave.abort_stream, "aborted"),
        "error event": (behave.error_first, "engine_error"),
        "DONE alone": (behave.done_at_once, "incomplete"),
        "end after the role": (behave.after_tokens(0, behave.then_end), "incomplete"),
        "reset after the role": (behave.after_tokens(0, behave.then_reset), "disconnected"),
    }


@pytest.mark.parametrize(
    "way",
    [
        "reset", "close", "garbage", "reset in a plain answer", "400", "404", "429", "500", "502", "503",
        "504", "engine died", "shutdown 500", "abort",
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_failed_attempt_goes_to_another_target(upstreams, gateways, ask, behave, way, stream):
    behaviour, reason = _badly(behave)[way]
    if stream and way in ("reset in a plain answer", "abort"):
        reason = "bad_response"  # no stream came
    bad = await upstreams("bad", behaviour)
    good = await upstreams("good")
    running = await gateways(bad, good, breaker_failures=1000)
    while not bad.seen:
        reply = await ask(running, stream=stream)
        assert reply.status == 200
        assert reply.headers["X-Orchestrator-Node"] == "good"
    state = await running.state()
    asked = {seen.headers["x-request-id"] for seen in bad.seen}  # a 4xx may be for what we ask in a stream
    assert state["totals"]["retries"] == len(asked)
    assert state["totals"]["requests_ok"] == len(good.seen)
    metrics = running.gateway.metrics.exposition().decode()
    assert f'orchestrator_gateway_retries_total{{reason="{reason}"}} {len(asked)}.0' in metrics


@pytest.mark.parametrize(
    "way", ["abort", "error event", "DONE alone", "end after the role", "reset after the role"]
)
async def test_a_stream_that_brings_nothing_is_started_again(upstreams, gateways, ask, behave, way):
    behaviour, reason = _badly_streaming(behave)[way]
    bad = await upstreams("bad", behaviour)
    good = await upstreams("good")
    running = await gateways(bad, good, breaker_failures=1000)
    while not bad.seen:
        reply = await ask(running, stream=True)
        assert reply.said == "t0 t1 t2 "
        assert reply.events[-1] == "[DONE]"
        assert reply.events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert len(reply.events) == 6
    metrics = running.gateway.metrics.exposition().decode()
    assert f'orchestrator_gateway_retries_total{{reason="{reason}"}} {len(bad.seen)}.0' in metrics
    assert (await running.state())["totals"]["streams_cut"] == 0


@pytest.mark.parametrize("way", ["reset", "close", "garbage", "half a head", "bad chunk", "refused"])
async def test_clients_are_told_no_address_and_no_inner_value(upstreams, gateways, ask, behave, way):
    async def half_head(talk):
        await talk.send(b"HTTP/1.1 200 OK\r\nX-Secret: ab")
        talk.writer.close()

    async def bad_chunk(talk):
        await talk.start_stream()
        await asyncio.sleep(0.05)
        await behave.then_bad_chunk(talk)

    ways = _badly(behave) | {
        "half a head": (half_head, ""),
        "bad chunk": (bad_chunk, ""),
        "refused": (None, ""),
    }
    bad = await upstreams("bad", ways[way][0])
    running = await gateways(bad, max_retries=0, health_interval=60.0)
    if way == "refused":
        await bad.stop_listening()
    reply = await ask(running, stream=True)
    assert reply.status in (502, 503)
    said = reply.error["message"]
    assert not any(word in said for word in ("127.0.0.1", str(bad.port), "<", "\n", "Secret", "Errno")), said


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial Content", "202 Accepted"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_no_success_of_another_kind_passes_for_an_answer(upstreams, gateways, ask, status, stream):
    async def half(talk):
        if status.startswith("204"):
            await talk.send(f"HTTP/1.1 {status}\r\n\r\n".encode())
        else:
            await talk.reply(status, b'{"choices":[')

    bad = await upstreams("bad", half)
    good = await upstreams("good")
    running = await gateways(bad, good, breaker_failures=1000)
    while not bad.seen:
        reply = await ask(running, stream=stream)
        assert (reply.status, reply.headers["X-Orchestrator-Node"]) == (200, "good")
    metrics = running.gateway.metrics.exposition().decode()
    assert f'orchestrator_gateway_retries_total{{reason="bad_response"}} {len(bad.seen)}.0' in metrics


async def test_a_refused_connection_costs_no_retry_and_takes_the_target_out(upstreams, gateways, ask, behave):
    dead = [await upstreams(f"dead{number}") for number in range(5)]
    good = await upstreams("good", behave.tokens(1))
    running = await gateways(*dead, good, max_retries=0, health_interval=30.0)
    for one in dead:
        await one.stop_listening()
    for _ in range(6):
        assert (await ask(running, stream=True)).status == 200
    assert len(good.seen) == 6
    states = {name: row["state"] for name, row in (await running.targets()).items()}
    assert states["good"] == "healthy"
    assert "unhealthy" in states.values()


async def test_first_token_timeout_is_retried_and_frees_the_slow_target(
    upstreams, gateways, ask, behave, eventually
):
    slow = await upstreams("slow", behave.silent)
    role = await upstreams("role", behave.silent_after_role)
    good = await upstreams("good")
    running = await gateways(slow, role, good, first_token_timeout=0.5, breaker_failures=1000)
    while not (slow.seen and role.seen):
        assert (await ask(running, stream=True)).said == "t0 t1 t2 "
    await eventually(lambda: slow.in_flight == 0 and role.in_flight == 0)
    assert slow.left == len(slow.seen)


async def test_a_plain_answer_may_take_longer_than_a_first_token(upstreams, gateways, ask, behave):
    async def late(talk):
        await asyncio.sleep(0.3)
        await behave.answer(talk)

    only = await upstreams("only", late)
    running = await gateways(only, first_token_timeout=0.05)
    assert (await ask(running)).status == 200
    assert len(only.seen) == 1


async def test_a_plain_answer_that_never_comes_ends_in_504(upstreams, gateways, ask, behave):
    only = await upstreams("only", behave.silent)
    running = await gateways(only, answer_timeout=0.1, max_retries=0)
    reply = await ask(running)
    assert reply.status == 504
    assert reply.error["code"] == "upstream_timeout"
    assert reply.headers["X-Orchestrator-Node"] == "only"


async def test_each_target_is_asked_once_and_the_last_ones_error_passes(upstreams, gateways, ask, behave):
    busy = behave.status("503 Service Unavailable", "busy here", "Service Unavailable")
    all_busy = [await upstreams(f"n{number}", busy) for number in range(4)]
    running = await gateways(*all_busy, max_retries=2, health_interval=30.0)
    reply = await ask(running)
    assert reply.status == 503
    assert reply.error["message"] == "busy here"
    assert reply.headers["Retry-After"] == "2"
    assert sum(len(one.seen) for one in all_busy) == 4
    assert max(len(one.seen) for one in all_busy) == 1
    assert (await running.state())["totals"]["requests_upstream_error"] == 1


async def test_without_an_answer_the_gateway_says_502(upstreams, gateways, ask, behave):
    broken = [await upstreams(f"n{number}", behave.reset_at_once) for number in range(3)]
    running = await gateways(*broken, max_retries=1)
    reply = await ask(running, headers={"X-Request-Id": "abc"})
    assert reply.status == 502
    assert reply.error["code"] == "upstream_failed"
    assert reply.error["request_id"] == "abc"
    assert sum(len(one.seen) for one in broken) == 2


async def test_the_retry_budget_bounds_retries(upstreams, gateways, ask, behave):
    broken = [await upstreams(f"n{number}", behave.reset_at_once) for number in range(3)]
    running = await gateways(*broken, retry_reserve=3, retry_budget=0.0, breaker_failures=1000)
    for _ in range(4):
        assert (await ask(running)).status == 502
    assert sum(len(one.seen) for one in broken) == 4 + 3


async def test_a_500_that_is_the_requests_own_fault_is_passed_on(upstreams, gateways, ask, behave):
    bad = await upstreams("bad", behave.status("500 Internal Server Error", "list index out of range"))
    running = await gateways(bad)
    reply = await ask(running)
    assert reply.status == 500
    assert reply.error["message"] == "list index out of range"
    assert len(bad.seen) == 1


async def test_any_500_of_a_draining_target_is_retried(
    upstreams, gateways, ask, behave, draining, eventually
):
    gate = asyncio.Event()

    async def fail_later(talk):
        await gate.wait()
        await behave.status("500 Internal Server Error", "list index out of range")(talk)

    leaving = await upstreams("leaving", fail_later)
    staying = await upstreams("staying")
    running = await gateways(leaving)
    asking = asyncio.create_task(ask(running))
    await eventually(lambda: leaving.in_flight == 1)
    await running.push(draining(leaving), staying)
    gate.set()
    reply = await asking
    assert reply.status == 200
    assert reply.headers["X-Orchestrator-Node"] == "staying"


async def test_client_errors_are_passed_on(upstreams, gateways, ask, behave):
    picky = await upstreams("picky", behave.status("400 Bad Request", "no such field", "BadRequestError"))
    running = await gateways(picky)
    reply = await ask(running)
    assert (reply.status, reply.error["message"]) == (400, "no such field")
    assert len(picky.seen) == 1
    assert (await running.state())["totals"]["requests_client_error"] == 1


async def test_a_refusal_inside_a_stream_is_passed_on(upstreams, gateways, ask, behave):
    picky = await upstreams("picky", behave.refusal_first)
    running = await gateways(picky)
    reply = await ask(running, stream=True)
    assert reply.error["message"] == "bad schema"
    assert reply.events[-1] == "[DONE]"
    assert len(picky.seen) == 1


async def test_a_fault_of_the_gateway_itself_is_an_answer_too(upstreams, gateways, ask, monkeypatch):
    running = await gateways(await upstreams("node"))

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("orchestrator.gateway.attempt.upstream.target_url", broken)
    reply = await ask(running)
    assert (reply.status, reply.error["code"]) == (500, "gateway_error")
    state = await running.state()
    assert state["targets"][0]["in_flight"] == 0
    assert state["totals"]["requests_failed"] == 1


async def test_large_bodies_are_sent_whole_to_every_target(upstreams, gateways, ask, behave):
    broken = await upstreams("broken", behave.reset_at_once)
    good = await upstreams("good")
    running = await gateways(broken, good, breaker_failures=1000)
    prompt = "x" * 300_000
    while not broken.seen:
        assert (await ask(running, filler=prompt)).status == 200
    assert broken.seen[-1].body == good.seen[-1].body
    assert len(good.seen[-1].body) > 300_000


async def test_one_target_alone_is_tried_again_once_a_check_passed(upstreams, gateways, ask, behave):
    only = await upstreams("only", behave.reset_at_once)
    running = await gateways(only)

    async def recover(talk):
        only.behaviour = behave.answer
        talk.reset()

    only.behaviour = recover
    assert (await ask(running)).status == 200
    assert len(only.seen) == 2


async def test_a_request_outlives_the_loss_of_every_target(upstreams, gateways, ask, eventually):
    noticed = [await upstreams(f"n{number}") for number in range(4)]
    running = await gateways(*noticed, no_target_wait=20.0)
    for one in noticed:
        await one.stop()
    asking = asyncio.create_task(ask(running))

    async def waiting():
        return (await running.state())["queued"] == 1

    await eventually(waiting)
    fresh = await upstreams("fresh")
    await running.push(*noticed, fresh)
    assert (await asking).headers["X-Orchestrator-Node"] == "fresh"


async def test_a_connection_is_let_go_before_a_target_would_close_it(
    upstreams, gateways, ask, behave, monkeypatch
):
    """The gateway keeps idle connections for less than any server does, so a late request opens a new one."""
    monkeypatch.setattr(upstream, "IDLE", 0.5)
    seen = []

    async def note(talk):
        seen.append(talk.writer)
        await behave.answer(talk)

    node = await upstreams("node", note)
    running = await gateways(node)
    for pause in (0.0, 0.0, 1.0):
        await asyncio.sleep(pause)
        assert (await ask(running)).status == 200
    assert seen[0] is seen[1]
    assert seen[2] is not seen[1]
    assert 'retries_total{reason="stale"}' not in running.gateway.metrics.exposition().decode()


def test_it_keeps_connections_for_less_than_engines_do():
    assert float(ENGINES_OWN) > IDLE


def answering_once(behave, served, after=0.0):
    """A server that closes each connection when the next request comes on it; `served` gets those."""

    async def once(talk):
        if talk.writer in served:
            talk.writer.close()
        else:
            served.add(talk.writer)
            await asyncio.sleep(after)
            await behave.answer(talk)

    return once


async def test_kept_connections_that_end_everywhere_cost_no_request(upstreams, gateways, ask, behave):
    """As when all of a zone's nodes end at once: each has several connections that look open."""
    served = set()
    once = answering_once(behave, served, after=0.2)
    nodes = [await upstreams(f"n{number}", once) for number in range(4)]
    running = await gateways(*nodes, retry_reserve=0, retry_budget=0.0)
    together = await asyncio.gather(*(ask(running) for _ in range(16)))
    assert {answer.status for answer in together} == {200}
    assert len(served) == 16
    for _ in range(8):
        assert (await ask(running)).status == 200


async def test_a_kept_connection_that_was_closed_is_no_fault_of_its_target(upstreams, gateways, ask, behave):
    node = await upstreams("node", answering_once(behave, set()))
    running = await gateways(node, retry_reserve=0, retry_budget=0.0, breaker_failures=1)
    for _ in range(6):
        assert (await ask(running)).status == 200
    metrics = running.gateway.metrics.exposition().decode()
    assert 'orchestrator_gateway_retries_total{reason="stale"}' in metrics
    assert (await running.targets())["node"]["breaker"] == "closed"
