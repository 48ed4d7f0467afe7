"""The gateway in front of engines that are played: their numbers, their rankings, their faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from llama_servers import RANKER, running_llama
from played_engines import played

from cloud.engines.dialect import DIALECTS
from policies.model import TargetSpec
from policies.routing import Task

pytestmark = pytest.mark.slow

PATIENCE = 60.0
DOCUMENTS = ["zzz qqq", "a spot node", "spot"]
Nodes = Callable[..., list[TargetSpec]]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Starts nodes of one kind; their targets."""
    with ExitStack() as stack:

        def start(kind: str, *own: str, count: int = 1, args: tuple[str, ...] = ()) -> list[TargetSpec]:
            found = [stack.enter_context(played(kind, *own, args=args)) for _ in range(count)]
            return [TargetSpec(id=f"n{place}", address=address) for place, address in enumerate(found)]

        yield start


def settings(kind: str, task: Task = Task.CHAT) -> dict[str, Any]:
    """A pool's settings as the wiring has them."""
    row = DIALECTS[kind]
    ranking = None if row.ranking.every else row.ranking
    return {"health_path": row.health, "tells_ids": False, "ranking": ranking, "tasks": frozenset({task})}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
@pytest.mark.parametrize("kind", ["tei", "sglang"])
async def test_a_ranking_in_the_words_of_clients(gateways, nodes, client, kind: str, path: str) -> None:
    running = await gateways(*nodes(kind, "--task", "rerank"), **settings(kind, Task.RERANK))
    await ranked(client, running.url, path)


@pytest.mark.llamacpp
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_a_ranking_by_a_real_llamacpp(gateways, client, tmp_path, monkeypatch, path: str) -> None:
    monkeypatch.setattr("llama_servers.MODEL", RANKER)
    with running_llama(Path(tmp_path), words=("--reranking",)) as server:
        target = TargetSpec(id="n", address=server.address)
        running = await gateways(target, **settings("llamacpp", Task.RERANK))
        await ranked(client, running.url, path)


async def ranked(client: aiohttp.ClientSession, url: str, path: str) -> None:
    body = {"model": "tiny", "query": "spot", "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    async with client.post(f"{url}{path}", json=body) as answer:
        assert answer.status == 200, await answer.text()
        told = await answer.json()
    assert told["model"] == "tiny"
    first, second = told["results"]
    assert first["relevance_score"] >= second["relevance_score"]
    assert {first["index"], second["index"]} < {0, 1, 2}
    assert first["document"] == {"text": DOCUMENTS[first["index"]]}
    asked = {**body, "documents": [{"text": text} for text in DOCUMENTS], "return_documents": False}
    async with client.post(f"{url}{path}", json=asked) as answer:
        assert answer.status == 200, await answer.text()
        assert (await answer.json())["results"][0].keys() == {"index", "relevance_score"}


async def test_a_ranking_in_teis_own_words_passes_as_it_is(gateways, nodes, client) -> None:
    running = await gateways(*nodes("tei", "--task", "rerank"), **settings("tei", Task.RERANK))
    async with client.post(f"{running.url}/rerank", json={"query": "a", "texts": DOCUMENTS}) as answer:
        assert answer.status == 200
        rows = await answer.json()
    assert {row["index"] for row in rows} == {0, 1, 2}
    async with client.post(f"{running.url}/v1/chat/completions", json=chat()) as answer:
        assert answer.status == 400, "it has no chat, and is not asked for one"
    assert {row["state"] for row in (await running.targets()).values()} == {"healthy"}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, **more}


@pytest.mark.parametrize("kind", ["tei", "sglang", "ollama"])
async def test_embeddings_through_openais_client(gateways, nodes, kind: str) -> None:
    """It asks for base64 by itself, and reads either."""
    running = await gateways(*nodes(kind, "--task", "embed"), **settings(kind, Task.EMBED))
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as sdk:
        batch = await sdk.embeddings.create(model="tiny", input=["one", "two", "three"])
        plain = await sdk.embeddings.create(model="tiny", input="two", encoding_format="float")
    assert [row.index for row in batch.data] == [0, 1, 2]
    assert batch.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert plain.usage.prompt_tokens > 0


@pytest.mark.parametrize("kind", ["tei", "sglang"])
async def test_lists_of_ids_of_tokens_are_an_input_each(gateways, nodes, client, kind: str) -> None:
    running = await gateways(*nodes(kind, "--task", "embed"), **settings(kind, Task.EMBED))
    for given, count in (([7, 8], 1), ([[7, 8], [9], [1, 2, 3]], 3)):
        async with client.post(f"{running.url}/v1/embeddings", json={"input": given}) as answer:
            told = await answer.json()
            assert answer.status == 200, told
        assert [row["index"] for row in told["data"]] == list(range(count))


@pytest.mark.parametrize(
    ("kind", "given", "status", "words"),
    [
        ("tei", {"input": []}, 400, "cannot be empty"),
        ("tei", {"input": ["a"] * 33}, 422, "33 > maximum allowed batch size 32"),
        ("tei", {"input": 5}, 422, "input"),
        ("tei", {"input": ["a", None]}, 422, "input"),
        ("sglang", {"input": []}, 400, ""),
        ("sglang", {"input": {"a": 1}}, 400, "input"),
        ("ollama", {"input": [[1, 2]]}, 400, "input"),
        ("ollama", {"model": "other", "input": "a"}, 404, "model 'other' not found"),
    ],
)
async def test_what_a_client_gets_wrong_puts_nobody_out(
    gateways, nodes, client, kind: str, given: dict[str, Any], status: int, words: str
) -> None:
    running = await gateways(*nodes(kind, "--task", "embed", count=2), **settings(kind, Task.EMBED))
    for _ in range(4):
        async with client.post(f"{running.url}/v1/embeddings", json={"model": "tiny", **given}) as answer:
            assert answer.status == status, await answer.text()
            assert words in (await answer.json())["error"]["message"]
    rows = (await running.targets()).values()
    assert {(row["state"], row["reason"]) for row in rows} == {("healthy", "")}


async def test_a_tei_whose_model_died_is_no_fault_of_the_client(gateways, nodes, client) -> None:
    """It answers 424, which reads like the client's."""
    targets = nodes("tei", "--task", "embed", count=2)
    running = await gateways(*targets, **settings("tei", Task.EMBED), health_interval=1000.0)
    await order(client, targets[0], "/faults/crash-engine")
    for _ in range(12):
        async with client.post(f"{running.url}/v1/embeddings", json={"input": "a"}) as answer:
            assert answer.status == 200, await answer.text()
    await order(client, targets[1], "/faults/crash-engine")
    async with client.post(f"{running.url}/v1/embeddings", json={"input": "a"}) as answer:
        assert answer.status == 500
        assert "backend is gone" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "task", "args", "status"),
    [
        ("tei", "embed", ("--auto-truncate", "false"), 422),
        ("sglang", "embed", (), 400),
        ("tgi", "generate", (), 422),
        ("trtllm", "generate", (), 400),
    ],
)
async def test_what_is_too_long_is_the_clients_own_fault_and_puts_nobody_out(
    gateways, nodes, client, kind: str, task: str, args: tuple[str, ...], status: int
) -> None:
    targets = nodes(kind, "--task", task, count=2, args=args)
    running = await gateways(*targets, **settings(kind, Task.EMBED if task == "embed" else Task.CHAT))
    path, name = ("/v1/embeddings", "input") if task == "embed" else ("/v1/completions", "prompt")
    for _ in range(6):
        async with client.post(f"{running.url}{path}", json={"model": "tiny", name: "a " * 9000}) as answer:
            assert answer.status == status
            told = (await answer.json())["error"]
            words = told if isinstance(told, str) else told["message"]
            assert "tokens" in words
            assert not words.startswith("{"), "the engine's own sentence, not its JSON"
    rows = (await running.targets()).values()
    assert {row["state"] for row in rows} == {"healthy"}
    async with client.post(f"{running.url}{path}", json={"model": "tiny", name: "short"}) as answer:
        assert answer.status == 200


async def stream(client: aiohttp.ClientSession, url: str, began: asyncio.Event, tokens: int = 1500) -> str:
    """A chat's stream, to its end."""
    said = ""
    async with client.post(f"{url}/v1/chat/completions", json=chat(stream=True, max_tokens=tokens)) as answer:
        assert answer.status == 200
        with contextlib.suppress(aiohttp.ClientError):
            async for line in answer.content:
                said += line.decode()
                if '"content"' in said:
                    began.set()
    return said


async def order(client: aiohttp.ClientSession, target: TargetSpec, path: str) -> None:
    async with client.post(f"http://{target.address}{path}", json={"abort_all": True}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("sglang", "/abort_request"),
        ("sglang", "/faults/crash-engine"),
        ("tgi", "/faults/crash-engine"),
        ("ollama", "/faults/crash-engine"),
        ("trtllm", "/faults/crash-engine"),
    ],
)
async def test_a_stream_that_its_engine_cut_is_not_taken_for_whole(
    gateways, nodes, client, kind: str, path: str
) -> None:
    """And none goes on elsewhere, as nobody knows the ids of its tokens."""
    targets = nodes(kind, count=2)
    running = await gateways(*targets, **settings(kind))
    began = asyncio.Event()
    reading = asyncio.create_task(stream(client, running.url, began))
    await asyncio.wait_for(began.wait(), PATIENCE)
    await asyncio.gather(*(order(client, target, path) for target in targets))
    said = await asyncio.wait_for(reading, PATIENCE)
    assert "stream_interrupted" in said
    assert "[DONE]" not in said
    assert '"finish_reason":"' not in said.replace('"finish_reason":""', "")


@pytest.mark.parametrize("kind", ["sglang", "tgi", "ollama", "trtllm"])
async def test_a_whole_stream_of_each(gateways, nodes, client, kind: str) -> None:
    running = await gateways(*nodes(kind), **settings(kind))
    said = await stream(client, running.url, asyncio.Event(), tokens=12)
    events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    choices = [row["choices"][0] for row in events if row["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices)
    assert "length" in [choice.get("finish_reason") for choice in choices]
    assert said.rstrip().endswith("[DONE]")


async def test_null_for_an_answer_is_none_and_a_peer_is_asked(gateways, nodes, client) -> None:
    """What TensorRT-LLM answers to a plain request under which its executor died."""
    targets = nodes("trtllm", count=2)
    running = await gateways(*targets, **settings("trtllm"))

    async def ask() -> dict[str, Any]:
        async with client.post(f"{running.url}/v1/chat/completions", json=chat(max_tokens=400)) as answer:
            assert answer.status == 200
            return dict(await answer.json())

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    async with asyncio.timeout(PATIENCE):
        while sum(row["in_flight"] for row in (await running.targets()).values()) < len(asking):
            pass
    await order(client, targets[0], "/faults/crash-engine")
    answers = await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)
    assert all(answer["choices"][0]["finish_reason"] == "length" for answer in answers)


async def test_why_no_stream_goes_on_is_told_without_asking(gateways, nodes, eventually) -> None:
    running = await gateways(*nodes("sglang"), **settings("sglang"))

    async def told() -> bool:
        rows = (await running.targets()).values()
        return all("do not tell the ids" in row["continuation"]["why"] for row in rows)

    await eventually(told)
