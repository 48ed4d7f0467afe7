"""What a probe concludes from an engine's answers, shown on a scripted server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import web

from cloud.engines.llamacpp import LlamaCppEngine
from cloud.engines.openai_probe import OpenAiProbe
from policies.model import EngineReading

NEVER = 60.0  # s; bounds looks that must not be bounded by time
SOON = 0.3  # s; bounds looks at an engine that hangs for ever


@dataclass
class Hand:
    """A clock that moves when told."""

    at: float = 1_000_000.0

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += max(0.0, seconds)
        await asyncio.sleep(0)


@dataclass
class Scripted:
    """An engine that answers what the test says. `completions` counts the tokens asked of it, or embeddings.

    With an `embedding` it embeds, and generates nothing.
    """

    address: str = ""
    health: int = 200
    running: int = 0
    waiting: int = 0
    generated: float = 100.0
    metrics: str | None = None
    more_metrics: str = ""
    models: Any = field(default_factory=lambda: {"data": [{"id": "tiny"}]})
    models_status: int = 200
    finish: str = "length"
    tokens: int = 1
    completion_status: int = 200
    completion: Any = None
    embedding: Any = None
    hangs: bool = False
    hangs_everywhere: bool = False
    moves_while_hanging: bool = False
    completions: int = 0
    keys: list[str] = field(default_factory=list)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self.on_health)
        app.router.add_get("/metrics", self.on_metrics)
        app.router.add_get("/v1/models", self.on_models)
        app.router.add_post("/v1/completions", self.on_completion)
        app.router.add_post("/v1/embeddings", self.on_embedding)
        return app

    async def on_health(self, request: web.Request) -> web.Response:
        if self.hangs_everywhere:
            await asyncio.Event().wait()
        return web.Response(status=self.health)

    async def on_metrics(self, request: web.Request) -> web.Response:
        lines = (
            f'vllm:num_requests_running{{engine="0"}} {self.running}',
            f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}',
            f'vllm:generation_tokens_total{{engine="0"}} {self.generated if self.embedding is None else 0}',
            f'vllm:prompt_tokens_total{{engine="0"}} {self.generated}',
        )
        return web.Response(
            text="\n".join((*lines, self.more_metrics)) if self.metrics is None else self.metrics
        )

    async def on_models(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization", ""))
        return web.Response(body=orjson.dumps(self.models), status=self.models_status)

    async def on_embedding(self, request: web.Request) -> web.Response:
        if self.embedding is None:
            raise web.HTTPNotFound(text="Not Found")
        assert (await request.json())["model"] == "tiny"
        self.completions += 1
        answer = {"data": [{"index": 0, "embedding": self.embedding}]}
        body = answer if self.completion is None else self.completion
        return web.Response(body=orjson.dumps(body), status=self.completion_status)

    async def on_completion(self, request: web.Request) -> web.Response:
        if self.embedding is not None:
            raise web.HTTPNotFound(text="Not Found")
        asked = await request.json()
        assert asked["model"] == "tiny"
        assert asked["max_tokens"] == 1
        self.completions += 1
        if self.hangs:
            if self.moves_while_hanging:
                self.generated += 5
            await asyncio.Event().wait()
        self.generated += self.tokens
        answer = {"choices": [{"finish_reason": self.finish}], "usage": {"completion_tokens": self.tokens}}
        body = answer if self.completion is None else self.completion
        return web.Response(body=orjson.dumps(body), status=self.completion_status)


@pytest.fixture
async def engine() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    runner = web.AppRunner(scripted.application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    scripted.address = f"{host}:{port}"
    yield scripted
    await runner.cleanup()


@dataclass
class Prober:
    """A probe on a hand-moved clock that carries the previous reading along."""

    clock: Hand
    probe: OpenAiProbe
    engine: Scripted
    last: EngineReading | None = None

    async def look(self, after: float = 1.0) -> EngineReading:
        self.clock.at += after
        self.last = await self.probe.probe("node-1", self.engine.address, self.last)
        return self.last


@pytest.fixture
async def prober(engine: Scripted) -> AsyncIterator[Prober]:
    clock = Hand()
    probe = OpenAiProbe(clock, model_name="tiny", probe_timeout=NEVER, stall_after=10.0, deep_every=30.0)
    yield Prober(clock, probe, engine)
    await probe.close()


@pytest.fixture
async def impatient(engine: Scripted) -> AsyncIterator[Prober]:
    """A prober for engines that hang; its looks at sound ones may fail by time, so they are repeated."""
    clock = Hand()
    probe = OpenAiProbe(clock, model_name="tiny", probe_timeout=SOON, stall_after=10.0, deep_every=30.0)
    yield Prober(clock, probe, engine)
    await probe.close()


async def until(prober: Prober, holds: Callable[[EngineReading], bool]) -> EngineReading:
    """Look again until a reading is as wanted: on a slow machine any look may fail by its short time."""
    for _ in range(100):
        reading = await prober.look()
        if holds(reading):
            return reading
    raise AssertionError(f"never as wanted: {prober.last}")


async def until_sound(prober: Prober) -> EngineReading:
    return await until(prober, lambda reading: reading.ok)


async def test_the_first_token_makes_an_engine_ready(prober: Prober, engine: Scripted) -> None:
    reading = await prober.look()
    assert reading == EngineReading(
        node="node-1",
        at=prober.clock.at,
        ready=True,
        ok=True,
        running=0,
        waiting=0,
        progress=100.0,
        tokens_in=100.0,
        tokens_out=100.0,
        adapters_at=prober.clock.at,
    )
    assert engine.completions == 1


async def test_looks_stay_cheap_while_an_idle_engine_is_trusted(prober: Prober, engine: Scripted) -> None:
    for _ in range(29):
        await prober.look()
    assert engine.completions == 1
    for _ in range(5):
        await prober.look()
    assert engine.completions == 2, "one token in every 30 s"


async def test_looks_stay_cheap_while_tokens_flow(prober: Prober, engine: Scripted) -> None:
    engine.running = 3
    for _ in range(200):
        engine.generated += 1
        reading = await prober.look()
        assert reading.ok
        assert reading.running == 3
    assert engine.completions == 1


async def test_silence_with_requests_in_flight_is_doubted_before_idleness(
    prober: Prober, engine: Scripted
) -> None:
    await prober.look()
    engine.waiting = 2
    await prober.look()  # this look sees the token of the last one
    for _ in range(9):
        await prober.look()
    assert engine.completions == 1
    reading = await prober.look()
    assert engine.completions == 2
    assert reading.ok, "it gave a token: long prompts are read in silence"


async def test_a_frozen_busy_engine_fails_and_stays_failed(impatient: Prober, engine: Scripted) -> None:
    await until_sound(impatient)
    engine.running, engine.waiting, engine.hangs = 3, 1, True
    first = await until(impatient, lambda reading: "no token for" in reading.failure)
    assert not first.ok
    assert first.ready
    assert first.in_flight == 4
    assert "while 3 requests run and 1 waits" in first.failure
    second = await impatient.look()
    assert not second.ok
    assert second.failing_since == first.failing_since, "one unbroken run of failures"
    engine.hangs = False
    again = await until_sound(impatient)
    assert again.failing_since is None


async def test_a_frozen_idle_engine_is_found(impatient: Prober, engine: Scripted) -> None:
    await until_sound(impatient)
    engine.hangs = True
    reading = await until(impatient, lambda reading: "the engine is frozen" in reading.failure)
    assert not reading.ok
    assert reading.ready
    assert not (await impatient.look()).ok, "it is not trusted again without a token"


async def test_a_probe_that_waits_in_a_long_queue_proves_nothing_bad(
    impatient: Prober, engine: Scripted
) -> None:
    engine.running, engine.waiting, engine.hangs, engine.moves_while_hanging = 8, 200, True, True
    reading = await until_sound(impatient)
    assert reading.ready
    assert reading.waiting == 200


async def test_a_server_that_hangs_altogether(impatient: Prober, engine: Scripted) -> None:
    await until_sound(impatient)
    engine.running = 2
    await until(impatient, lambda reading: reading.ok and reading.running == 2)
    engine.hangs_everywhere = True
    reading = await impatient.look()
    assert not reading.ok
    assert reading.ready
    assert reading.failure == "no answer within 0.3 s"
    assert reading.running == 2, "what cannot be seen is still owed"


async def test_a_refused_connection_takes_readiness_back(prober: Prober, engine: Scripted) -> None:
    assert (await prober.look()).ready
    sound = engine.address
    with socket.socket() as bound:  # bound, not listening: nobody else can take the port
        bound.bind(("127.0.0.1", 0))
        engine.address = f"127.0.0.1:{bound.getsockname()[1]}"
        reading = await prober.look()
    assert reading.failure == f"connection refused at {engine.address}"
    assert not reading.ready
    assert reading.in_flight == 0
    engine.address = sound
    assert (await prober.look()).ready
    assert engine.completions == 2


async def test_a_restart_is_seen_by_the_token_count_and_must_prove_itself(
    prober: Prober, engine: Scripted
) -> None:
    assert (await prober.look()).ready
    engine.generated = 0.0
    engine.completion_status, engine.completion = 500, {"error": {"message": "still\n warming  up"}}
    reading = await prober.look()
    assert not reading.ready
    assert reading.failure == "a completion of one token answers 500: still warming up"
    engine.completion_status, engine.completion = 200, None
    assert (await prober.look()).ready


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"health": 503}, "the engine is dead: /health answers 503"),
        ({"health": 404}, "/health answers 404"),
        ({"metrics": "process_cpu_seconds_total 1"}, "/metrics lacks vllm:num_requests_running"),
        ({"models_status": 401}, "the API key was refused"),
        ({"models_status": 500}, "/v1/models answers 500"),
        ({"models": {"data": [{"id": "a"}, {"id": "b"}]}}, "does not serve tiny, only a, b"),
        ({"models": {"data": []}}, "does not serve tiny, only nothing"),
        ({"models": [1]}, "no model list"),
        ({"finish": "abort", "tokens": 0}, "shutting down"),
        ({"tokens": 0}, "gave none (finish_reason length)"),
        ({"completion": {"choices": []}}, "something else than a completion"),
        ({"completion": [None]}, "something else than a completion"),
        ({"completion_status": 503, "completion": "busy"}, "answers 503: "),
    ],
)
async def test_what_is_wrong_is_said_in_words(
    prober: Prober, engine: Scripted, change: dict[str, Any], failure: str
) -> None:
    for name, value in change.items():
        setattr(engine, name, value)
    reading = await prober.look()
    assert failure in reading.failure
    assert not reading.ok
    assert not reading.ready
    assert reading.failing_since == reading.at


async def test_something_that_does_not_speak_http(prober: Prober, engine: Scripted) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        writer.close()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for behaviour, failure in ((babble, "unreadable answer"), (hang_up, "closed before an answer")):
        server = await asyncio.start_server(behaviour, "127.0.0.1", 0)
        async with server:
            engine.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            reading = await prober.look()
        assert failure in reading.failure
        assert not reading.ready


@pytest.mark.parametrize("address", ["", "no port here", "127.0.0.1:notaport"])
async def test_an_address_that_is_none(prober: Prober, engine: Scripted, address: str) -> None:
    engine.address = address
    reading = await prober.look()
    assert not reading.ok
    assert reading.failure


async def test_the_key_is_sent_where_it_is_needed(engine: Scripted) -> None:
    probe = OpenAiProbe(Hand(), model_name="tiny", api_key="secret", probe_timeout=NEVER)
    try:
        assert (await probe.probe("n", engine.address, None)).ready
    finally:
        await probe.close()
    assert engine.keys == ["Bearer secret"]


async def test_a_forgotten_node_starts_anew(prober: Prober, engine: Scripted) -> None:
    await prober.look()
    prober.probe.forget("node-1")
    prober.probe.forget("never-seen")
    await prober.look()
    assert engine.completions == 2


async def test_a_node_that_moved_starts_anew(prober: Prober, engine: Scripted) -> None:
    await prober.look()
    engine.address = engine.address.replace("127.0.0.1", "localhost")
    assert (await prober.look()).ready
    assert engine.completions == 2


async def test_it_can_be_closed_and_used_again(prober: Prober) -> None:
    await prober.probe.close()
    assert (await prober.look()).ok
    await prober.probe.close()
    await prober.probe.close()


async def test_cancellation_passes_through(engine: Scripted) -> None:
    engine.hangs_everywhere = True
    probe = OpenAiProbe(Hand(), model_name="tiny", probe_timeout=NEVER)
    look = asyncio.create_task(probe.probe("n", engine.address, None))
    try:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(look, SOON)
        assert look.cancelled()
    finally:
        await probe.close()


@pytest.fixture
async def embedder(engine: Scripted) -> AsyncIterator[Prober]:
    """A prober of an engine that embeds."""
    engine.embedding = [0.25, -1, 0.5]
    clock = Hand()
    probe = OpenAiProbe(clock, model_name="tiny", task="embed", probe_timeout=NEVER)
    yield Prober(clock, probe, engine)
    await probe.close()


async def test_the_first_embedding_makes_an_engine_ready(embedder: Prober, engine: Scripted) -> None:
    reading = await embedder.look()
    assert (reading.ready, reading.ok, reading.progress) == (True, True, 100.0)
    assert engine.completions == 1
    engine.running, engine.generated = 2, 107.0
    assert (await embedder.look(after=25.0)).progress == 107.0
    assert engine.completions == 1, "the prompts' tokens prove that it works"
    reading = await embedder.look(after=25.0)
    assert engine.completions == 2, "they did not move for a while"


async def test_an_engine_that_embeds_is_never_ready_to_generate(prober: Prober, engine: Scripted) -> None:
    engine.embedding = [0.5]
    reading = await prober.look()
    assert not reading.ready
    assert reading.failure == "a completion of one token answers 404: Not Found"


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"embedding": None}, "one embedding answers 404: "),
        ({"embedding": []}, "one embedding answers without its numbers"),
        ({"embedding": [0.5, None]}, "one embedding answers without its numbers"),
        ({"embedding": 7}, "something else than an embedding"),
        ({"completion": {"data": []}}, "something else than an embedding"),
        ({"completion_status": 500, "completion": {"error": {"message": "too large"}}}, "500: too large"),
    ],
)
async def test_what_is_wrong_with_an_embedding_is_said_in_words(
    embedder: Prober, engine: Scripted, change: dict[str, Any], failure: str
) -> None:
    for name, value in change.items():
        setattr(engine, name, value)
    reading = await embedder.look()
    assert failure in reading.failure
    assert not reading.ready


async def test_a_name_beside_the_first_one_counts(prober: Prober, engine: Scripted) -> None:
    engine.models = {"data": [{"id": "big", "aliases": ["big", "other"]}]}
    assert "does not serve tiny, only big, other" in (await prober.look()).failure
    engine.models = {"data": [{"id": "big", "aliases": ["big", "tiny"]}]}
    assert (await prober.look()).ready


async def test_llamacpp_says_that_it_loads_and_counts_in_its_own_words(engine: Scripted) -> None:
    """Progress is what it computes: tokens are counted only when a request ends."""
    clock = Hand()
    prober = Prober(clock, LlamaCppEngine(clock, model_name="tiny", probe_timeout=NEVER), engine)
    try:
        engine.health = 503
        assert (await prober.look()).failure == "the engine loads its model: /health answers 503"
        engine.health = 200
        engine.metrics = (
            "llamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n"
            "llamacpp:n_decode_total 40\nllamacpp:tokens_predicted_total 0\n"
        )
        reading = await prober.look()
        assert (reading.ready, reading.running, reading.waiting, reading.progress) == (True, 2, 5, 40.0)
        engine.metrics = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n"
        assert "/metrics lacks llamacpp:n_decode_total" in (await prober.look()).failure
    finally:
        await prober.probe.close()


def histograms(first: tuple[float, int], between: tuple[float, int], kv: float = 0.0) -> str:
    names = ("time_to_first_token_seconds", "inter_token_latency_seconds")
    lines = [f'vllm:kv_cache_usage_perc{{engine="0"}} {kv}']
    for name, (seconds, count) in zip(names, (first, between), strict=True):
        lines += [
            f'vllm:{name}_bucket{{engine="0",le="+Inf"}} 9999',
            f'vllm:{name}_sum{{engine="0"}} {seconds}',
        ]
        lines += [f'vllm:{name}_count{{engine="0"}} {count}', f"vllm:{name}_created 1e9"]
    return "\n".join(lines)


async def test_times_are_of_what_ended_between_two_looks(prober: Prober, engine: Scripted) -> None:
    engine.more_metrics = histograms((100.0, 10), (50.0, 1000), 0.25)
    first = await prober.look()
    assert (first.first_token, first.between_tokens, first.kv) == (None, None, 0.25)
    engine.more_metrics = histograms((103.0, 12), (50.5, 1050), 0.5)
    second = await prober.look()
    assert (second.first_token, second.between_tokens, second.kv) == (1.5, 0.01, 0.5)
    third = await prober.look()
    assert (third.first_token, third.between_tokens) == (None, None), "nothing ended meanwhile"
    engine.health = 500
    failed = await prober.look()
    assert (failed.kv, failed.tokens_in, failed.first_token) == (None, None, None)
    engine.health, engine.more_metrics, engine.generated = 200, histograms((0.5, 1), (0.1, 10)), 3.0
    assert (await prober.look()).first_token is None, "another process counts from nothing"


async def test_adapters_are_those_with_a_parent_and_listed_while_tokens_flow(
    prober: Prober, engine: Scripted
) -> None:
    engine.models = {
        "data": [
            {"id": "tiny", "parent": None},
            {"id": "also-tiny", "parent": None},
            {"id": "sql", "parent": "tiny"},
            {"id": "law", "parent": "tiny"},
        ]
    }
    assert (await prober.look()).adapters == ("sql", "law")
    engine.models["data"].pop()
    engine.running = 1
    for _ in range(5):
        engine.generated += 1
        reading = await prober.look()
    assert reading.adapters == ("sql",)
    assert engine.completions == 1
