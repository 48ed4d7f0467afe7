"""Vectors of real llama.cpp servers through the gateway, as OpenAI's library and plain HTTP ask for them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from llama_servers import RANKER, WIDTH, LlamaServer, running_llama

from cloud.clock import SystemClock
from cloud.engines.dialect import LLAMACPP
from cloud.providers.prices import OwnPrice, OwnRates
from orchestrator.gateway.accounts.usage_file import read_usage
from orchestrator.gateway.config import ProviderSpec
from orchestrator.gateway.spend_file import read_totals
from policies.model import TargetSpec
from policies.routing import Task
from policies.spend import usd
from tests.support.routed_gateway import Routed, api, pool, route

pytestmark = [pytest.mark.slow, pytest.mark.llamacpp]

PATIENCE = 60.0
EMBEDDINGS = "/v1/embeddings"
LONG = "spot node " * 1000
"""More tokens than the 512 that the engine reads in one piece."""
TEXTS = ["a spot node", "an on-demand node, which costs more", "Grüße, 世界 🎉", " x"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LlamaServer]]:
    """Two that embed with the same weights."""
    folder = tmp_path_factory.mktemp("llama")
    with (
        running_llama(folder, name="one", task="embed") as one,
        running_llama(folder, name="two", task="embed") as two,
    ):
        yield [one, two]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session


@pytest.fixture
async def running(gateways: Callable[..., Any], servers: list[LlamaServer]) -> Any:
    targets = [TargetSpec(id=server.name, address=server.address) for server in servers]
    row = LLAMACPP
    return await gateways(*targets, tasks={Task.EMBED}, ranking=row.ranking, served="tiny", tells_ids=False)


@pytest.fixture
async def sdk(running: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as made:
        yield made


async def post(client: aiohttp.ClientSession, url: str, **fields: Any) -> tuple[int, Any]:
    async with client.post(url + EMBEDDINGS, json={"model": "tiny", **fields}) as answer:
        return answer.status, await answer.json()


async def test_one_many_and_ids_of_tokens_come_to_the_same_numbers(
    sdk: openai.AsyncOpenAI, servers: list[LlamaServer]
) -> None:
    """OpenAI's library asks for base64 by itself; numbers that are asked for as numbers are the same."""
    batch = await sdk.embeddings.create(model="tiny", input=TEXTS)
    assert [row.index for row in batch.data] == list(range(len(TEXTS)))
    assert {len(row.embedding) for row in batch.data} == {WIDTH}
    total = 0
    for text, row in zip(TEXTS, batch.data, strict=True):
        ids = json.loads(servers[0].ask("/tokenize", {"content": text})[1])["tokens"]
        plain = await sdk.embeddings.create(model="tiny", input=text, encoding_format="float")
        by_ids = await sdk.embeddings.create(model="tiny", input=ids, encoding_format="float")
        assert plain.data[0].embedding == pytest.approx(row.embedding, abs=1e-5)
        assert by_ids.data[0].embedding == pytest.approx(row.embedding, abs=1e-5)
        assert plain.usage.prompt_tokens == by_ids.usage.prompt_tokens == len(ids)
        total += len(ids)
    assert batch.usage.prompt_tokens == total
    lists = await sdk.embeddings.create(model="tiny", input=[[104, 500], [302]], encoding_format="float")
    assert ([row.index for row in lists.data], lists.usage.prompt_tokens) == ([0, 1], 3)


async def test_a_big_batch_is_whole_and_in_order(sdk: openai.AsyncOpenAI) -> None:
    texts = [f"text {place} of many" for place in range(1500)]
    batch = await sdk.embeddings.create(model="tiny", input=texts, timeout=PATIENCE)
    assert [row.index for row in batch.data] == list(range(len(texts)))
    for place in (0, 777, 1499):
        one = await sdk.embeddings.create(model="tiny", input=texts[place])
        assert one.data[0].embedding == pytest.approx(batch.data[place].embedding, abs=1e-5)


async def test_packed_numbers_are_little_endian_floats(running: Any, client: aiohttp.ClientSession) -> None:
    _, plain = await post(client, running.url, input="spot")
    _, packed = await post(client, running.url, input="spot", encoding_format="base64")
    raw = base64.b64decode(packed["data"][0]["embedding"])
    numbers = struct.unpack(f"<{WIDTH}f", raw)
    assert numbers == pytest.approx(plain["data"][0]["embedding"], abs=1e-5)


async def test_what_is_asked_for_in_vain_puts_nobody_out(running: Any, client: aiohttp.ClientSession) -> None:
    """No engine has a stream of vectors: all answer as if nobody had asked for one."""
    for _ in range(6):
        status, told = await post(client, running.url, input="spot", stream=True)
        assert (status, len(told["data"])) == (200, 1)
        status, told = await post(client, running.url, input=["spot", 104])
        assert (status, len(told["data"])) == (200, 1), "texts and ids in one list are one input"
    assert {row["state"] for row in (await running.targets()).values()} == {"healthy"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input": []}, "must not be empty"),
        ({"input": ""}, "cannot be empty"),
        ({"input": ["a", ""]}, "cannot be empty"),
        ({"input": 5}, "must be a string"),
        ({"input": None}, "must be a string"),
        ({"input": ["a", None]}, "must be a string"),
        ({"input": {"text": "a"}}, "must be a string"),
        ({"input": [1.5]}, "must be a string"),
        ({"input": [-5]}, "invalid tokens"),
        ({"input": [2**31]}, ""),
        ({}, "must be provided"),
        ({"input": "a", "encoding_format": "zip"}, "float or base64"),
        ({"input": LONG}, "too large to process"),
        ({"input": ["a", LONG]}, "too large to process"),
    ],
)
async def test_what_a_client_gets_wrong_is_its_own_fault_and_no_nodes(
    running: Any, client: aiohttp.ClientSession, given: dict[str, Any], words: str
) -> None:
    """llama.cpp calls an input that is too long an error of its own (500)."""
    for _ in range(4):
        status, told = await post(client, running.url, **given)
        assert status == 400, told
        assert words in told["error"]["message"]
        assert told["error"]["type"] == "invalid_request_error"
    for row in (await running.targets()).values():
        assert (row["state"], row["reason"]) == ("healthy", "")
    outcomes = running.gateway.metrics.exposition().decode()
    assert 'requests_total{outcome="client_error"} 4.0' in outcomes
    assert 'requests_total{outcome="upstream_error"} 0.0' in outcomes
    assert 'attempts_failed_total{reason="server_error"' not in outcomes
    assert (await post(client, running.url, input="spot"))[0] == 200


async def test_openais_library_takes_too_long_an_input_for_a_bad_request(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.embeddings.create(model="tiny", input=[LONG])
    assert refused.value.code == "context_length_exceeded"
    assert "tokens" in refused.value.message


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ],
)
async def test_what_it_would_answer_with_nonsense_never_reaches_it(
    running: Any, client: aiohttp.ClientSession, path: str, fields: dict[str, Any]
) -> None:
    async with client.post(running.url + path, json={"model": "tiny", **fields}) as answer:
        told = (await answer.json())["error"]
    assert (answer.status, told["code"]) == (400, "wrong_task")
    assert "'tiny' turns texts into numbers" in told["message"]
    assert "ask /v1/embeddings" in told["message"]


async def test_a_provider_of_the_same_model_steps_in_with_the_same_vectors(
    servers: list[LlamaServer], tmp_path: Path
) -> None:
    """Its tokens are counted for it and paid; the route is asked for what else it could not do."""
    usage, spend = tmp_path / "usage.db", tmp_path / "spend.db"
    price = OwnPrice(OwnRates(input="1000"))
    spec = ProviderSpec(
        name="far",
        kind="openai",
        url=servers[1].url,
        usd_per_day_pico=usd("50"),
        prices={"bge": price},
    )
    with running_llama(tmp_path, name="own", task="embed") as own:
        gateway = Routed(
            tmp_path,
            {"embed": []},
            route("vectors", to=[pool("embed", "bge"), api("far", "bge")], task=Task.EMBED),
            gates={"embed": {"served": "bge", "tasks": frozenset({Task.EMBED})}},
            specs=[spec],
            usage_file=usage,
            spend_file=spend,
        )
        await gateway.start()
        try:
            await gateway.put("embed", TargetSpec(id="own", address=own.address))
            asked = {"path": EMBEDDINGS, "input": TEXTS}
            found = [await gateway.ask("vectors", **asked)]
            own.kill()
            found += [await gateway.ask("vectors", **asked) for _ in range(3)]
            chat = await gateway.ask("vectors")
            await gateway.gateway._desk.spend.settled()
        finally:
            await gateway.stop()
    assert [status for status, _, _ in found] == [200] * 4
    backends = [headers["x-orchestrator-backend"] for _, headers, _ in found]
    assert backends == ["embed/bge", "far/bge", "far/bge", "far/bge"]
    answers = [json.loads(text) for _, _, text in found]
    assert {answer["model"] for answer in answers} == {"vectors"}
    for answer in answers[1:]:
        for row, first in zip(answer["data"], answers[0]["data"], strict=True):
            assert row["embedding"] == pytest.approx(first["embedding"], abs=1e-5)
    tokens = answers[0]["usage"]["prompt_tokens"]
    rows = {row.backend: row for row in read_usage(usage, 0, 10**7)}
    assert (rows["pool/embed"].requests, rows["pool/embed"].fresh) == (1, tokens)
    assert (rows["provider/far"].requests, rows["provider/far"].fresh) == (3, 3 * tokens)
    assert {row.output for row in rows.values()} == {0}
    [today] = read_totals(spend, SystemClock().now())
    assert today.amount(provider="far") == 3 * tokens * usd("0.001")
    assert (chat[0], json.loads(chat[2])["error"]["code"]) == (400, "wrong_task")


@pytest.fixture
async def ranking(gateways: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> AsyncIterator[Any]:
    """A gateway in front of a server that ranks."""
    monkeypatch.setattr("llama_servers.MODEL", RANKER)
    with running_llama(tmp_path, words=("--reranking",)) as server:
        target = TargetSpec(id="n", address=server.address)
        yield await gateways(target, tasks={Task.RERANK}, ranking=LLAMACPP.ranking, served="tiny")


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"top_n": 1}, 200, ""),
        ({"top_n": "1"}, 200, ""),
        ({"top_n": 9}, 200, ""),
        ({"top_n": -1}, 200, ""),  # llama.cpp itself would answer 500
        ({"documents": []}, 400, "non-empty string array"),
        ({"documents": [None]}, 400, "non-empty string array"),
        ({"documents": [{"title": "a"}]}, 400, "non-empty string array"),
        ({"documents": None}, 400, "documents"),
        ({"query": 5}, 400, "must be a string"),
        ({"query": None}, 400, "must be a string"),
        ({"documents": ["a " * 20000]}, 400, "exceeds the available context"),
    ],
)
async def test_what_a_ranking_is_asked_wrongly_is_no_nodes_fault(
    ranking: Any, client: aiohttp.ClientSession, given: dict[str, Any], status: int, words: str
) -> None:
    body = {"model": "tiny", "query": "spot", "documents": ["a node", "spot"], **given}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/rerank"):
        async with client.post(ranking.url + path, json=body) as answer:
            told = await answer.json()
        assert answer.status == status, told
        if status == 200:
            most = 1 if str(given["top_n"]) == "1" else 2
            assert [row["index"] for row in told["results"]] == [1, 0][:most]
            assert told["usage"]["prompt_tokens"] > 0
        else:
            assert words in told["error"]["message"]
            assert path != "/v2/rerank" or told["message"] == told["error"]["message"], "where Cohere's look"
    (row,) = (await ranking.targets()).values()
    assert (row["state"], row["reason"]) == ("healthy", "")


async def test_a_ranker_gives_no_vectors_that_are_none(ranking: Any, client: aiohttp.ClientSession) -> None:
    """llama.cpp's would hold nulls; so says the gateway, and asks nobody."""
    status, told = await post(client, ranking.url, input="spot")
    assert (status, told["error"]["code"]) == (400, "wrong_task")
    assert "ask /v1/rerank" in told["error"]["message"]
