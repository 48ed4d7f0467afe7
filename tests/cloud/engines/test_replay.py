"""The engines that are played: each has its notes, and what is not OpenAI's is as its source says."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import orjson
import pytest

from cloud.engines.dialect import DIALECTS
from cloud.engines.replay.fidelity import ORIGINS
from cloud.engines.replay.options import SHAPES

PATIENCE = 60.0
WORDS = {
    "sglang": ("serve", "--model-path", "tiny", "--port", "0"),
    "tgi": ("--model-id", "tiny", "--port", "0"),
    "tei": ("--model-id", "tiny", "--port", "0"),
    "trtllm": ("tiny", "--port", "0"),
    "ollama": ("serve",),
}
Play = Callable[..., Awaitable[str]]


def test_what_was_not_run_is_played_and_has_its_notes() -> None:
    read = {kind for kind, row in DIALECTS.items() if not row.capabilities.ran}
    assert set(SHAPES) == set(ORIGINS) == read
    for origin in ORIGINS.values():
        assert origin.version
        assert "202" in origin.date
        assert all(note.shape and note.where and note.if_wrong for note in origin.notes)


@pytest.fixture
async def play() -> AsyncIterator[Play]:
    """Starts a server that is played; its URL once it is ready."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(kind: str, *own: str, args: tuple[str, ...] = ()) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cloud.engines.replay", kind, "--tokens-per-second", "200", "--faults"),
            *("--model", "tiny", *own, "--", *WORDS[kind], *args),
            stderr=asyncio.subprocess.PIPE,
            env={"OLLAMA_HOST": "127.0.0.1:0"},
        )
        processes.append(process)
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            url = ""
            while not url:
                line = (await process.stderr.readline()).decode()
                url = line.split()[-1] if "listens on" in line else ""
            while kind != "ollama" and "ready" not in line:
                line = (await process.stderr.readline()).decode()
        return f"http://{url}"

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


ASKED = {"model": "tiny", "prompt": "hello", "max_tokens": 1500, "stream": True}


async def first_line(answer: aiohttp.ClientResponse) -> None:
    await answer.content.readline()


async def rest(answer: aiohttp.ClientResponse) -> list[bytes]:
    with contextlib.suppress(aiohttp.ClientError):
        return [line.strip() async for line in answer.content if line.strip()]
    return []


async def test_an_abort_of_sglang_ends_a_stream_as_if_it_were_whole(
    play: Play, http: aiohttp.ClientSession
) -> None:
    url = await play("sglang")
    async with http.post(f"{url}/v1/completions", json=ASKED) as answer:
        await first_line(answer)
        async with http.post(f"{url}/abort_request", json={"abort_all": True}) as aborted:
            assert aborted.status == 200
        lines = await rest(answer)
    assert lines[-1] == b"data: [DONE]"
    assert orjson.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "abort"


async def test_a_shard_of_tgi_that_dies_breaks_a_stream_with_the_clients_status(
    play: Play, http: aiohttp.ClientSession
) -> None:
    url = await play("tgi")
    async with http.post(f"{url}/v1/completions", json=ASKED) as answer:
        await first_line(answer)
        async with http.post(f"{url}/faults/crash-engine"):
            pass
        lines = await rest(answer)
    assert lines[-1] == b"data: [DONE]"
    error = orjson.loads(lines[-2][6:])["error"]
    assert error["http_status_code"] == 422
    assert "Request failed during generation" in error["message"]


async def test_a_runner_of_ollama_that_dies_ends_a_stream_without_a_word(
    play: Play, http: aiohttp.ClientSession
) -> None:
    url = await play("ollama")
    async with http.post(f"{url}/v1/completions", json=ASKED) as answer:
        await first_line(answer)
        async with http.post(f"{url}/faults/crash-engine"):
            pass
        lines = await rest(answer)
    assert b"data: [DONE]" not in lines
    assert not any(orjson.loads(line[6:])["choices"][0]["finish_reason"] for line in lines)


async def test_an_executor_of_trtllm_that_dies_answers_null(play: Play, http: aiohttp.ClientSession) -> None:
    url = await play("trtllm")
    plain = asyncio.create_task(send(http, url, {**ASKED, "stream": False}))
    async with asyncio.timeout(PATIENCE):
        while True:
            if b'running{engine_type="undefined",model_name="undefined"} 1' in await metrics(http, url):
                break
    async with http.post(f"{url}/faults/crash-engine"):
        pass
    assert await plain == (200, b"null")


async def send(http: aiohttp.ClientSession, url: str, body: object) -> tuple[int, bytes]:
    async with http.post(f"{url}/v1/completions", json=body) as answer:
        return answer.status, await answer.read()


async def metrics(http: aiohttp.ClientSession, url: str) -> bytes:
    async with http.get(f"{url}/prometheus/metrics") as answer:
        return await answer.read()


async def test_tei_has_errors_of_two_shapes(play: Play, http: aiohttp.ClientSession) -> None:
    url = await play("tei", "--task", "embed", args=("--auto-truncate", "false"))
    long = "a " * 2000
    async with http.post(f"{url}/v1/embeddings", json={"input": long}) as answer:
        assert answer.status == 422
        assert set(await answer.json()) == {"message", "code", "type"}
    async with http.post(f"{url}/embed", json={"inputs": long}) as answer:
        assert answer.status == 422
        assert set(await answer.json()) == {"error", "error_type"}
    async with http.post(f"{url}/v1/embeddings", json={"input": ["a"] * 33}) as answer:
        assert "batch size 33 > maximum allowed batch size 32" in (await answer.json())["message"]
    async with http.post(f"{url}/rerank", json={"query": "a", "texts": ["a"]}) as answer:
        assert answer.status == 424
    async with http.post(f"{url}/v1/embeddings", json={"input": [1, 2, 3]}) as answer:
        assert [row["index"] for row in (await answer.json())["data"]] == [0], "ids of tokens are one input"
    async with http.post(f"{url}/v1/chat/completions", json={}) as answer:
        assert answer.status == 404
    async with http.post(f"{url}/embed", json={"inputs": ["a", "b"]}) as answer:
        assert [len(vector) for vector in await answer.json()] == [8, 8]


async def test_nobody_hears_of_metrics_before_their_first_value(
    play: Play, http: aiohttp.ClientSession
) -> None:
    url = await play("tei", "--task", "embed")
    async with http.get(f"{url}/metrics") as answer:
        assert await answer.read() == b""
    async with http.post(f"{url}/v1/embeddings", json={"input": ["a", "b"]}) as answer:
        assert answer.status == 200
    async with http.get(f"{url}/metrics") as answer:
        assert b"te_embed_success 2" in await answer.read()
