"""Targets that fail, lie or are no vLLM: a continuation breaks in a known way, a probe finds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from multidict import CIMultiDict

from cloud.sse import event_data
from orchestrator.gateway.asked import ask
from orchestrator.gateway.continuation import (
    Broken,
    Capability,
    Continuation,
    Transcript,
    Way,
    calls,
    plan_of,
    probe,
)
from orchestrator.gateway.failure import Failure

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]

FUNCTION = {"type": "function", "function": {"name": "f"}}
FULL = Capability(way=Way.DERENDER, identity="x", max_model_len=100)
CLEAN = Capability(way=Way.CLEAN, identity="x", max_model_len=100)
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.ServerRunner] = []

    async def start(handler: Handler) -> str:
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20.0)) as session:
        yield session


def begun(text: str = "so far", **fields: Any) -> Transcript:
    """The transcript of a chat that has shown a text of two ids."""
    body = {"model": "m", "messages": [], "stream": True, "max_tokens": 9, **fields}
    request = ask("POST", "/v1/chat/completions", "application/json", orjson.dumps(body))
    transcript = Transcript(request, plan_of(request))
    for choice, more in (
        ({"index": 0, "delta": {"role": "assistant", "content": ""}}, {"prompt_token_ids": [1, 2]}),
        ({"index": 0, "delta": {"content": text}, "token_ids": [7, 8]}, {}),
    ):
        chunk = {**HEAD, "choices": [choice], **more}
        transcript.take(b"data: " + orjson.dumps(chunk) + b"\n\n", chunk)
    return transcript


async def continued(
    http: aiohttp.ClientSession, address: str, transcript: Transcript, able: Capability
) -> list[Any]:
    """The chunks of a continuation."""
    stream = Continuation(
        session=http,
        address=address,
        headers=CIMultiDict({"Content-Length": "5", "X-Request-Id": "r"}),
        capability=able,
        transcript=transcript,
        moved=lambda: None,
    ).blocks()
    return [orjson.loads(event_data(event)) async for event in stream]


def answering(status: int, body: bytes, kind: str = "application/json") -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, body=body, content_type=kind)

    return handler


def streaming(*chunks: Any, status: int = 200, detokenized: Any = "x") -> Handler:
    """Answers /detokenize, and a stream of these chunks to all else."""
    events = [
        chunk if isinstance(chunk, bytes) else b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks
    ]

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.path == "/detokenize":
            return web.json_response({"prompt": detokenized})
        return web.Response(status=status, body=b"".join(events), content_type="text/event-stream")

    return handler


def said(text: Any, ids: Any, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "cmpl-2",
        "choices": [{"index": 0, "text": text, "token_ids": ids, "finish_reason": finish}],
    }


ANSWERS = {
    "unavailable": (answering(503, b"{}"), Failure.UNAVAILABLE),
    "dead engine": (answering(500, b'{"error":{"message":"EngineCore"}}'), Failure.ENGINE_ERROR),
    "full": (answering(429, b"{}"), Failure.RATE_LIMITED),
    "another error": (answering(500, b"{}"), Failure.SERVER_ERROR),
    "no such adapter": (answering(404, b'{"error":{"message":"no la"}}'), Failure.REFUSED_HERE),
    "no JSON": (answering(200, b"<html>"), Failure.BAD_RESPONSE),
    "a list": (answering(200, b"[]"), Failure.BAD_RESPONSE),
    "an empty object": (answering(200, b"{}"), Failure.BAD_RESPONSE),
    "null": (answering(200, b"null"), Failure.BAD_RESPONSE),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("fields", [{"tools": [FUNCTION]}, {"stop": "x"}, {"max_tokens": None}])
async def test_a_target_that_answers_nothing_of_use(
    http: aiohttp.ClientSession, serve: Serve, name: str, fields: dict[str, Any]
) -> None:
    handler, failure = ANSWERS[name]
    transcript = begun(**fields)
    with pytest.raises(Broken) as broken:
        await continued(http, await serve(handler), transcript, FULL)
    assert broken.value.failure is failure
    assert broken.value.detail
    assert (list(transcript.ids), transcript.finish) == ([7, 8], "")
    assert transcript.obstacle(FULL) == ""


STREAMS = {
    "an error event": ([said("a", [3]), {"error": {"message": "EngineCore"}}], Failure.ENGINE_ERROR),
    "an abort": ([said("a", [3]), said("", [], "abort")], Failure.ABORTED),
    "done without an end": ([said("a", [3]), b"data: [DONE]\n\n"], Failure.INCOMPLETE),
    "a clean end without an end": ([said("a", [3])], Failure.INCOMPLETE),
    "half an event": ([said("a", [3]), b'data: {"id":'], Failure.INCOMPLETE),
    "no JSON": ([said("a", [3]), b"data: {half\n\n"], Failure.BAD_RESPONSE),
    "a JSON list": ([said("a", [3]), b"data: []\n\n"], Failure.BAD_RESPONSE),
    "an id that is none": ([said("a", [3]), said("b", [4, 2**40])], Failure.BAD_RESPONSE),
    "an id below zero": ([said("a", [3]), said("b", [4, -1])], Failure.BAD_RESPONSE),
    "text without ids": ([said("a", [3]), said("b", [])], Failure.BAD_RESPONSE),
    "text that is none": ([said("a", [3]), said(["b"], [4])], Failure.BAD_RESPONSE),
    "a choice that is none": ([said("a", [3]), {"choices": [5]}], Failure.BAD_RESPONSE),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_continuation_that_breaks_can_be_continued(
    http: aiohttp.ClientSession, serve: Serve, name: str
) -> None:
    chunks, failure = STREAMS[name]
    transcript = begun()
    with pytest.raises(Broken) as broken:
        await continued(http, await serve(streaming(*chunks)), transcript, CLEAN)
    assert broken.value.failure is failure
    assert transcript.obstacle(CLEAN) == ""
    (chunk,) = await continued(http, await serve(streaming(said("!", [4], "stop"))), transcript, CLEAN)
    assert chunk["choices"][0]["delta"] == {"content": "!"}
    assert {name: chunk[name] for name in HEAD} == HEAD
    assert transcript.tokens in (3, 4)


@pytest.mark.parametrize("fields", [{"tools": [FUNCTION]}, {"stop": "x"}, {"max_tokens": None}])
async def test_a_target_that_hangs_in_what_needs_no_tokens(
    http: aiohttp.ClientSession, serve: Serve, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(calls, "_PATIENCE", 0.05)
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await left.wait()
        return web.Response()

    address = await serve(handler)
    with pytest.raises(Broken) as broken:
        await continued(http, address, begun(**fields), FULL)
    left.set()
    assert broken.value.failure is Failure.STALLED


async def test_a_target_that_is_gone(http: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    with pytest.raises((aiohttp.ClientError, OSError)):
        await continued(http, f"127.0.0.1:{unused_tcp_port}", begun(), CLEAN)


async def test_the_limit_is_reached_already(http: aiohttp.ClientSession, serve: Serve) -> None:
    address = await serve(answering(500, b"asked for nothing"))
    usage = {"stream_options": {"include_usage": True}}
    end, used = await continued(http, address, begun(max_tokens=2, **usage), CLEAN)
    assert (end["choices"][0]["finish_reason"], end["choices"][0]["delta"]) == ("length", {})
    assert used["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


async def test_text_held_back_for_a_stop_string_is_told_at_the_limit(
    http: aiohttp.ClientSession, serve: Serve
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        tokens = (await request.json())["tokens"]
        return web.json_response(
            {"prompt": "".join({1: "p", 2: "q", 7: "so ", 8: "farxyz"}[t] for t in tokens)}
        )

    (end,) = await continued(http, await serve(handler), begun(max_tokens=2, stop="abcd"), CLEAN)
    assert end["choices"][0]["delta"] == {"content": "xyz"}


@pytest.mark.parametrize("text", ["else", "so far", ""])
async def test_a_target_of_another_vocabulary_is_noticed(
    http: aiohttp.ClientSession, serve: Serve, text: str
) -> None:
    address = await serve(streaming(said("!", [4], "stop"), detokenized=text))
    with pytest.raises(Broken, match=r"not what its ids say|to two texts"):
        await continued(http, address, begun(stop="abcd"), CLEAN)


async def test_a_request_is_asked_again_while_nothing_was_shown(
    http: aiohttp.ClientSession, serve: Serve
) -> None:
    bodies: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append((request.path, await request.json()))
        deltas = [({"role": "assistant", "content": ""}, None), ({"content": '  \n {"a":'}, None)]
        deltas += [({"content": " 1}"}, "stop")]
        chunks = [
            {**HEAD, "id": "other", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            for delta, finish in deltas
        ]
        events = b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks)
        return web.Response(body=events + b"data: [DONE]\n\n", content_type="text/event-stream")

    transcript = begun(" \n", response_format={"type": "json_object"})
    chunks = await continued(http, await serve(handler), transcript, Capability())
    assert bodies == [("/v1/chat/completions", transcript.fields)]
    assert all(chunk["id"] == HEAD["id"] for chunk in chunks)
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == '\n {"a": 1}'
    assert transcript.finish == "stop"


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_is_no_vllm_has_no_capability(
    http: aiohttp.ClientSession, serve: Serve, name: str
) -> None:
    able = await probe(http, await serve(ANSWERS[name][0]), CIMultiDict())
    assert (able.way, able.identity) == (Way.NONE, "")
    assert able.why


async def test_a_target_that_is_gone_has_no_capability(
    http: aiohttp.ClientSession, unused_tcp_port: int
) -> None:
    able = await probe(http, f"127.0.0.1:{unused_tcp_port}", CIMultiDict())
    assert (able.way, able.why != "", able.answered) == (Way.NONE, True, False)
