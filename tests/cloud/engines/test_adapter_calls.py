"""Adapters of a running engine: loaded, tried and unloaded over vLLM's routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from cloud.clock import SystemClock
from cloud.engines.llamacpp import LlamaCppEngine
from cloud.engines.simulated import SimulatedEngine
from cloud.engines.vllm import VllmEngine
from cloud.errors import CloudError, Denied, Misconfigured, NotFound, Uncertain
from cloud.ports import EngineSpec

Launch = Callable[..., Awaitable[Any]]
FAST = ("--tokens-per-second", "1000", "--time-to-first-token", "0")
SQL = "sql@f9c12638"


@pytest.fixture
async def engine() -> AsyncIterator[SimulatedEngine]:
    made = SimulatedEngine(SystemClock(), model_name="tiny", probe_timeout=60.0)
    yield made
    await made.close()


async def test_an_adapter_is_loaded_listed_and_unloaded_and_asking_twice_is_harmless(
    launch: Launch, engine: SimulatedEngine
) -> None:
    server = await launch(*FAST)
    for _ in range(2):
        await engine.load_adapter(server.address, SQL, "/srv/sql")
    reading = await engine.probe("i-1", server.address, None)
    assert reading.adapters == (SQL,)
    assert reading.adapters_at is not None
    assert reading.adapters_at <= reading.at
    for _ in range(2):
        await engine.unload_adapter(server.address, SQL)
    again = await engine.probe("i-2", server.address, None)
    assert (again.ready, again.adapters) == (True, ())


async def test_what_is_not_there_is_not_found(launch: Launch, engine: SimulatedEngine) -> None:
    server = await launch(*FAST)
    with pytest.raises(NotFound, match="No adapter found for /srv/missing"):
        await engine.load_adapter(server.address, SQL, "/srv/missing")
    assert (await engine.probe("i-1", server.address, None)).adapters == ()


async def test_an_engine_that_is_not_there_leaves_it_open_whether_it_was_done() -> None:
    engine = SimulatedEngine(SystemClock(), model_name="tiny")
    with pytest.raises(Uncertain, match="did not answer"):
        await engine.load_adapter("127.0.0.1:1", SQL, "/srv/sql")
    with pytest.raises(Uncertain, match="did not answer"):
        await engine.unload_adapter("127.0.0.1:1", SQL)
    await engine.close()


async def test_llamacpp_takes_none_while_it_runs() -> None:
    engine = LlamaCppEngine(SystemClock(), model_name="tiny")
    for call in (engine.load_adapter("h:1", SQL, "/x.gguf"), engine.unload_adapter("h:1", SQL)):
        with pytest.raises(Misconfigured, match="takes no adapters while it runs"):
            await call
    await engine.close()


class Scripted:
    """Answers as it is told: a status and a body for each path; `asked` are the bodies that came."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.models: list[str] = []
        self.asked: list[tuple[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append((request.path, orjson.loads(body) if body else None))
        if request.path == "/v1/models":
            rows = [{"id": "tiny"}, *({"id": name, "parent": "tiny"} for name in self.models)]
            return web.json_response({"data": rows})
        status, answer = self.answers.get(request.path, (404, {"detail": "Not Found"}))
        return web.json_response(answer, status=status)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, str]]:
    server = Scripted()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield server, f"{host}:{port}"
    await runner.cleanup()


LOAD, UNLOAD, ASK = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"


def said(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (404, {"detail": "Not Found"}, Misconfigured, "started without its routes"),
        (404, said("No adapter found for /nope"), NotFound, "No adapter found"),
        (500, said("LoRA rank 64 is greater than max_lora_rank 16"), Misconfigured, "rank 64"),
        (400, said("bad name"), Misconfigured, "bad name"),
        (401, {"error": "Unauthorized"}, Denied, "401"),
        (503, said("busy"), Uncertain, "busy"),
    ],
)
async def test_each_answer_of_vllm_has_its_error(
    scripted: tuple[Scripted, str], status: int, body: Any, error: type[CloudError], says: str
) -> None:
    server, address = scripted
    server.answers[LOAD] = (status, body)
    engine = VllmEngine(SystemClock(), model_name="tiny")
    with pytest.raises(error, match=says):
        await engine.load_adapter(address, SQL, "/srv/sql")
    assert not any(path == ASK for path, _ in server.asked)
    await engine.close()


async def test_what_was_loaded_and_makes_no_token_is_unloaded_again(scripted: tuple[Scripted, str]) -> None:
    server, address = scripted
    server.answers = {LOAD: (200, "ok"), UNLOAD: (200, "ok"), ASK: (500, said("broken weights"))}
    engine = VllmEngine(SystemClock(), model_name="tiny")
    with pytest.raises(Misconfigured, match=r"does not work: .*broken weights"):
        await engine.load_adapter(address, SQL, "/srv/sql")
    assert [path for path, _ in server.asked] == [LOAD, ASK, UNLOAD]
    assert server.asked[1][1]["model"] == SQL, "the adapter itself is tried"
    await engine.close()


async def test_a_name_that_is_taken_is_tried_and_nothing_else(scripted: tuple[Scripted, str]) -> None:
    server, address = scripted
    whole = {"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 1}}
    server.answers = {LOAD: (400, said("has already been loaded")), ASK: (200, whole)}
    server.models = [SQL]
    engine = VllmEngine(SystemClock(), model_name="tiny")
    await engine.load_adapter(address, SQL, "/srv/sql")
    assert [path for path, _ in server.asked] == [LOAD, "/v1/models", ASK]
    await engine.close()


async def test_one_that_stays_listed_is_not_unloaded(scripted: tuple[Scripted, str]) -> None:
    server, address = scripted
    server.answers, server.models = {UNLOAD: (404, said("cannot be found"))}, [SQL]
    engine = VllmEngine(SystemClock(), model_name="tiny")
    with pytest.raises(NotFound):
        await engine.unload_adapter(address, SQL)
    server.models = []
    await engine.unload_adapter(address, SQL)
    await engine.close()


async def test_llamacpp_tells_its_adapters_by_number(scripted: tuple[Scripted, str]) -> None:
    server, address = scripted
    rows = [{"id": 1, "path": "/b.gguf", "scale": 1.0}, {"id": 0, "path": "/a.gguf", "scale": 1.0}]
    whole = {"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 1}}
    metrics = "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\nllamacpp:n_decode_total 4\n"
    server.answers = {"/health": (200, {}), "/lora-adapters": (200, rows), ASK: (200, whole)}

    async def numbers(_: web.Request) -> web.Response:
        return web.Response(text=metrics)

    handle = server.handle
    server.handle = lambda r: numbers(r) if r.path == "/metrics" else handle(r)  # type: ignore[method-assign]
    engine = LlamaCppEngine(SystemClock(), model_name="tiny", probe_timeout=60.0)
    async with aiohttp.ClientSession():
        reading = await engine.probe("i-1", address, None)
    assert reading.failure == "" or "metrics" in reading.failure
    assert await engine._wire.numbered(address) == ("/a.gguf", "/b.gguf")
    await engine.close()


@pytest.mark.parametrize(
    ("args", "room", "flags"),
    [
        ((), 0, {}),
        ((), 4, {"--max-loras": "4", "--max-cpu-loras": "5", "--max-lora-rank": "64"}),
        ((), 64, {"--max-loras": "8", "--max-cpu-loras": "72", "--max-lora-rank": "64"}),
        (("--max-loras", "80", "--max-lora-rank", "16"), 64, {"--max-loras": "80", "--max-cpu-loras": "80"}),
        (("--max-cpu-loras", "9"), 9, {"--max-cpu-loras": "9"}),
    ],
    ids=str,
)
def test_vllm_is_started_with_room_for_adapters(
    args: tuple[str, ...], room: int, flags: dict[str, str]
) -> None:
    engine = VllmEngine(SystemClock(), model_name="m")
    command = engine.command(EngineSpec(model="m", served_name="m", args=args, adapter_room=room))
    words = command.argv
    assert ("--enable-lora" in words) is bool(room)
    assert command.env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == ("True" if room else None)
    for flag, value in flags.items():
        assert words.count(flag) == 1
        assert words[words.index(flag) + 1] == value


def test_llamacpp_starts_with_its_adapters_and_runs_something_else_with_others() -> None:
    engine = LlamaCppEngine(SystemClock(), model_name="m")

    def command(*files: str) -> Any:
        return engine.command(EngineSpec(model="/m.gguf", served_name="m", adapters=files))

    assert command("/a.gguf", "/b.gguf").argv[-4:] == ("--lora", "/a.gguf", "--lora", "/b.gguf")
    builds = {command(*files).build for files in ((), ("/a.gguf",), ("/b.gguf",), ("/a.gguf", "/b.gguf"))}
    assert len(builds) == 4
