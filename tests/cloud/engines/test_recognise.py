"""Which engine answers, and what a probe says of one that is not the engine of its pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from aiohttp import web
from llama_servers import running_llama
from played_engines import played

from cloud.clock import SystemClock
from cloud.engines.llamacpp import LlamaCppEngine
from cloud.engines.ollama import OllamaEngine
from cloud.engines.openai_probe import OpenAiProbe
from cloud.engines.recognise import PATHS, by_answer, by_metrics
from cloud.engines.row import Dialect
from cloud.engines.sglang import SglangEngine
from cloud.engines.tei import TeiEngine
from cloud.engines.tgi import TgiEngine
from cloud.engines.trtllm import TrtllmEngine
from cloud.engines.vllm import VllmEngine
from cloud.engines.wire import Wire
from policies.model import EngineReading

ENGINES: dict[str, type[OpenAiProbe]] = {
    engine.name: engine
    for engine in (
        *(VllmEngine, LlamaCppEngine, SglangEngine, TgiEngine, TeiEngine, OllamaEngine, TrtllmEngine),
    )
}
VLLM_TEXT = """\
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_waiting{engine="0"} 0
vllm:generation_tokens_total{engine="0"} 7
"""

Serve = Callable[[dict[str, web.Response | bytes]], Any]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """Serves bodies by path, each as it stands; its address."""
    runners = []

    async def start(answers: dict[str, Any]) -> str:
        async def answer(request: web.Request) -> web.StreamResponse:
            found = answers.get(request.path)
            if found is None:
                return web.Response(status=404)
            if callable(found):
                return await found(request)
            return web.Response(body=found)

        app = web.Application()
        app.router.add_route("*", "/{any:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def looked(kind: str, address: str, **options: Any) -> EngineReading:
    engine = ENGINES[kind](SystemClock(), model_name="tiny", probe_timeout=30.0, **options)
    try:
        return await engine.probe("n", address, None)  # type: ignore[attr-defined]
    finally:
        await engine.close()


async def recognised(address: str) -> str | None:
    wire = Wire(VllmEngine.dialect, name="tiny", task="generate")
    try:
        for path in PATHS:
            status, body = await wire.request("GET", address, path)
            if status == 200 and (kind := by_answer(path, body)) is not None:
                return kind
        return None
    finally:
        await wire.close()


@pytest.mark.parametrize("kind", ["sglang", "tgi", "tei", "ollama", "trtllm"])
async def test_an_engine_that_is_played_is_recognised(kind: str) -> None:
    with played(kind, *(("--task", "embed") if kind == "tei" else ())) as address:
        assert await recognised(address) == kind


@pytest.mark.llamacpp
async def test_real_llamacpp_is_recognised(tmp_path) -> None:
    with running_llama(tmp_path) as server:
        address = server.url.removeprefix("http://")
        assert await recognised(address) == "llamacpp"
        reading = await looked("vllm", address)
    assert reading.failure == ("/metrics shows metrics of llama.cpp: this is not vLLM, as engine.kind says")


def test_metrics_of_nobody() -> None:
    assert by_metrics(VLLM_TEXT) == "vllm"
    assert by_metrics("# vllm:num_requests_running\nprocess_cpu_seconds_total 1\n") is None
    assert by_metrics("") is None


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"<html>", b'{"data":null}', b'{"data":[1]}', b"7", b'"data"']
)
@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_recognised_by_odd_answers(path: str, body: bytes) -> None:
    assert by_answer(path, body) is None


@pytest.mark.parametrize("kind", ["sglang", "tgi", "tei", "trtllm", "llamacpp"])
async def test_an_engine_of_another_kind_is_told_and_never_ready(serve: Serve, kind: str) -> None:
    """It answers everything, and shows what it holds by names that this row does not look for: it would be
    taken for idle while it works, and a drain would cut it."""
    row: Dialect = ENGINES[kind].dialect
    completion = {"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 1}}
    address = await serve(
        {
            row.health: b"",
            row.metrics: VLLM_TEXT.encode(),
            "/v1/models": orjson.dumps({"data": [{"id": "tiny"}]}),
            "/info": orjson.dumps({"model_id": "tiny"}),
            "/v1/completions": orjson.dumps(completion),
            "/v1/embeddings": orjson.dumps({"data": [{"embedding": [1.0]}]}),
        }
    )
    reading = await looked(kind, address, task="embed" if kind == "tei" else "generate")
    assert not reading.ready
    assert reading.failure.startswith(f"{row.metrics} shows metrics of vLLM: this is not {row.title}")


async def test_metrics_without_end_end_the_look(serve: Serve) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"a_metric 1\n" * 100_000)
            sent += 1_100_000

    address = await serve({"/health": b"", "/metrics": flood})
    reading = await looked("vllm", address)
    assert reading.failure == "/metrics answers with more than 16 MiB"
    assert sent < 64 * 2**20


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models"])
async def test_a_key_that_is_refused_is_told_wherever_it_is(serve: Serve, path: str, status: int) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=status)

    answers = {"/health": b"", "/metrics": VLLM_TEXT.encode(), "/v1/models": b"{}"}
    address = await serve({**answers, path: refuse})
    reading = await looked("vllm", address)
    assert reading.failure == f"the API key was refused: {path} answers {status}"


async def test_an_address_where_nothing_listens_is_told_in_words() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    reading = await looked("tgi", f"127.0.0.1:{port}")
    assert reading.failure == f"connection refused at 127.0.0.1:{port}"
